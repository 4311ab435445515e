package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// TestKubectl compares the complete output of kubectl for wrong manifests.
func TestKubectl(t *testing.T) {
	t.Parallel()
	const namespace = "kubectl"
	newNamespace(t, namespace, "enabled", surroundings()...)
	wrong := `{identity.io/name: access-blob, keyvault.io/class: key-vault-secret, keyvault.io/secretz: KEYVAULT_SECRET=secret-425, keyvault.io/env: all}`
	unresolved := `{identity.io/name: access-blob, keyvault.io/class: key-vault-secrets, keyvault.io/secrets: KEYVAULT_SECRET=secret-425}`
	for name, test := range map[string]struct {
		manifest string
		events   bool // compare the ReplicaSet's event, too
	}{
		"pod":                                   {manifest: pod},
		"wrong-pod":                             {manifest: strings.Replace(pod, annotations, wrong, 1)},
		"pod-with-unresolved-references":        {manifest: strings.Replace(pod, annotations, unresolved, 1)},
		"wrong-deployment":                      {manifest: strings.Replace(deployment, annotations, wrong, 1)},
		"deployment-with-unresolved-references": {manifest: strings.Replace(deployment, annotations, unresolved, 1), events: true},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), name+".yaml")
			if err := os.WriteFile(file, []byte(strings.ReplaceAll(test.manifest, "name: app,", "name: "+name+",")), 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := plane.Kubectl(t.Context(), "apply", "--namespace="+namespace, "--filename="+file)
			text, _ := cmd.CombinedOutput()
			got := "$ kubectl apply --filename=" + name + ".yaml\n" + strings.ReplaceAll(string(text), file, name+".yaml")
			if test.events {
				got += "$ kubectl events\n" + failedCreate(t, namespace) + "\n"
			}
			golden(t, "kubectl-"+name+".txt", got)
		})
	}
}

// TestKubectlDebug copies an injected pod with `kubectl debug` after its namespace changed what its
// class is derived from.
func TestKubectlDebug(t *testing.T) {
	t.Parallel()
	const namespace = "kubectl-debug"
	newTeam(t, namespace)
	newPod(t, namespace, "app", "DB_PASSWORD=db-password")
	patch := []byte(`{"metadata":{"annotations":{"keyvault.io/vault":"other-kv"}}}`)
	if _, err := client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	debug := func(args ...string) string {
		out, err := plane.Kubectl(t.Context(), append([]string{"debug", "app", "--namespace=" + namespace, "--image=busybox", "--attach=false", "-v=0"}, args...)...).CombinedOutput()
		if err != nil {
			return string(out)
		}
		return ""
	}
	waitFor(t, "the injector to see the namespace's annotation", func(context.Context) error {
		got := debug("--copy-to=kept", "--keep-annotations")
		if want := "such as by kubectl debug --copy-to without --keep-annotations"; !strings.Contains(got, want) || strings.Contains(got, "another webhook") {
			return fmt.Errorf("kubectl debug prints %q, want %q, and nothing about another webhook", got, want)
		}
		return nil
	})
	if got := debug("--copy-to=plain"); got != "" {
		t.Errorf("kubectl debug without the annotations: %s", got)
	}
}

// failedCreate returns the message of the FailedCreate event of a ReplicaSet.
func failedCreate(t *testing.T, namespace string) (message string) {
	t.Helper()
	waitFor(t, "the ReplicaSet's event", func(ctx context.Context) error {
		events, err := client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err == nil && len(events.Items) == 0 {
			err = errors.New("no such event")
		}
		if err == nil {
			message = events.Items[0].InvolvedObject.Kind + ": " + events.Items[0].Message
		}
		return err
	})
	return message
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", name, diff)
	}
}
