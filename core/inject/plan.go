package inject

import (
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// Defaults are the values of the server's flags. They apply where no annotation sets a value.
type Defaults struct {
	// Mode is the identity mode; empty for [api.ModeAuto].
	Mode api.Mode
	// TenantID is the Microsoft Entra tenant of managed classes; empty for none.
	TenantID string
	// Cloud is the cloudName of managed classes; empty for the provider's default.
	Cloud string
	// EnvFiles configures env vars from files.
	EnvFiles EnvFiles
	// AllowVMIdentity lets a managed class read the vault as the node, for a pod that sets mode
	// none.
	AllowVMIdentity bool
}

// Plan is the request of one pod, before anything is looked up.
type Plan struct {
	subject   pods.Subject
	namespace facts.Namespace
	defaults  Defaults

	annotations api.Annotations
	request     api.Request
	// requested is false if there is nothing to do for the pod.
	requested bool
	// notOptedIn is true if the reason is that the namespace did not opt in.
	notOptedIn     bool
	errs, warnings field.ErrorList
}

// NewPlan parses the request of a pod in a namespace. The pod must be as it is now, including what
// other webhooks added.
func NewPlan(subject pods.Subject, namespace facts.Namespace, defaults Defaults) *Plan {
	p := &Plan{subject: subject, namespace: namespace, defaults: defaults}
	if subject.IsMirror() {
		return p
	}
	if !namespace.OptedIn() {
		p.notOptedIn = true
		p.warnUnknownInjection()
		return p
	}
	if !api.Asked(subject.Annotations) && namespace.Labels[api.Injection] != api.InjectionAlways {
		return p
	}
	p.annotations = api.Annotations{
		Pod: subject.Annotations, Namespace: namespace.Annotations, NamespaceName: namespace.Name,
	}
	if subject.AnnotationPath != nil || subject.Root.Path != nil {
		p.annotations.Path = p.subject.AnnotationPathOf
	}
	p.request, p.errs, p.warnings = api.ParseRequest(p.annotations)
	p.warnings = append(p.warnings, policy.CheckNamespace(namespace, true)...)
	p.warnOptedOut()
	p.requested = !p.request.OptedOut && (len(p.errs) > 0 || p.request.AsksIdentity())
	return p
}

// Needs returns what to look up before [Plan.Decide].
func (p *Plan) Needs() facts.Needs {
	if !p.requested {
		return facts.Needs{}
	}
	n := facts.Needs{Classes: p.request.Classes, Secret: p.secretName(), EnvFiles: p.usesEnvFiles() && p.request.AsksKeyVault()}
	mode := p.mode()
	if !p.asksIdentity() || mode == api.ModeNone {
		return n
	}
	n.ServiceAccount = p.subject.RunsAs()
	if p.request.Identity != "" && mode != api.ModePodIdentity && p.request.Identity != n.ServiceAccount {
		n.NamedServiceAccount = p.request.Identity
	}
	if mode == api.ModePodIdentity || mode == api.ModeAuto {
		n.Selector = p.request.Identity
	}
	return n
}

// mode returns the requested mode, before auto is resolved.
func (p *Plan) mode() api.Mode {
	if p.request.OriginOf(api.IdentityMode) == api.Unset && p.defaults.Mode != "" {
		return p.defaults.Mode
	}
	return p.request.Mode
}

// asksItems reports whether the request has items, even if they cannot be parsed.
func (p *Plan) asksItems() bool {
	return len(p.request.Items) > 0 || (p.request.Illegible(api.Secrets) && p.request.OriginOf(api.Secrets) != api.Unset)
}

// asksIdentity is [api.Request.AsksIdentity], but items that cannot be parsed count as items.
func (p *Plan) asksIdentity() bool {
	return p.request.AsksIdentity() || p.asksItems()
}

// secretName returns the name that the request gives the Secret of its managed class; empty for none.
func (p *Plan) secretName() string {
	if !p.asksManaged() {
		return ""
	}
	return p.request.SecretName
}

// asksManaged reports whether the request needs managed classes.
func (p *Plan) asksManaged() bool {
	return len(p.request.Classes) == 0 && p.asksItems()
}

// warnOptedOut warns the author of a pod with a request in a namespace that opts out.
func (p *Plan) warnOptedOut() {
	if !p.request.OptedOut || p.request.OriginOf(api.Inject) != api.FromNamespace {
		return
	}
	for _, key := range []string{api.IdentityName, api.Secrets, api.Class} {
		if p.request.OriginOf(key) == api.FromPod {
			p.warnings = append(p.warnings, api.Because(api.NoEffect, field.Forbidden(p.path(key),
				"has no effect, since the namespace's "+api.Inject+` is "false"; set it to "true" on the pod`)))
		}
	}
}

// warnUnknownInjection warns of a label of the namespace that does not opt in, by a value that does
// not exist.
func (p *Plan) warnUnknownInjection() {
	value, labelled := p.namespace.Labels[api.Injection]
	if !labelled || value == api.InjectionDisabled {
		return
	}
	path := field.NewPath("namespaces").Key(p.namespace.Name).Child("metadata", "labels").Key(api.Injection)
	supported := []string{api.InjectionEnabled, api.InjectionAlways, api.InjectionDisabled}
	p.warnings = append(p.warnings, api.Because(api.UnknownInjection,
		field.NotSupported(path, api.Echo(value), supported)))
}

// path returns where the effective value of a key was written.
func (p *Plan) path(key string) *field.Path {
	return p.annotations.PathOf(key, p.request.OriginOf(key))
}

// itemPath returns where an item was written.
func (p *Plan) itemPath(index int) *field.Path {
	return p.path(api.Secrets).Index(index)
}

// causedBy returns where to report that the pod, at path, conflicts with the value of a key: at the
// key if the namespace has it, since the author of the pod did not write it.
func (p *Plan) causedBy(key string, path *field.Path) *field.Path {
	if p.request.OriginOf(key) == api.FromNamespace {
		return p.path(key)
	}
	return path
}
