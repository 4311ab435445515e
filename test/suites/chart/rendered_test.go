package chart_test

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	monitoringv1 "github.com/prometheus-operator/prometheus-operator/pkg/apis/monitoring/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// everything enables all that is off by default.
var everything = map[string]any{
	"metrics":        map[string]any{"serviceMonitor": map[string]any{"enabled": true}},
	"prometheusRule": map[string]any{"enabled": true},
	"dashboard":      map[string]any{"enabled": true},
	"policy":         map[string]any{"validatingAdmissionPolicy": map[string]any{"enabled": true}},
	"networkPolicy":  map[string]any{"egress": map[string]any{"enabled": true}},
	"canary":         map[string]any{"enabled": true},
}

// modes are the values for the three certificate modes.
var modes = map[string]map[string]any{
	"cert-manager": {},
	"self-signed":  {"certs": map[string]any{"mode": "self-signed"}},
	"files": {
		"certs":   map[string]any{"mode": "files", "files": map[string]any{"secretName": "ours"}},
		"webhook": map[string]any{"caBundle": "Y2E="},
	},
}

func with(values ...map[string]any) map[string]any {
	all := map[string]any{}
	for _, v := range values {
		maps.Copy(all, v)
	}
	return all
}

// TestTyped decodes what every row of TestValues renders, strictly, into Go types. cert-manager's
// kinds are checked by the API server in TestCluster.
func TestTyped(t *testing.T) {
	t.Parallel()
	types := runtime.NewScheme()
	if err := scheme.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	if err := monitoringv1.AddToScheme(types); err != nil {
		t.Fatal(err)
	}
	all := rows(t, read(t))
	all["everything"] = &row{values: everything}
	for name, row := range all {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, object := range render(t, row.values) {
				kind := object.GroupVersionKind()
				if kind.Group == "cert-manager.io" {
					continue
				}
				typed, err := types.New(kind)
				if err == nil {
					err = runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, typed, true)
				}
				if err != nil {
					t.Errorf("%s %s: %v", kind.Kind, object.GetName(), err)
				}
			}
		})
	}
}

// TestPodsAreRestricted checks the chart's pods against Pod Security level restricted.
func TestPodsAreRestricted(t *testing.T) {
	t.Parallel()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, values := range modes {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			deployment := find[appsv1.Deployment](t, render(t, with(values, everything)), "Deployment")
			template := deployment.Spec.Template
			level := api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}
			for _, result := range evaluator.EvaluatePod(level, &template.ObjectMeta, &template.Spec) {
				if !result.Allowed {
					t.Errorf("%s: %s", result.ForbiddenReason, result.ForbiddenDetail)
				}
			}
		})
	}
}

// TestSelectors finds labels with which each entry of the webhook configurations selects a
// namespace. With the same labels, the entry must select neither kube-system nor the release's
// namespace, independent of its name.
func TestSelectors(t *testing.T) {
	t.Parallel()
	var sets []labels.Set
	for _, injection := range []string{"", "enabled", "always"} {
		for _, enforce := range []string{"", "bound", "required"} {
			for _, warn := range []string{"", "bound"} {
				for _, audit := range []string{"", "bound"} {
					set := labels.Set{}
					for key, value := range map[string]string{
						"keyvault.io/injection": injection, "identity.io/enforce": enforce, "identity.io/warn": warn, "identity.io/audit": audit,
					} {
						if value != "" {
							set[key] = value
						}
					}
					sets = append(sets, set)
				}
			}
		}
	}
	helms, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	for name, excluded := range map[string][]any{
		"default":             {"kube-public", "kube-node-lease"},
		"nothing else":        {},
		"kube-system already": {"kube-system", "secrets"},
	} {
		objects, err := chart.Render(t.Context(), chart.Options{
			Helm: helms[0], Namespace: "secrets", Values: map[string]any{"webhook": map[string]any{"excludedNamespaces": excluded}},
		})
		if err != nil {
			t.Fatal(err)
		}
		selectors := map[string]*metav1.LabelSelector{}
		for _, webhook := range find[admissionregistrationv1.MutatingWebhookConfiguration](t, objects, "MutatingWebhookConfiguration").Webhooks {
			selectors["mutating "+webhook.Name] = webhook.NamespaceSelector
		}
		for _, webhook := range find[admissionregistrationv1.ValidatingWebhookConfiguration](t, objects, "ValidatingWebhookConfiguration").Webhooks {
			selectors["validating "+webhook.Name] = webhook.NamespaceSelector
		}
		for webhook, labelSelector := range selectors {
			selector, err := metav1.LabelSelectorAsSelector(labelSelector)
			if err != nil {
				t.Fatal(err)
			}
			selects := func(namespace string) bool {
				return slices.ContainsFunc(sets, func(set labels.Set) bool {
					return selector.Matches(labels.Merge(set, labels.Set{corev1.LabelMetadataName: namespace}))
				})
			}
			for namespace, want := range map[string]bool{"team": true, "kube-system": false, "secrets": false} {
				if got := selects(namespace); got != want {
					t.Errorf("excluding %s: %s selects %s: %t, want %t", name, webhook, namespace, got, want)
				}
			}
		}
	}
}

// TestKustomize compares what kustomize builds with what Helm renders.
func TestKustomize(t *testing.T) {
	t.Parallel()
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	folder, err := chart.Folder(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	policy := map[string]any{"policy": everything["policy"]}
	for name, tt := range map[string]struct {
		overlay string
		values  map[string]any
	}{
		"with cert-manager": {overlay: "resources: [KUSTOMIZE]", values: nil},
		"self-signed":       {overlay: "resources: [KUSTOMIZE/self-signed]", values: modes["self-signed"]},
		"with the admission policy": {
			overlay: "{resources: [KUSTOMIZE], components: [KUSTOMIZE/validating-admission-policy]}", values: policy,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			shipped, err := filepath.Rel(dir, filepath.Join(folder, "..", "kustomize"))
			if err != nil {
				t.Fatal(err)
			}
			overlay := strings.ReplaceAll(tt.overlay, "KUSTOMIZE", shipped)
			if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(overlay), 0o600); err != nil {
				t.Fatal(err)
			}
			built, err := exec.CommandContext(t.Context(), filepath.Join(binaries, "kubectl"), "kustomize", dir).Output()
			if err != nil {
				t.Fatal(err)
			}
			got, err := chart.Decode(strings.NewReader(string(built)))
			if err != nil {
				t.Fatal(err)
			}
			// Helm creates the namespace itself.
			got = slices.DeleteFunc(got, func(o *unstructured.Unstructured) bool { return o.GetKind() == "Namespace" })
			if diff := cmp.Diff(byName(render(t, tt.values)), byName(got)); diff != "" {
				t.Errorf("rendered and built (-Helm +kustomize); run make generate:\n%s", diff)
			}
		})
	}
}

// find returns the only object of a kind.
func find[T any](t *testing.T, objects []*unstructured.Unstructured, kind string) *T {
	t.Helper()
	var found *T
	for _, object := range objects {
		if object.GetKind() != kind {
			continue
		}
		if found != nil {
			t.Fatalf("there is more than one %s", kind)
		}
		found = new(T)
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, found, true); err != nil {
			t.Fatal(fmt.Errorf("decode %s: %w", kind, err))
		}
	}
	if found == nil {
		t.Fatalf("there is no %s", kind)
	}
	return found
}
