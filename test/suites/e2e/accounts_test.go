package e2e_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestServiceAccountAdmission compares pods whose ServiceAccount is set by annotation with pods
// whose author set it. The ServiceAccount admission plugin of the API server must give both the
// same result.
func TestServiceAccountAdmission(t *testing.T) {
	t.Parallel()
	const namespace = "account-admission"
	newNamespace(t, namespace, "enabled", documents(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: default}
imagePullSecrets: [{name: of-default}]
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: silent, annotations: {azure.workload.identity/client-id: 00000000-0000-4000-8000-000000000001}}
automountServiceAccountToken: false
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: usual, annotations: {azure.workload.identity/client-id: 00000000-0000-4000-8000-000000000001}}
imagePullSecrets: [{name: of-usual}]
`)...)
	const containers = `initContainers: [{name: init, image: nginx}], containers: [{name: app, image: nginx, volumeMounts: [{name: data, mountPath: /data}]}], volumes: [{name: data, emptyDir: {}}]`
	for name, spec := range map[string]string{
		"nothing-of-its-own":      ``,
		"a-token-by-the-pod":      `automountServiceAccountToken: true, `,
		"no-token-by-the-pod":     `automountServiceAccountToken: false, `,
		"pull-secrets-of-its-own": `imagePullSecrets: [{name: mine}], `,
	} {
		for _, account := range []string{"silent", "usual"} {
			t.Run(name+"/"+account, func(t *testing.T) {
				annotated := name + "-" + account
				if err := apply(t.Context(), namespace,
					document(`{apiVersion: v1, kind: Pod, metadata: {name: `+annotated+`, annotations: {identity.io/name: `+account+`}}, spec: {`+spec+containers+`}}`),
					document(`{apiVersion: v1, kind: Pod, metadata: {name: by-hand-`+annotated+`}, spec: {serviceAccountName: `+account+`, `+spec+containers+`}}`),
				); err != nil {
					t.Fatal(err)
				}
				if got, want := admitted(t, namespace, annotated), admitted(t, namespace, "by-hand-"+annotated); got != want {
					t.Errorf("the annotated pod has %s, want %s", got, want)
				}
			})
		}
	}
}

// admitted returns what the ServiceAccount admission plugin gives a pod: its ServiceAccount,
// imagePullSecrets, token volumes, and the containers that mount one.
func admitted(t *testing.T, namespace, name string) string {
	t.Helper()
	pod, err := client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	isToken := func(name string) bool { return strings.HasPrefix(name, "kube-api-access-") }
	volumes := 0
	for _, v := range pod.Spec.Volumes {
		if isToken(v.Name) {
			volumes++
		}
	}
	var mounts []string
	for _, c := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, m := range c.VolumeMounts {
			if isToken(m.Name) && slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name }) {
				mounts = append(mounts, c.Name+":"+m.MountPath)
			}
		}
	}
	return fmt.Sprint(pod.Spec.ServiceAccountName, " ", pod.Spec.ImagePullSecrets, " ", volumes, " volumes ", mounts)
}
