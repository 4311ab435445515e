package preview

import (
	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
)

// hint is the end of a sentence about something that is not among the manifests, where the manifests are all there is to ask and have
// none of its kind: it may well be in the cluster.
func (r *run) hint(reason api.Reason, namespace string) string {
	if r.options.Cluster != nil {
		return ""
	}
	switch reason {
	case api.ClassNotFound:
		if !r.has[kindIn{class.Kind, namespace}] {
			return "; add the class to the files, or use --cluster"
		}
	case api.ServiceAccountNotFound, api.IdentityRequired, api.ClientIDRequired, api.TenantIDRequired:
		if !r.has[kindIn{serviceAccountKind.Kind, namespace}] {
			return "; where a ServiceAccount has it, add that to the files, or use --cluster"
		}
	default:
	}
	return ""
}
