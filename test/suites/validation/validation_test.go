// Package validation_test holds every pod that the corpus brings about against the API server's own pod validation. The API
// server would say the same in test/suites/e2e; here it is said without one, pod by pod and before the admission chain has its turn.
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
	_ "k8s.io/kubernetes/pkg/apis/core/install" // conversion and defaults of v1
	"k8s.io/kubernetes/pkg/apis/core/validation"

	"github.com/akv-injector/akv-injector/internal/corpus"
)

// TestCorpus shows that a valid pod stays valid, and that the corpus has no others.
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
				t.Fatalf("the API server refuses the author's own pod:\n%s", strings.Join(errs, "\n"))
			}
			if a.Wanted["patch"]+a.Wanted["pod-patch"] == "" {
				return
			}
			patched++
			object = apply(t, apply(t, object, a.Wanted["patch"]), a.Wanted["pod-patch"])
			if errs := validate(t, podOf(t, object)); len(errs) > 0 {
				t.Errorf("the API server refuses the patched pod:\n%s", strings.Join(errs, "\n"))
			}
		})
	}
	if patched == 0 {
		t.Error("no archive has a patch")
	}
}

// TestSeesAWrongPatch shows that the validation above is awake.
func TestSeesAWrongPatch(t *testing.T) {
	const pod = `{"kind":"Pod","metadata":{"name":"app"},"spec":{"containers":[{"name":"app","image":"i"}]}}`
	for name, test := range map[string]struct{ patch, want string }{
		"a volume that no CSI driver is named for": {
			`{"op":"add","path":"/spec/volumes","value":[{"name":"keyvault","csi":{"readOnly":true}}]}`,
			`spec.volumes[0].csi.driver: Required value`,
		},
		"a mount of no volume": {
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
				t.Errorf("the API server says %q, want one thing that starts with %q", got, test.want)
			}
		})
	}
}

// apply applies a patch, an operation a line.
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

// podOf is the pod that an object is, or that its template makes.
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

// validate is what the API server says of a pod that is created, after it has filled in defaults and a name.
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
