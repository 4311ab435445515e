package clients_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// patience is the timeout of everything that a test waits for. It allows for a busy machine.
const patience = time.Minute

type annotations = map[string]string

// workload is the manifest of a workload named app.
type workload struct {
	kind string
	// own are annotations of the workload, template those of its pod template. An empty map in
	// template is rendered as "annotations: null", as charts do.
	own, template annotations
	// note is the value of a label that makes two manifests differ outside the request.
	note string
}

func (w workload) manifest() string {
	meta := map[string]any{"labels": map[string]string{"app": "app"}}
	if w.template != nil {
		meta["annotations"] = w.template
	}
	if w.template != nil && len(w.template) == 0 {
		meta["annotations"] = nil
	}
	pod := map[string]any{"containers": []any{map[string]string{"name": "app", "image": "registry.example/app:1"}}}
	version, spec := "apps/v1", map[string]any{
		"selector": map[string]any{"matchLabels": map[string]string{"app": "app"}}, "template": map[string]any{"metadata": meta, "spec": pod},
	}
	switch w.kind {
	case "StatefulSet":
		spec["serviceName"] = "app"
	case "Job", "CronJob":
		version, pod["restartPolicy"] = "batch/v1", "Never"
		delete(spec, "selector")
	}
	if w.kind == "CronJob" {
		spec = map[string]any{"schedule": "0 3 * * *", "jobTemplate": map[string]any{"spec": spec}}
	}
	own := map[string]any{"name": "app", "labels": map[string]string{"note": "n" + w.note}}
	if w.own != nil {
		own["annotations"] = w.own
	}
	text, err := json.MarshalIndent(map[string]any{"apiVersion": version, "kind": w.kind, "metadata": own, "spec": spec}, "", "  ")
	if err != nil {
		panic(err)
	}
	return string(text)
}

// request returns the request of the manifest.
func (w workload) request() annotations {
	r := annotations{}
	maps.Copy(r, w.own)
	maps.Copy(r, w.template)
	return r
}

// live is a workload as the API server stores it.
type live struct {
	// pod is the pod template, as JSON.
	pod string
	// request is the request of a pod of the template.
	request annotations
	// inherited is the template's inherited annotation, should its value computed from the
	// metadata.
	inherited, should string
}

// namespace is a namespace with one workload.
type namespace struct {
	name, kind string
}

// newNamespace creates a namespace that has opted in or not.
func newNamespace(t *testing.T, name, kind string, optedIn bool) namespace {
	t.Helper()
	n := namespace{strings.ToLower(strings.ReplaceAll(name, " ", "-")), kind}
	_, err := client.CoreV1().Namespaces().Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: n.name}}, metav1.CreateOptions{})
	if err == nil {
		err = plane.WaitForServiceAccount(t.Context(), n.name)
	}
	if err != nil {
		t.Fatal(err)
	}
	if optedIn {
		n.optIn(t)
	}
	return n
}

// optIn opts the namespace in, and waits until the API server calls the injector.
func (n namespace) optIn(t *testing.T) {
	t.Helper()
	n.label(t, `"enabled"`)
	n.waitUntilCalled(t, true)
}

// optOut opts the namespace out, and waits until the API server no longer calls the injector.
func (n namespace) optOut(t *testing.T) {
	t.Helper()
	n.label(t, "null")
	n.waitUntilCalled(t, false)
}

func (n namespace) waitUntilCalled(t *testing.T, want bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	// The injector rejects this pod. While the injector is down, the creation fails, too.
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-", Annotations: annotations{"keyvault.io/inject": "perhaps"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
	}
	err := process.Until(ctx, func(ctx context.Context) error {
		_, err := client.CoreV1().Pods(n.name).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if (err != nil) != want {
			return fmt.Errorf("the injector is called: %t, want %t", !want, want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func (n namespace) label(t *testing.T, value string) {
	t.Helper()
	patch := []byte(`{"metadata":{"labels":{"keyvault.io/injection":` + value + `}}}`)
	if _, err := client.CoreV1().Namespaces().Patch(t.Context(), n.name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// kubectl runs kubectl in the namespace.
func (n namespace) kubectl(t *testing.T, args ...string) error {
	t.Helper()
	_, err := output(plane.Kubectl(t.Context(), append(args, "--namespace="+n.name)...))
	return err
}

func (n namespace) read(t *testing.T) live {
	t.Helper()
	text, err := output(plane.Kubectl(t.Context(), "get", n.kind, "app", "--output=json", "--namespace="+n.name))
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Spec struct {
			Template    json.RawMessage `json:"template"`
			JobTemplate json.RawMessage `json:"jobTemplate"`
		} `json:"spec"`
	}
	var w pods.Workload
	if err := errors.Join(json.Unmarshal([]byte(text), &object), pods.Decode([]byte(text), &w)); err != nil {
		t.Fatal(err)
	}
	pod, ok := corpus.Template(&w)
	if !ok {
		t.Fatal("it has no template")
	}
	l := live{
		pod:     string(object.Spec.Template) + string(object.Spec.JobTemplate),
		request: requested(pod.Annotations), should: api.FormatInherited(w.Meta.Annotations),
	}
	if pod.Meta != nil {
		l.inherited = pod.Meta.Annotations[api.Inherited]
	}
	return l
}

// requested returns the annotations that are part of the request.
func requested(all annotations) annotations {
	r := annotations{}
	for key, value := range all {
		if api.IsRequestKey(key) {
			r[key] = value
		}
	}
	return r
}

// waitForRevisions waits until the workload has that many revisions.
func waitForRevisions(t *testing.T, n namespace, want int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := process.Until(ctx, func(ctx context.Context) error {
		list, err := client.AppsV1().ControllerRevisions(n.name).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) != want {
			err = fmt.Errorf("there are %d revisions, want %d", len(list.Items), want)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}
