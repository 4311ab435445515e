// Package review makes one verdict of a pod or a workload: it puts the core's questions to a source of facts, and says what
// the API server or the author is to be told.
//
// It knows nothing of HTTP or admission reviews, and holds no rule of the contract but how workloads are checked early.
package review

import (
	"context"
	"fmt"
	"slices"

	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// Verdict is what comes of one object.
type Verdict struct {
	// Outcome is never empty.
	Outcome inject.Outcome
	// Operations are the JSON Patch of the object; empty unless Outcome is [inject.Injected].
	Operations []jsonpatch.Operation
	// Warnings are for the author to read, Errors the reasons to refuse the object; each carries its Reason.
	Warnings, Errors field.ErrorList
	// Audited is for the API server's audit log alone.
	Audited field.ErrorList
	// Owner is the pod's controller, as "KIND NAME", where a refusal is to name it; empty elsewhere.
	Owner string
}

// TooLarge judges an object that is too large to be read. A pod is rejected where it could break the policy of its namespace; anything else is
// admitted with a warning.
func TooLarge(ctx context.Context, source facts.Source, isPod bool, name string) (Verdict, error) {
	namespace, err := source.Namespace(ctx, name, true)
	if err != nil {
		return Verdict{}, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	path := field.NewPath("request", "object")
	if isPod && (namespace.Enforces() || policy.Ceiling(namespace.Annotations) != "") {
		detail := "is too large to be held against the policy of namespace " + namespace.Name + "; make it smaller"
		return Verdict{Outcome: inject.Forbidden, Errors: field.ErrorList{api.Because(api.ReviewTooLarge, field.Forbidden(path, detail))}}, nil
	}
	detail := "is too large to be reviewed, and was admitted as it is: nothing is injected; make it smaller"
	return Verdict{Outcome: inject.NotRequested, Warnings: field.ErrorList{api.Because(api.ReviewTooLarge, field.Forbidden(path, detail))}}, nil
}

// Pod judges a pod that is about to be created.
func Pod(ctx context.Context, source facts.Source, subject inject.Subject, namespace string, defaults inject.Defaults) (Verdict, error) {
	result, err := Decide(ctx, source, subject, namespace, defaults)
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

// Workload judges a workload that is about to be created or, where old is not nil, updated: its template inherits its annotations,
// and the request of its pods is checked at once. What another object can correct is a warning. So is everything about an update that changes no
// annotation, since the workload's controllers must be able to go on.
func Workload(ctx context.Context, source facts.Source, w, old *pods.Workload, namespace string, defaults inject.Defaults) (Verdict, error) {
	handover, ok := inject.HandDown(w)
	if !ok || w.Meta.Deleted {
		return Verdict{Outcome: inject.NotRequested}, nil
	}
	if old != nil && w.Kind == "Job" {
		return patched(inject.Restore(w, old), false), nil
	}
	unchanged := old != nil && inject.SameRequest(w, old)
	result, err := Decide(ctx, source, handover.Subject, namespace, defaults)
	if err != nil && unchanged {
		v := patched(inject.Restore(w, old), false)
		v.Warnings = field.ErrorList{api.Because(api.LookupFailed, field.InternalError(field.NewPath("metadata", "annotations"), err))}
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
		// The template keeps what it inherited, since its pods would be rejected otherwise. The client may not have sent that.
		v := patched(inject.Restore(w, old), true)
		v.Warnings = append(warnings, result.Errors...)
		return v, nil
	case len(result.Errors) > 0:
		return Verdict{Outcome: inject.Invalid, Warnings: warnings, Errors: result.Errors}, nil
	}
	v := patched(handover.Operations(), handover.Requested)
	v.Warnings = warnings
	return v, nil
}

// patched is the verdict on a workload that gets operations.
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
