package commands_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/cli/kube"
)

// renamed returns an object in JSON for another namespace.
func renamed(text, namespace string) string {
	var object unstructured.Unstructured
	if err := json.Unmarshal([]byte(text), &object.Object); err != nil {
		panic(err) // it comes from kubectl
	}
	object.SetNamespace(namespace)
	object.SetResourceVersion("")
	object.SetUID("")
	changed, err := object.MarshalJSON()
	if err != nil {
		panic(err) // a decoded object has a JSON form
	}
	return string(changed)
}

// mount creates the SecretProviderClassPodStatuses of the injected pods, as the driver does.
func mount(t *testing.T) {
	t.Helper()
	pods, err := client.CoreV1().Pods("shop").List(t.Context(), metav1.ListOptions{LabelSelector: "app=web"})
	if err != nil || len(pods.Items) != 2 {
		t.Fatalf("%d pods, %v", len(pods.Items), err)
	}
	for i, pod := range pods.Items {
		name := pod.Name + "-shop-shop-kv"
		create(t, kube.PodStatuses, "shop", map[string]any{
			"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClassPodStatus", "metadata": map[string]any{"name": name},
		})
		status, err := objects.Resource(kube.PodStatuses).Namespace("shop").Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		status.Object["status"] = map[string]any{
			"podName": pod.Name, "secretProviderClassName": "shop-kv", "mounted": true,
			"objects": []any{map[string]any{"id": "secret/db-password", "version": fmt.Sprintf("%d%031d", i, 0)}},
		}
		resource := objects.Resource(kube.PodStatuses).Namespace("shop")
		if _, err := resource.Update(t.Context(), status, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := resource.UpdateStatus(context.WithoutCancel(t.Context()), status, metav1.UpdateOptions{}); err != nil && !strings.Contains(err.Error(), "not found") {
			t.Log(err) // the kind may have no subresource status
		}
	}
}

// TestList lists what a real injector injected, with all rights, with those of a tenant, and with
// none.
func TestList(t *testing.T) {
	mount(t)
	const table = `NAMESPACE   WORKLOAD          PODS   IDENTITY                VAULT     OBJECT               VERSIONS                     ENV
shop        CronJob/nightly   0      workload-identity web   shop-kv   secret:api-key       -                            API_KEY
shop        CronJob/nightly   0      workload-identity web   shop-kv   secret:db-password   -                            DB_PASSWORD
shop        Deployment/web    2      workload-identity web   shop-kv   secret:db-password   00000000 (1), 10000000 (1)   DB_PASSWORD
`
	const effects = `NAMESPACE   WORKLOAD          PODS   OBJECT               VERSIONS                     USED AS                                      WHEN ROTATED
shop        CronJob/nightly   0      secret:db-password   -                            file /mnt/secrets-store/db-password in job   FOLLOWS
shop        CronJob/nightly   0      secret:db-password   -                            env var DB_PASSWORD in job                   needs a restart
shop        Deployment/web    2      secret:db-password   00000000 (1), 10000000 (1)   file /mnt/secrets-store/db-password in web   FOLLOWS
shop        Deployment/web    2      secret:db-password   00000000 (1), 10000000 (1)   env var DB_PASSWORD in web                   needs a restart

shop-kv/db-password is used by 2 workloads with 2 pods. If it is deleted, running pods keep what they have, and new pods
that mount it do not start: one missing object fails the whole volume.

After a rotation, restart:
  kubectl rollout restart --namespace shop deployment/web
`
	const object = "--object=shop-kv/db-password"
	const nothing = "no workload uses a Key Vault object or an identity\n"
	for _, tt := range []struct {
		user   string
		args   []string
		want   string
		stderr []string // lines
		status int
	}{
		{"admin", []string{"--all-namespaces"}, table, nil, 0},
		{"admin", []string{"--namespace=shop", object}, strings.ReplaceAll(effects, "FOLLOWS", "follows by itself"), nil, 0},
		{"tenant", []string{"--namespace=shop"}, table, []string{
			"you may not list azureidentitybindings.aadpodidentity.k8s.io in namespace shop: the list may lack workloads without pods",
		}, 2},
		{"tenant", []string{"--namespace=shop", object}, strings.ReplaceAll(effects, "FOLLOWS", "follows by itself if rotation is on"), []string{
			"you may not list azureidentitybindings.aadpodidentity.k8s.io in namespace shop: the list may lack workloads without pods",
			"you may not list daemonsets.apps in all namespaces: whether the driver's rotation is on is not known",
		}, 2},
		{"nobody", []string{"--namespace=shop"}, nothing, []string{
			"you may not get namespaces shop: the list may lack workloads without pods",
			"you may not list secretproviderclasses.secrets-store.csi.x-k8s.io in namespace shop: the list has no objects of existing classes",
			"you may not list serviceaccounts in namespace shop: the list may lack client ids, and what the next pods of workloads get",
			"you may not list azureidentitybindings.aadpodidentity.k8s.io in namespace shop: the list may lack workloads without pods",
			"you may not list secretproviderclasspodstatuses.secrets-store.csi.x-k8s.io in namespace shop: the list has no versions",
			"you may not list jobs.batch in namespace shop: the list may lack workloads without pods",
			"you may not list pods in namespace shop: the list has only what the next pods of workloads get",
			"you may not list cronjobs.batch in namespace shop: the list may lack workloads without pods",
			"you may not list daemonsets.apps in namespace shop: the list may lack workloads without pods",
			"you may not list deployments.apps in namespace shop: the list may lack workloads without pods",
			"you may not list statefulsets.apps in namespace shop: the list may lack workloads without pods",
		}, 2},
	} {
		got := akv(t.Context(), t, tt.user, append([]string{"list"}, tt.args...)...)
		if diff := cmp.Diff(strings.Fields(tt.want), strings.Fields(got.stdout)); diff != "" {
			t.Errorf("%s %v (-want +got)\n%s", tt.user, tt.args, diff)
		}
		stderr := strings.Split(strings.TrimSuffix(got.stderr, "\n"), "\n")
		if got.stderr == "" {
			stderr = nil
		}
		if diff := cmp.Diff(tt.stderr, stderr); diff != "" {
			t.Errorf("%s %v: standard error (-want +got)\n%s", tt.user, tt.args, diff)
		}
		if got.status != tt.status {
			t.Errorf("%s %v: status %d, want %d", tt.user, tt.args, got.status, tt.status)
		}
	}
}
