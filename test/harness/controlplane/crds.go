package controlplane

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	// These imports keep the modules in go.mod, which pins the versions of the CRDs.
	_ "github.com/Azure/aad-pod-identity/pkg/apis/aadpodidentity/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	_ "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

var crdFiles = []struct{ module, pattern string }{
	{"sigs.k8s.io/secrets-store-csi-driver", "config/crd/bases/*.yaml"},
	{"github.com/Azure/aad-pod-identity", "charts/aad-pod-identity/crds/*.yaml"},
}

// InstallCRDs applies the custom resource definitions of the Secrets Store CSI driver and of AAD
// Pod Identity, which it reads from the sources of their modules. It returns when they are
// established. The current folder must be inside this package's module.
func InstallCRDs(ctx context.Context, cfg *rest.Config) error {
	client, err := apiextensions.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	definitions := client.CustomResourceDefinitions()
	var names []string
	for _, f := range crdFiles {
		crds, err := readCRDs(ctx, f.module, f.pattern)
		if err != nil {
			return fmt.Errorf("read the CRDs of %s: %w", f.module, err)
		}
		for _, crd := range crds {
			name := crd.GetName()
			document, err := crd.MarshalJSON()
			if err != nil {
				return fmt.Errorf("apply CRD %s: %w", name, err)
			}
			options := metav1.PatchOptions{FieldManager: "akv-injector-test", Force: new(true)}
			if _, err := definitions.Patch(ctx, name, types.ApplyPatchType, document, options); err != nil {
				return fmt.Errorf("apply CRD %s: %w", name, err)
			}
			names = append(names, name)
		}
	}
	for _, name := range names {
		if err := process.Until(ctx, func(ctx context.Context) error {
			crd, err := definitions.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
				return nil
			}
			return errors.New("not established")
		}); err != nil {
			return fmt.Errorf("wait for CRD %s: %w", name, err)
		}
	}
	return nil
}

// readCRDs returns the CRDs in the files of a module that match pattern.
func readCRDs(ctx context.Context, module, pattern string) ([]*unstructured.Unstructured, error) {
	dir, err := moduleFolder(ctx, module)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, pattern))
	if err != nil {
		return nil, err
	}
	var crds []*unstructured.Unstructured
	for _, name := range files {
		file, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer file.Close()
		for decoder := yaml.NewYAMLOrJSONDecoder(file, 4096); ; {
			crd := &unstructured.Unstructured{}
			err := decoder.Decode(crd)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Base(name), err)
			}
			// An old generator left these fields, which the API server sets.
			unstructured.RemoveNestedField(crd.Object, "status")
			unstructured.RemoveNestedField(crd.Object, "metadata", "creationTimestamp")
			crds = append(crds, crd)
		}
	}
	if len(crds) == 0 {
		return nil, fmt.Errorf("no CRD in %s", pattern)
	}
	return crds, nil
}
