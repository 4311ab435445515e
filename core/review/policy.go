package review

import (
	"context"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// PodPolicy checks a new pod, or one whose labels change from those of old, against the policy of
// its namespace. An update is rejected only for what old did not already violate. PodPolicy returns
// an error if a lookup fails.
func (r Reviewer) PodPolicy(
	ctx context.Context, subject pods.Subject, old *pods.Pod, namespace string,
) (Verdict, error) {
	if subject.IsMirror() {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	j, err := r.judge(ctx, policy.UsageOf(&subject), namespace, r.managedBy(subject, namespace))
	if err != nil {
		return Verdict{}, err
	}
	if old != nil && len(j.violations) > 0 {
		before := pods.SubjectOf(old)
		was, err := r.judge(ctx, policy.UsageOf(&before), namespace, r.managedBy(before, namespace))
		if err != nil {
			return Verdict{}, err
		}
		j.violations = slices.DeleteFunc(j.violations, func(v policy.Violation) bool {
			return slices.ContainsFunc(was.violations, func(w policy.Violation) bool {
				return w.Rule == v.Rule && w.Err.Error() == v.Err.Error()
			})
		})
	}
	v := j.verdict()
	if meta := subject.Meta; meta != nil && meta.Controller != nil {
		v.Owner = meta.Controller.Kind + " " + meta.Controller.Name
	}
	return v, nil
}

// BindingPolicy checks a Binding, whose labels become those of a pod, against the policy of its
// namespace. It returns an error if a lookup fails.
func (r Reviewer) BindingPolicy(ctx context.Context, binding pods.Subject, namespace string) (Verdict, error) {
	u := &policy.Usage{IsBinding: true}
	if binding.Meta != nil {
		u.Labels = binding.Meta.Labels
	}
	j, err := r.judge(ctx, u, namespace, nil)
	if err != nil {
		return Verdict{}, err
	}
	return j.verdict(), nil
}

// WorkloadPolicy checks the pods that a workload will have against the policy of their namespace.
// It never rejects the workload: its pods are checked when they are created, and what they need may
// exist by then. It returns an error if a lookup fails.
func (r Reviewer) WorkloadPolicy(ctx context.Context, w *pods.Workload, namespace string) (Verdict, error) {
	handover, ok := inject.HandDown(w)
	if !ok || w.Meta.Deleted {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	result, err := r.Inject(ctx, handover.Subject, namespace)
	if err != nil {
		return Verdict{}, err
	}
	if len(result.AllErrors()) > 0 {
		return Verdict{Outcome: inject.NotRequested}, nil // Workload reported them: there will be no pod
	}
	v, err := r.Policy(ctx, handover.Subject, &result, namespace)
	v.Warnings = append(v.Errors, v.Warnings...)
	v.Errors = nil
	if v.Outcome == inject.Forbidden {
		v.Outcome = inject.Allowed
	}
	return v, err
}

// Policy checks a pod as result will change it against the policy of its namespace. It returns an
// error if a lookup fails.
func (r Reviewer) Policy(
	ctx context.Context, subject pods.Subject, result *inject.Result, namespace string,
) (Verdict, error) {
	if subject.IsMirror() {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	decided := func(context.Context, bool) (*inject.Result, error) { return result, nil }
	j, err := r.judge(ctx, usageAfter(&subject, &result.Change), namespace, decided)
	if err != nil {
		return Verdict{}, err
	}
	return j.verdict(), nil
}

// usageAfter returns what a pod uses after a change.
func usageAfter(subject *pods.Subject, change *inject.Change) *policy.Usage {
	u := policy.UsageOf(subject)
	if change.IsEmpty() {
		return u
	}
	if change.ServiceAccountName != "" {
		u.ServiceAccount = change.ServiceAccountName
	}
	u.Labels, u.LabelPaths = maps.Clone(u.Labels), map[string]*field.Path{}
	for _, label := range change.Labels {
		if u.Labels == nil {
			u.Labels = map[string]string{}
		}
		u.Labels[label.Key], u.LabelPaths[label.Key] = label.Value, subject.AnnotationPathOf(api.IdentityName)
	}
	writtenAt := subject.AnnotationPathOf(api.Class)
	if subject.Annotations[api.Class] == "" {
		writtenAt = subject.AnnotationPathOf(api.Secrets)
	}
	for i := range change.Volumes {
		u.Volumes = append(u.Volumes, policy.Volume{
			Path:       writtenAt,
			Injected:   true,
			Attributes: map[string]string{class.Attribute: change.Volumes[i].Class},
		})
	}
	return u
}

// managed returns the result with the managed classes of a pod.
type managed func(ctx context.Context, fresh bool) (*inject.Result, error)

// managedBy returns the managed classes that the annotations of an injected pod request.
func (r Reviewer) managedBy(subject pods.Subject, namespace string) managed {
	return func(ctx context.Context, fresh bool) (*inject.Result, error) {
		result, err := r.Classes(ctx, subject, namespace, fresh)
		return &result, err
	}
}

// judgement is what a pod violates of the policy of its namespace.
type judgement struct {
	namespace      facts.Namespace
	serviceAccount string
	violations     []policy.Violation
}

// judge checks a pod against the policy of its namespace; on fresh facts if it violates any. The
// API server sends no reviews of namespaces without a label of the injector, so for such a
// namespace the facts are out of date, too.
func (r Reviewer) judge(ctx context.Context, u *policy.Usage, name string, managed managed) (j judgement, err error) {
	u.NodeIdentityAllowed = r.Defaults.AllowVMIdentity
	for _, fresh := range looks {
		j = judgement{serviceAccount: u.ServiceAccount}
		if j.namespace, err = r.namespace(ctx, name, fresh); err != nil {
			return j, err
		}
		if !api.Governed(j.namespace.Labels) {
			continue
		}
		needs := u.Needs(j.namespace)
		needs.Identities = needs.Identities && fresh // only for messages
		answer, err := r.facts(ctx, name, needs, fresh)
		if err != nil {
			return j, err
		}
		if err := addManaged(ctx, &answer, needs.Classes, managed, fresh); err != nil {
			return j, err
		}
		if j.violations = policy.Check(u, j.namespace, &answer); len(j.violations) == 0 {
			break
		}
	}
	return j, nil
}

// addManaged adds to an answer the managed classes that do not exist yet, but will.
func addManaged(ctx context.Context, answer *facts.Answer, names []string, managed managed, fresh bool) error {
	var result *inject.Result
	for _, name := range names {
		if !class.IsManagedName(name) || answer.Class(name) != nil {
			continue
		}
		if result == nil {
			var err error
			if result, err = managed(ctx, fresh); err != nil {
				return err
			}
		}
		if spc := result.Class(name); spc != nil {
			answer.Classes = append(slices.Clip(answer.Classes), class.ReadParameters(spc))
		}
	}
	return nil
}

// verdict returns the verdict about the pod.
func (j *judgement) verdict() Verdict {
	v := Verdict{Outcome: inject.Allowed, Violations: j.violations}
	v.Errors, v.Warnings, v.Audited = policy.ByMode(j.namespace, j.serviceAccount, j.violations)
	v.Warnings = slices.Concat(policy.UnknownLevels(j.namespace), policy.GlobMistakes(j.namespace), v.Warnings)
	if len(v.Errors) > 0 {
		v.Outcome = inject.Forbidden
	}
	return v
}
