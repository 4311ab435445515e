// Package review reaches the verdict about a pod or a workload. A [Reviewer] looks up what package
// inject and package policy need. It decides a second time, on fresh facts, before it rejects an
// object because of something that another object may correct: objects that are applied together
// arrive in any order.
//
//	r := review.Reviewer{Source: source, Defaults: defaults}
//	verdict, err := r.Pod(ctx, pods.SubjectOf(pod), "shop")
//
// The webhook and the command line call it in the same way. The package writes no HTTP response,
// and has no rule about what a pod gets or may use.
package review

import (
	"context"
	"fmt"
	"slices"

	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// Reviewer reviews objects of a cluster, or of manifests.
type Reviewer struct {
	// Source answers questions about namespaces.
	Source facts.Source
	// Defaults are the values of the server's flags.
	Defaults inject.Defaults
}

// Verdict is the verdict about one object.
type Verdict struct {
	// Outcome is never empty.
	Outcome inject.Outcome
	// Operations are a JSON Patch of the object; empty unless Outcome is [inject.Injected].
	Operations []jsonpatch.Operation
	// Errors are the reasons to reject the object, and Warnings are for its author. Each
	// carries its Reason.
	Errors, Warnings field.ErrorList
	// Audited is only for the API server's audit log.
	Audited field.ErrorList
	// Violations are the broken rules behind Errors, Warnings and Audited.
	Violations []policy.Violation
	// Owner is the pod's controller as "KIND NAME", if a rejection is to name it; else empty.
	Owner string
}

// looks are the values of fresh with which a decision is made: the second time only if the first
// may be wrong.
var looks = [...]bool{false, true}

// Pod reviews the creation of a pod. It returns an error if a lookup fails.
func (r Reviewer) Pod(ctx context.Context, subject pods.Subject, namespace string) (Verdict, error) {
	result, err := r.Inject(ctx, subject, namespace)
	if err != nil {
		return Verdict{}, err
	}
	return Verdict{
		Outcome:    result.Outcome,
		Operations: result.Change.Operations(&subject),
		Warnings:   result.Warnings,
		Errors:     result.AllErrors(),
	}, nil
}

// Inject returns what a pod gets. It decides a second time, on fresh facts, if the pod has errors
// that another object may correct, if the decision depends on something that does not exist, or if
// the namespace has not opted in. It returns an error if a lookup fails.
func (r Reviewer) Inject(
	ctx context.Context, subject pods.Subject, namespace string,
) (result inject.Result, err error) {
	for _, fresh := range looks {
		plan, answer, err := r.lookUp(ctx, subject, namespace, fresh)
		if err != nil {
			return inject.Result{}, err
		}
		result = plan.Decide(answer)
		if !result.NotOptedIn && !result.Missed && len(result.Unresolved) == 0 {
			break
		}
	}
	return result, nil
}

// Classes returns the managed classes that a pod gets. It needs only the subject of an
// [inject.Outline]. It decides once, on fresh facts if fresh. It returns an error if a lookup
// fails.
func (r Reviewer) Classes(
	ctx context.Context, subject pods.Subject, namespace string, fresh bool,
) (inject.Result, error) {
	plan, answer, err := r.lookUp(ctx, subject, namespace, fresh)
	if err != nil {
		return inject.Result{}, err
	}
	return plan.DecideClasses(answer), nil
}

// lookUp returns the plan for a pod, and the answer that the plan needs.
func (r Reviewer) lookUp(
	ctx context.Context, subject pods.Subject, name string, fresh bool,
) (*inject.Plan, facts.Answer, error) {
	namespace, err := r.namespace(ctx, name, fresh)
	if err != nil {
		return nil, facts.Answer{}, err
	}
	plan := inject.NewPlan(subject, namespace, r.Defaults)
	answer, err := r.facts(ctx, name, plan.Needs(), fresh)
	return plan, answer, err
}

func (r Reviewer) namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	namespace, err := r.Source.Namespace(ctx, name, fresh)
	if err != nil {
		return facts.Namespace{}, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	return namespace, nil
}

func (r Reviewer) facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	if needs.IsEmpty() {
		return facts.Answer{}, nil
	}
	answer, err := r.Source.Facts(ctx, namespace, needs, fresh)
	if err != nil {
		return facts.Answer{}, fmt.Errorf("look up the objects of namespace %s: %w", namespace, err)
	}
	return answer, nil
}

// Workload reviews the creation of a workload or, if old is not nil, its update. The pod template
// inherits the annotations of the workload, and the request of its pods is checked at once. Errors
// that another object may correct are warnings. So are all errors of an update that changes no
// annotation: the workload's controllers must be able to go on. Workload returns an error if a
// lookup fails, except for such an update, which then gets a warning.
func (r Reviewer) Workload(ctx context.Context, w, old *pods.Workload, namespace string) (Verdict, error) {
	handover, ok := inject.HandDown(w)
	if !ok || w.Meta.Deleted {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	if old != nil && w.Kind == "Job" {
		return patched(inject.Restore(w, old), false), nil
	}
	unchanged := old != nil && inject.SameRequest(w, old)
	result, err := r.Inject(ctx, handover.Subject, namespace)
	if err != nil && unchanged {
		v := patched(inject.Restore(w, old), false)
		failed := field.InternalError(field.NewPath("metadata", "annotations"), err)
		v.Warnings = field.ErrorList{api.Because(api.LookupFailed, failed)}
		return v, nil
	}
	if err != nil {
		return Verdict{}, err
	}
	if result.NotOptedIn {
		return Verdict{Outcome: inject.NotRequested, Warnings: result.Warnings}, nil
	}
	warnings := slices.Concat(handover.Warnings, result.Warnings, result.Unresolved)
	switch {
	case len(result.Errors) > 0 && unchanged:
		// The template keeps what it inherited, even if the client did not send that:
		// otherwise its pods would be rejected.
		v := patched(inject.Restore(w, old), true)
		v.Warnings = append(warnings, result.Errors...)
		return v, nil
	case len(result.Errors) > 0:
		return Verdict{Outcome: inject.Invalid, Warnings: warnings, Errors: result.Errors}, nil
	}
	v := patched(handover.Operations(old), handover.Requested)
	v.Warnings = warnings
	return v, nil
}

// patched returns the verdict about a workload that gets operations.
func patched(operations []jsonpatch.Operation, requested bool) Verdict {
	v := Verdict{Outcome: inject.NotRequested, Operations: operations}
	switch {
	case len(operations) > 0:
		v.Outcome = inject.Injected
	case requested:
		v.Outcome = inject.Unchanged
	}
	return v
}

// TooLarge reviews an object that is too large to be read. It rejects a pod that could break the
// policy of its namespace, and admits anything else with a warning. It returns an error if the
// lookup of the namespace fails.
func (r Reviewer) TooLarge(ctx context.Context, isPod bool, namespace string) (Verdict, error) {
	found, err := r.namespace(ctx, namespace, true)
	if err != nil {
		return Verdict{}, err
	}
	path := field.NewPath("request", "object")
	if isPod && (policy.Enforces(found) || policy.Ceiling(found) != "") {
		detail := "is too large to be checked against the policy of namespace " + found.Name + "; make it smaller"
		err := api.Because(api.ReviewTooLarge, field.Forbidden(path, detail))
		return Verdict{Outcome: inject.Forbidden, Errors: field.ErrorList{err}}, nil
	}
	detail := "is too large to be reviewed, and was admitted without injection; make it smaller"
	warning := api.Because(api.ReviewTooLarge, field.Forbidden(path, detail))
	return Verdict{Outcome: inject.NotRequested, Warnings: field.ErrorList{warning}}, nil
}
