package corpus_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// TestLaws checks every patch of the archives by the laws, and compares it with the same change of
// the decoded pod.
func TestLaws(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			source, err := a.Facts()
			if err != nil {
				t.Fatal(err)
			}
			object := corpus.JSON(a.Subject)
			if a.IsPod() {
				checkLaws(t, object, patchPod(t.Context(), source, a.Namespace()))
				return
			}
			var old []byte
			if a.Old != nil {
				old = corpus.JSON(a.Old)
			}
			checkLaws(t, object, patchWorkload(t.Context(), source, old, a.Namespace()))
			if handed, err := patchWorkload(t.Context(), source, old, a.Namespace())(object); err != nil {
				t.Fatal(err)
			} else if object, err = corpus.Apply(object, handed); err != nil {
				t.Fatal(err)
			}
			checkLaws(t, object, patchTemplate(t.Context(), source, a.Namespace()))
		})
	}
}

// patcher reviews an object and returns its patch.
type patcher func(object []byte) ([]jsonpatch.Operation, error)

func checkLaws(t *testing.T, object []byte, patch patcher) {
	t.Helper()
	operations, err := patch(object)
	if err != nil {
		t.Fatal(err)
	}
	if err := corpus.CheckLaws(object, operations, patch); err != nil {
		t.Errorf("%v\nof the patch:\n%s", err, corpus.Operations(operations))
	}
}

// TestWhatIsSkipped shows that no decision depends on a field that is not read: without these
// fields, each archive has the same results.
func TestWhatIsSkipped(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			for _, object := range []*unstructured.Unstructured{a.Subject, a.Old} {
				if object == nil {
					continue
				}
				pruned, err := corpus.Prune(corpus.JSON(object))
				if err != nil {
					t.Fatal(err)
				}
				namespace := object.GetNamespace() // the namespace is in the request
				if err := object.UnmarshalJSON(pruned); err != nil {
					t.Fatal(err)
				}
				object.SetNamespace(namespace)
			}
			got, err := a.Review(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(a.Wanted, got); diff != "" {
				t.Errorf("Review differs (-whole +pruned):\n%s", diff)
			}
		})
	}
}

func patchPod(ctx context.Context, source facts.Source, namespace string) patcher {
	return func(text []byte) ([]jsonpatch.Operation, error) {
		var pod pods.Pod
		if err := pods.Decode(text, &pod); err != nil {
			return nil, err
		}
		operations, err := patchOf(ctx, source, pods.SubjectOf(&pod), namespace, text)
		return operations, errors.Join(err, unmodified(text, &pod, new(pods.Pod)))
	}
}

// patchTemplate reviews the pod template of a workload.
func patchTemplate(ctx context.Context, source facts.Source, namespace string) patcher {
	return func(text []byte) ([]jsonpatch.Operation, error) {
		var w pods.Workload
		if err := pods.Decode(text, &w); err != nil {
			return nil, err
		}
		subject, ok := corpus.Template(&w)
		if !ok {
			return nil, nil
		}
		operations, err := patchOf(ctx, source, subject, namespace, text)
		return operations, errors.Join(err, unmodified(text, &w, new(pods.Workload)))
	}
}

// patchOf reviews a subject. It checks that the patch has the same result as the change of the
// decoded pod.
func patchOf(ctx context.Context, source facts.Source, subject pods.Subject, namespace string, text []byte) ([]jsonpatch.Operation, error) {
	result, err := review.Reviewer{Source: source}.Inject(ctx, subject, namespace)
	if err != nil {
		return nil, err
	}
	operations := result.Change.Operations(&subject)
	patched, err := corpus.Apply(text, operations)
	if err != nil {
		return nil, err
	}
	got, err := corpus.PodOf(patched)
	if err != nil {
		return nil, err
	}
	want, err := corpus.PodOf(text)
	if err != nil {
		return nil, err
	}
	want.Mutate(&result.Change)
	if diff := cmp.Diff(want, got); diff != "" {
		return nil, fmt.Errorf("the patch differs from the change of the decoded object (-change +patch):\n%s", diff)
	}
	return operations, corpus.CheckOutline(ctx, source, got, namespace, inject.Defaults{}, &result)
}

func patchWorkload(ctx context.Context, source facts.Source, old []byte, namespace string) patcher {
	return func(text []byte) ([]jsonpatch.Operation, error) {
		var w pods.Workload
		if err := pods.Decode(text, &w); err != nil {
			return nil, err
		}
		var before *pods.Workload
		if old != nil {
			before = &pods.Workload{}
			if err := pods.Decode(old, before); err != nil {
				return nil, err
			}
		}
		verdict, err := review.Reviewer{Source: source}.Workload(ctx, &w, before, namespace)
		if err != nil {
			return nil, err
		}
		if old != nil {
			err = unmodified(old, before, new(pods.Workload))
		}
		return verdict.Operations, errors.Join(err, unmodified(text, &w, new(pods.Workload)))
	}
}

// unmodified decodes text into fresh, and compares it with the object that was decoded before the
// review.
func unmodified[T interface{ Read(*jsonstream.Reader) }](text []byte, decoded, fresh T) error {
	if err := pods.Decode(text, fresh); err != nil {
		return err
	}
	if diff := cmp.Diff(fresh, decoded); diff != "" {
		return fmt.Errorf("the review modified its input (-before +after):\n%s", diff)
	}
	return nil
}

// authored is a pod with a value in every field that a patch may touch.
const authored = `{"metadata":{"name":"p","labels":{"app":"a"},"annotations":{"note":"n","keyvault.io/status":"forged"}},"spec":{"serviceAccountName":"default",
	"containers":[{"name":"app","image":"i","env":[{"name":"A","value":"1"},{"name":"B","value":"$(A)"}],"volumeMounts":[{"name":"data","mountPath":"/data"}]}],
	"volumes":[{"name":"data","emptyDir":{}}]}}`

const annotatedWorkload = `{"kind":"Deployment","metadata":{"name":"d","annotations":{"keyvault.io/vault":"new"}},"spec":{"template":{
	"metadata":{"annotations":{"keyvault.io/vault":"old","keyvault.io/inherited":"keyvault.io/vault=\"new\"","note":"n"}},"spec":{"containers":[{"name":"app"}]}}}}`

const (
	addVolume = `{"op":"add","path":"/spec/volumes/-","value":{"name":"keyvault","csi":{"driver":"secrets-store.csi.k8s.io","readOnly":true,"volumeAttributes":{"secretProviderClass":"c"}}}}`
	addMount  = `{"op":"add","path":"/spec/containers/0/volumeMounts/-","value":{"name":"keyvault","mountPath":"/mnt/secrets-store","readOnly":true}}`
	envValue  = `{"name":"A","valueFrom":{"secretKeyRef":{"name":"s","key":"k"}}}`
)

func TestCheckLaws(t *testing.T) {
	for name, test := range map[string]struct {
		object string
		patch  []string
		again  string // an operation of the second review
		want   string // part of the error; empty for none
	}{
		"volume, mount, env var, label and status":    {patch: []string{addVolume, addMount, `{"op":"add","path":"/spec/containers/0/env/0","value":` + envValue + `}`, `{"op":"add","path":"/metadata/labels/keyvault.io~1injected","value":"true"}`, `{"op":"replace","path":"/metadata/annotations/keyvault.io~1status","value":"{}"}`}},
		"an env var overridden":                       {patch: []string{addVolume, addMount, `{"op":"replace","path":"/spec/containers/0/env/0","value":` + envValue + `}`}},
		"a name for the default ServiceAccount":       {patch: []string{`{"op":"replace","path":"/spec/serviceAccountName","value":"sa"}`}},
		"an env var behind the author's":              {patch: []string{addVolume, addMount, `{"op":"add","path":"/spec/containers/0/env/2","value":` + envValue + `}`}},
		"a pointer to nowhere":                        {patch: []string{`{"op":"add","path":"/metadata/nowhere/x","value":"y"}`}, want: "apply patch"},
		"a slash not escaped":                         {patch: []string{`{"op":"add","path":"/metadata/labels/keyvault.io/injected","value":"true"}`}, want: "apply patch"},
		"a map in place of the author's":              {patch: []string{`{"op":"add","path":"/metadata/labels","value":{"keyvault.io/injected":"true"}}`}, want: "/metadata/labels/app"},
		"an annotation in place of the author's":      {patch: []string{`{"op":"add","path":"/metadata/annotations/note","value":"mine"}`}, want: "/metadata/annotations/note"},
		"volumes in place of the author's":            {patch: []string{strings.Replace(strings.Replace(strings.Replace(addVolume, "/-", "", 1), `{"name"`, `[{"name"`, 1), `}}}}`, `}}}]}`, 1)}, want: "/spec/volumes/0"},
		"a label replaced":                            {patch: []string{`{"op":"replace","path":"/metadata/labels/app","value":"b"}`}, want: "must not be replaced"},
		"a label removed":                             {patch: []string{`{"op":"remove","path":"/metadata/labels/app"}`}, want: "is not allowed"},
		"an annotation of ours removed from a pod":    {patch: []string{`{"op":"remove","path":"/metadata/annotations/keyvault.io~1status"}`}, want: "is not allowed"},
		"a chosen ServiceAccount replaced":            {object: `{"metadata":{},"spec":{"serviceAccountName":"mine"}}`, patch: []string{`{"op":"replace","path":"/spec/serviceAccountName","value":"sa"}`}, want: "must not be replaced"},
		"a chosen ServiceAccount added over":          {object: `{"metadata":{},"spec":{"serviceAccountName":"mine"}}`, patch: []string{`{"op":"add","path":"/spec/serviceAccountName","value":"sa"}`}, want: "must be a replacement"},
		"an image replaced":                           {patch: []string{`{"op":"replace","path":"/spec/containers/0/image","value":"evil"}`}, want: "must not be replaced"},
		"a container added":                           {patch: []string{`{"op":"add","path":"/spec/containers/1","value":{"name":"x"}}`}, want: "must not be added"},
		"an env var replaced by one of another name":  {patch: []string{addVolume, addMount, `{"op":"replace","path":"/spec/containers/0/env/1","value":` + envValue + `}`}, want: "must have the name"},
		"an env var with a value":                     {patch: []string{addVolume, addMount, `{"op":"add","path":"/spec/containers/0/env/0","value":{"name":"C","value":"v"}}`}, want: "must come from a Secret's key"},
		"an env var without a mount":                  {patch: []string{`{"op":"add","path":"/spec/containers/0/env/0","value":` + envValue + `}`}, want: "must mount a class"},
		"a mount that is writable":                    {patch: []string{addVolume, strings.Replace(addMount, `,"readOnly":true`, "", 1)}, want: "must be read-only"},
		"a mount of a volume of the author's":         {patch: []string{strings.Replace(addMount, "keyvault", "data", 1)}, want: "volume of the driver"},
		"a volume that is writable":                   {patch: []string{strings.Replace(addVolume, `"readOnly":true,`, "", 1)}, want: "read-only"},
		"a volume of the host":                        {patch: []string{`{"op":"add","path":"/spec/volumes/-","value":{"name":"h","hostPath":{"path":"/"}}}`}, want: "must be the driver's"},
		"a volume with another attribute":             {patch: []string{strings.Replace(addVolume, `"secretProviderClass":"c"`, `"secretProviderClass":"c","keyvaultName":"x"`, 1)}, want: "no other attribute"},
		"a seccomp annotation that changes the level": {object: `{"metadata":{"annotations":{"a":"b"}},"spec":{"containers":[{"name":"app"}]}}`, patch: []string{`{"op":"add","path":"/metadata/annotations/container.apparmor.security.beta.kubernetes.io~1app","value":"unconfined"}`}, want: "pod security"},
		"a second review with a patch":                {patch: []string{addVolume}, again: addMount, want: "patches again"},
		"a template that inherits something else":     {object: annotatedWorkload, patch: []string{`{"op":"replace","path":"/spec/template/metadata/annotations/keyvault.io~1inherited","value":"x"}`}},
		"a template that inherits no more":            {object: annotatedWorkload, patch: []string{`{"op":"remove","path":"/spec/template/metadata/annotations/keyvault.io~1inherited"}`}},
		"a template's annotation replaced":            {object: annotatedWorkload, patch: []string{`{"op":"replace","path":"/spec/template/metadata/annotations/keyvault.io~1vault","value":"new"}`}, want: "must not be replaced"},
		"a template's foreign annotation removed":     {object: annotatedWorkload, patch: []string{`{"op":"remove","path":"/spec/template/metadata/annotations/note"}`}, want: "is not allowed"},
		"a template's annotation removed":             {object: annotatedWorkload, patch: []string{`{"op":"remove","path":"/spec/template/metadata/annotations/keyvault.io~1vault"}`}, want: "is not allowed"},
		"an annotation of the workload itself":        {object: annotatedWorkload, patch: []string{`{"op":"add","path":"/metadata/annotations/keyvault.io~1status","value":"{}"}`}, want: "must be below /spec/template"},
	} {
		t.Run(name, func(t *testing.T) {
			object := test.object
			if object == "" {
				object = authored
			}
			again := func([]byte) ([]jsonpatch.Operation, error) { return nil, nil }
			if test.again != "" {
				again = func([]byte) ([]jsonpatch.Operation, error) { return operations(t, test.again), nil }
			}
			err := corpus.CheckLaws([]byte(object), operations(t, test.patch...), again)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Errorf("CheckLaws returned %v, want %q", err, test.want)
			}
		})
	}
}

func operations(t *testing.T, texts ...string) []jsonpatch.Operation {
	t.Helper()
	list := make([]jsonpatch.Operation, len(texts))
	for i, text := range texts {
		if err := json.Unmarshal([]byte(text), &list[i]); err != nil {
			t.Fatal(err)
		}
	}
	return list
}
