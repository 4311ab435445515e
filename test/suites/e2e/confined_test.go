package e2e_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/tools/clientcmd"

	spc "github.com/akv-injector/akv-injector/core/class"
)

// TestInjectorIsConfined checks what a compromised injector could do to SecretProviderClasses. Its
// ServiceAccount may create and update classes with the name of a managed class only, and may
// delete none.
func TestInjectorIsConfined(t *testing.T) {
	t.Parallel()
	const namespace = "confined"
	newGoverned(t, namespace, `{}`, `{}`)
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(server.Dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	injector, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	const policy = "must have the name of a managed class"
	verbs := map[string]func(ctx context.Context, classes dynamic.ResourceInterface, name string) error{
		"create": func(ctx context.Context, classes dynamic.ResourceInterface, name string) error {
			class := document(`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: ` + name + `}, spec: {provider: azure}}`)
			_, err := classes.Create(ctx, class, metav1.CreateOptions{})
			return err
		},
		"update": func(ctx context.Context, classes dynamic.ResourceInterface, name string) error {
			_, err := classes.Patch(ctx, name, types.MergePatchType, []byte(`{"spec":{"parameters":{"keyvaultName":"other-kv"}}}`), metav1.PatchOptions{})
			return err
		},
		"delete": func(ctx context.Context, classes dynamic.ResourceInterface, name string) error {
			return classes.Delete(ctx, name, metav1.DeleteOptions{})
		},
	}
	for name, says := range map[string]map[string]string{
		"payments":       {"create": policy, "update": policy, "delete": "cannot delete"},
		"kv-payments":    {"create": policy, "update": policy, "delete": "cannot delete"},
		"kv-0123456789a": {"create": policy, "update": policy, "delete": "cannot delete"},
		"kv-0123456789":  {"create": "", "update": "", "delete": "cannot delete"},
	} {
		for _, verb := range []string{"create", "update", "delete"} {
			err := verbs[verb](t.Context(), injector.Resource(spc.Resource).Namespace(namespace), name)
			if says[verb] == "" && err != nil || says[verb] != "" && (!apierrors.IsForbidden(err) || !strings.Contains(err.Error(), says[verb])) {
				t.Errorf("%s class %s: %v, want %q", verb, name, err, says[verb])
			}
			if err == nil {
				continue
			}
			if err := verbs[verb](t.Context(), objects.Resource(spc.Resource).Namespace(namespace), name); err != nil {
				t.Errorf("%s class %s as an admin: %v", verb, name, err)
			}
		}
	}
}
