package findings_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const envFilesYAML = `
apiVersion: v1
kind: Namespace
metadata:
  name: env-files
  labels: {keyvault.io/injection: enabled, pod-security.kubernetes.io/enforce: restricted}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: app
  namespace: env-files
  annotations:
    azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90
    azure.workload.identity/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47
`

// TestEnvFiles creates pods with env vars from files, as a dry run, in a namespace at the Pod Security
// level restricted, while nodes come and go.
func TestEnvFiles(t *testing.T) {
	kubectl(t, envFilesYAML, "apply", "--filename=-")
	create := func(ctx context.Context) (*corev1.Pod, error) {
		return client.CoreV1().Pods("env-files").Create(ctx, &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: map[string]string{
				"keyvault.io/vault": "team-kv", "keyvault.io/env-source": "file", "keyvault.io/secrets": "DB=db#password",
			}},
			Spec: corev1.PodSpec{
				ServiceAccountName: "app",
				SecurityContext: &corev1.PodSecurityContext{
					RunAsNonRoot: new(true), RunAsUser: new(int64(1000)), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
				},
				InitContainers: []corev1.Container{restricted("migrate")},
				Containers:     []corev1.Container{restricted("app")},
			},
		}, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	accepted := func(ctx context.Context) error { _, err := create(ctx); return err }
	rejected := func(text string) func(context.Context) error {
		return func(ctx context.Context) error {
			_, err := create(ctx)
			if err == nil {
				return errors.New("the pod was created")
			}
			if !strings.Contains(err.Error(), "[EnvFileUnsupported]") || !strings.Contains(err.Error(), text) {
				return fmt.Errorf("the message lacks %q: %w", text, err)
			}
			return nil
		}
	}
	waitFor(t, "a pod", accepted)

	pod, err := create(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	const token = "/var/run/secrets/kubernetes.io/serviceaccount"
	for i, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		volume := ""
		for _, m := range c.VolumeMounts {
			if m.MountPath == token {
				volume = m.Name
			}
		}
		if isFirst := i == 0; isFirst != (c.Name == "keyvault-env") || isFirst != (volume == "keyvault-env") || volume == "" {
			t.Errorf("container %d, %s, has volume %q at %s", i, c.Name, volume, token)
		}
		if i > 0 && (len(c.Env) == 0 || c.Env[0].ValueFrom.FileKeyRef == nil) {
			t.Errorf("container %s has env vars %v", c.Name, c.Env)
		}
	}

	node := func(name, version, system string, cordoned bool) {
		t.Helper()
		t.Cleanup(func() { _ = client.CoreV1().Nodes().Delete(context.Background(), name, metav1.DeleteOptions{}) })
		nodes := client.CoreV1().Nodes()
		_, err := nodes.Create(t.Context(), &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.NodeSpec{Unschedulable: cordoned},
		}, metav1.CreateOptions{})
		status := fmt.Sprintf(`{"status":{"nodeInfo":{"kubeletVersion":%q,"operatingSystem":%q}}}`, version, system)
		if err == nil {
			_, err = nodes.Patch(t.Context(), name, types.MergePatchType, []byte(status), metav1.PatchOptions{}, "status")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	node("new", "v1.35.0+aks", "linux", false)
	node("windows", "v1.30.2", "windows", false)
	node("cordoned", "v1.30.2", "linux", true)
	node("old", "v1.34.9", "linux", false)
	waitFor(t, "the rejection", rejected("the kubelet of node old (v1.34.9) is older than 1.35"))
	kubectl(t, "", "cordon", "old")
	waitFor(t, "a pod again", accepted)
	kubectl(t, "", "uncordon", "old")
	waitFor(t, "the rejection again", rejected("node old"))
	kubectl(t, "", "delete", "node", "old")
	waitFor(t, "a pod at last", accepted)
}

// restricted returns a container that meets the Pod Security level restricted.
func restricted(name string) corev1.Container {
	return corev1.Container{Name: name, Image: "app", SecurityContext: &corev1.SecurityContext{
		AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
	}}
}
