package inject_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/corpus"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

type annotations = map[string]string

// workload is a Deployment with these annotations, its own and its template's.
func workload(own, template annotations) *pods.Workload {
	return &pods.Workload{Kind: "Deployment", Meta: *meta(own), Template: &pods.Pod{Meta: meta(template), Spec: pods.Spec{Containers: []pods.Container{{Name: "app"}}}}}
}

// meta is the metadata of an object with these annotations.
func meta(a annotations) *pods.Meta {
	return &pods.Meta{Annotations: a, HasAnnotations: len(a) > 0}
}

func TestHandDown(t *testing.T) {
	for behaviour, test := range map[string]struct {
		own, template, old annotations // old are the workload's own before an update, nil for a creation
		want               []string    // operations
		effective          annotations
		warned             bool
		silent             bool // nobody asks for anything
	}{
		"nothing to hand down": {own: annotations{"note": "n"}, template: annotations{"note": "m"}, effective: annotations{"note": "m"}, silent: true},
		"to a template without annotations": {
			own:       annotations{api.Vault: "kv1", "note": "n"},
			want:      []string{`{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}`},
			effective: annotations{api.Vault: "kv1"},
		},
		"beside the template's own, in the order of the keys": {
			own: annotations{api.Vault: "kv1", api.IdentityName: "a"}, template: annotations{"note": "n"},
			want: []string{
				`{"op":"add","path":"/spec/template/metadata/annotations/identity.io~1name","value":"a"}`,
				`{"op":"add","path":"/spec/template/metadata/annotations/keyvault.io~1vault","value":"kv1"}`,
			},
			effective: annotations{api.Vault: "kv1", api.IdentityName: "a", "note": "n"},
		},
		"what the template says already":   {own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "kv1"}, effective: annotations{api.Vault: "kv1"}},
		"the template's own value is kept": {own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "kv2"}, effective: annotations{api.Vault: "kv2"}, warned: true},
		"even an empty one":                {own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: ""}, effective: annotations{api.Vault: ""}, warned: true},
		"an empty value is handed down too": {
			own: annotations{api.Vault: ""}, template: annotations{"note": "n"},
			want:      []string{`{"op":"add","path":"/spec/template/metadata/annotations/keyvault.io~1vault","value":""}`},
			effective: annotations{api.Vault: "", "note": "n"},
		},
		"a copied value follows its source": {
			own: annotations{api.Vault: "kv2"}, template: annotations{api.Vault: "kv1"}, old: annotations{api.Vault: "kv1"},
			want:      []string{`{"op":"replace","path":"/spec/template/metadata/annotations/keyvault.io~1vault","value":"kv2"}`},
			effective: annotations{api.Vault: "kv2"},
		},
		"a copied value goes away with its source": {
			template: annotations{api.Vault: "kv1", "note": "n"}, old: annotations{api.Vault: "kv1"},
			want:      []string{`{"op":"remove","path":"/spec/template/metadata/annotations/keyvault.io~1vault"}`},
			effective: annotations{"note": "n"}, silent: true,
		},
		"one comes, one follows, one goes": {
			own: annotations{api.Vault: "kv2", api.Env: "auto"}, template: annotations{api.Vault: "kv1", api.IdentityName: "a"}, old: annotations{api.Vault: "kv1", api.IdentityName: "a"},
			want: []string{
				`{"op":"replace","path":"/spec/template/metadata/annotations/keyvault.io~1vault","value":"kv2"}`,
				`{"op":"add","path":"/spec/template/metadata/annotations/keyvault.io~1env","value":"auto"}`,
				`{"op":"remove","path":"/spec/template/metadata/annotations/identity.io~1name"}`,
			},
			effective: annotations{api.Vault: "kv2", api.Env: "auto"},
		},
		"a value that was never copied stays when the source goes": {template: annotations{api.Vault: "kv2"}, old: annotations{api.Vault: "kv1"}, effective: annotations{api.Vault: "kv2"}},
		"nor does it follow":                           {own: annotations{api.Vault: "kv3"}, template: annotations{api.Vault: "kv2"}, old: annotations{api.Vault: "kv1"}, effective: annotations{api.Vault: "kv2"}, warned: true},
		"an update that changes nothing":               {own: annotations{api.Vault: "kv1"}, template: annotations{api.Vault: "kv1"}, old: annotations{api.Vault: "kv1"}, effective: annotations{api.Vault: "kv1"}},
		"a status is nobody's to hand down":            {own: annotations{api.Status: "{}"}, silent: true},
		"an unknown key is checked, never handed down": {own: annotations{"keyvault.io/secret": "a"}, effective: annotations{"keyvault.io/secret": "a"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var old *pods.Workload
			if test.old != nil {
				old = workload(test.old, test.template)
			}
			w, untouched := workload(test.own, test.template), workload(test.own, test.template)
			h, ok := inject.HandDown(w, old)
			if !ok {
				t.Fatal("it has no template")
			}
			want := ""
			if len(test.want) > 0 {
				want = strings.Join(test.want, "\n") + "\n"
			}
			if diff := cmp.Diff(want, corpus.Operations(h.Operations())); diff != "" {
				t.Errorf("operations differ (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.effective, h.Subject.Annotations, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("effective annotations differ (-want +got):\n%s", diff)
			}
			if warned := len(h.Warnings) > 0; warned != test.warned {
				t.Errorf("warnings are %v", h.Warnings)
			}
			if h.Inherited == test.silent {
				t.Errorf("inherited is %t", h.Inherited)
			}
			if diff := cmp.Diff(untouched, w); diff != "" {
				t.Errorf("the workload is modified (-before +after):\n%s", diff)
			}
		})
	}
}

func TestHandDownTo(t *testing.T) {
	owner := pods.Owner{Kind: "Deployment", Name: "d"}
	for behaviour, test := range map[string]struct {
		change func(w *pods.Workload)
		want   string // the only operation; empty where nothing is handed down
	}{
		"a Deployment's template":            {func(*pods.Workload) {}, `{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}`},
		"a CronJob's template, further down": {func(w *pods.Workload) { w.JobTemplate, w.Template = w.Template, nil }, `{"op":"add","path":"/spec/jobTemplate/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}`},
		"a ReplicaSet by itself":             {func(w *pods.Workload) { w.Kind = "ReplicaSet" }, `{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}`},
		"no ReplicaSet of a Deployment's":    {func(w *pods.Workload) { w.Kind, w.Meta.Controller = "ReplicaSet", &owner }, ""},
		"a Job of a CronJob's":               {func(w *pods.Workload) { w.Kind, w.Meta.Controller = "Job", &owner }, `{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}`},
		"nothing where there is no template": {func(w *pods.Workload) { w.Template = nil }, ""},
	} {
		t.Run(behaviour, func(t *testing.T) {
			w := workload(annotations{api.Vault: "kv1"}, nil)
			test.change(w)
			h, ok := inject.HandDown(w, nil)
			if ok != (test.want != "") {
				t.Fatalf("it has a template: %t", ok)
			}
			if ok && strings.TrimSpace(corpus.Operations(h.Operations())) != test.want {
				t.Errorf("operations are %s, want %s", corpus.Operations(h.Operations()), test.want)
			}
		})
	}
}

func TestHandDownToTemplateWithoutMetadata(t *testing.T) {
	w := workload(annotations{api.Vault: "kv1"}, nil)
	w.Template.Meta = nil
	h, _ := inject.HandDown(w, nil)
	want := `{"op":"add","path":"/spec/template/metadata","value":{}}` + "\n" +
		`{"op":"add","path":"/spec/template/metadata/annotations","value":{"keyvault.io/vault":"kv1"}}` + "\n"
	if diff := cmp.Diff(want, corpus.Operations(h.Operations())); diff != "" {
		t.Errorf("operations differ (-want +got):\n%s", diff)
	}
}

// TestAnnotationPath says where the author of a workload is sent to mend a value.
func TestAnnotationPath(t *testing.T) {
	w := workload(annotations{api.Vault: "kv1", api.Env: "auto", "keyvault.io/secret": "a"}, annotations{api.Env: "explicit", api.IdentityName: "a"})
	h, _ := inject.HandDown(w, nil)
	for key, want := range map[string]string{
		api.Vault:            "metadata.annotations[keyvault.io/vault]",                   // handed down
		api.Env:              "spec.template.metadata.annotations[keyvault.io/env]",       // the template's own holds
		api.IdentityName:     "spec.template.metadata.annotations[identity.io/name]",      // the template's alone
		"keyvault.io/secret": "metadata.annotations[keyvault.io/secret]",                  // unknown, on the workload
		api.IdentityTenantID: "spec.template.metadata.annotations[identity.io/tenant-id]", // nobody's yet
	} {
		if got := h.Subject.AnnotationPath(key).String(); got != want {
			t.Errorf("%s is at %s, want %s", key, got, want)
		}
	}
}

func TestSameRequest(t *testing.T) {
	for behaviour, test := range map[string]struct {
		own, template, oldOwn, oldTemplate annotations
		want                               bool
	}{
		"nothing asked, then as now":  {want: true},
		"the same annotations":        {own: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv1"}, template: annotations{api.Env: "auto"}, oldTemplate: annotations{api.Env: "auto"}, want: true},
		"foreign ones do not count":   {own: annotations{api.Vault: "kv1", "note": "a"}, oldOwn: annotations{api.Vault: "kv1"}, template: annotations{"note": "b"}, want: true},
		"nor does our own status":     {template: annotations{api.Status: "{}"}, want: true},
		"a value changed":             {own: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv2"}},
		"a key gone":                  {oldOwn: annotations{api.Vault: "kv2"}},
		"a key come":                  {template: annotations{api.Vault: "kv2"}},
		"an empty value come":         {template: annotations{api.Vault: ""}},
		"a misspelt key come":         {own: annotations{"keyvault.io/secret": "a"}},
		"a key moved to the template": {template: annotations{api.Vault: "kv1"}, oldOwn: annotations{api.Vault: "kv1"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := inject.SameRequest(workload(test.own, test.template), workload(test.oldOwn, test.oldTemplate)); got != test.want {
				t.Errorf("SameRequest is %t", got)
			}
		})
	}
}
