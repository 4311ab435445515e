package inject

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// identity is how a pod is bound to its identity, and what the pod needs for it.
type identity struct {
	// mode is never [api.ModeAuto] unless there is no identity of the requested name; guessed
	// is true if facts decided it.
	mode    api.Mode
	guessed bool
	// bound is the name of the identity: a selector or a ServiceAccount; empty for none.
	bound string

	labels, annotations []Entry
	serviceAccountName  string
}

// isWorkload reports whether the pod signs in as its ServiceAccount.
func (id *identity) isWorkload() bool {
	return id.mode == api.ModeWorkloadIdentity || id.mode == api.ModeIdentityBinding
}

// bindIdentity decides how the pod's identity is bound.
func (p *Plan) bindIdentity(answer *facts.Answer, r *report) identity {
	id := identity{mode: p.mode()}
	if !p.asksIdentity() {
		return id
	}
	if id.mode == api.ModeNone && p.request.Mode != api.ModeNone && p.request.OriginOf(api.IdentityName) == api.FromPod {
		r.warn(api.NoEffect, field.Forbidden(p.path(api.IdentityName),
			"has no effect, since the injector runs with identity mode none; set how to bind it in "+api.IdentityMode))
	}
	if id.mode == api.ModeAuto {
		id.mode, id.guessed = p.resolveAuto(answer, r), true
	}
	p.checkSignIns(&id, answer, r)
	switch id.mode {
	case api.ModePodIdentity:
		p.bindPodIdentity(&id, answer, r)
	case api.ModeWorkloadIdentity, api.ModeIdentityBinding:
		p.bindWorkloadIdentity(&id, answer, r)
	case api.ModeAuto:
		p.rejectUnresolved(answer, r)
	case api.ModeNone:
	}
	return id
}

// resolveAuto returns the mode that auto stands for (docs/annotations.md): an existing class
// decides first, then AzureIdentityBindings, then ServiceAccounts. It returns none if nothing
// decides, and auto if there is no identity of the requested name.
func (p *Plan) resolveAuto(answer *facts.Answer, r *report) api.Mode {
	if mode := p.classMode(answer); mode != "" {
		return mode
	}
	if p.request.Identity == "" {
		sa := answer.ServiceAccount
		if sa != nil && sa.ClientID != "" {
			return api.ModeWorkloadIdentity
		}
		// The cache may not have a ServiceAccount that is applied with the pod. One in the
		// cache without a client id is not read again: most pods have such a
		// ServiceAccount, and each would cost a request.
		r.missed = r.missed || sa == nil
		return api.ModeNone
	}
	if answer.Bound {
		return api.ModePodIdentity
	}
	switch sa := p.namedServiceAccount(answer); {
	case sa != nil && (sa.ClientID != "" || p.request.ClientID != ""):
		return api.ModeWorkloadIdentity
	case len(answer.Available.Selectors) > 0: // the binding may be applied later
		return api.ModePodIdentity
	}
	return api.ModeAuto
}

// classMode returns the mode of the first existing class that decides it; empty if none does.
func (p *Plan) classMode(answer *facts.Answer) api.Mode {
	for _, name := range p.request.Classes {
		switch c := answer.Class(name); {
		case c == nil || c.Provider != class.Provider:
		case c.UsesPodIdentity:
			return api.ModePodIdentity
		case c.ClientID != "":
			return api.ModeWorkloadIdentity
		}
	}
	return ""
}

// rejectUnresolved rejects the name of an identity that does not exist.
func (p *Plan) rejectUnresolved(answer *facts.Answer, r *report) {
	r.missed = true
	name := p.request.Identity
	if sa := p.namedServiceAccount(answer); sa != nil {
		r.unresolve(api.ClientIDRequired, field.Invalid(p.path(api.IdentityName), name,
			"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+api.NoClientID(sa.InvalidClientID)))
		return
	}
	err := field.NotFound(p.path(api.IdentityName), name)
	err.Detail = fmt.Sprintf("must be a ServiceAccount with annotation %s, "+
		"or the spec.selector of an AzureIdentityBinding, in namespace %s%s",
		api.WorkloadIdentityClientID, p.namespace.Name, r.available(name, "identity", identities(answer)))
	r.unresolve(api.ServiceAccountNotFound, err)
}

// identities returns the names of all identities of the namespace, sorted. A selector and a
// ServiceAccount may have the same name.
func identities(answer *facts.Answer) []string {
	names := slices.Concat(answer.Available.Selectors, answer.Available.Clients)
	slices.Sort(names)
	return slices.Compact(names)
}

// namedServiceAccount returns the ServiceAccount that the pod runs as in the workload modes, or nil.
func (p *Plan) namedServiceAccount(answer *facts.Answer) *facts.ServiceAccount {
	if p.request.Identity == "" || p.request.Identity == p.subject.RunsAs() {
		return answer.ServiceAccount
	}
	return answer.NamedServiceAccount
}

// checkSignIns checks as which identity existing classes read the vault: a warning for another
// identity than the pod's, an error for none.
func (p *Plan) checkSignIns(id *identity, answer *facts.Answer, r *report) {
	for index, name := range p.request.Classes {
		c := answer.Class(name)
		if c == nil || c.Provider != class.Provider || c.Invalid != "" {
			continue // an invalid class is reported where its objects are needed
		}
		add, detail := r.warn, ""
		switch {
		case c.UsesPodIdentity && id.mode != api.ModePodIdentity:
			detail = fmt.Sprintf(`must fit mode %s, and the class has usePodIdentity: "true"; `+
				"set %s to %s, or change the class", id.mode, api.IdentityMode, api.ModePodIdentity)
		case c.UsesPodIdentity:
		case c.UsesNodeIdentity && id.mode != api.ModeNone:
			detail = fmt.Sprintf(`must fit mode %s, and the class has useVMManagedIdentity: "true", `+
				"so the vault is read as the node; give the class a clientID, or set %s to %s",
				id.mode, api.IdentityMode, api.ModeNone)
		case c.UsesNodeIdentity:
		case c.ClientID != "" && !id.isWorkload():
			detail = fmt.Sprintf("must fit mode %s, and the class has a clientID; set %s to %s, or change the class",
				id.mode, api.IdentityMode, api.ModeWorkloadIdentity)
		case c.ClientID != "":
		case c.InvalidClientID != "":
			add = r.unresolve
			detail = fmt.Sprintf("must have a GUID as spec.parameters.clientID, has %q; correct it in the class",
				c.InvalidClientID)
		case !p.hasNodePublishSecret(name):
			add = r.unresolve
			detail = "must name the identity that reads the vault; " +
				`set spec.parameters.clientID, or usePodIdentity: "true", in the class: without either the Azure ` +
				"provider needs the Secret of a service principal, and the injected volume has none"
		case id.mode != api.ModeNone:
			detail = fmt.Sprintf("must fit mode %s, and the class reads the vault as the service principal "+
				"in the volume's nodePublishSecretRef; give the class a clientID, or set %s to %s",
				id.mode, api.IdentityMode, api.ModeNone)
		}
		if detail != "" {
			add(api.IdentityMismatch, field.Invalid(p.path(api.Class).Index(index), name, detail))
		}
	}
}

// hasNodePublishSecret reports whether a volume of the pod mounts the class with the Secret of a
// service principal.
func (p *Plan) hasNodePublishSecret(name string) bool {
	at := p.volumeOf(name)
	return at >= 0 && p.subject.Spec.Volumes[at].CSI.HasNodePublishSecret
}

// bindPodIdentity adds the label of AAD pod identity.
func (p *Plan) bindPodIdentity(id *identity, answer *facts.Answer, r *report) {
	label, labelled := p.subject.Label(api.PodIdentityBinding)
	name := p.request.Identity
	id.bound = name
	p.rejectUnsupported(id, answer, r)
	if name == "" {
		id.bound = label
		if labelled {
			return
		}
		err := field.Required(p.path(api.IdentityName),
			"must be set, or the pod must have the label "+api.PodIdentityBinding+", which pod identity needs"+
				r.available("", "AzureIdentityBinding", answer.Available.Selectors))
		if id.guessed {
			r.warn(api.IdentityRequired, err)
		} else {
			r.fail(api.IdentityRequired, err)
		}
		return
	}
	if problems := validation.IsValidLabelValue(name); len(problems) > 0 {
		r.fail(api.LabelValueInvalid, field.Invalid(p.path(api.IdentityName), api.Echo(name),
			"must be at most 63 characters, as a label's value; add an AzureIdentityBinding with a shorter spec.selector"))
		return
	}
	if !answer.Bound {
		r.missed = true
		err := field.NotFound(p.path(api.IdentityName), name)
		switch sa := p.namedServiceAccount(answer); {
		case !id.guessed:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding" +
				r.available(name, "AzureIdentityBinding", answer.Available.Selectors)
		case sa != nil:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding, or a ServiceAccount with annotation " +
				api.WorkloadIdentityClientID + api.NoClientID(sa.InvalidClientID)
		default:
			err.Detail = "must be the spec.selector of an AzureIdentityBinding, or a ServiceAccount with a client-id" +
				r.available(name, "identity", identities(answer))
		}
		r.warn(api.IdentityNotBound, err)
	}
	// Not if pod identity is only a guess: the author may mean a ServiceAccount.
	if answer.Bound || !id.guessed || p.classMode(answer) == api.ModePodIdentity {
		r.warn(api.PodIdentityRetired, field.Forbidden(p.path(api.IdentityName),
			"AAD pod identity was retired in September 2025; set "+api.IdentityMode+" to "+string(api.ModeWorkloadIdentity)))
	}
	if labelled {
		id.bound = label
	}
	p.bindLabel(id, api.PodIdentityBinding, name, r)
}

// rejectUnsupported rejects a pod where pod identity cannot work.
func (p *Plan) rejectUnsupported(id *identity, answer *facts.Answer, r *report) {
	var path *field.Path
	var detail string
	switch {
	case p.subject.IsWindows():
		path, detail = p.path(api.IdentityName), "must not be pod identity on Windows, where it does not exist"
	case p.subject.Spec.HostNetwork:
		path = p.subject.Root.Child("spec", "hostNetwork")
		detail = "must not be true with pod identity, which identifies a pod by its IP address"
	default:
		return
	}
	detail += "; set " + api.IdentityMode + " to " + string(api.ModeWorkloadIdentity)
	err := field.Forbidden(p.causedBy(api.IdentityName, path), detail)
	r.failOrUnresolve(id.guessed && !answer.Bound, api.IdentityUnsupported, err)
}

// boundPath returns where the pod's identity was written.
func (p *Plan) boundPath(id *identity) *field.Path {
	switch {
	case id.bound == p.request.Identity:
		return p.path(api.IdentityName)
	case id.mode == api.ModePodIdentity:
		return p.subject.LabelPath(api.PodIdentityBinding)
	}
	return p.subject.Root.Child("spec", "serviceAccountName")
}

// bindWorkloadIdentity adds the label of Azure's webhook, and makes the pod run as the named
// ServiceAccount.
func (p *Plan) bindWorkloadIdentity(id *identity, answer *facts.Answer, r *report) {
	name, current := p.request.Identity, p.subject.RunsAs()
	id.bound = name
	switch {
	case name == "":
		id.bound = current
	case current == name:
	case current == pods.DefaultServiceAccount:
		id.serviceAccountName = name
	default:
		path := p.causedBy(api.IdentityName, p.subject.Root.Child("spec", "serviceAccountName"))
		detail := fmt.Sprintf(
			"must be %s or left out, since %s names the ServiceAccount in mode %s; remove one of the two",
			name, api.IdentityName, id.mode)
		r.failOrUnresolve(id.guessed, api.ServiceAccountConflict, field.Invalid(path, current, detail))
		return
	}
	switch sa := p.namedServiceAccount(answer); {
	case sa == nil:
		r.missed = true
		if name == "" {
			break // the API server rejects a pod whose own ServiceAccount does not exist
		}
		err := field.NotFound(p.path(api.IdentityName), id.bound)
		err.Detail = "must be a ServiceAccount in namespace " + p.namespace.Name +
			r.available(id.bound, "ServiceAccount", answer.Available.ServiceAccounts)
		r.unresolve(api.ServiceAccountNotFound, err)
	case sa.ClientID == "" && p.request.ClientID == "" && !p.asksManaged(): // managedIDs rejects a managed class
		r.missed = true
		r.warn(api.IdentityNotBound, field.Invalid(p.path(api.IdentityName), sa.Name,
			"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+
				api.NoClientID(sa.InvalidClientID)+": without it the application gets a token for no client"))
	}
	p.bindLabel(id, api.WorkloadIdentityUse, "true", r)
	if id.mode != api.ModeIdentityBinding {
		return
	}
	if existing, ok := p.subject.Annotations[api.WorkloadIdentityBinding]; !ok {
		id.annotations = append(id.annotations, Entry{api.WorkloadIdentityBinding, "true"})
	} else if existing != "true" {
		path := p.subject.Root.Child("metadata", "annotations").Key(api.WorkloadIdentityBinding)
		p.reportConflict(path, existing, "true", r)
	}
}

// bindLabel sets a label, unless the pod has it with another value.
func (p *Plan) bindLabel(id *identity, key, wanted string, r *report) {
	switch existing, has := p.subject.Label(key); {
	case !has:
		id.labels = append(id.labels, Entry{key, wanted})
	case existing != wanted:
		p.reportConflict(p.subject.LabelPath(key), existing, wanted, r)
	}
}

// reportConflict reports a label or annotation that the pod has and the request needs with another
// value.
func (p *Plan) reportConflict(path *field.Path, existing, wanted string, r *report) {
	err := field.Invalid(path, existing, fmt.Sprintf(
		"must be %q, as the annotations request; it was kept: remove it, or change the annotations", wanted))
	if policy.Enforces(p.namespace) {
		err.Detail = fmt.Sprintf("must be %q, as the annotations request; remove it, or change the annotations", wanted)
		r.fail(api.IdentityConflict, err)
		return
	}
	r.warn(api.IdentityConflict, err)
}
