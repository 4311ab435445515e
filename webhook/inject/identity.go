package inject

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
)

// identity decides how the pod's identity is bound, and adds what binds it.
func (d *decision) identity() {
	d.mode = d.Plan.mode()
	if !asksIdentity(&d.request) {
		return
	}
	if d.mode == api.ModeNone && d.request.Mode != api.ModeNone && d.request.OriginOf(api.IdentityName) == api.FromPod {
		d.warn(api.NoEffect, field.Forbidden(d.path(api.IdentityName),
			"has no effect, since the injector runs with identity mode none; say how to bind it in "+api.IdentityMode))
	}
	if d.mode == api.ModeAuto {
		d.guessed = true
		d.mode = d.autoMode()
	}
	d.signIns()
	switch d.mode {
	case api.ModePodIdentity:
		d.podIdentity()
	case api.ModeWorkloadIdentity, api.ModeIdentityBinding:
		d.workloadIdentity()
	case api.ModeAuto:
		d.noIdentity()
	case api.ModeNone:
	}
}

// autoMode resolves auto as contract section 4 says; none where nothing decides, and auto where there is no identity of the name.
func (d *decision) autoMode() api.Mode {
	for _, name := range d.request.Classes {
		switch c := d.facts.class(name); {
		case c == nil || c.Provider != class.Provider:
		case c.UsesPodIdentity:
			return api.ModePodIdentity
		case c.ClientID != "":
			return api.ModeWorkloadIdentity
		}
	}
	if d.request.Identity == "" {
		sa := d.facts.ServiceAccount
		if sa != nil && sa.ClientID != "" {
			return api.ModeWorkloadIdentity
		}
		// A ServiceAccount that is applied with the pod may not be known yet. One that is known without a client id is taken at its
		// word: most pods have such a one, and each would cost a look at the API server.
		d.Missed = d.Missed || sa == nil
		return api.ModeNone
	}
	if d.facts.Bound {
		return api.ModePodIdentity
	}
	switch sa := d.namedServiceAccount(); {
	case sa != nil && (sa.ClientID != "" || d.request.ClientID != ""):
		return api.ModeWorkloadIdentity
	case len(d.facts.Available.Selectors) > 0: // the binding of the name may follow
		return api.ModePodIdentity
	}
	return api.ModeAuto
}

// noIdentity rejects a name that no identity has.
func (d *decision) noIdentity() {
	d.Missed = true
	name := d.request.Identity
	if sa := d.namedServiceAccount(); sa != nil {
		d.unresolved(api.ClientIDRequired, field.Invalid(d.identityPath(), name,
			"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+api.NoClientID(sa.InvalidClientID)))
		return
	}
	err := field.NotFound(d.identityPath(), name)
	err.Detail = fmt.Sprintf("must be a ServiceAccount with annotation %s, or the spec.selector of an AzureIdentityBinding, in namespace %s%s",
		api.WorkloadIdentityClientID, d.namespace.Name, d.available(name, "identity", d.facts.Available.identities()))
	d.unresolved(api.ServiceAccountNotFound, err)
}

// isWorkloadMode reports whether the pod signs in as its ServiceAccount.
func (d *decision) isWorkloadMode() bool {
	return d.mode == api.ModeWorkloadIdentity || d.mode == api.ModeIdentityBinding
}

// namedServiceAccount is the ServiceAccount that the pod runs as in the workload modes.
func (d *decision) namedServiceAccount() *ServiceAccount {
	if d.request.Identity == "" || d.request.Identity == d.subject.ServiceAccount() {
		return d.facts.ServiceAccount
	}
	return d.facts.NamedServiceAccount
}

// signIns checks as whom existing classes read the vault: a warning for another identity than the pod's, an error for none.
func (d *decision) signIns() {
	for index, name := range d.request.Classes {
		c := d.facts.class(name)
		if c == nil || c.Provider != class.Provider || c.Invalid != "" {
			continue // an invalid class is reported where its objects are needed
		}
		tell, detail := d.warn, ""
		switch {
		case c.UsesPodIdentity && d.mode != api.ModePodIdentity:
			detail = fmt.Sprintf(`must fit mode %s, and the class has usePodIdentity: "true"; set %s to %s, or change the class`, d.mode, api.IdentityMode, api.ModePodIdentity)
		case c.UsesPodIdentity:
		case c.UsesNodeIdentity && d.mode != api.ModeNone:
			detail = fmt.Sprintf(`must fit mode %s, and the class has useVMManagedIdentity: "true", so the vault is read as the node; give the class a clientID, or set %s to %s`,
				d.mode, api.IdentityMode, api.ModeNone)
		case c.UsesNodeIdentity:
		case c.ClientID != "" && !d.isWorkloadMode():
			detail = fmt.Sprintf("must fit mode %s, and the class has a clientID; set %s to %s, or change the class", d.mode, api.IdentityMode, api.ModeWorkloadIdentity)
		case c.ClientID != "":
		case c.InvalidClientID != "":
			tell, detail = d.unresolved, fmt.Sprintf("must have a GUID as spec.parameters.clientID, has %q; correct it in the class", c.InvalidClientID)
		case !d.hasNodePublishSecret(name):
			tell, detail = d.unresolved, `must say as whom it reads the vault; set spec.parameters.clientID, or usePodIdentity: "true", in the class: without either the Azure provider wants `+
				"the Secret of a service principal, and the injected volume has none"
		case d.mode != api.ModeNone:
			detail = fmt.Sprintf("must fit mode %s, and the class reads the vault as the service principal in the volume's nodePublishSecretRef; give the class a clientID, or set %s to %s",
				d.mode, api.IdentityMode, api.ModeNone)
		}
		if detail != "" {
			tell(api.IdentityMismatch, field.Invalid(d.path(api.Class).Index(index), name, detail))
		}
	}
}

// hasNodePublishSecret reports whether the pod itself mounts the class, with the Secret of a service principal.
func (d *decision) hasNodePublishSecret(name string) bool {
	at := d.volumeOf(name)
	return at >= 0 && d.subject.Spec.Volumes[at].CSI.HasNodePublishSecret
}

// podIdentity adds AAD pod identity's label.
func (d *decision) podIdentity() {
	label, labelled := d.subject.Label(api.PodIdentityBinding)
	name := d.request.Identity
	d.bound = name
	d.unsupportedPodIdentity()
	if name == "" {
		d.bound = label
		if labelled {
			return
		}
		err := field.Required(d.identityPath(), "must be set, or the pod have the label "+api.PodIdentityBinding+": by it alone pod identity knows the pod"+
			d.available("", "AzureIdentityBinding", d.facts.Available.Selectors))
		if d.guessed {
			d.warn(api.IdentityRequired, err)
		} else {
			d.fail(api.IdentityRequired, err)
		}
		return
	}
	if problems := validation.IsValidLabelValue(name); len(problems) > 0 {
		d.fail(api.LabelValueInvalid, field.Invalid(d.path(api.IdentityName), api.Echo(name),
			"must be at most 63 characters, as a label's value; add an AzureIdentityBinding with a shorter spec.selector"))
		return
	}
	d.warn(api.PodIdentityRetired, field.Forbidden(d.path(api.IdentityName),
		"AAD pod identity was retired in September 2025; set "+api.IdentityMode+" to "+string(api.ModeWorkloadIdentity)))
	if !d.facts.Bound {
		d.Missed = true
		err := field.NotFound(d.path(api.IdentityName), name)
		switch {
		case !d.guessed:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding" + d.available(name, "AzureIdentityBinding", d.facts.Available.Selectors)
		case d.namedServiceAccount() != nil:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding, or a ServiceAccount with annotation " + api.WorkloadIdentityClientID + api.NoClientID(d.namedServiceAccount().InvalidClientID)
		default:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding, or a ServiceAccount with a client-id" +
				d.available(name, "identity", d.facts.Available.identities())
		}
		d.warn(api.IdentityNotBound, err)
	}
	if labelled {
		d.bound = label
	}
	d.bindLabel(api.PodIdentityBinding, label, name, labelled)
}

// unsupportedPodIdentity refuses where pod identity can't work.
func (d *decision) unsupportedPodIdentity() {
	path, detail := d.subject.Root.path("spec").Child("hostNetwork"), "must not be true with pod identity, which tells pods apart by their address; set "+api.IdentityMode+" to "+string(api.ModeWorkloadIdentity)
	if d.subject.isWindows() {
		path, detail = d.identityPath(), "must not be pod identity on Windows, where it does not exist; set "+api.IdentityMode+" to "+string(api.ModeWorkloadIdentity)
	} else if !d.subject.Spec.HostNetwork {
		return
	}
	err := field.Forbidden(d.causedBy(api.IdentityName, path), detail)
	if d.guessed && !d.facts.Bound {
		d.unresolved(api.IdentityUnsupported, err)
		return
	}
	d.fail(api.IdentityUnsupported, err)
}

// causedBy is where to tell of a conflict of the pod, at path, with what a key asks for: at the key where the namespace wrote it, since the pod's
// author did not.
func (p *Plan) causedBy(key string, path *field.Path) *field.Path {
	if p.request.OriginOf(key) == api.FromNamespace {
		return p.path(key)
	}
	return path
}

// identityPath is where the identity was written, or should be.
func (d *decision) identityPath() *field.Path {
	return d.path(api.IdentityName)
}

// boundPath is where the identity that the pod has in the end was written.
func (d *decision) boundPath() *field.Path {
	switch {
	case d.bound == d.request.Identity:
		return d.identityPath()
	case d.mode == api.ModePodIdentity:
		return d.labelPath(api.PodIdentityBinding)
	}
	return d.subject.Root.path("spec").Child("serviceAccountName")
}

// labelPath is where the pod's label of that key is.
func (d *decision) labelPath(key string) *field.Path {
	return d.subject.Root.path("metadata").Child("labels").Key(key)
}

// workloadIdentity adds the label of Azure's webhook and lets the pod run as the named ServiceAccount.
func (d *decision) workloadIdentity() {
	name, current := d.request.Identity, d.subject.ServiceAccount()
	d.bound = name
	switch {
	case name == "":
		d.bound = current
	case current == name:
	case current == defaultServiceAccount:
		d.Change.ServiceAccountName = name
	default:
		err := field.Invalid(d.causedBy(api.IdentityName, d.subject.Root.path("spec").Child("serviceAccountName")), current,
			fmt.Sprintf("must be %s or left out, since %s names the ServiceAccount in mode %s; remove one of the two", name, api.IdentityName, d.mode))
		if d.guessed {
			d.unresolved(api.ServiceAccountConflict, err)
		} else {
			d.fail(api.ServiceAccountConflict, err)
		}
		return
	}
	switch sa := d.namedServiceAccount(); {
	case sa == nil:
		d.Missed = true
		if name == "" {
			break // whom the pod runs as without us, the API server's own ServiceAccount admission looks after
		}
		err := field.NotFound(d.identityPath(), d.bound)
		err.Detail = "must be a ServiceAccount in namespace " + d.namespace.Name + d.available(d.bound, "ServiceAccount", d.facts.Available.ServiceAccounts)
		d.unresolved(api.ServiceAccountNotFound, err)
	case sa.ClientID == "" && d.request.ClientID == "" && !d.asksManaged(): // a managed class is rejected for that
		d.Missed = true
		d.warn(api.IdentityNotBound, field.Invalid(d.identityPath(), sa.Name,
			"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+api.NoClientID(sa.InvalidClientID)+": without it the application gets a token for no client"))
	}
	label, labelled := d.subject.Label(api.WorkloadIdentityUse)
	d.bindLabel(api.WorkloadIdentityUse, label, "true", labelled)
	if d.mode != api.ModeIdentityBinding {
		return
	}
	if existing, ok := d.subject.Annotations[api.WorkloadIdentityBinding]; !ok {
		d.Change.Annotations = append(d.Change.Annotations, Entry{api.WorkloadIdentityBinding, "true"})
	} else if existing != "true" {
		d.conflict(d.subject.Root.path("metadata").Child("annotations").Key(api.WorkloadIdentityBinding), existing, "true")
	}
}

// bindLabel sets a label that binds an identity, unless the author set it otherwise.
func (d *decision) bindLabel(key, existing, wanted string, there bool) {
	switch {
	case !there:
		d.Change.Labels = append(d.Change.Labels, Entry{key, wanted})
	case existing != wanted:
		d.conflict(d.labelPath(key), existing, wanted)
	}
}

// conflict tells of a binding that the author wrote by hand and the request wants otherwise.
func (d *decision) conflict(path *field.Path, existing, wanted string) {
	err := field.Invalid(path, existing, fmt.Sprintf("must be %q, as the annotations ask; it was kept as it is: remove it, or change the annotations", wanted))
	if d.namespace.Enforces() {
		err.Detail = fmt.Sprintf("must be %q, as the annotations ask; remove it, or change the annotations", wanted)
		d.fail(api.IdentityConflict, err)
		return
	}
	d.warn(api.IdentityConflict, err)
}

// managedIdentity works out whom a managed class signs in as, and reports whether it can.
func (d *decision) managedIdentity() bool {
	switch {
	case d.mode == api.ModeNone && !d.guessed && !d.defaults.AllowVMIdentity:
		d.fail(api.IdentityRequired, field.Invalid(d.path(api.IdentityMode), string(api.ModeNone),
			"must be another mode: a managed class reads the vault as some identity; set "+api.IdentityName+", or name a class of your own in "+api.Class))
		return false
	case d.mode == api.ModeNone && d.guessed:
		d.Missed = true
		own := d.subject.ServiceAccount()
		has := ""
		if sa := d.facts.ServiceAccount; sa != nil && sa.InvalidClientID != "" {
			has = fmt.Sprintf(", which is %q there, no GUID", sa.InvalidClientID)
		}
		d.unresolved(api.IdentityRequired, field.Required(d.identityPath(), fmt.Sprintf(
			"must be set, or ServiceAccount %s must have annotation %s%s: a managed class reads the vault as some identity%s",
			own, api.WorkloadIdentityClientID, has,
			d.available("", "identity", d.facts.Available.identities()))))
		return false
	case d.mode == api.ModeAuto, d.isWorkloadMode() && d.request.Identity != "" && d.namedServiceAccount() == nil:
		return false // told already: whose ids there would be, does not exist
	}
	var sa ServiceAccount
	if found := d.namedServiceAccount(); found != nil && d.mode != api.ModePodIdentity {
		sa = *found
	} else if d.facts.ServiceAccount != nil && d.mode == api.ModePodIdentity {
		sa = *d.facts.ServiceAccount
	}
	d.tenantID = d.effective(api.IdentityTenantID, d.request.TenantID, sa.TenantID, d.defaults.TenantID)
	ok := true
	if d.tenantID.text == "" {
		d.Missed = true
		d.unresolved(api.TenantIDRequired, field.Required(d.path(api.IdentityTenantID), fmt.Sprintf(
			"must be known for a managed class; annotate the pod or its namespace with %s, or the ServiceAccount with %s", api.IdentityTenantID, api.WorkloadIdentityTenantID)))
		ok = false
	}
	if d.mode == api.ModePodIdentity {
		return d.validTenant(&sa) && ok
	}
	d.clientID = d.effective(api.IdentityClientID, d.request.ClientID, sa.ClientID, "")
	if d.clientID.text == "" && d.mode != api.ModeNone {
		d.Missed = true
		ok = false
		err := field.Required(d.path(api.IdentityClientID), fmt.Sprintf(
			"must be known for a managed class in mode %s; annotate ServiceAccount %s with %s, or the pod with %s",
			d.mode, d.bound, api.WorkloadIdentityClientID, api.IdentityClientID))
		if sa.InvalidClientID != "" {
			err = field.Invalid(annotationOf(&sa, api.WorkloadIdentityClientID), sa.InvalidClientID, api.CheckGUID(sa.InvalidClientID))
		}
		d.unresolved(api.ClientIDRequired, err)
	}
	return d.validTenant(&sa) && ok
}

// effective is the value of the highest precedence: pod, ServiceAccount, namespace, flag.
func (d *decision) effective(key, requested, serviceAccount, flag string) value {
	origin := d.request.OriginOf(key)
	switch {
	case requested != "" && origin == api.FromPod:
		return value{requested, origin.String()}
	case serviceAccount != "":
		return value{serviceAccount, "serviceaccount"}
	case requested != "":
		return value{requested, origin.String()}
	}
	return value{flag, "flag"}
}

// validTenant checks a tenant id that comes from a ServiceAccount, which nothing has checked yet.
func (d *decision) validTenant(sa *ServiceAccount) bool {
	if d.tenantID.from != "serviceaccount" {
		return true
	}
	detail := api.CheckGUID(d.tenantID.text)
	if detail == "" {
		return true
	}
	d.Missed = true
	d.unresolved(api.TenantIDRequired, field.Invalid(annotationOf(sa, api.WorkloadIdentityTenantID), api.Echo(d.tenantID.text), detail))
	return false
}

// annotationOf is where an annotation of a ServiceAccount is.
func annotationOf(sa *ServiceAccount, key string) *field.Path {
	return field.NewPath("serviceaccounts").Key(sa.Name).Child("metadata", "annotations").Key(key)
}

// joinOr is a list as a sentence has it.
func joinOr(names []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), " or ")
}
