package review

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// Allowed is the outcome of what policy has nothing to say against.
const Allowed inject.Outcome = "allowed"

// PodPolicy holds a pod that is about to be created, or whose labels change from those of old, against the policy of its namespace. An
// update is told only of what old did not break.
func PodPolicy(ctx context.Context, source facts.Source, subject inject.Subject, old *pods.Pod, namespace string, defaults inject.Defaults) (Verdict, error) {
	if subject.IsMirror() {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	j, err := judge(ctx, source, policyPod(&subject, nil, defaults), namespace, managedOf(ctx, source, subject, namespace, defaults))
	if err != nil {
		return Verdict{}, err
	}
	if old != nil && len(j.violations) > 0 {
		before := inject.Pod(old)
		was, err := judge(ctx, source, policyPod(&before, nil, defaults), namespace, managedOf(ctx, source, before, namespace, defaults))
		if err != nil {
			return Verdict{}, err
		}
		j.violations = slices.DeleteFunc(j.violations, func(v policy.Violation) bool {
			return slices.ContainsFunc(was.violations, func(w policy.Violation) bool { return w.Rule == v.Rule && w.Err.Error() == v.Err.Error() })
		})
	}
	v := j.verdict()
	if meta := subject.Meta; meta != nil && meta.Controller != nil {
		v.Owner = meta.Controller.Kind + " " + meta.Controller.Name
	}
	return v, nil
}

// BindingPolicy holds the labels that a Binding, by which a scheduler gives a pod its node, sets on the pod against the policy of their
// namespace. They may not be those of an identity, whichever: the Binding says too little of its pod to tell whether that may have it.
func BindingPolicy(ctx context.Context, source facts.Source, binding inject.Subject, name string) (Verdict, error) {
	namespace, err := source.Namespace(ctx, name, true)
	if err != nil {
		return Verdict{}, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	rule := &policy.Rule{Level: policy.Bound, Reason: api.IdentityNotAllowed}
	if _, ceiling := namespace.Annotations[api.AllowedNames]; ceiling {
		rule.Level = policy.Off
	}
	j := &judgement{labels: namespace.Labels, all: namespace.Labels}
	if !api.Governed(namespace.Labels) {
		return j.verdict(), nil
	}
	for _, key := range []string{api.PodIdentityBinding, api.WorkloadIdentityUse} {
		if _, set := binding.Label(key); set {
			err := field.Forbidden(field.NewPath("metadata", "labels").Key(key), "must not be set by a Binding; set it on the pod")
			j.violations = append(j.violations, policy.Violation{Rule: rule, Err: api.Because(rule.Reason, err)})
		}
	}
	return j.verdict(), nil
}

// WorkloadPolicy holds the pods that a workload will have against the policy of their namespace. Nothing of it refuses the workload: its
// pods are judged by themselves, and what they lack may come until then.
func WorkloadPolicy(ctx context.Context, source facts.Source, w *pods.Workload, namespace string, defaults inject.Defaults) (Verdict, error) {
	handover, ok := inject.HandDown(w)
	if !ok || w.Meta.Deleted {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	result, err := Decide(ctx, source, handover.Subject, namespace, defaults)
	if err != nil {
		return Verdict{}, err
	}
	if len(result.AllErrors()) > 0 {
		return Verdict{Outcome: inject.NotRequested}, nil // told already: there will be no pod to judge
	}
	v, err := Policy(ctx, source, handover.Subject, &result, namespace, defaults)
	v.Warnings = append(v.Errors, v.Warnings...)
	v.Errors = nil
	if v.Outcome == inject.Forbidden {
		v.Outcome = Allowed
	}
	return v, err
}

// Policy holds a subject, as what came of its annotations will make it, against the policy of its namespace.
func Policy(ctx context.Context, source facts.Source, subject inject.Subject, result *inject.Result, namespace string, defaults inject.Defaults) (Verdict, error) {
	if subject.IsMirror() {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	j, err := judge(ctx, source, policyPod(&subject, &result.Change, defaults), namespace, func(name string) (*class.SecretProviderClass, error) {
		for _, managed := range result.Classes {
			if managed.Name == name {
				return managed, nil
			}
		}
		return nil, nil
	})
	if err != nil {
		return Verdict{}, err
	}
	return j.verdict(), nil
}

// managedOf works out a managed class of a pod that has been injected.
func managedOf(ctx context.Context, source facts.Source, subject inject.Subject, namespace string, defaults inject.Defaults) func(string) (*class.SecretProviderClass, error) {
	asked := map[bool]*inject.Result{} // by whether facts were fresh: all classes are worked out in one go
	return func(name string) (*class.SecretProviderClass, error) {
		for _, fresh := range []bool{false, true} {
			if asked[fresh] == nil {
				result, err := Classes(ctx, source, subject, namespace, defaults, fresh)
				if err != nil {
					return nil, err
				}
				asked[fresh] = &result
			}
			if managed := asked[fresh].Class(name); managed != nil {
				return managed, nil
			}
		}
		return nil, nil
	}
}

// policyPod is what policy looks at in a subject as a change will make it.
func policyPod(subject *inject.Subject, change *inject.Change, defaults inject.Defaults) *policy.Pod {
	p := &policy.Pod{
		Root: subject.Root.Path, ServiceAccount: subject.ServiceAccount(),
		Volumes: policy.VolumesOf(subject.Spec.Volumes, subject.Root.Path), NodeIdentityAllowed: defaults.AllowVMIdentity,
	}
	for i := range subject.Spec.Volumes {
		p.HasIdentityToken = p.HasIdentityToken || subject.Spec.Volumes[i].HasIdentityToken
	}
	if subject.Meta != nil {
		p.Labels = subject.Meta.Labels
	}
	if change == nil || change.IsEmpty() {
		return p
	}
	if change.ServiceAccountName != "" {
		p.ServiceAccount = change.ServiceAccountName
	}
	asked := subject.AnnotationPathOf(api.IdentityName)
	p.Labels, p.LabelPaths = maps.Clone(p.Labels), map[string]*field.Path{}
	for _, label := range change.Labels {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[label.Key], p.LabelPaths[label.Key] = label.Value, asked
	}
	mounted := subject.AnnotationPathOf(api.Class)
	if subject.Annotations[api.Class] == "" {
		mounted = subject.AnnotationPathOf(api.Secrets)
	}
	for i := range change.Volumes {
		p.Volumes = append(p.Volumes, policy.Volume{Path: mounted, Injected: true, Attributes: map[string]string{class.Attribute: change.Volumes[i].Class}})
	}
	return p
}

// judgement is what a pod's namespace demands, and what of it the pod breaks.
type judgement struct {
	// labels are the namespace's, less the levels that the pod is exempt from.
	labels map[string]string
	// all are the namespace's labels. Ceilings hold in the modes that these name, whatever their levels, and for exempt pods as well.
	all        map[string]string
	violations []policy.Violation
	unknown    field.ErrorList
	// governed is false where the namespace has none of our labels. Nobody asks about its pods, unless its labels are newer than they seem.
	governed bool
}

// judge holds a pod against the policy of its namespace; twice, the second time on fresh facts, before anything is said against it. Managed
// gives the managed class of that name that the pod's annotations bring about, or nil.
func judge(ctx context.Context, source facts.Source, p *policy.Pod, namespace string, managed func(name string) (*class.SecretProviderClass, error)) (*judgement, error) {
	var j *judgement
	for _, fresh := range []bool{false, true} {
		var err error
		j, err = judgeOnce(ctx, source, p, namespace, managed, fresh)
		if err != nil || (j.governed && len(j.violations) == 0) {
			return j, err
		}
	}
	return j, nil
}

func judgeOnce(ctx context.Context, source facts.Source, p *policy.Pod, name string, managed func(name string) (*class.SecretProviderClass, error), fresh bool) (*judgement, error) {
	found, err := source.Namespace(ctx, name, fresh)
	if err != nil {
		return nil, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	namespace := policy.Namespace{Name: found.Name, Labels: found.Labels, Annotations: found.Annotations}
	j := &judgement{governed: api.Governed(namespace.Labels), all: found.Labels, unknown: append(policy.UnknownLevels(namespace), policy.GlobMistakes(found.Name, found.Annotations)...)}
	if !j.governed {
		return j, nil
	}
	if policy.Exempt(namespace, p.ServiceAccount) {
		namespace.Labels = nil
	}
	j.labels = namespace.Labels
	known, err := lookUp(ctx, source, p, namespace, managed, fresh)
	if err != nil {
		return nil, err
	}
	j.violations = policy.Check(p, namespace, known)
	return j, nil
}

// lookUp gathers what judging a pod takes.
func lookUp(ctx context.Context, source facts.Source, p *policy.Pod, namespace policy.Namespace, managed func(name string) (*class.SecretProviderClass, error), fresh bool) (*policy.Facts, error) {
	needs := p.Needs(namespace)
	if needs.IsEmpty() {
		return &policy.Facts{}, nil
	}
	found, err := source.Facts(ctx, namespace.Name, inject.Needs{
		Classes: needs.Classes, ServiceAccount: needs.ServiceAccount, Selector: needs.Selector, Identities: needs.Identities && fresh,
	}, fresh)
	if err != nil {
		return nil, fmt.Errorf("look up what namespace %s holds: %w", namespace.Name, err)
	}
	known := &policy.Facts{Classes: found.Classes, Bound: found.Bound, Available: policy.Available{
		Classes: found.Available.Classes, ServiceAccounts: found.Available.ServiceAccounts, Clients: found.Available.Clients, Selectors: found.Available.Selectors,
		NoDriver: found.Available.NoDriver,
	}}
	if found.ServiceAccount != nil {
		known.ServiceAccount = &policy.ServiceAccount{
			Name: found.ServiceAccount.Name, ClientID: found.ServiceAccount.ClientID, InvalidClientID: found.ServiceAccount.InvalidClientID,
		}
	}
	for _, name := range needs.Classes {
		if !class.IsManagedName(name) || slices.ContainsFunc(known.Classes, func(c *class.Class) bool { return c.Name == name }) {
			continue
		}
		made, err := managed(name)
		if err != nil {
			return nil, err
		}
		if made != nil {
			known.Classes = append(slices.Clip(known.Classes), class.ReadParameters(made))
		}
	}
	return known, nil
}

// verdict separates violations that reject a pod from those that only warn or are only audited.
func (j *judgement) verdict() Verdict {
	v := Verdict{Outcome: Allowed, Warnings: j.unknown}
	modes := policy.ModesOf(j.labels)
	for _, broken := range j.violations {
		level := broken.Rule.Level
		switch {
		case level == policy.Off:
			j.ceiling(&v, broken.Err)
			continue
		case modes.Enforce.AtLeast(level):
			add(&v.Errors, demanded(broken.Err, api.Enforce, j.labels[api.Enforce]))
		case modes.Warn.AtLeast(level):
			add(&v.Warnings, demanded(broken.Err, api.Warn, j.labels[api.Warn]))
		}
		if modes.Audit.AtLeast(level) {
			add(&v.Audited, demanded(broken.Err, api.Audit, j.labels[api.Audit]))
		}
	}
	if len(v.Errors) > 0 {
		v.Outcome = inject.Forbidden
	}
	return v
}

// ceiling adds a violation of a ceiling to a verdict.
func (j *judgement) ceiling(v *Verdict, err *field.Error) {
	if _, enforced := j.all[api.Enforce]; enforced {
		add(&v.Errors, err)
		return
	}
	own := *err
	own.Detail += "; with namespace label " + api.Enforce + " the pod would be rejected"
	if _, warned := j.all[api.Warn]; warned {
		add(&v.Warnings, &own)
	}
	if _, audited := j.all[api.Audit]; audited {
		add(&v.Audited, &own)
	}
}

// add adds an error, unless one for the same reason at the same place is there: a class that is not found breaks several rules.
func add(list *field.ErrorList, err *field.Error) {
	if !slices.ContainsFunc(*list, func(e *field.Error) bool { return e.Origin == err.Origin && e.Field == err.Field }) {
		*list = append(*list, err)
	}
}

// demanded is an error that names the label which makes it one.
func demanded(err *field.Error, label, level string) *field.Error {
	own := *err
	own.Detail += fmt.Sprintf("; namespace label %s=%s asks for it", label, api.Echo(level))
	return &own
}
