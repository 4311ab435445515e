package findings_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/controller/canary"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// patience is the timeout of everything that a test waits for. It allows for a busy machine.
const patience = time.Minute

// waitFor waits until done returns no error, for at most patience.
func waitFor(t *testing.T, what string, done func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := process.Until(ctx, done); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

// asInjector returns a client with the rights of the injector's ServiceAccount.
func asInjector(t *testing.T) kubernetes.Interface {
	t.Helper()
	injector, err := server.Client()
	if err != nil {
		t.Fatal(err)
	}
	return injector
}

// metricsOf returns the metrics of an injector.
func metricsOf(ctx context.Context, url string) (map[string]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	return measure.ParseMetrics(response.Body)
}

// patchWebhooks changes each webhook of the mutating configuration, also at the end of a test.
func patchWebhooks(t *testing.T, path string, value any) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	found, err := configurations.Get(ctx, chart.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var patch []map[string]any
	for i := range found.Webhooks {
		patch = append(patch, map[string]any{"op": "replace", "path": fmt.Sprintf("/webhooks/%d/%s", i, path), "value": value})
	}
	text, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := configurations.Patch(ctx, chart.Name, types.JSONPatchType, text, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestCanary breaks one part after the other, and repairs it. The canary must name the part. It runs
// in this process, with the rights of the injector.
func TestCanary(t *testing.T) {
	patchWebhooks(t, "timeoutSeconds", 1)
	t.Cleanup(func() { patchWebhooks(t, "timeoutSeconds", 5) })
	stranger := httptest.NewTLSServer(nil) // with a certificate of another CA
	t.Cleanup(stranger.Close)
	label := func(t *testing.T, value string) {
		t.Helper()
		patch := []byte(`{"metadata":{"labels":{"keyvault.io/injection":` + value + `}}}`)
		if _, err := client.CoreV1().Namespaces().Patch(t.Context(), canaryNamespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	account := func(t *testing.T, id string) {
		t.Helper()
		patch := []byte(`{"metadata":{"annotations":{"azure.workload.identity/client-id":` + id + `}}}`)
		if _, err := client.CoreV1().ServiceAccounts(canaryNamespace).Patch(t.Context(), "canary", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	var binding *rbacv1.RoleBinding
	registry := prometheus.NewRegistry()
	c := canary.New(canary.Options{
		Client: asInjector(t), Namespace: canaryNamespace, Interval: time.Minute,
		Service: types.NamespacedName{Namespace: chart.Namespace, Name: chart.Name}, Metrics: registry,
	})
	// expect makes attempts until one has the result.
	expect := func(t *testing.T, want canary.Result) {
		t.Helper()
		var latest canary.Result
		before := totals(t, registry)
		waitFor(t, fmt.Sprintf("the result %s", want), func(ctx context.Context) error {
			c.Try(ctx)
			after := totals(t, registry)
			for result, n := range after {
				if n > before[result] {
					latest = result
				}
			}
			before = after
			if latest != want {
				return fmt.Errorf("the latest result is %s", latest)
			}
			return nil
		})
	}
	expect(t, canary.Injected)
	for _, test := range []struct {
		result canary.Result
		spoil  func()
		repair func()
	}{
		{canary.NotCalled, func() { label(t, "null") }, func() { label(t, `"enabled"`) }},
		{canary.Late, func() { front.forwardTo("") }, func() { front.forwardTo(server.Address) }},
		{canary.Certificate, func() { front.forwardTo(stranger.Listener.Addr().String()) }, func() { front.forwardTo(server.Address) }},
		{canary.Unreachable, func() { front.stop() }, func() {
			if err := front.listen(); err != nil {
				t.Fatal(err)
			}
		}},
		{
			canary.OtherInstallation,
			func() { patchWebhooks(t, "clientConfig/service/name", "another") },
			func() { patchWebhooks(t, "clientConfig/service/name", chart.Name) },
		},
		{
			canary.Rejected,
			func() { account(t, "null") },
			func() { account(t, `"00000000-0000-4000-8000-000000000000"`) },
		},
		{canary.Failed, func() {
			const name = "akv-injector-canary"
			bindings := client.RbacV1().RoleBindings(canaryNamespace)
			var err error
			if binding, err = bindings.Get(t.Context(), name, metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			if err := bindings.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
		}, func() {
			binding.ResourceVersion = ""
			if _, err := client.RbacV1().RoleBindings(canaryNamespace).Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
				t.Fatal(err)
			}
		}},
	} {
		test.spoil()
		expect(t, test.result)
		test.repair()
		expect(t, canary.Injected)
	}
	if list, err := client.CoreV1().Pods(canaryNamespace).List(t.Context(), metav1.ListOptions{}); err != nil || len(list.Items) > 0 {
		t.Errorf("the canary's namespace has %d pods: %v", len(list.Items), err)
	}
}

// totals returns akv_injector_canary_total by result.
func totals(t *testing.T, registry *prometheus.Registry) map[canary.Result]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[canary.Result]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "akv_injector_canary_total" {
				counts[canary.Result(m.GetLabel()[0].GetValue())] = m.GetCounter().GetValue()
			}
		}
	}
	return counts
}

// TestCanaryRuns waits until the command serve has run the canary.
func TestCanaryRuns(t *testing.T) {
	waitFor(t, "a dry run", func(ctx context.Context) error {
		metrics, err := metricsOf(ctx, server.Metrics)
		if err != nil {
			return err
		}
		age := float64(time.Now().Unix()) - metrics["akv_injector_canary_success_timestamp_seconds"]
		if metrics[`akv_injector_canary_total{result="injected"}`] == 0 || age > patience.Seconds() {
			return errors.New("no pod was injected yet")
		}
		return nil
	})
}

// TestCanaryIsConfined checks which pods the injector's ServiceAccount can create: in the namespace of
// the canary, by a dry run.
func TestCanaryIsConfined(t *testing.T) {
	injector := asInjector(t)
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "pod"},
		Spec: corev1.PodSpec{
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{Name: "app", Image: "app", SecurityContext: &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}}},
		},
	}
	waitFor(t, "the policy of the canary", func(ctx context.Context) error {
		_, err := injector.CoreV1().Pods(canaryNamespace).Create(ctx, pod, metav1.CreateOptions{})
		if err == nil {
			err = client.CoreV1().Pods(canaryNamespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
			return errors.Join(errors.New("the API server does not apply the policy yet"), err)
		}
		if !apierrors.IsForbidden(err) {
			return err
		}
		return nil
	})
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	for behaviour, test := range map[string]struct {
		namespace string
		options   metav1.CreateOptions
		want      string // part of the error
	}{
		"a dry run in the canary's namespace":  {canaryNamespace, dryRun, ""},
		"a pod in the canary's namespace":      {canaryNamespace, metav1.CreateOptions{}, "must be a dry run in namespace " + canaryNamespace},
		"a dry run in another namespace":       {metav1.NamespaceDefault, dryRun, `cannot create resource "pods"`},
		"a pod in the namespace of the server": {chart.Namespace, metav1.CreateOptions{}, `cannot create resource "pods"`},
	} {
		_, err := injector.CoreV1().Pods(test.namespace).Create(t.Context(), pod, test.options)
		if (err == nil) != (test.want == "") || err != nil && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: %v, want %q", behaviour, err, test.want)
		}
	}
	if _, err := injector.CoreV1().ReplicationControllers(canaryNamespace).Create(t.Context(),
		&corev1.ReplicationController{ObjectMeta: metav1.ObjectMeta{Name: "x"}}, dryRun); !apierrors.IsForbidden(err) {
		t.Errorf("a ReplicationController in the canary's namespace: %v, want Forbidden", err)
	}
}
