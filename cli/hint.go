package cli

import (
	"slices"
	"strings"

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
	switch reason {
	case api.ClassNotFound:
		var elsewhere []string
		for id := range r.known {
			if id.kind == class.Kind && id.name == name && id.namespace != namespace {
				elsewhere = append(elsewhere, id.namespace)
			}
		}
		if slices.Sort(elsewhere); len(elsewhere) > 0 {
			return "; the files have it in namespace " + strings.Join(elsewhere, " and ") + ", but a pod can only mount classes of its own namespace"
		}
		if !r.has[kindIn{class.Kind, namespace}] {
			return "; add the class to the files, or use --cluster"
		}
	case api.VaultRequired:
		if r.known[objectID{namespaceKind.Kind, "", namespace}] == nil {
			return "; if Namespace " + namespace + " sets it, add the Namespace to the files, or use --cluster"
		}
	case api.TenantIDRequired:
		switch {
		case !r.has[kindIn{serviceAccountKind.Kind, namespace}]:
			return "; if the ServiceAccount sets it, add the ServiceAccount to the files, or use --cluster"
		case r.known[objectID{namespaceKind.Kind, "", namespace}] == nil:
			return "; if Namespace " + namespace + " sets it, add the Namespace to the files, or use --cluster"
		}
	case api.IdentityRequired, api.ClientIDRequired:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return "; if the ServiceAccount has a client id, add the ServiceAccount to the files, or use --cluster"
		}
	case api.ServiceAccountNotFound:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return "; if the ServiceAccount exists, add it to the files, or use --cluster"
		}
	default:
	}
	return ""
}
