package facts

import (
	"maps"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// parameters are the parameters of the Azure provider (its pkg/provider/types). None is a secret.
var parameters = []string{
	"cloudEnvFileName", "cloudName", "clientID", "keyvaultName", "objects", "tenantID", "tenantId", "useAzureTokenProxy",
	"usePodIdentity", "useVMManagedIdentity", "userAssignedIdentityID",
}

// Reduce returns an object of the kinds that [Objects.Add] reads with only those of its fields that
// decisions depend on; nil for another kind. Parameters of a class that the Azure provider does not
// have are left out, since they may be secrets.
func Reduce(object *unstructured.Unstructured) *unstructured.Unstructured {
	reduced := &unstructured.Unstructured{Object: map[string]any{"metadata": map[string]any{}}}
	reduced.SetAPIVersion(object.GetAPIVersion())
	reduced.SetKind(object.GetKind())
	reduced.SetName(object.GetName())
	reduced.SetNamespace(object.GetNamespace())
	keep := func(path ...string) {
		if value, found, err := unstructured.NestedFieldCopy(object.Object, path...); found && err == nil {
			_ = unstructured.SetNestedField(reduced.Object, value, path...) // reduced has no other type there
		}
	}
	switch object.GetKind() {
	case "Namespace":
		setStrings(reduced.SetLabels, ours(object.GetLabels()))
		setStrings(reduced.SetAnnotations, ours(object.GetAnnotations()))
	case "ServiceAccount":
		annotations := maps.Clone(object.GetAnnotations())
		maps.DeleteFunc(annotations, func(key, _ string) bool {
			return key != api.WorkloadIdentityClientID && key != api.WorkloadIdentityTenantID
		})
		setStrings(reduced.SetAnnotations, annotations)
		keep("imagePullSecrets")
	case class.Kind:
		keep("spec", "provider")
		for _, name := range parameters {
			keep("spec", "parameters", name)
		}
		keep("spec", "secretObjects")
	case "AzureIdentityBinding":
		keep("spec", "selector")
	default:
		return nil
	}
	return reduced
}

// setStrings sets a field to a mapping unless it is empty.
func setStrings(set func(map[string]string), value map[string]string) {
	if len(value) > 0 {
		set(value)
	}
}
