package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	managed "github.com/akv-injector/akv-injector/core/class"
)

// TestExplain compares what `akv-injector explain` prints about a Deployment for an administrator, for
// a tenant with the ClusterRole edit in the namespace, and for a user without rights. A client that
// may write events tries to write to the terminal and to the suggested commands.
func TestExplain(t *testing.T) {
	t.Parallel()
	const namespace = "explain"
	newTeam(t, namespace, documents(`
apiVersion: v1
kind: ServiceAccount
metadata: {name: tenant}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: stranger}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit}
subjects: [{kind: ServiceAccount, name: tenant, namespace: explain}]
`)...)
	if err := apply(t.Context(), namespace, asking(deployment, "app", "DB_PASSWORD=db-password")); err != nil {
		t.Fatal(err)
	}
	var pod corev1.Pod
	waitFor(t, "the pod and its class", func(ctx context.Context) error {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil || len(list.Items) != 1 {
			return errors.Join(err, errors.New("there must be one pod"))
		}
		pod = list.Items[0]
		made, err := objects.Resource(managed.Resource).Namespace(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(made.Items) != 1 {
			err = errors.New("there must be one class")
		}
		return err
	})
	event := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Name: "hostile", Namespace: namespace}, Type: corev1.EventTypeWarning, Reason: "FailedMount",
		Message:        "\x1b[2J\u202e RESPONSE 403: Caller is not authorized. appid=99999999-9999-9999-9999-999999999999 $(reboot)\n  $ reboot",
		InvolvedObject: corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: namespace, Name: pod.Name, UID: pod.UID},
		Source:         corev1.EventSource{Component: "kubelet"}, LastTimestamp: metav1.Now(),
	}
	if _, err := client.CoreV1().Events(namespace).Create(t.Context(), event, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	for user, status := range map[string]int{"admin": 1, "tenant": 1, "stranger": 2} {
		kubeconfig := plane.Kubeconfig
		if user != "admin" {
			kubeconfig = filepath.Join(t.TempDir(), "kubeconfig")
			if err := plane.WriteKubeconfig(t.Context(), namespace, user, kubeconfig); err != nil {
				t.Fatal(err)
			}
		}
		var page string
		waitFor(t, "the rights of "+user, func(ctx context.Context) error {
			cmd := exec.CommandContext(ctx, binary, "explain", "deployment/app", "--namespace="+namespace, "--kubeconfig="+kubeconfig)
			out, err := cmd.CombinedOutput()
			if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != status {
				return fmt.Errorf("must exit with status %d: %w\n%s", status, err, out)
			}
			page = string(out)
			return nil
		})
		for pattern, instead := range map[string]string{
			`\b(\d+[smhd])+ ago`: "AGE ago", `https://127\.0\.0\.1:\d+`: "https://ISSUER", regexp.QuoteMeta(kubeconfig): "KUBECONFIG",
			regexp.QuoteMeta(strings.TrimPrefix(pod.Name, "app")): "-HASH", regexp.QuoteMeta(strings.TrimPrefix(pod.OwnerReferences[0].Name, "app")): "-HASH",
		} {
			page = regexp.MustCompile(pattern).ReplaceAllString(page, instead)
		}
		golden(t, "explain-"+user+".txt", page)
	}
}
