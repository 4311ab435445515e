package commands_test

import (
	"context"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

// newNamespace applies a namespace with a class, a ServiceAccount and workloads, until the test ends.
func newNamespace(t *testing.T, name, labels, workloads string) {
	t.Helper()
	ctx := t.Context()
	if err := plane.RunKubectl(ctx, "{apiVersion: v1, kind: Namespace, metadata: {name: "+name+", labels: {"+labels+"}}}", "apply", "--filename=-"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, args := range [][]string{
			{"delete", "namespace", name, "--wait=false"},
			{"delete", "pods", "--all", "--force", "--namespace=" + name}, // without a kubelet, nothing else ends them
			{"wait", "namespace/" + name, "--for=delete", "--timeout=1m"},
		} {
			if err := plane.RunKubectl(context.WithoutCancel(t.Context()), "", args...); err != nil {
				t.Error(err)
			}
		}
	})
	if err := plane.WaitForServiceAccount(ctx, name); err != nil {
		t.Fatal(err)
	}
	for _, resource := range []struct{ kind, name string }{{"serviceaccount", "web"}, {"secretproviderclass", "shop-kv"}} {
		copied, err := plane.Kubectl(ctx, "get", resource.kind, resource.name, "--namespace=shop", "--output=json").Output()
		if err != nil {
			t.Fatal(err)
		}
		if err := plane.RunKubectl(ctx, renamed(string(copied), name), "apply", "--filename=-"); err != nil {
			t.Fatal(err)
		}
	}
	if err := plane.RunKubectl(ctx, workloads, "apply", "--namespace="+name, "--filename=-"); err != nil {
		t.Fatal(err)
	}
	if err := awaitReady(ctx); err != nil {
		t.Fatal(err)
	}
}

const (
	asks       = "{identity.io/name: web, keyvault.io/class: shop-kv, keyvault.io/secrets: DB_PASSWORD=db-password}"
	containers = "{containers: [{name: web, image: web}]}"
	optedIn    = "keyvault.io/injection: enabled"
)

// deployment returns a Deployment with annotations in its pod template.
func deployment(annotations string) string {
	return "{apiVersion: apps/v1, kind: Deployment, metadata: {name: app}, spec: {selector: {matchLabels: {app: app}}, " +
		"template: {metadata: {labels: {app: app}, annotations: " + annotations + "}, spec: " + containers + "}}}"
}

// TestNamespaces produces each problem of a namespace with real pods.
func TestNamespaces(t *testing.T) {
	ctx := t.Context()
	label := func(t *testing.T, namespace, labels string) {
		t.Helper()
		patch := []byte(`{"metadata": {"labels": ` + labels + `}}`)
		if _, err := client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for behaviour, tt := range map[string]struct {
		labels, workloads string
		change            func(t *testing.T, in string) // after the pods run
		status            int
		state, want       string
	}{
		"annotations without an opt-in": {"", deployment(asks), nil, 0, "warning", "1 workload with annotations without effect, since the namespace did not opt in Deployment/app (1 pod)"},
		"pods from before the opt-in": {"", deployment(asks), func(t *testing.T, in string) {
			t.Helper()
			label(t, in, `{"keyvault.io/injection": "enabled"}`)
		}, 1, "broken", "1 workload with pods that request injection and were not injected"},
		"a template from before the opt-in": {
			"", "{apiVersion: apps/v1, kind: Deployment, metadata: {name: app, annotations: " + asks + "}, spec: {selector: {matchLabels: {app: app}}, template: {metadata: {labels: {app: app}}, spec: " + containers + "}}}",
			func(t *testing.T, in string) { t.Helper(); label(t, in, `{"keyvault.io/injection": "enabled"}`) }, 0,
			"warning", "1 workload with annotations that the pod template does not inherit yet",
		},
		"an unknown value of the label": {`keyvault.io/injection: "true"`, "{apiVersion: v1, kind: ConfigMap, metadata: {name: app}}", nil, 0, "warning", "1 mistake in labels or annotations of the namespace [UnknownInjection]"},
		"a deleted class": {optedIn, deployment(asks), func(t *testing.T, in string) {
			t.Helper()
			change(t, objects.Resource(kube.Classes).Namespace(in), "shop-kv", nil)
		}, 1, "broken", "1 workload that the injector rejects: no new pod can be created Deployment/app: [ClassNotFound]"},
		"a class that changed": {optedIn, deployment(asks), func(t *testing.T, in string) {
			t.Helper()
			change(t, objects.Resource(kube.Classes).Namespace(in), "shop-kv", func(object map[string]any) {
				fakeapi.Map(object, "spec", "secretObjects", 0, "data", 0)["key"] = "password"
			})
		}, 0, "warning", "1 workload with pods that would be injected in another way today Deployment/app"},
		"a policy from after the pods": {"", deployment("{}"), func(t *testing.T, in string) {
			t.Helper()
			label(t, in, `{"identity.io/enforce": "required"}`)
		}, 1, "broken", "1 workload that the policy of the namespace rejects: no new pod can be created Deployment/app: [IdentityRequired]"},
		"pods on AAD pod identity": {
			"", "{apiVersion: v1, kind: Pod, metadata: {name: app, labels: {aadpodidbinding: access-blob}}, spec: " + containers + "}", nil, 0,
			"warning", "1 workload with pods on AAD pod identity, which was retired in September 2025 Pod/app: identity access-blob (1 pod)",
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			in := strings.ReplaceAll(strings.ToLower(behaviour), " ", "-")
			newNamespace(t, in, tt.labels, tt.workloads)
			if tt.change != nil {
				tt.change(t, in)
			}
			wantLine(t, tt.status, tt.state+" Namespace "+in+": "+tt.want, "--in="+in)
		})
	}
}
