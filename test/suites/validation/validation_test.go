// Package validation_test checks every pod of the corpus, before and after injection, with the pod
// validation of the API server. It needs no API server, and runs no other admission plugin.
// test/suites/e2e sends the same pods to a real API server.
package validation_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // registers conversion and defaults of v1
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"github.com/akv-injector/akv-injector/internal/corpus"
)

// TestCorpus checks that the pods of the corpus are valid before and after injection.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	patched := 0
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			object := corpus.JSON(a.Subject)
			if errs := validate(t, podOf(t, object)); len(errs) > 0 {
				t.Fatalf("validation rejects the author's pod:\n%s", strings.Join(errs, "\n"))
			}
			if a.Wanted["patch"]+a.Wanted["pod-patch"] == "" {
				return
			}
			patched++
			object = apply(t, apply(t, object, a.Wanted["patch"]), a.Wanted["pod-patch"])
			if errs := validate(t, podOf(t, object)); len(errs) > 0 {
				t.Errorf("validation rejects the patched pod:\n%s", strings.Join(errs, "\n"))
			}
		})
	}
	if patched == 0 {
		t.Error("no archive has a patch")
	}
}

// TestSeesAWrongPatch checks that the validation detects wrong patches.
func TestSeesAWrongPatch(t *testing.T) {
	const pod = `{"kind":"Pod","metadata":{"name":"app"},"spec":{"containers":[{"name":"app","image":"i"}]}}`
	for name, test := range map[string]struct{ patch, want string }{
		"a CSI volume without a driver": {
			`{"op":"add","path":"/spec/volumes","value":[{"name":"keyvault","csi":{"readOnly":true}}]}`,
			`spec.volumes[0].csi.driver: Required value`,
		},
		"a mount of a missing volume": {
			`{"op":"add","path":"/spec/containers/0/volumeMounts","value":[{"name":"keyvault","mountPath":"/mnt/secrets-store"}]}`,
			`spec.containers[0].volumeMounts[0].name: Not found: "keyvault"`,
		},
		"a label value that is too long": {
			`{"op":"add","path":"/metadata/labels","value":{"aadpodidbinding":"` + strings.Repeat("x", 64) + `"}}`,
			`metadata.labels: Invalid value`,
		},
		"an env var from a Secret without a name": {
			`{"op":"add","path":"/spec/containers/0/env","value":[{"name":"A","valueFrom":{"secretKeyRef":{"key":"k"}}}]}`,
			`spec.containers[0].env[0].valueFrom.secretKeyRef.name: Invalid value`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := validate(t, podOf(t, apply(t, []byte(pod), test.patch)))
			if len(got) != 1 || !strings.HasPrefix(got[0], test.want) {
				t.Errorf("validation says %q, want one error that starts with %q", got, test.want)
			}
		})
	}
}

// apply applies a JSON Patch that has one operation in each line.
func apply(t *testing.T, object []byte, lines string) []byte {
	t.Helper()
	if lines == "" {
		return object
	}
	patched, err := corpus.ApplyText(object, []byte("["+strings.ReplaceAll(strings.TrimSpace(lines), "\n", ",")+"]"))
	if err != nil {
		t.Fatal(err)
	}
	return patched
}

// podOf returns the pod in an object, or in its pod template.
func podOf(t *testing.T, object []byte) *corev1.Pod {
	t.Helper()
	var u unstructured.Unstructured
	if err := json.Unmarshal(object, &u.Object); err != nil {
		t.Fatal(err)
	}
	at := map[string][]string{"Pod": {}, "CronJob": {"spec", "jobTemplate", "spec", "template"}}
	fields, ok := at[u.GetKind()]
	if !ok {
		fields = []string{"spec", "template"}
	}
	content, found, err := unstructured.NestedFieldNoCopy(u.Object, fields...)
	if err != nil || !found {
		t.Fatalf("a %s has no pod at %s: %v", u.GetKind(), strings.Join(fields, "."), err)
	}
	text, err := json.Marshal(content)
	if err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		t.Fatal(err)
	}
	return &pod
}

// validate returns the errors of pod validation for a create, after defaults and a name are filled
// in.
func validate(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	pod.Namespace = corpus.DefaultNamespace
	if pod.Name == "" {
		pod.Name = pod.GenerateName + "x2b9z"
	}
	legacyscheme.Scheme.Default(pod)
	var internal core.Pod
	if err := legacyscheme.Scheme.Convert(pod, &internal, nil); err != nil {
		t.Fatal(fmt.Errorf("convert pod: %w", err))
	}
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&internal.Spec, nil, &internal.ObjectMeta, nil)
	options.ResourceIsPod = true
	return messages(validation.ValidatePodCreate(&internal, options))
}

func messages(errs field.ErrorList) []string {
	var texts []string
	for _, err := range errs {
		texts = append(texts, err.Error())
	}
	return texts
}
