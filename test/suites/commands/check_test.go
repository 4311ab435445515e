package commands_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

var definitions = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"}

// broken are the lines of a report that are not fine, as "STATE SECTION: TEXT".
func broken(sections map[string][]line) []string {
	var all []string
	for title, lines := range sections {
		for _, l := range lines {
			if l.State != "ok" && l.State != "info" {
				all = append(all, l.State+" "+title+": "+l.Text+" "+strings.Join(l.Details, " "))
			}
		}
	}
	slices.Sort(all)
	return all
}

// left is the warning about a healthy cluster: the tests install the kinds of AAD pod identity.
const left = "warning Identities: the kinds of AAD pod identity are left"

// wantHealthy waits until an administrator sees nothing but the warning.
func wantHealthy(t *testing.T, args ...string) {
	t.Helper()
	await(t, "a healthy report", args, func(status int, lines []string) bool {
		return status == 0 && len(lines) == 1 && strings.HasPrefix(lines[0], left)
	})
}

// wantLine waits until a report has a line, and that status.
func wantLine(t *testing.T, status int, want string, args ...string) {
	t.Helper()
	await(t, want, args, func(got int, lines []string) bool {
		return got == status && slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, want) })
	})
}

// await runs check as an administrator until its status and its broken lines are as wanted.
func await(t *testing.T, what string, args []string, isWanted func(status int, lines []string) bool) {
	t.Helper()
	last := ""
	err := process.Within(t.Context(), patience, what, func(ctx context.Context) error {
		got := akv(ctx, t, "admin", append([]string{"check", "--output=json"}, args...)...)
		sections, err := parse(got)
		lines := broken(sections)
		if err == nil && isWanted(got.status, lines) {
			return nil
		}
		if ctx.Err() == nil {
			last = fmt.Sprintf("status %d, lines\n%s", got.status, strings.Join(lines, "\n"))
		}
		return errors.Join(errors.New("not yet"), err)
	})
	if err != nil {
		t.Errorf("%v\n%s", err, last)
	}
}

func TestHealthy(t *testing.T) {
	wantHealthy(t, "--dry-run-in=shop", "--all-namespaces")
	sections, _ := check(t, "admin", "--dry-run-in=shop", "--all-namespaces")
	for title, want := range map[string]string{
		"Creation of a pod":  "the injector rejected a pod with a wrong annotation in namespace shop",
		"Namespaces":         "1 namespace opted in; 2 workloads and 2 pods request something",
		"Key Vault requests": "vault shop-kv: about 3 requests a minute from 2 volumes",
	} {
		if !slices.ContainsFunc(sections[title], func(l line) bool { return strings.HasPrefix(l.Text, want) }) {
			t.Errorf("section %s has %v, want %q", title, sections[title], want)
		}
	}
}

// TestPreflight checks a cluster before and after the installation, by the same command.
func TestPreflight(t *testing.T) {
	for user, want := range map[string]struct {
		status int
		line   string
	}{
		"admin":  {0, "warning Webhook configurations: akv-injector is already installed in namespace akv-injector-system"},
		"tenant": {1, "broken Your rights: you lack rights to install the chart in namespace akv-injector-system"},
		"nobody": {1, "broken Your rights: you lack rights to install the chart in namespace akv-injector-system"},
	} {
		sections, status := check(t, user, "--pre")
		got := broken(sections)
		if status != want.status || !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, want.line) }) {
			t.Errorf("%s: status %d, lines\n%s", user, status, strings.Join(got, "\n"))
		}
	}
}

// TestRights runs check as users with few rights: the command says which are missing, and checks the
// rest.
func TestRights(t *testing.T) {
	for user, want := range map[string][]string{
		"tenant": {
			"unknown Webhook configurations: the webhooks that inject: not known: you may not list mutatingwebhookconfigurations",
			"unknown Injector: the replicas: not known: you may not list deployments.apps in namespace akv-injector-system",
			"unknown Secrets Store CSI driver: the DaemonSets of driver and provider: not known: you may not list daemonsets.apps",
			"unknown Namespaces: the defaults of the injector, such as its tenant: not known: you may not list deployments.apps",
		},
		"nobody": {
			"unknown Webhook configurations: the webhooks that inject: not known",
			"unknown Namespaces: what pods need: not known: you may not get namespaces shop",
		},
	} {
		sections, status := check(t, user, "--in=shop")
		got := broken(sections)
		for _, line := range want {
			if !slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, line) }) {
				t.Errorf("%s: want %q, got\n%s", user, line, strings.Join(got, "\n"))
			}
		}
		if slices.ContainsFunc(got, func(l string) bool { return strings.HasPrefix(l, "broken") }) || status != 2 {
			t.Errorf("%s: status %d, lines\n%s", user, status, strings.Join(got, "\n"))
		}
	}
	sections, _ := check(t, "tenant", "--in=shop", "--dry-run-in=shop")
	if got := sections["Creation of a pod"]; len(got) != 1 || got[0].State != "ok" {
		t.Errorf("a tenant's dry run: %v", got)
	}
	if got := sections["Namespaces"]; !strings.HasPrefix(got[len(got)-1].Text, "1 namespace without a problem: shop") {
		t.Errorf("a tenant's namespace: %v", got)
	}
}

// TestBroken breaks real objects, one at a time, and repairs them.
func TestBroken(t *testing.T) {
	cluster := func(resource schema.GroupVersionResource, name string, edit func(map[string]any)) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			change(t, objects.Resource(resource), name, edit)
		}
	}
	namespaced := func(resource schema.GroupVersionResource, namespace, name string, edit func(map[string]any)) func(*testing.T) {
		return func(t *testing.T) {
			t.Helper()
			change(t, objects.Resource(resource).Namespace(namespace), name, edit)
		}
	}
	hooks := func(edit func(webhook map[string]any)) func(map[string]any) {
		return func(object map[string]any) {
			for _, webhook := range fakeapi.Items(object, "webhooks") {
				edit(fakeapi.Map(webhook))
			}
		}
	}
	budgets := schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
	roles := schema.GroupVersionResource{Group: "rbac.authorization.k8s.io", Version: "v1", Resource: "clusterrolebindings"}
	for _, tt := range []struct {
		behaviour string
		breakIt   func(*testing.T)
		status    int
		want      string
	}{
		{"no mutating configuration", cluster(kube.MutatingConfigurations, configuration, nil), 1, "broken Webhook configurations: no MutatingWebhookConfiguration akv-injector calls the injector"},
		{"no validating configuration", cluster(kube.ValidatingConfigurations, configuration, nil), 1, "broken Webhook configurations: no ValidatingWebhookConfiguration akv-injector calls the injector"},
		{"an edited selector", cluster(kube.MutatingConfigurations, configuration, hooks(func(webhook map[string]any) {
			webhook["namespaceSelector"] = map[string]any{"matchLabels": map[string]any{"team": "shop"}}
		})), 1, "broken Webhook configurations: MutatingWebhookConfiguration akv-injector differs from what this version installs: it was edited webhook pods.akv-injector.io: the namespaceSelector lacks"},
		{"an edited match condition", cluster(kube.ValidatingConfigurations, configuration, hooks(func(webhook map[string]any) {
			webhook["matchConditions"] = []any{}
		})), 1, "broken Webhook configurations: ValidatingWebhookConfiguration akv-injector differs from what this version installs"},
		{"failurePolicy Ignore", cluster(kube.MutatingConfigurations, configuration, hooks(func(webhook map[string]any) {
			webhook["failurePolicy"] = "Ignore"
		})), 0, "warning Webhook configurations: failurePolicy of MutatingWebhookConfiguration akv-injector is Ignore"},
		{"a long timeout", cluster(kube.MutatingConfigurations, configuration, hooks(func(webhook map[string]any) {
			webhook["timeoutSeconds"] = int64(30)
		})), 0, "warning Webhook configurations: timeoutSeconds of MutatingWebhookConfiguration akv-injector is up to 30"},
		{"another Service", cluster(kube.MutatingConfigurations, configuration, func(object map[string]any) {
			fakeapi.Map(object, "webhooks", 0, "clientConfig", "service")["name"] = "other"
		}), 1, "broken Webhook configurations: MutatingWebhookConfiguration akv-injector must call Service akv-injector-system/akv-injector in all"},
		{"a second installation", func(t *testing.T) { t.Helper(); copyConfiguration(t, "second", "other") }, 1, "broken Webhook configurations: MutatingWebhookConfiguration second: it calls Service other/akv-injector"},
		{"a webhook that is called before", func(t *testing.T) {
			t.Helper()
			before := map[string]any{"name": "a.example.com", "sideEffects": "None", "failurePolicy": "Ignore", "admissionReviewVersions": []any{"v1"}}
			before["clientConfig"] = map[string]any{"url": "https://127.0.0.1:9/"}
			before["objectSelector"] = map[string]any{"matchLabels": map[string]any{"azure.workload.identity/use": "true"}}
			before["rules"] = []any{map[string]any{"apiGroups": []any{""}, "apiVersions": []any{"v1"}, "operations": []any{"CREATE"}, "resources": []any{"pods"}}}
			create(t, kube.MutatingConfigurations, "", map[string]any{
				"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
				"metadata": map[string]any{"name": "a-webhook"}, "webhooks": []any{before},
			})
		}, 1, "broken Webhook configurations: MutatingWebhookConfiguration akv-injector: it sorts after a-webhook"},

		{"no Deployment", namespaced(kube.Deployments, injectorNamespace, "akv-injector", nil), 1, "broken Injector: namespace akv-injector-system has no Deployment of the injector"},
		{"no ready replica", func(t *testing.T) {
			t.Helper()
			unready(t, injectorNamespace, "app.kubernetes.io/name=akv-injector", 2)
		}, 1, "broken Injector: no replica of Deployment akv-injector-system/akv-injector is ready"},
		{"one ready replica", func(t *testing.T) {
			t.Helper()
			unready(t, injectorNamespace, "app.kubernetes.io/name=akv-injector", 1)
		}, 0, "warning Injector: 1 of 2 replicas of Deployment akv-injector-system/akv-injector are ready"},
		{"one replica", namespaced(kube.Deployments, injectorNamespace, "akv-injector", func(object map[string]any) {
			fakeapi.Map(object, "spec")["replicas"] = int64(1)
		}), 0, "warning Injector: Deployment akv-injector-system/akv-injector has one replica"},
		{"no endpoint", namespaced(kube.EndpointSlices, injectorNamespace, "akv-injector-1", nil), 1, "broken Injector: Service akv-injector-system/akv-injector has no ready endpoint"},
		{"another version", namespaced(kube.Deployments, injectorNamespace, "akv-injector", func(object map[string]any) {
			fakeapi.Map(object, "spec", "template", "spec", "containers", 0)["image"] = "registry.example/akv-injector:v1.1.0"
		}), 0, "warning Injector: the replicas run version 1.1.0, this program is version v1.2.3"},
		{"no PodDisruptionBudget", namespaced(budgets, injectorNamespace, "akv-injector", nil), 0, "warning Injector: no PodDisruptionBudget limits evictions of the replicas"},
		{"no Certificate", namespaced(certificates, injectorNamespace, "akv-injector", nil), 1, "broken Serving certificate: namespace akv-injector-system has no Certificate akv-injector"},

		{"no driver", func(t *testing.T) {
			t.Helper()
			t.Cleanup(func() { reinstall(t) }) // the classes are deleted with their kind
			cluster(definitions, "secretproviderclasses.secrets-store.csi.x-k8s.io", nil)(t)
		}, 1, "broken Secrets Store CSI driver: the cluster does not have the kind SecretProviderClass"},
		{"no CSIDriver", cluster(kube.CSIDrivers, "secrets-store.csi.k8s.io", nil), 1, "broken Secrets Store CSI driver: the cluster has no CSIDriver"},
		{"no audience", cluster(kube.CSIDrivers, "secrets-store.csi.k8s.io", func(object map[string]any) {
			delete(fakeapi.Map(object, "spec"), "tokenRequests")
		}), 1, "broken Secrets Store CSI driver: CSIDriver secrets-store.csi.k8s.io requests no token for api://AzureADTokenExchange"},
		{"no republishing", cluster(kube.CSIDrivers, "secrets-store.csi.k8s.io", func(object map[string]any) {
			fakeapi.Map(object, "spec")["requiresRepublish"] = false
		}), 0, "warning Secrets Store CSI driver: rotation is on, but CSIDriver secrets-store.csi.k8s.io has requiresRepublish false"},
		{"a node without the driver", cluster(kube.CSINodes, "node-1", nil), 1, "broken Secrets Store CSI driver: on 1 of 1 Linux node the kubelet does not know the driver"},
		{"no DaemonSet of the driver", namespaced(kube.DaemonSets, "kube-system", "csi-secrets-store", nil), 1, "broken Secrets Store CSI driver: no DaemonSet runs the Secrets Store CSI driver"},
		{"no DaemonSet of the provider", namespaced(kube.DaemonSets, "kube-system", "csi-secrets-store-provider-azure", nil), 1, "broken Secrets Store CSI driver: no DaemonSet runs the Azure provider"},
		{"a driver that is not ready", func(t *testing.T) { t.Helper(); unready(t, "kube-system", "app=secrets-store-csi-driver", 1) }, 1, "broken Secrets Store CSI driver: the Secrets Store CSI driver is ready on 0 of 1 node"},
		{"no Secret sync", cluster(roles, "secretprovidersyncing-rolebinding", nil), 0, "warning Secrets Store CSI driver: Secret sync is off"},

		{"no workload identity webhook", cluster(kube.MutatingConfigurations, "azure-wi-webhook-mutating-webhook-configuration", nil), 0, "warning Identities: Azure's workload identity webhook is not installed"},
		{"a workload identity webhook that is down", namespaced(kube.EndpointSlices, "azure-workload-identity-system", "azure-wi-1", nil), 1, "broken Identities: Azure's workload identity webhook has no ready endpoint"},
	} {
		t.Run(tt.behaviour, func(t *testing.T) {
			// The cleanup of tt.breakIt runs before this one.
			t.Cleanup(func() {
				if err := awaitReady(context.WithoutCancel(t.Context())); err != nil {
					t.Fatal(err)
				}
			})
			tt.breakIt(t)
			wantLine(t, tt.status, tt.want)
		})
	}
	wantHealthy(t)
}

// reinstall applies the classes of the tenant again, once the API server has their kind.
func reinstall(t *testing.T) {
	t.Helper()
	err := process.Within(context.WithoutCancel(t.Context()), patience, "the kind SecretProviderClass", func(ctx context.Context) error {
		return plane.RunKubectl(ctx, "", "apply", "--filename=testdata/shop.yaml")
	})
	if err != nil {
		t.Error(err)
	}
}

// create creates an object until the test ends.
func create(t *testing.T, resource schema.GroupVersionResource, namespace string, object map[string]any) {
	t.Helper()
	in := objects.Resource(resource).Namespace(namespace)
	created, err := in.Create(t.Context(), &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := in.Delete(context.WithoutCancel(t.Context()), created.GetName(), metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}

// copyConfiguration creates a copy of the injector's mutating configuration, for another namespace.
func copyConfiguration(t *testing.T, name, namespace string) {
	t.Helper()
	copied, err := objects.Resource(kube.MutatingConfigurations).Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for _, webhook := range fakeapi.Items(copied.Object, "webhooks") {
		fakeapi.Map(webhook)["failurePolicy"] = "Ignore"
		fakeapi.Map(webhook, "clientConfig", "service")["namespace"] = namespace
	}
	create(t, kube.MutatingConfigurations, "", map[string]any{
		"apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
		"metadata": map[string]any{"name": name}, "webhooks": copied.Object["webhooks"],
	})
}

// unready makes pods not ready, as a kubelet does when their probes fail.
func unready(t *testing.T, namespace, selector string, n int) {
	t.Helper()
	pods, err := client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	pods.Items = slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return pod.DeletionTimestamp != nil })
	if err != nil || len(pods.Items) < n {
		t.Fatalf("%d pods, %v", len(pods.Items), err)
	}
	for i := range pods.Items[:n] {
		if err := setReady(t.Context(), &pods.Items[i], corev1.ConditionFalse); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOutage stops the injector, and then breaks what it would repair.
func TestOutage(t *testing.T) {
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := startInjector(ctx); err != nil {
			t.Fatal(err)
		}
		if err := injector.WaitUntilCalled(ctx, plane.Config, "shop"); err != nil {
			t.Fatal(err)
		}
	})
	wantLine(t, 1, "broken Creation of a pod: the API server cannot call the injector", "--dry-run-in=shop")
	bundles := func(bundle string) func(map[string]any) {
		return func(object map[string]any) {
			for _, webhook := range fakeapi.Items(object, "webhooks") {
				fakeapi.Map(webhook, "clientConfig")["caBundle"] = base64.StdEncoding.EncodeToString([]byte(bundle))
			}
		}
	}
	t.Run("no CA bundle", func(t *testing.T) {
		change(t, objects.Resource(kube.ValidatingConfigurations), configuration, bundles(""))
		wantLine(t, 1, "broken Webhook configurations: the CA bundle of ValidatingWebhookConfiguration akv-injector is empty")
	})
	t.Run("an admitted pod", func(t *testing.T) {
		change(t, objects.Resource(kube.MutatingConfigurations), configuration, func(object map[string]any) {
			for _, webhook := range fakeapi.Items(object, "webhooks") {
				fakeapi.Map(webhook)["failurePolicy"] = "Ignore"
			}
		})
		wantLine(t, 1, "broken Creation of a pod: the API server admitted a pod with a wrong annotation in namespace shop", "--dry-run-in=shop")
	})
	t.Run("a namespace that did not opt in", func(t *testing.T) {
		wantLine(t, 1, "broken Creation of a pod: namespace default did not opt in", "--dry-run-in=default")
	})
}
