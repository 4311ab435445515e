package inject

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
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
				Cloud: cmp.Or(p.request.Cloud, p.defaults.Cloud), SecretName: p.request.SecretName, SecretType: p.request.SecretType,
			}})
		}
		v := &vaults[at]
		v.request.Items, v.indexes = append(v.request.Items, item), append(v.indexes, index)
	}
	out.env, out.mounts = make([]envVar, 0, len(p.request.Items)), make([]mount, 0, len(vaults))
	for at := range vaults {
		v := &vaults[at]
		keys := p.secretData(&v.request, v.indexes, r)
		spc := class.Managed(v.request)
		out.classes = append(out.classes, spc)
		path := p.request.MountPath
		if at > 0 {
			path += "-" + v.request.Vault
		}
		out.mounts = append(out.mounts, mount{
			class: spc.Name, vault: v.request.Vault, cloud: v.request.Cloud, managed: true, path: path, key: api.Secrets, index: v.indexes[0],
		})
		for i, item := range v.request.Items {
			if name := item.EnvFor(p.request.EnvMode); name != "" {
				out.env = append(out.env, envVar{
					name: name, secret: cmp.Or(p.request.SecretName, spc.Name), key: keys[i],
					mount: at, file: item.File(), property: item.Property, object: describe(item.Type, item.Name, v.request.Vault),
					containers: item.Containers, item: v.indexes[i],
				})
			}
		}
	}
	if len(vaults) > 1 && p.request.SecretName != "" {
		r.fail(api.SecretInvalid, field.Invalid(p.path(api.SecretName), p.request.SecretName,
			"must have the objects of one vault, has those of "+few(vaults, func(v vaultItems) string { return v.request.Vault })+
				": each vault has a class, and the driver lets each class overwrite the Secret"))
	}
	slices.SortStableFunc(out.env, func(a, b envVar) int { return a.item - b.item })
	return out
}

// typeKeys are the keys that a Secret of a type must have; of those in one list, at least one
// (k8s.io/kubernetes/pkg/apis/core/validation: ValidateSecret).
var typeKeys = map[string][][]string{
	"kubernetes.io/tls":              {{corev1.TLSPrivateKeyKey}, {corev1.TLSCertKey}},
	"kubernetes.io/dockerconfigjson": {{corev1.DockerConfigJsonKey}},
	"kubernetes.io/basic-auth":       {{corev1.BasicAuthUsernameKey, corev1.BasicAuthPasswordKey}},
	"kubernetes.io/ssh-auth":         {{corev1.SSHAuthPrivateKey}},
}

// secretData sets the keys of the Secret that a managed class syncs, and returns the key of each item;
// empty for none.
func (p *Plan) secretData(request *class.Request, indexes []int, r *report) []string {
	keys := make([]string, len(request.Items))
	isTLS := request.SecretType == string(corev1.SecretTypeTLS)
	by := make(map[string]int, len(request.Items))
	add := func(i int, key string) {
		if other, taken := by[key]; taken {
			child, value := "objectAlias", request.Items[i].Path()
			if request.Items[i].SecretKey != "" {
				child, value = "secretKey", request.Items[i].SecretKey
			}
			r.fail(api.InvalidItem, field.Invalid(p.itemPath(indexes[i]).Child(child), api.Echo(value), fmt.Sprintf(
				"must not become the same Secret key as item %d, %s, with / as .; give one of them another path or secretKey",
				indexes[other], key)))
			return
		}
		by[key] = i
		request.Data = append(request.Data, class.SecretData{ObjectName: request.Items[i].File(), Key: key})
	}
	synced := 0
	for _, item := range request.Items {
		if p.request.Syncs(item) {
			synced++
		}
	}
	for i, item := range request.Items {
		if !p.request.Syncs(item) {
			continue
		}
		keys[i] = cmp.Or(item.SecretKey, class.SecretKey(item.File()))
		if demanded := typeKeys[request.SecretType]; item.SecretKey == "" && synced == 1 && len(demanded) > 0 {
			keys[i] = demanded[0][0]
		}
		if !isTLS || keys[i] != corev1.TLSPrivateKeyKey {
			add(i, keys[i])
			continue
		}
		// The driver takes the key and the certificate from one object (its pkg/util/secretutil).
		if item.Type != "" && item.Type != api.TypeSecret {
			r.fail(api.SecretInvalid, field.Invalid(p.itemPath(indexes[i]).Child("objectType"), item.Type,
				"must be secret: an object of type cert has no private key, and the secret of that name has both"))
		}
		add(i, corev1.TLSPrivateKeyKey)
		add(i, corev1.TLSCertKey)
	}
	for _, oneOf := range typeKeys[request.SecretType] {
		if synced > 0 && !slices.ContainsFunc(oneOf, func(key string) bool { _, has := by[key]; return has }) {
			r.fail(api.SecretInvalid, field.Invalid(p.path(api.SecretType), request.SecretType, fmt.Sprintf(
				"must have key %s; write secretKey: %s in one of the items", strings.Join(oneOf, " or "), oneOf[0])))
			break
		}
	}
	return keys
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
