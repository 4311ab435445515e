package findings_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// kubectl runs kubectl with a manifest as its input.
func kubectl(t *testing.T, manifest string, args ...string) {
	t.Helper()
	if err := plane.RunKubectl(t.Context(), manifest, args...); err != nil {
		t.Fatal(err)
	}
}

// eventsIn returns the injector's events of a namespace as "Kind/name Reason", sorted, with the
// generated part of a pod's name as *.
func eventsIn(ctx context.Context, namespace string) ([]string, error) {
	list, err := client.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var texts []string
	for i := range list.Items {
		e := &list.Items[i]
		if e.ReportingController != "akv-injector" {
			continue
		}
		name := e.Regarding.Name
		if e.Regarding.Kind == "Pod" && strings.Count(name, "-") == 2 {
			name = name[:strings.IndexByte(name, '-')] + "-*"
		}
		texts = append(texts, e.Regarding.Kind+"/"+name+" "+e.Reason)
	}
	slices.Sort(texts)
	return texts, nil
}

// waitForEvents waits until a namespace has exactly these events.
func waitForEvents(t *testing.T, namespace string, want ...string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("events %v", want), func(ctx context.Context) error {
		got, err := eventsIn(ctx, namespace)
		if diff := cmp.Diff(want, got); err == nil && diff != "" {
			err = fmt.Errorf("events (-want +got):\n%s", diff)
		}
		return err
	})
}

// waitForFindings waits until every injector counts so many findings of a Reason.
func waitForFindings(t *testing.T, reason string, want float64, injectors ...*injector.Injector) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%v findings %s", want, reason), func(ctx context.Context) error {
		var errs []error
		for _, i := range injectors {
			metrics, err := metricsOf(ctx, i.Metrics)
			got, ok := metrics[fmt.Sprintf("akv_injector_findings{reason=%q}", reason)]
			if err == nil && (!ok || got != want) {
				err = fmt.Errorf("%v findings", got)
			}
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
}

// another starts another replica, which stops when the test ends. It changes where the API server
// finds the injector, and another changes that back.
func another(t *testing.T) *injector.Injector {
	t.Helper()
	i, err := injector.Start(t.Context(), plane, injector.Options{Service: front.address})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Stop(); err != nil {
			t.Error(err)
		}
	})
	return i
}

const web = `
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  annotations: {keyvault.io/secrets: DB_PASSWORD=db-password, keyvault.io/vault: shop-kv, identity.io/name: blob-sa, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47}
spec:
  replicas: 3
  strategy: {type: Recreate}
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{name: app, image: app}]}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: blob-sa, annotations: {azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90}}
`

// TestFindings follows a Deployment from a namespace that did not opt in to injected pods, along the
// commands in the events. A second replica and a restart write no event twice.
func TestFindings(t *testing.T) {
	const namespace = "shop"
	second := another(t)
	kubectl(t, "", "create", "namespace", namespace)
	kubectl(t, web, "apply", "--namespace="+namespace, "--filename=-")
	waitForEvents(t, namespace, "Deployment/web NoEffect")
	waitForFindings(t, "NoEffect", 1, server, second)
	out, err := plane.Kubectl(t.Context(), "describe", "deployment", "web", "--namespace="+namespace).CombinedOutput()
	const command = "run: kubectl label namespace shop keyvault.io/injection=enabled"
	if err != nil || !strings.Contains(string(out), command) {
		t.Errorf("kubectl describe does not say %q: %v\n%s", command, err, out)
	}

	third := another(t)
	waitForFindings(t, "NoEffect", 1, third)
	waitForEvents(t, namespace, "Deployment/web NoEffect")

	kubectl(t, "", "label", "namespace", namespace, "keyvault.io/injection=enabled")
	waitForFindings(t, "NoEffect", 0, server, second, third)
	waitForFindings(t, "NotInjected", 1, server, second, third)
	waitForEvents(t, namespace, "Deployment/web NoEffect", "Deployment/web NotInjected")

	if err := injector.WaitUntilCalled(t.Context(), plane.Config, namespace); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "", "rollout", "restart", "deployment/web", "--namespace="+namespace)
	waitForFindings(t, "NotInjected", 0, server, second, third)
	pods, err := client.CoreV1().Pods(namespace).List(t.Context(), metav1.ListOptions{LabelSelector: "keyvault.io/injected=true"})
	if err != nil || len(pods.Items) == 0 {
		t.Errorf("no pod is injected: %v", err)
	}
	waitForEvents(t, namespace, "Deployment/web NoEffect", "Deployment/web NotInjected")
}

// TestPodsOfAnOutage creates pods while no configuration calls the injector: one by itself, and those
// of a Deployment.
func TestPodsOfAnOutage(t *testing.T) {
	const namespace = "outage"
	kubectl(t, `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "outage", "labels": {"keyvault.io/injection": "enabled"}}}`, "apply", "--filename=-")
	if err := plane.WaitForServiceAccount(t.Context(), namespace); err != nil {
		t.Fatal(err)
	}
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	saved, err := configurations.Get(t.Context(), chart.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if err := configurations.Delete(t.Context(), chart.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the API server to call no injector", func(ctx context.Context) error {
		return plane.RunKubectl(ctx, "", "run", "probe", "--image=probe", "--dry-run=server", "--annotations=keyvault.io/inject=perhaps", "--namespace="+namespace)
	})
	template := strings.Replace(web, "metadata: {labels: {app: web}}", "metadata: {labels: {app: web}, annotations: {identity.io/name: blob-sa}}", 1)
	kubectl(t, template, "apply", "--namespace="+namespace, "--filename=-")
	kubectl(t, "", "run", "alone", "--image=app", "--annotations=identity.io/name=blob-sa", "--namespace="+namespace)
	waitFor(t, "the pods", func(ctx context.Context) error {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(list.Items) != 4 {
			err = fmt.Errorf("there are %d", len(list.Items))
		}
		return err
	})
	saved.ResourceVersion = ""
	if _, err := configurations.Create(t.Context(), saved, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitForFindings(t, "NotInjected", 3, server)
	waitForEvents(t, namespace, "Deployment/web NotInjected", "Pod/alone NotInjected", "Pod/web-* NotInjected")

	// A user with the role view can read the events.
	if err := injector.WaitUntilCalled(t.Context(), plane.Config, namespace); err != nil {
		t.Fatal(err)
	}
	kubectl(t, "", "create", "serviceaccount", "tenant", "--namespace="+namespace)
	kubectl(t, "", "create", "rolebinding", "tenant", "--clusterrole=view", "--serviceaccount="+namespace+":tenant", "--namespace="+namespace)
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := plane.WriteKubeconfig(t.Context(), namespace, "tenant", file); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tenant's events", func(ctx context.Context) error {
		out, err := plane.Kubectl(ctx, "--kubeconfig="+file, "describe", "pod", "alone", "--namespace="+namespace).CombinedOutput()
		if err == nil && !strings.Contains(string(out), "delete the pod and create it again") {
			err = fmt.Errorf("kubectl describe prints\n%s", out)
		}
		return err
	})
	kubectl(t, "", "delete", "pod", "alone", "--namespace="+namespace)
	kubectl(t, "", "rollout", "restart", "deployment/web", "--namespace="+namespace)
	waitForFindings(t, "NotInjected", 0, server)
}
