package facts

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// BindingResource is the resource of AzureIdentityBindings.
var BindingResource = schema.GroupVersionResource{
	Group: "aadpodidentity.k8s.io", Version: "v1", Resource: "azureidentitybindings",
}

// ReadNamespace keeps the labels and annotations of a Namespace that are under the prefixes of the
// contract.
func ReadNamespace(object metav1.Object) *Namespace {
	return &Namespace{Name: object.GetName(), Labels: ours(object.GetLabels()), Annotations: ours(object.GetAnnotations())}
}

func ours(all map[string]string) map[string]string {
	var kept map[string]string
	for key, value := range all {
		if api.IsOurs(key) {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}

// ReadClass decodes a SecretProviderClass. With an error it returns an invalid class of that name.
func ReadClass(object *unstructured.Unstructured) (*class.Class, error) {
	var spc class.SecretProviderClass
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &spc); err != nil {
		invalid := &class.Class{
			Name:     object.GetName(),
			Provider: class.Provider,
			Invalid:  "a field is of another type than the driver has there",
		}
		return invalid, fmt.Errorf("read SecretProviderClass %s: %w", object.GetName(), err)
	}
	return class.Read(&spc), nil
}

// ReadServiceAccount reads a ServiceAccount.
func ReadServiceAccount(object *unstructured.Unstructured) *ServiceAccount {
	sa := &ServiceAccount{
		Name:     object.GetName(),
		TenantID: api.Echo(object.GetAnnotations()[api.WorkloadIdentityTenantID]),
	}
	sa.ClientID, sa.InvalidClientID = ReadClientID(object.GetAnnotations())
	secrets, _, err := unstructured.NestedSlice(object.Object, "imagePullSecrets")
	if err != nil {
		return sa // the API server accepts no other type
	}
	for _, secret := range secrets {
		if ref, ok := secret.(map[string]any); ok {
			name, _, _ := unstructured.NestedString(ref, "name")
			sa.PullSecrets = append(sa.PullSecrets, name)
		}
	}
	return sa
}

// ReadClientID reads the client id in the annotations of a ServiceAccount, as [api.SplitGUID] does.
// It shortens values that are too long to be an id: an annotation may have 256 KiB.
func ReadClientID(annotations map[string]string) (valid, invalid string) {
	return api.SplitGUID(api.Echo(annotations[api.WorkloadIdentityClientID]))
}

// ReadSelector returns the spec.selector of an AzureIdentityBinding, or "" if no label can have it
// as a value.
func ReadSelector(object *unstructured.Unstructured) string {
	selector, _, err := unstructured.NestedString(object.Object, "spec", "selector")
	if err != nil || len(selector) > validation.LabelValueMaxLength {
		return ""
	}
	return selector
}

// ClientServiceAccounts returns the names of the ServiceAccounts with a client id.
func ClientServiceAccounts(all []*ServiceAccount) []string {
	var names []string
	for _, sa := range all {
		if sa.ClientID != "" {
			names = append(names, sa.Name)
		}
	}
	return names
}

// Binds reports whether the needed selector is among those of the AzureIdentityBindings.
func Binds(selectors []string, needed string) bool {
	return needed != "" && slices.Contains(selectors, needed)
}
