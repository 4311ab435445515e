package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/util/cert"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// TestAzureWorkloadIdentity runs the webhook of Azure Workload Identity with the configuration that
// it ships. That webhook selects pods by a label that the injector sets, so the injector must be
// called first. When its configuration is renamed to be called last, the injector must log an
// error.
func TestAzureWorkloadIdentity(t *testing.T) {
	const namespace, clientID, tenantID = "workload-identity", "6f1c8f2e-1f2b-4c51-9a55-111111111111", "72f988bf-86f1-41af-91ab-2d7cd011db47"
	startAzureWebhook(t, tenantID)
	newNamespace(t, namespace, "enabled", document(
		`{apiVersion: v1, kind: ServiceAccount, metadata: {name: blob-sa, annotations: {azure.workload.identity/client-id: `+clientID+`}}}`))
	asks := map[string]string{
		"identity.io/mode": "workload-identity", "identity.io/name": "blob-sa", "identity.io/tenant-id": tenantID,
		"keyvault.io/vault": "shop-kv", "keyvault.io/secrets": "DB_PASSWORD=db-password",
	}

	got := createThroughBoth(t, namespace, asks, hasAzureToken)
	want := map[string]string{
		"AZURE_CLIENT_ID": clientID, "AZURE_TENANT_ID": tenantID,
		"AZURE_FEDERATED_TOKEN_FILE": "/var/run/secrets/azure/wi/token/azure-identity-token", "AZURE_AUTHORITY_HOST": "https://login.microsoftonline.com/",
		"DB_PASSWORD": "", // from a Secret
	}
	env := map[string]string{}
	for _, e := range got.Spec.Containers[0].Env {
		env[e.Name] = e.Value
	}
	if diff := cmp.Diff(want, env); diff != "" {
		t.Errorf("env vars (-want +got):\n%s", diff)
	}
	if !usesWorkloadIdentity(got) || !mounts(got, "/mnt/secrets-store") {
		t.Errorf("the pod was not injected: ServiceAccount %s, labels %v, mounts %v", got.Spec.ServiceAccountName, got.Labels, got.Spec.Containers[0].VolumeMounts)
	}
	if diff := cmp.Diff([]string{"injected", "unchanged"}, outcomes(t, namespace, "app")); diff != "" {
		t.Errorf("outcomes of the reviews (-want +got):\n%s", diff)
	}

	t.Run("after Azure's webhook the label is too late, and the injector logs an error", func(t *testing.T) {
		began := startReplica(t)
		rename(t, configuration, "zz-"+configuration)
		started := startReplica(t)
		for _, log := range []string{server.Dir, logFolder(began), logFolder(started)} {
			waitForProblem(t, log, "error", "late", "zz-"+configuration)
		}
		waitFor(t, "Azure's webhook to be called first", func(ctx context.Context) error {
			late := &corev1.Pod{
				ObjectMeta: metav1.ObjectMeta{Name: "late", Annotations: asks},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "nginx"}}},
			}
			got, err := client.CoreV1().Pods(namespace).Create(ctx, late, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
			if err == nil && (!usesWorkloadIdentity(got) || hasAzureToken(got)) {
				err = fmt.Errorf("the pod is %v, %v", got.ObjectMeta, got.Spec)
			}
			return err
		})
	})
	waitForGone(t, server.Dir, "late", "zz-"+configuration)
}

// usesWorkloadIdentity reports whether a pod has what the injector adds for workload identity.
func usesWorkloadIdentity(pod *corev1.Pod) bool {
	return pod.Labels["azure.workload.identity/use"] == "true" && pod.Spec.ServiceAccountName == "blob-sa" && labelled(pod)
}

// hasAzureToken reports whether a pod has the token volume that Azure's webhook adds, mounted at
// the expected path.
func hasAzureToken(pod *corev1.Pod) bool {
	return mounts(pod, "/var/run/secrets/azure/wi") && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return strings.HasPrefix(v.Name, "azure-workload-identity-reserved-") && v.Projected != nil &&
			slices.ContainsFunc(v.Projected.Sources, func(s corev1.VolumeProjection) bool {
				return s.ServiceAccountToken != nil && s.ServiceAccountToken.Audience == "api://AzureADTokenExchange"
			})
	})
}

func mounts(pod *corev1.Pod, path string) bool {
	return slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool { return m.MountPath == path })
}

// startAzureWebhook builds and runs Azure's webhook, and applies the configuration that it ships
// with another URL.
func startAzureWebhook(t *testing.T, tenantID string) {
	t.Helper()
	module, err := filepath.Abs("../../parts/azurewi")
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(module, "../../../bin/test/azurewi")
	// Takes minutes the first time.
	if err := build.Program(t.Context(), module, program, "-trimpath", "-ldflags=-s -w", "."); err != nil {
		t.Fatal(err)
	}
	addresses, err := process.FreeAddresses(2)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", []net.IP{net.IPv4(127, 0, 0, 1)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for file, data := range map[string][]byte{"tls.crt": certificate, "tls.key": key} {
		if err := os.WriteFile(filepath.Join(dir, file), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("AZURE_TENANT_ID", tenantID)
	azure, err := process.Start(dir, program, "--kubeconfig="+plane.Kubeconfig, "--cert-dir="+dir, "--address="+addresses[0], "--probe-address="+addresses[1])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := azure.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := azure.Await(t.Context(), func(ctx context.Context) error { return process.Healthy(ctx, "http://"+addresses[1]+"/readyz") }); err != nil {
		t.Fatal(err)
	}
	c := azureConfiguration(t, module)
	for i := range c.Webhooks {
		path := c.Webhooks[i].ClientConfig.Service.Path
		c.Webhooks[i].ClientConfig = admissionregistrationv1.WebhookClientConfig{URL: new("https://" + addresses[0] + *path), CABundle: certificate}
	}
	addConfiguration(t, c)
}

// azureConfiguration returns the webhook configuration from the manifests in Azure's module.
func azureConfiguration(t *testing.T, module string) *admissionregistrationv1.MutatingWebhookConfiguration {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/Azure/azure-workload-identity")
	list.Dir = module
	source, err := list.Output()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(source)), "deploy", "azure-wi-webhook.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range documents(string(text)) {
		if object.GetKind() != "MutatingWebhookConfiguration" {
			continue
		}
		var c admissionregistrationv1.MutatingWebhookConfiguration
		if err := runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(object.Object, &c, true); err != nil {
			t.Fatal(err)
		}
		return &c
	}
	t.Fatal("Azure's module ships no MutatingWebhookConfiguration")
	return nil
}

// rename renames a configuration until the test ends.
func rename(t *testing.T, from, to string) {
	t.Helper()
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	move := func(ctx context.Context, from, to string) error {
		c, err := configurations.Get(ctx, from, metav1.GetOptions{})
		if err != nil {
			return err
		}
		c.ObjectMeta = metav1.ObjectMeta{Name: to, Labels: c.Labels, Annotations: c.Annotations}
		if _, err := configurations.Create(ctx, c, metav1.CreateOptions{}); err != nil {
			return err
		}
		return configurations.Delete(ctx, from, metav1.DeleteOptions{})
	}
	if err := move(t.Context(), from, to); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := move(context.Background(), to, from); err != nil {
			t.Error(err)
		}
	})
}

// TestSecondInstallation adds a configuration that calls a second injector, as an accidental second
// installation does. Both injectors must log an error, and the pods must be the same as with one.
func TestSecondInstallation(t *testing.T) {
	const namespace, copied = "second-installation", "second-" + configuration
	newNamespace(t, namespace, "enabled", surroundings()...)
	create := func(name string) *corev1.Pod {
		t.Helper()
		object := document(pod)
		object.SetName(name)
		if err := apply(t.Context(), namespace, object); err != nil {
			t.Fatal(err)
		}
		got, err := client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	single := create("single")

	second := startReplica(t)
	second.waitReady(t)
	c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	c.ObjectMeta = metav1.ObjectMeta{Name: copied}
	for i := range c.Webhooks {
		c.Webhooks[i].ClientConfig.URL = new(strings.Replace(*c.Webhooks[i].ClientConfig.URL, server.URL, "https://"+second.address, 1))
	}
	t.Run("both log an error, and pods are injected once", func(t *testing.T) {
		addConfiguration(t, c)
		for _, dir := range []string{server.Dir, logFolder(second)} {
			waitForProblem(t, dir, "error", "doubled", copied)
		}
		if got := gauge(t, server.Metrics, `akv_injector_configuration_problems{problem="doubled"}`); got != "1" {
			t.Errorf("the metric is %s with two configurations", got)
		}
		waitFor(t, "the second injector to be called", func(ctx context.Context) error {
			if err := creates(ctx, namespace); err != nil {
				return err
			}
			text, err := os.ReadFile(filepath.Join(logFolder(second), "akv-injector.log"))
			if err == nil && !bytes.Contains(text, []byte(`"path":"/mutate/pods"`)) {
				err = errors.New("no review in its log")
			}
			return err
		})
		doubled := create("doubled")
		if diff := cmp.Diff(authored(single), authored(doubled)); diff != "" {
			t.Errorf("a second injector changes the pod (-one +two):\n%s", diff)
		}
		if err := apply(t.Context(), namespace, document(deployment)); err != nil {
			t.Fatal(err)
		}
		of := func(pod *corev1.Pod) bool { return metav1.GetControllerOf(pod) != nil }
		if err := injected(&waitForPods(t, namespace, 1, of)[0]); err != nil {
			t.Error(err)
		}
	})
	waitForGone(t, server.Dir, "doubled", copied)
	if got := gauge(t, server.Metrics, `akv_injector_configuration_problems{problem="doubled"}`); got != "0" {
		t.Errorf("the metric is %s after one was deleted", got)
	}
}

// authored returns the parts of a pod that are the same each time it is created.
func authored(pod *corev1.Pod) any {
	spec := pod.Spec.DeepCopy()
	spec.Volumes = slices.DeleteFunc(spec.Volumes, func(v corev1.Volume) bool { return tokenVolume.MatchString(v.Name) })
	for i := range spec.Containers {
		spec.Containers[i].VolumeMounts = slices.DeleteFunc(spec.Containers[i].VolumeMounts, func(m corev1.VolumeMount) bool { return tokenVolume.MatchString(m.Name) })
	}
	return []any{pod.Labels, pod.Annotations, spec}
}

// logFolder returns the folder of a replica's log.
func logFolder(r *replica) string {
	return filepath.Join(plane.Dir, "replica-"+strings.TrimPrefix(r.address, "127.0.0.1:"))
}

// waitForProblem waits until an injector has logged a configuration problem and its fix.
func waitForProblem(t *testing.T, dir, level, problem, configuration string) {
	t.Helper()
	waitForLine(t, dir, map[string]string{
		"level": level, "msg": "The injector is not called as it should be", "problem": problem, "configuration": configuration,
	}, "found", "fix")
}

// waitForGone waits until an injector has logged that the problem is resolved.
func waitForGone(t *testing.T, dir, problem, configuration string) {
	t.Helper()
	waitForLine(t, dir, map[string]string{
		"level": "info", "msg": "A problem with how the injector is called is gone", "problem": problem, "configuration": configuration,
	})
}

// waitForLine waits for a line of the log that has these values, and a value for each of the keys.
func waitForLine(t *testing.T, dir string, values map[string]string, keys ...string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("a line of the log with %v", values), func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(dir, "akv-injector.log"))
		if err != nil {
			return err
		}
		for line := range bytes.Lines(text) {
			var entry map[string]any
			if json.Unmarshal(line, &entry) != nil {
				continue
			}
			same := true
			for key, value := range values {
				same = same && entry[key] == value
			}
			for _, key := range keys {
				said, ok := entry[key].(string)
				same = same && ok && said != ""
			}
			if same {
				return nil
			}
		}
		return errors.New("no such line")
	})
}

// gauge returns the value of a sample in the metrics at a URL.
func gauge(t *testing.T, url, name string) string {
	t.Helper()
	_, body, err := get(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strings.TrimSpace(value)
		}
	}
	t.Fatalf("no metric %s", name)
	return ""
}
