package injector_test

import (
	"context"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// TestInjector checks that the API server calls an injector that has only the shipped rights.
func TestInjector(t *testing.T) {
	// A first build takes minutes.
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{Binaries: binaries, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := controlplane.InstallCRDs(ctx, plane.Config); err != nil {
		t.Fatal(err)
	}
	started, err := injector.Start(ctx, plane, injector.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	optIn := []byte(`{"metadata":{"labels":{"keyvault.io/injection":"enabled"}}}`)
	if _, err := client.CoreV1().Namespaces().Patch(
		ctx, metav1.NamespaceDefault, types.MergePatchType, optIn, metav1.PatchOptions{},
	); err != nil {
		t.Fatal(err)
	}
	if err := injector.WaitUntilCalled(ctx, plane.Config, metav1.NamespaceDefault); err != nil {
		t.Fatal(err)
	}
}
