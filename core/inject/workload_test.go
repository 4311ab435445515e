package inject_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

type annotations = map[string]string

// workload returns a Deployment with its own annotations and those of its template.
func workload(own, template annotations) *pods.Workload {
	return &pods.Workload{Kind: "Deployment", Meta: *meta(own), Template: &pods.Pod{Meta: meta(template), Spec: pods.Spec{Containers: []pods.Container{{Name: "app"}}}}}
}

// meta returns metadata with these annotations.
func meta(a annotations) *pods.Meta {
	return &pods.Meta{Annotations: a, HasAnnotations: len(a) > 0}
}

func TestHandDown(t *testing.T) {
	const pointer = `"path":"/spec/template/metadata/annotations/keyvault.io~1inherited"`
	for behaviour, test := range map[string]struct {
		own, template annotations
		want          []string // operations
		effective     annotations
		warned        bool
		silent        bool // nothing is requested
	}{
		"nothing to hand down": {own: annotations{"note": "n"}, template: annotations{"note": "m"}, effective: annotations{"note": "m"}, silent: true},
		"to a template without annotations": {
			own:       annotations{api.Vault: "kv1", "note": "n"},
			want:      []string{`{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/inherited":"keyvault.io/vault=\"kv1\""}}`},
			effective: annotations{api.Vault: "kv1"},
		},
		"several, in the order of the keys": {
			own: annotations{api.Vault: "kv1", api.IdentityName: "a"}, template: annotations{"note": "n"},
			want:      []string{`{"op":"add",` + pointer + `,"value":"identity.io/name=\"a\"\nkeyvault.io/vault=\"kv1\""}`},
			effective: annotations{api.Vault: "kv1", api.IdentityName: "a", "note": "n"},
		},
		"a value that the template also has": {
			own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "kv1"},
			want:      []string{`{"op":"add",` + pointer + `,"value":"keyvault.io/vault=\"kv1\""}`},
			effective: annotations{api.Vault: "kv1"},
		},
		"the template's own value is effective": {
			own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "kv2"},
			want:      []string{`{"op":"add",` + pointer + `,"value":"keyvault.io/vault=\"kv1\""}`},
			effective: annotations{api.Vault: "kv2"}, warned: true,
		},
		"even if it is empty": {
			own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "", api.Inherited: `keyvault.io/vault="kv1"`},
			effective: annotations{api.Vault: ""}, warned: true,
		},
		"an empty value": {
			own: annotations{api.Vault: ""}, template: annotations{"note": "n"},
			want:      []string{`{"op":"add",` + pointer + `,"value":"keyvault.io/vault=\"\""}`},
			effective: annotations{api.Vault: "", "note": "n"},
		},
		"a changed value of the workload": {
			own: annotations{api.Vault: "kv2"}, template: annotations{api.Inherited: `keyvault.io/vault="kv1"`},
			want:      []string{`{"op":"replace",` + pointer + `,"value":"keyvault.io/vault=\"kv2\""}`},
			effective: annotations{api.Vault: "kv2"},
		},
		"the last annotation of the workload is removed": {
			template:  annotations{api.Inherited: `keyvault.io/vault="kv1"`, api.Env: "auto"},
			want:      []string{`{"op":"remove",` + pointer + `}`},
			effective: annotations{api.Env: "auto"},
		},
		"a malformed inherited annotation is removed": {
			template: annotations{api.Inherited: "nonsense"},
			want:     []string{`{"op":"remove",` + pointer + `}`},
			silent:   true,
		},
		"no change": {own: annotations{api.Vault: "kv1"}, template: annotations{api.Inherited: `keyvault.io/vault="kv1"`}, effective: annotations{api.Vault: "kv1"}},
		"no status": {own: annotations{api.Status: "{}"}, silent: true},
		"an unknown key is checked, and not handed down": {own: annotations{"keyvault.io/secret": "a"}, effective: annotations{"keyvault.io/secret": "a"}},
		"nor is an inherited annotation of the workload": {own: annotations{api.Inherited: "a"}, effective: annotations{api.Inherited: "a"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			w, untouched := workload(test.own, test.template), workload(test.own, test.template)
			h, ok := inject.HandDown(w)
			if !ok {
				t.Fatal("HandDown finds no template")
			}
			want := ""
			if len(test.want) > 0 {
				want = strings.Join(test.want, "\n") + "\n"
			}
			if diff := cmp.Diff(want, corpus.Operations(h.Operations(nil))); diff != "" {
				t.Errorf("operations differ (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.effective, h.Subject.Annotations, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("effective annotations differ (-want +got):\n%s", diff)
			}
			if warned := len(h.Warnings) > 0; warned != test.warned {
				t.Errorf("warnings are %v", h.Warnings)
			}
			if h.Requested == test.silent {
				t.Errorf("requested is %t", h.Requested)
			}
			if diff := cmp.Diff(untouched, w); diff != "" {
				t.Errorf("the workload is modified (-before +after):\n%s", diff)
			}
			// A pod of the template has the same request, and another review of the
			// workload changes nothing.
			if !strings.Contains(behaviour, "checked") && test.own[api.Inherited] == "" {
				if diff := cmp.Diff(test.effective, pods.SubjectOf(h.Template()).Annotations, cmpopts.EquateEmpty()); diff != "" {
					t.Errorf("a pod's annotations differ (-want +got):\n%s", diff)
				}
			}
			w.Template = h.Template()
			if again, _ := inject.HandDown(w); len(again.Operations(nil)) > 0 {
				t.Errorf("a second review changes %s", corpus.Operations(again.Operations(nil)))
			}
		})
	}
}

func TestHandDownTo(t *testing.T) {
	const value = `{"keyvault.io/inherited":"keyvault.io/vault=\"kv1\""}}`
	owner := pods.Owner{Kind: "Deployment", Name: "d"}
	for behaviour, test := range map[string]struct {
		change func(w *pods.Workload)
		want   string // the only operation; empty for none
	}{
		"a Deployment's template":            {func(*pods.Workload) {}, `{"op":"add","path":"/spec/template/metadata/annotations","value":` + value},
		"a CronJob's template, further down": {func(w *pods.Workload) { w.JobTemplate, w.Template = w.Template, nil }, `{"op":"add","path":"/spec/jobTemplate/spec/template/metadata/annotations","value":` + value},
		"a ReplicaSet without a controller":  {func(w *pods.Workload) { w.Kind = "ReplicaSet" }, `{"op":"add","path":"/spec/template/metadata/annotations","value":` + value},
		"no ReplicaSet of a Deployment":      {func(w *pods.Workload) { w.Kind, w.Meta.Controller = "ReplicaSet", &owner }, ""},
		"no Job of a CronJob":                {func(w *pods.Workload) { w.Kind, w.Meta.Controller = "Job", &owner }, ""},
		"no template":                        {func(w *pods.Workload) { w.Template = nil }, ""},
	} {
		t.Run(behaviour, func(t *testing.T) {
			w := workload(annotations{api.Vault: "kv1"}, nil)
			test.change(w)
			h, ok := inject.HandDown(w)
			if ok != (test.want != "") {
				t.Fatalf("HandDown returned %t", ok)
			}
			if ok && strings.TrimSpace(corpus.Operations(h.Operations(nil))) != test.want {
				t.Errorf("operations are %s, want %s", corpus.Operations(h.Operations(nil)), test.want)
			}
		})
	}
}

func TestHandDownToTemplateWithoutMetadata(t *testing.T) {
	w := workload(annotations{api.Vault: "kv1"}, nil)
	w.Template.Meta = nil
	h, _ := inject.HandDown(w)
	want := `{"op":"add","path":"/spec/template/metadata","value":{}}` + "\n" +
		`{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/inherited":"keyvault.io/vault=\"kv1\""}}` + "\n"
	if diff := cmp.Diff(want, corpus.Operations(h.Operations(nil))); diff != "" {
		t.Errorf("operations differ (-want +got):\n%s", diff)
	}
}

// TestRestore has updates of Jobs, whose templates are immutable.
func TestRestore(t *testing.T) {
	const inherited = `keyvault.io/vault="kv1"`
	for behaviour, test := range map[string]struct {
		template, old annotations
		want          string
	}{
		"removed":                     {nil, annotations{api.Inherited: inherited}, `{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/inherited":"keyvault.io/vault=\"kv1\""}}`},
		"changed":                     {annotations{api.Inherited: "a"}, annotations{api.Inherited: inherited}, `{"op":"replace","path":"/spec/template/metadata/annotations/keyvault.io~1inherited","value":"keyvault.io/vault=\"kv1\""}`},
		"the same":                    {annotations{api.Inherited: inherited}, annotations{api.Inherited: inherited}, ""},
		"never set":                   {annotations{api.Vault: "kv1"}, nil, ""},
		"added: the API server's job": {annotations{api.Inherited: inherited}, nil, ""},
	} {
		t.Run(behaviour, func(t *testing.T) {
			got := strings.TrimSpace(corpus.Operations(inject.Restore(workload(nil, test.template), workload(nil, test.old))))
			if got != test.want {
				t.Errorf("operations are %s, want %s", got, test.want)
			}
		})
	}
}

// TestAnnotationPath shows the paths of annotations in messages.
func TestAnnotationPath(t *testing.T) {
	w := workload(annotations{api.Vault: "kv1", api.Env: "auto", "keyvault.io/secret": "a"}, annotations{api.Env: "explicit", api.IdentityName: "a"})
	h, _ := inject.HandDown(w)
	for key, want := range map[string]string{
		api.Vault:            "metadata.annotations[keyvault.io/vault]",                   // handed down
		api.Env:              "spec.template.metadata.annotations[keyvault.io/env]",       // the template's own value is effective
		api.IdentityName:     "spec.template.metadata.annotations[identity.io/name]",      // only on the template
		"keyvault.io/secret": "metadata.annotations[keyvault.io/secret]",                  // unknown, on the workload
		api.IdentityTenantID: "spec.template.metadata.annotations[identity.io/tenant-id]", // not set
	} {
		if got := h.Subject.AnnotationPathOf(key).String(); got != want {
			t.Errorf("%s is at %s, want %s", key, got, want)
		}
	}
}

func TestSameRequest(t *testing.T) {
	for behaviour, test := range map[string]struct {
		own, template, oldOwn, oldTemplate annotations
		want                               bool
	}{
		"no annotations":              {want: true},
		"the same annotations":        {own: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv1"}, template: annotations{api.Env: "auto"}, oldTemplate: annotations{api.Env: "auto"}, want: true},
		"foreign ones do not count":   {own: annotations{api.Vault: "kv1", "note": "a"}, oldOwn: annotations{api.Vault: "kv1"}, template: annotations{"note": "b"}, want: true},
		"nor does what is injected":   {template: annotations{api.Status: "{}", api.Inherited: "a"}, want: true},
		"a value changed":             {own: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv2"}},
		"a key removed":               {oldOwn: annotations{api.Vault: "kv2"}},
		"a key added":                 {template: annotations{api.Vault: "kv2"}},
		"an empty value added":        {template: annotations{api.Vault: ""}},
		"a misspelt key added":        {own: annotations{"keyvault.io/secret": "a"}},
		"a key moved to the template": {template: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv1"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := inject.SameRequest(workload(test.own, test.template), workload(test.oldOwn, test.oldTemplate)); got != test.want {
				t.Errorf("SameRequest is %t", got)
			}
		})
	}
}

// TestRestartedFor has the annotations of rotation before and after an update. Each text is that of
// the workload and that of its template, with - for none.
func TestRestartedFor(t *testing.T) {
	pair := func(text string) *pods.Workload {
		own, template, _ := strings.Cut(text, " ")
		of := func(value string) annotations {
			if value == "-" {
				return annotations{"other": "x"}
			}
			return annotations{"other": "x", api.RestartedFor: value}
		}
		return workload(of(own), of(template))
	}
	for behaviour, test := range map[string]struct{ old, now, want string }{
		"nothing":                               {"- -", "- -", "- -"},
		"the first look":                        {"- -", "v1 -", "v1 -"},
		"a restart":                             {"v1 -", "v2 v2", "v2 v2"},
		"another restart":                       {"v2 v2", "v3 v3", "v3 v3"},
		"pods that already have the version":    {"v2 v2", "v3 v2", "v3 v2"},
		"an update of something else":           {"v2 v2", "v2 v2", "v2 v2"},
		"an update without the annotations":     {"v2 v2", "- -", "v2 v2"},
		"an update without the template's":      {"v2 v2", "v2 -", "v2 v2"},
		"an update without the workload's":      {"v2 v2", "- v2", "v2 v2"},
		"an undo":                               {"v3 v3", "v3 v2", "v3 v3"},
		"an undo to before the first restart":   {"v2 v2", "v2 -", "v2 v2"},
		"a value of a user":                     {"v2 v2", "v2 x", "v2 v2"},
		"different values of a user":            {"v2 v2", "x y", "v2 v2"},
		"a removal together with a new value":   {"v2 v2", "v3 -", "v2 v2"},
		"a new workload":                        {"", "v2 v2", "- -"},
		"a new workload without the annotation": {"", "- -", "- -"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			w, want := pair(test.now), pair(test.want)
			var old *pods.Workload
			if test.old != "" {
				old = pair(test.old)
			}
			h, _ := inject.HandDown(w)
			for _, operation := range h.Operations(old) {
				meta := &w.Meta
				if strings.HasPrefix(operation.Path, "/spec/template") {
					meta = w.Template.Meta
				}
				if operation.Operation == "remove" {
					delete(meta.Annotations, api.RestartedFor)
				} else {
					meta.Annotations[api.RestartedFor], _ = operation.Value.(string)
				}
			}
			if diff := cmp.Diff(want, w); diff != "" {
				t.Errorf("the workload differs (-want +got):\n%s", diff)
			}
		})
	}
}
