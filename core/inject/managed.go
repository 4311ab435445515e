package inject

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// managedClasses returns a class for the items of each vault, for a request that names no class.
func (p *Plan) managedClasses(id *identity, answer *facts.Answer, r *report) *content {
	out := &content{}
	if p.request.Illegible(api.IdentityClientID, api.IdentityTenantID) {
		return out
	}
	ok := false
	if out.tenantID, out.clientID, ok = p.managedIDs(id, answer, r); !ok || p.request.Illegible(api.Secrets, api.Vault) {
		return out
	}
	type vaultItems struct {
		request class.Request
		// indexes are the items' positions in the whole request.
		indexes []int
	}
	var vaults []vaultItems
	for index, item := range p.request.Items {
		name := p.request.VaultOf(item)
		at := slices.IndexFunc(vaults, func(v vaultItems) bool { return strings.EqualFold(v.request.Vault, name) })
		if at < 0 {
			at = len(vaults)
			vaults = append(vaults, vaultItems{request: class.Request{
				Vault: name, TenantID: out.tenantID.text, ClientID: out.clientID.text, Mode: id.mode,
			}})
		}
		v := &vaults[at]
		if item.EnvFor(p.request.EnvMode) != "" {
			v.request.Synced = append(v.request.Synced, len(v.request.Items))
		}
		v.request.Items, v.indexes = append(v.request.Items, item), append(v.indexes, index)
	}
	out.env, out.mounts = make([]envVar, 0, len(p.request.Items)), make([]mount, 0, len(vaults))
	for at := range vaults {
		v := &vaults[at]
		spc := class.Managed(v.request)
		out.classes = append(out.classes, spc)
		path := p.request.MountPath
		if at > 0 {
			path += "-" + v.request.Vault
		}
		out.mounts = append(out.mounts, mount{
			class: spc.Name, vault: v.request.Vault, managed: true, path: path, key: api.Secrets, index: v.indexes[0],
		})
		out.env = append(out.env, p.syncedEnv(spc, v.request, v.indexes, r)...)
	}
	slices.SortStableFunc(out.env, func(a, b envVar) int { return a.item - b.item })
	return out
}

// syncedEnv returns the env vars from the Secret of a managed class.
func (p *Plan) syncedEnv(spc *class.SecretProviderClass, request class.Request, indexes []int, r *report) []envVar {
	env := make([]envVar, 0, len(request.Synced))
	keys := make(map[string]int, len(request.Synced))
	for _, i := range request.Synced {
		item := request.Items[i]
		key := class.SecretKey(item.File())
		if other, taken := keys[key]; taken {
			r.fail(api.InvalidItem, field.Invalid(p.itemPath(indexes[i]).Child("objectAlias"), api.Echo(item.Path()),
				fmt.Sprintf("must not become the same Secret key as item %d, %s, with / as .; give one of them another path",
					indexes[other], key)))
		}
		keys[key] = i
		env = append(env, envVar{
			name:       item.EnvFor(p.request.EnvMode),
			secret:     spc.Name,
			key:        key,
			containers: item.Containers,
			item:       indexes[i],
		})
	}
	return env
}

// managedIDs returns the tenant and the client id of managed classes. It reports false if there can
// be no such class.
func (p *Plan) managedIDs(id *identity, answer *facts.Answer, r *report) (tenantID, clientID value, ok bool) {
	switch {
	case id.mode == api.ModeNone && !id.guessed && !p.defaults.AllowVMIdentity:
		r.fail(api.IdentityRequired, field.Invalid(p.path(api.IdentityMode), string(api.ModeNone),
			"must be another mode: a managed class reads the vault as some identity; "+
				"set "+api.IdentityName+", or name a class of your own in "+api.Class))
		return value{}, value{}, false
	case id.mode == api.ModeNone && id.guessed:
		r.missed = true
		has := ""
		if sa := answer.ServiceAccount; sa != nil && sa.InvalidClientID != "" {
			has = fmt.Sprintf(", which has %q, not a GUID", sa.InvalidClientID)
		} else if _, onPod := p.subject.Annotations[api.WorkloadIdentityClientID]; onPod {
			has = ", which has no effect on a pod"
		}
		r.unresolve(api.IdentityRequired, field.Required(p.path(api.IdentityName), fmt.Sprintf(
			"must be set, or ServiceAccount %s must have annotation %s%s: a managed class reads the vault as some identity%s",
			p.subject.RunsAs(), api.WorkloadIdentityClientID, has, r.available("", "identity", identities(answer)))))
		return value{}, value{}, false
	case id.mode == api.ModeAuto, id.isWorkload() && p.request.Identity != "" && p.namedServiceAccount(answer) == nil:
		return value{}, value{}, false // bindIdentity reported that the identity does not exist
	}
	var sa facts.ServiceAccount
	if found := p.namedServiceAccount(answer); found != nil && id.mode != api.ModePodIdentity {
		sa = *found
	} else if answer.ServiceAccount != nil && id.mode == api.ModePodIdentity {
		sa = *answer.ServiceAccount
	}
	tenantID = p.effective(api.IdentityTenantID, p.request.TenantID, sa.TenantID, p.defaults.TenantID)
	ok = true
	if tenantID.text == "" {
		r.missed = true
		r.unresolve(api.TenantIDRequired, field.Required(p.path(api.IdentityTenantID), fmt.Sprintf(
			"must be set for a managed class; annotate the pod or its namespace with %s, or the ServiceAccount with %s",
			api.IdentityTenantID, api.WorkloadIdentityTenantID)))
		ok = false
	}
	if id.mode == api.ModePodIdentity {
		return tenantID, value{}, validTenant(tenantID, &sa, r) && ok
	}
	clientID = p.effective(api.IdentityClientID, p.request.ClientID, sa.ClientID, "")
	if clientID.text == "" && id.mode != api.ModeNone {
		r.missed = true
		ok = false
		err := field.Required(p.path(api.IdentityClientID), fmt.Sprintf(
			"must be set for a managed class in mode %s; annotate ServiceAccount %s with %s, or the pod with %s",
			id.mode, id.bound, api.WorkloadIdentityClientID, api.IdentityClientID))
		if sa.InvalidClientID != "" {
			err = field.Invalid(annotationOf(&sa, api.WorkloadIdentityClientID), sa.InvalidClientID,
				api.CheckGUID(sa.InvalidClientID))
		}
		r.unresolve(api.ClientIDRequired, err)
	}
	return tenantID, clientID, validTenant(tenantID, &sa, r) && ok
}

// fromServiceAccount is the word for a value that an annotation of the ServiceAccount sets.
const fromServiceAccount = "serviceaccount"

// effective returns the value of the highest precedence: pod, ServiceAccount, namespace, flag.
func (p *Plan) effective(key, requested, serviceAccount, flag string) value {
	origin := p.request.OriginOf(key)
	switch {
	case requested != "" && origin == api.FromPod:
		return value{requested, origin.String()}
	case serviceAccount != "":
		return value{serviceAccount, fromServiceAccount}
	case requested != "":
		return value{requested, origin.String()}
	}
	return value{flag, "flag"}
}

// validTenant checks a tenant id from a ServiceAccount, which is not validated before.
func validTenant(tenantID value, sa *facts.ServiceAccount, r *report) bool {
	if tenantID.from != fromServiceAccount {
		return true
	}
	detail := api.CheckGUID(tenantID.text)
	if detail == "" {
		return true
	}
	r.missed = true
	err := field.Invalid(annotationOf(sa, api.WorkloadIdentityTenantID), api.Echo(tenantID.text), detail)
	r.unresolve(api.TenantIDRequired, err)
	return false
}

// annotationOf returns the path of an annotation of a ServiceAccount.
func annotationOf(sa *facts.ServiceAccount, key string) *field.Path {
	return field.NewPath("serviceaccounts").Key(sa.Name).Child("metadata", "annotations").Key(key)
}
