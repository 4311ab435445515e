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

// compare returns the fields of a Deployment's pod that its author wrote or the injector added, as
// YAML. It omits the fields that the API server sets, which it finds by creating a pod of the same
// template without annotations in a dry run.
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
		return nil, fmt.Errorf("create a pod without annotations: %w", err)
	}
	plain.Name = pod.Name
	plain.Annotations = written.Metadata.Annotations // the injector copies these to the pod
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

// sameAsByHand returns an error unless the pod has all fields of by-hand.yaml, and no other
// volumes, mounts and variables.
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
		{len(pod.Spec.Volumes) - 1, len(byHand.Spec.Volumes)}, // without the token volume
		{len(pod.Spec.Containers[0].VolumeMounts) - 1, len(byHand.Spec.Containers[0].VolumeMounts)},
		{len(pod.Spec.Containers[0].Env), len(byHand.Spec.Containers[0].Env)},
	} {
		if count[0] != count[1] {
			return errors.New("the pod must have no more volumes, mounts and variables than by-hand.yaml")
		}
	}
	return nil
}

// podTree returns the parts of a pod that are compared: the spec, and the metadata that people
// write. It omits fields that differ between any two pods.
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

// tree returns an object as decoded JSON, without empty fields.
func tree(object any) (map[string]any, error) {
	data, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("convert to JSON: %w", err)
	}
	var fields map[string]any
	if err := json.Unmarshal(data, &fields); err != nil {
		return nil, fmt.Errorf("convert to JSON: %w", err)
	}
	return fields, nil
}

// contains reports whether tree contains all of part. Lists of named objects may have other
// elements.
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

// named returns the element of a list that has the same name as the object like.
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

// manifest prints the fields that are not in before, and those that are in author. If before is
// nil, the injector added all fields.
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
			// A multi-line value is a block scalar, whose other lines are indented already.
			for i, text := range strings.Split(scalar(value), "\n") {
				if i == 0 {
					text = key + ": " + text
				}
				lines = append(lines, page.Line{Text: indent + text, Added: added})
			}
		}
	}
	return lines
}

func object(value any) map[string]any {
	fields, _ := value.(map[string]any)
	return fields
}

// byImportance sorts image and name before other keys, and the other keys by name.
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
