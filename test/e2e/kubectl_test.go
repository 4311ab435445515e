package e2e_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestKubectl compares what people see who apply something wrong, word by word.
func TestKubectl(t *testing.T) {
	t.Parallel()
	const namespace = "kubectl"
	newNamespace(t, namespace, "enabled", cluster()...)
	wrong := `{identity.io/name: access-blob, keyvault.io/class: key-vault-secret, keyvault.io/secretz: KEYVAULT_SECRET=secret-425, keyvault.io/env: all}`
	unresolved := `{identity.io/name: access-blob, keyvault.io/class: key-vault-secrets, keyvault.io/secrets: KEYVAULT_SECRET=secret-425}`
	for name, test := range map[string]struct {
		manifest string
		events   bool // what comes of it later shows in events
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

// failedCreate is what a ReplicaSet says of its pods.
func failedCreate(t *testing.T, namespace string) (message string) {
	t.Helper()
	waitFor(t, "the ReplicaSet's event", func(ctx context.Context) error {
		events, err := client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err == nil && len(events.Items) == 0 {
			err = errors.New("there is none")
		}
		if err == nil {
			message = events.Items[0].InvolvedObject.Kind + ": " + events.Items[0].Message
		}
		return err
	})
	return message
}

// golden compares text with a file of testdata.
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
