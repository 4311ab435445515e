package cli

import (
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// hint is the end of a sentence about something that is not among the manifests, where the manifests are all there is to ask: it may be in another
// namespace, or in the cluster. Name is that of what was not found, if anything.
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
			return "; the files have it in namespace " + strings.Join(elsewhere, " and ") + ", and a pod can only mount classes of its namespace"
		}
		if !r.has[kindIn{class.Kind, namespace}] {
			return "; add the class to the files, or use --cluster"
		}
	case api.VaultRequired:
		if r.known[objectID{namespaceKind.Kind, "", namespace}] == nil {
			return "; where Namespace " + namespace + " has it, add that to the files, or use --cluster"
		}
	case api.TenantIDRequired:
		switch {
		case !r.has[kindIn{serviceAccountKind.Kind, namespace}]:
			return "; where a ServiceAccount has it, add that to the files, or use --cluster"
		case r.known[objectID{namespaceKind.Kind, "", namespace}] == nil:
			return "; where Namespace " + namespace + " has it, add that to the files, or use --cluster"
		}
	case api.ServiceAccountNotFound, api.IdentityRequired, api.ClientIDRequired:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return "; where a ServiceAccount has it, add that to the files, or use --cluster"
		}
	default:
	}
	return ""
}
