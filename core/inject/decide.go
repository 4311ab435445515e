package inject

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

// Decide returns what the pod gets. It may be called again with a fresher answer. It reports all
// mistakes at once: only what depends on a value that cannot be parsed is skipped. A default of the
// namespace that does not fit the pod is skipped with a warning.
func (p *Plan) Decide(answer facts.Answer) Result {
	return p.fit(&answer, false)
}

// DecideClasses returns the managed classes that the pod gets, as [Plan.Decide] does. It reads
// neither containers nor volumes, so the subject of an [Outline] is enough.
func (p *Plan) DecideClasses(answer facts.Answer) Result {
	return p.fit(&answer, true)
}

// fit decides without those defaults of the namespace that cause errors. The errors become warnings.
func (p *Plan) fit(answer *facts.Answer, onlyClasses bool) Result {
	if !p.requested {
		return Result{Outcome: NotRequested, Warnings: p.warnings, NotOptedIn: p.notOptedIn}
	}
	var result Result
	if onlyClasses {
		result = p.decideClassesOnce(answer)
	} else {
		result = p.decideOnce(answer)
	}
	errs := result.AllErrors()
	if len(errs) == 0 {
		return result
	}
	for _, keys := range p.misfits(errs) {
		other := p.without(keys).fit(answer, onlyClasses)
		remaining := other.AllErrors()
		if len(remaining) < len(errs) {
			other.Warnings = append(skipped(errs, remaining, keys), other.Warnings...)
			other.Missed = true // the default may fit a fresher answer
			return other
		}
	}
	return result
}

// decideOnce makes all decisions about a pod, in the order in which they depend on each other.
func (p *Plan) decideOnce(answer *facts.Answer) Result {
	r := p.newReport()
	p, selected := p.selectContainers(r)
	p.warnUnreadable(selected, r)
	id, content := p.identityAndClasses(p.existingClasses(answer, r), answer, r)
	p.rejectSharedSecret(content, answer, r)
	change := Change{Labels: id.labels, Annotations: id.annotations, ServiceAccountName: id.serviceAccountName}
	if !p.request.Illegible(api.MountPath, api.Containers) {
		change.Volumes = p.addVolumes(content, r)
		var groups envGroups
		change.Containers, groups = p.changeContainers(selected, content, answer, r)
		p.addEnvFiles(groups, content, answer, &change, r)
	}
	if len(r.errors)+len(r.unresolved) > 0 || p.givesNothing(content, &id) {
		return r.result(Change{}, content)
	}
	change = p.leaveServiceAccount(change, answer)
	if value, ok := p.subject.Label(api.Injected); !ok || value != "true" {
		change.Labels = append(change.Labels, Entry{api.Injected, "true"})
	}
	if status := p.status(selected, content, &id); p.subject.Annotations[api.Status] != status {
		change.Annotations = append(change.Annotations, Entry{api.Status, status})
	}
	result := r.result(change, content)
	if result.Outcome = Injected; change.IsEmpty() {
		result.Outcome = Unchanged
	}
	return result
}

// decideClassesOnce makes the decisions that the managed classes of a pod depend on.
func (p *Plan) decideClassesOnce(answer *facts.Answer) Result {
	r := p.newReport()
	_, content := p.identityAndClasses(&content{}, answer, r)
	return r.result(Change{}, content)
}

// identityAndClasses decides how the pod is bound to its identity, and adds managed classes to the
// existing ones: a request has one or the other. It checks both against the ceilings.
func (p *Plan) identityAndClasses(existing *content, answer *facts.Answer, r *report) (id identity, all *content) {
	all = existing
	if !p.request.Illegible(api.IdentityName, api.IdentityMode, api.Class) {
		id = p.bindIdentity(answer, r)
		if p.asksManaged() {
			all = p.managedClasses(&id, answer, r)
		}
	}
	p.checkCeilings(all, &id, answer, r)
	return id, all
}

// newReport returns a report with what the parser found.
func (p *Plan) newReport() *report {
	return &report{errors: slices.Clone(p.errs), warnings: slices.Clone(p.warnings)}
}

// result returns the result of a decision. Its Outcome is that of the errors, or [NotRequested]
// without any.
func (r *report) result(change Change, content *content) Result {
	result := Result{
		Outcome: NotRequested, Change: change, Classes: content.classes,
		Warnings: r.warnings, Errors: r.errors, Unresolved: r.unresolved, Missed: r.missed,
	}
	if errs := r.all(); len(errs) > 0 {
		result.Outcome = outcomeOf(errs)
	}
	return result
}

// givesNothing reports whether the pod gets neither a mount nor an identity.
func (p *Plan) givesNothing(content *content, id *identity) bool {
	return len(content.mounts) == 0 && (id.mode == api.ModeNone || !p.asksIdentity())
}

// checkCeilings checks what the pod gets against the ceilings of its namespace.
func (p *Plan) checkCeilings(content *content, id *identity, answer *facts.Answer, r *report) {
	if name := p.secretName(); name != "" {
		r.forbid(policy.CheckSecretName(p.namespace, name, p.path(api.SecretName)))
	}
	for index, name := range p.request.Classes {
		if c := answer.Class(name); c != nil {
			r.forbid(policy.CheckSynced(p.namespace, c, p.path(api.Class).Index(index)))
		}
	}
	if policy.Ceiling(p.namespace) == "" {
		return
	}
	for i := range content.mounts {
		if m := &content.mounts[i]; m.vault != "" {
			r.forbid(policy.CheckVault(p.namespace, m.cloud, m.vault, p.writtenAt(m)))
		}
	}
	if !p.defaults.AllowVMIdentity {
		for index, name := range p.request.Classes {
			// A class without any identity is rejected, ceiling or not.
			if c := answer.Class(name); c != nil && (c.UsesNodeIdentity || p.hasNodePublishSecret(name)) {
				r.forbid(policy.CheckNameless(p.namespace, c, p.path(api.Class).Index(index)))
			}
		}
	}
	if id.bound != "" {
		r.forbid(policy.CheckIdentity(p.namespace, id.bound, p.boundPath(id)))
	}
	// The pod's own label binds it in every mode.
	label, _ := p.subject.Label(api.PodIdentityBinding)
	if label != "" && label != id.bound && !p.givesNothing(content, id) {
		r.forbid(policy.CheckIdentity(p.namespace, label, p.subject.LabelPath(api.PodIdentityBinding)))
	}
}

// rejectSharedSecret rejects a pod whose managed class would sync the Secret of another workload: the
// driver lets each overwrite the other. The former class of a workload may sync it, with the same type.
func (p *Plan) rejectSharedSecret(content *content, answer *facts.Answer, r *report) {
	name := p.secretName()
	if name == "" || p.subject.Root.Path != nil || p.subject.Meta == nil {
		return // it is not known which pods a template gives
	}
	workload := p.subject.Meta.Name
	if c := p.subject.Meta.Controller; c != nil {
		workload = facts.WorkloadOf(c.Kind, c.Name)
	}
	for _, other := range answer.Syncing {
		isOurs := slices.ContainsFunc(content.classes, func(c *class.SecretProviderClass) bool { return c.Name == other.Class })
		if isOurs {
			continue
		}
		if slices.Contains(other.Workloads, workload) {
			if of := cmp.Or(p.request.SecretType, string(corev1.SecretTypeOpaque)); of != other.Type {
				r.unresolve(api.SecretInvalid, field.Invalid(p.path(api.SecretType), of, fmt.Sprintf(
					"must be %s, as in the former class of the workload, %s: the type of Secret %s is immutable; a new type needs another %s",
					other.Type, other.Class, name, api.SecretName)))
				return
			}
			continue
		}
		of := ""
		if len(other.Workloads) > 0 {
			of = " of workload " + few(other.Workloads, asIs)
		}
		r.unresolve(api.SecretInvalid, field.Invalid(p.path(api.SecretName), name, fmt.Sprintf(
			"must be the Secret of one workload, and class %s%s syncs it: the driver lets each overwrite the other; use another name",
			other.Class, of)))
		return
	}
}

// misfits returns lists of keys. Without the namespace's defaults for the keys of one list, there
// may be fewer errors: the keys that errors are about, and the keys that request Key Vault if the
// pod itself does not.
func (p *Plan) misfits(errs field.ErrorList) [][]string {
	var named, asking []string
	for i := range api.Keys {
		key := api.Keys[i].Name
		if p.request.OriginOf(key) != api.FromNamespace {
			continue
		}
		path := p.path(key).String()
		if slices.ContainsFunc(errs, func(err *field.Error) bool { return strings.HasPrefix(err.Field, path) }) {
			named = append(named, key)
		}
		if key == api.Secrets || key == api.Class {
			asking = append(asking, key)
		}
	}
	var misfits [][]string
	if len(named) > 0 {
		misfits = append(misfits, named)
	}
	if len(asking) > 0 && p.request.OriginOf(api.Secrets) != api.FromPod && p.request.OriginOf(api.Class) != api.FromPod {
		misfits = append(misfits, asking)
	}
	return misfits
}

// without returns the plan without the namespace's defaults for some keys.
func (p *Plan) without(keys []string) *Plan {
	namespace := p.namespace
	namespace.Annotations = maps.Clone(namespace.Annotations)
	for _, key := range keys {
		delete(namespace.Annotations, key)
	}
	return NewPlan(p.subject, namespace, p.defaults)
}

// skipped returns warnings for the errors that are gone once the namespace's defaults for keys are
// skipped.
func skipped(errs, remaining field.ErrorList, keys []string) field.ErrorList {
	var list field.ErrorList
	names := strings.Join(keys, " and ")
	for _, err := range errs {
		isSame := func(other *field.Error) bool { return other.Field == err.Field && other.Origin == err.Origin }
		if slices.ContainsFunc(remaining, isSame) {
			continue
		}
		own := *err
		own.Detail += "; the namespace's default of " + names + " was skipped: " +
			"set " + names + ` on the pod, to "" if it needs none`
		list = append(list, &own)
	}
	return list
}
