package cli

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// hint returns the end of a message about something that the manifests do not have. It may be in
// another namespace, or in the cluster. It is empty if a cluster is searched as well. The name is
// that of the missing object, if the reason has one.
func (r *run) hint(reason api.Reason, namespace string, name any) string {
	if r.options.Cluster != nil {
		return ""
	}
	text, _ := name.(string)
	if elsewhere := r.elsewhere(reason, namespace, text); len(elsewhere) > 0 {
		return fmt.Sprintf("; the files have it in namespace %s, but a pod can only use %s of its own namespace",
			strings.Join(elsewhere, " and "), usedBy[reason])
	}
	if r.covered[namespace] {
		return ""
	}
	switch reason {
	case api.ClassNotFound:
		if !r.has[kindIn{class.Kind, namespace}] {
			return fmt.Sprintf("; if the cluster has it, add SecretProviderClass %s of namespace %s to the files, %s", text, namespace, orLookUp)
		}
	case api.VaultRequired:
		if r.known[objectID{namespaceKind.Kind, "", namespace}] == nil {
			return fmt.Sprintf("; if Namespace %s sets it, add the Namespace to the files, %s", namespace, orLookUp)
		}
	case api.TenantIDRequired:
		switch {
		case !r.has[kindIn{serviceAccountKind.Kind, namespace}]:
			return "; if the ServiceAccount sets it, add the ServiceAccount to the files, " + orLookUp
		case r.known[objectID{namespaceKind.Kind, "", namespace}] == nil:
			return fmt.Sprintf("; if Namespace %s sets it, add the Namespace to the files, %s", namespace, orLookUp)
		}
	case api.IdentityRequired, api.ClientIDRequired:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return "; if the ServiceAccount has a client id, add the ServiceAccount to the files, " + orLookUp
		}
	case api.ServiceAccountNotFound:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return fmt.Sprintf("; if the cluster has it, add ServiceAccount %s of namespace %s to the files, %s", text, namespace, orLookUp)
		}
	default:
	}
	return ""
}

const orLookUp = "or use --cluster or --facts"

// usedBy are the objects that a pod can use only in its own namespace, by the reason of the error or
// warning that one is missing.
var usedBy = map[api.Reason]string{
	api.ClassNotFound:          "SecretProviderClasses",
	api.ServiceAccountNotFound: "ServiceAccounts and AzureIdentityBindings",
	api.IdentityNotBound:       "ServiceAccounts and AzureIdentityBindings",
}

// elsewhere returns the other namespaces where the files or the facts have the missing object.
func (r *run) elsewhere(reason api.Reason, namespace, name string) []string {
	var found []string
	switch reason {
	case api.ClassNotFound:
		found = r.names[named{class.Kind, name}]
	case api.ServiceAccountNotFound, api.IdentityNotBound:
		found = slices.Concat(r.names[named{serviceAccountKind.Kind, name}], r.names[named{selector, name}])
	default:
		return nil
	}
	found = slices.Compact(slices.Sorted(slices.Values(found)))
	return slices.DeleteFunc(found, func(other string) bool { return other == namespace })
}

// dependsOnNamespace are the reasons of errors that may be due to a wrong namespace.
var dependsOnNamespace = []api.Reason{
	api.ClassNotFound, api.ServiceAccountNotFound, api.IdentityNotBound, api.IdentityRequired, api.ClientIDRequired,
	api.VaultRequired, api.TenantIDRequired,
}

// warnNoNamespace warns of an object with errors that may be due to its namespace, if neither the
// object nor an option names one, and the namespace default is not in the files: kubectl creates it
// there.
func (r *run) warnNoNamespace(o *object, errs field.ErrorList) {
	depends := func(err *field.Error) bool { return slices.Contains(dependsOnNamespace, api.ReasonOf(err)) }
	isKnown := r.covered[defaultNamespace] || r.known[objectID{namespaceKind.Kind, "", defaultNamespace}] != nil
	if o.GetNamespace() != "" || r.options.Namespace != defaultNamespace || isKnown || !slices.ContainsFunc(errs, depends) {
		return
	}
	var elsewhere []string // the namespaces that have all that is missing here
	for _, err := range errs {
		name, _ := err.BadValue.(string)
		switch has := r.elsewhere(api.ReasonOf(err), defaultNamespace, name); {
		case len(elsewhere) == 0:
			elsewhere = has
		case len(has) > 0:
			elsewhere = slices.DeleteFunc(elsewhere, func(namespace string) bool { return !slices.Contains(has, namespace) })
		}
	}
	where := ""
	if len(elsewhere) > 0 {
		where = "; write namespace: " + strings.Join(elsewhere, " or ")
	}
	path := o.root + "metadata.namespace"
	r.find(o, Finding{
		Severity: Warning, Field: path,
		Message: fmt.Sprintf("%s: Required value: must be set: without it, and without --namespace, the %s is created in namespace %s%s",
			path, o.GetKind(), defaultNamespace, where),
	})
}
