package inject

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
)

// Outcome is what came of a review, in one word of a closed set: metric label, audit annotation and log value.
type Outcome string

// The outcomes.
const (
	// NotRequested says that nobody asked for anything.
	NotRequested Outcome = "not-requested"
	// Unchanged says that the pod has all that was asked for already.
	Unchanged Outcome = "unchanged"
	// Injected says that Change makes the pod what was asked for.
	Injected Outcome = "injected"
	// Invalid says that the request can't be met as it is written.
	Invalid Outcome = "invalid"
	// Forbidden says that the request is well formed and not permitted here.
	Forbidden Outcome = "forbidden"
)

// Result is what a request comes to.
type Result struct {
	// Outcome is never empty.
	Outcome Outcome
	// Change is what the pod lacks; empty unless Outcome is [Injected].
	Change Change
	// Classes are the managed classes that the pod mounts, in the order of its volumes; the caller sets their namespace.
	Classes []*class.SecretProviderClass
	// Warnings are for the author to read; each carries its [api.Reason].
	Warnings field.ErrorList
	// Errors are mistakes that the author has to mend in this object.
	Errors field.ErrorList
	// Unresolved are errors too, but such as another object may mend: what is missing may be applied a moment later.
	Unresolved field.ErrorList
	// NotOptedIn is true where nothing was decided, since the namespace does not ask for injection.
	NotOptedIn bool
	// Missed is true where a decision rests on something not having been found, which a second, fresher look may find.
	Missed bool
}

// Class is the managed class of that name that the pod is to have; nil where there is none, or anything is wrong.
func (r *Result) Class(name string) *class.SecretProviderClass {
	if len(r.Errors)+len(r.Unresolved) > 0 {
		return nil
	}
	for _, spc := range r.Classes {
		if spc.Name == name {
			return spc
		}
	}
	return nil
}

// AllErrors are the reasons to refuse the pod, whoever is to mend them.
func (r *Result) AllErrors() field.ErrorList {
	if len(r.Errors) == 0 {
		return r.Unresolved
	}
	return append(slices.Clip(r.Errors), r.Unresolved...)
}

// outcomeOf tells wrong from not permitted: a single mistake of the first kind makes the whole invalid.
func outcomeOf(errs field.ErrorList) Outcome {
	for _, err := range errs {
		switch api.ReasonOf(err) {
		case api.VaultNotAllowed, api.IdentityNotAllowed:
		default:
			return Invalid
		}
	}
	return Forbidden
}
