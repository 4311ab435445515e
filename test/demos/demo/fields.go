package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/test/harness/page"
)

// compare returns those fields of a Deployment's pod that its author wrote or the injector added, as YAML. What else the
// API server sets is found by asking it for a pod of the same template without annotations.
func (d *demo) compare(ctx context.Context, deployment []byte, pod *corev1.Pod) ([]page.Line, error) {
	var written struct {
		Metadata metav1.ObjectMeta `json:"metadata"`
		Spec     struct {
			Template map[string]any `json:"template"`
		} `json:"spec"`
	}
	if err := yaml.Unmarshal(deployment, &written); err != nil {
		return nil, fmt.Errorf("read the Deployment: %w", err)
	}
	plain := &corev1.Pod{}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(written.Spec.Template, plain); err != nil {
		return nil, fmt.Errorf("read the Deployment's template: %w", err)
	}
	plain.GenerateName = "plain-"
	plain, err := d.client.CoreV1().Pods(metav1.NamespaceDefault).Create(ctx, plain, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil {
		return nil, fmt.Errorf("ask for a pod without annotations: %w", err)
	}
	plain.Name = pod.Name
	plain.Annotations = written.Metadata.Annotations // the injector only hands these down
	author := written.Spec.Template
	author["metadata"], err = tree(metav1.ObjectMeta{Name: plain.Name, Annotations: plain.Annotations, Labels: plain.Labels})
	if err != nil {
		return nil, err
	}
	has, err := podTree(pod)
	if err != nil {
		return nil, err
	}
	had, err := podTree(plain)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]page.Line{{Text: "apiVersion: v1"}, {Text: "kind: Pod"}}, manifest(has, had, author, "")), nil
}

// sameAsByHand is an error unless the pod has each field of the pod that people write by hand, and nothing more of the kind.
func (d *demo) sameAsByHand(pod *corev1.Pod) error {
	written, err := manifests.ReadFile("by-hand.yaml")
	if err != nil {
		return err
	}
	byHand := &corev1.Pod{}
	if err := yaml.UnmarshalStrict(written, byHand); err != nil {
		return fmt.Errorf("read by-hand.yaml: %w", err)
	}
	want, err := podTree(byHand)
	if err != nil {
		return err
	}
	has, err := podTree(pod)
	if err != nil {
		return err
	}
	if !contains(has, want) {
		return errors.New("the pod must have each field of by-hand.yaml")
	}
	for _, count := range [][2]int{
		{len(pod.Spec.Volumes) - 1, len(byHand.Spec.Volumes)}, // the token's
		{len(pod.Spec.Containers[0].VolumeMounts) - 1, len(byHand.Spec.Containers[0].VolumeMounts)},
		{len(pod.Spec.Containers[0].Env), len(byHand.Spec.Containers[0].Env)},
	} {
		if count[0] != count[1] {
			return errors.New("the pod must have no more volumes, mounts and variables than by-hand.yaml")
		}
	}
	return nil
}

// podTree is what is compared of a pod: metadata that people write and spec, without what differs between any two pods.
func podTree(pod *corev1.Pod) (map[string]any, error) {
	pod = pod.DeepCopy()
	pod.ObjectMeta = metav1.ObjectMeta{Name: pod.Name, Annotations: pod.Annotations, Labels: pod.Labels}
	delete(pod.Labels, "pod-template-hash")
	isToken := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return isToken(v.Name) })
	for i := range pod.Spec.Containers {
		c := &pod.Spec.Containers[i]
		c.VolumeMounts = slices.DeleteFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool { return isToken(m.Name) })
	}
	metadata, err := tree(pod.ObjectMeta)
	if err != nil {
		return nil, err
	}
	spec, err := tree(pod.Spec)
	if err != nil {
		return nil, err
	}
	return map[string]any{"metadata": metadata, "spec": spec}, nil
}

// tree is an object as JSON has it, without its empty fields.
func tree(object any) (map[string]any, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("take apart: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("take apart: %w", err)
	}
	return fields, nil
}

// contains tells whether tree has all of part. Lists of named objects may have others besides.
func contains(tree, part any) bool {
	switch part := part.(type) {
	case map[string]any:
		fields, ok := tree.(map[string]any)
		if !ok {
			return false
		}
		for key, value := range part {
			if !contains(fields[key], value) {
				return false
			}
		}
		return true
	case []any:
		for _, element := range part {
			if !contains(named(tree, element), element) {
				return false
			}
		}
		return true
	case nil:
		return true
	}
	return reflect.DeepEqual(tree, part)
}

// named is the element of a list that has the name of another.
func named(list, like any) any {
	elements, _ := list.([]any)
	object, _ := like.(map[string]any)
	for _, element := range elements {
		if fields, ok := element.(map[string]any); ok && fields["name"] == object["name"] {
			return element
		}
	}
	return nil
}

// manifest prints those fields that were not there before, and those that their author wrote. Nil before means that the
// injector added all.
func manifest(fields, before, author map[string]any, indent string) []page.Line {
	var lines []page.Line
	for _, key := range slices.SortedFunc(maps.Keys(fields), byImportance) {
		value := fields[key]
		was, there := before[key]
		wrote, written := author[key]
		added := !there
		if !added && !written {
			continue
		}
		switch value := value.(type) {
		case map[string]any:
			lines = append(lines, page.Line{Text: indent + key + ":", Added: added})
			lines = append(lines, manifest(value, object(was), object(wrote), indent+"  ")...)
		case []any:
			lines = append(lines, page.Line{Text: indent + key + ":", Added: added})
			for _, element := range value {
				was := named(was, element)
				item := manifest(object(element), object(was), object(named(wrote, element)), indent+"  ")
				item[0].Text = indent + "- " + strings.TrimPrefix(item[0].Text, indent+"  ")
				lines = append(lines, item...)
			}
		default:
			lines = append(lines, page.Line{Text: indent + key + ": " + scalar(value), Added: added})
		}
	}
	return lines
}

func object(value any) map[string]any {
	fields, _ := value.(map[string]any)
	return fields
}

// byImportance sorts as people write: what a thing is called first.
func byImportance(a, b string) int {
	first := []string{"image", "name"}
	return cmp.Or(-cmp.Compare(slices.Index(first, a), slices.Index(first, b)), cmp.Compare(a, b))
}

func scalar(value any) string {
	text, err := yaml.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return strings.TrimSpace(string(text))
}
