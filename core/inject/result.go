package inject

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Outcome is the outcome of a review: metric label, audit annotation and log value. [Outcomes] is
// the whole set.
type Outcome string

// The outcomes.
const (
	// NotRequested means that the object gets nothing: it requests nothing, its namespace did not
	// opt in, or the webhook does not review it.
	NotRequested Outcome = "not-requested"
	// Unchanged means that the object requests something, and already has all of it.
	Unchanged Outcome = "unchanged"
	// Injected means that the object gets what was requested.
	Injected Outcome = "injected"
	// Allowed means that policy has no objection.
	Allowed Outcome = "allowed"
	// Invalid means that the request is wrong: the object is rejected.
	Invalid Outcome = "invalid"
	// Forbidden means that the request is valid but not permitted in this namespace: the object
	// is rejected.
	Forbidden Outcome = "forbidden"
	// Malformed means that what arrived is not an AdmissionReview.
	Malformed Outcome = "malformed"
	// Failed means that the injector could not review the object. Its value is "error".
	Failed Outcome = "error"
	// Abandoned means that the API server closed the connection before the answer.
	Abandoned Outcome = "abandoned"
)

// Outcomes are all outcomes.
var Outcomes = [...]Outcome{
	NotRequested, Unchanged, Injected, Allowed, Invalid, Forbidden, Malformed, Failed, Abandoned,
}

// Rejects reports whether the object is rejected. Then the review has errors, and so a Reason.
func (o Outcome) Rejects() bool {
	return o == Invalid || o == Forbidden
}

// Result is what a pod gets.
type Result struct {
	// Outcome is never empty.
	Outcome Outcome
	// Change is empty unless Outcome is [Injected].
	Change Change
	// Classes are the managed classes that the pod mounts, in the order of its volumes. They
	// have no namespace.
	Classes []*class.SecretProviderClass
	// Warnings are for the author to read. Warnings and errors carry their [api.Reason].
	Warnings field.ErrorList
	// Errors are mistakes that the author can correct only in this object.
	Errors field.ErrorList
	// Unresolved are errors that another object may correct: what is missing may be applied a
	// moment later.
	Unresolved field.ErrorList
	// NotOptedIn is true if the namespace did not opt in, so that nothing was decided.
	NotOptedIn bool
	// Missed is true if the decision depends on something that does not exist, and that a
	// fresher answer may have.
	Missed bool
}

// Class returns the managed class of that name; nil if the pod does not get it, or the result has
// errors.
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

// AllErrors returns the errors of both kinds.
func (r *Result) AllErrors() field.ErrorList {
	if len(r.Errors) == 0 {
		return r.Unresolved
	}
	return append(slices.Clip(r.Errors), r.Unresolved...)
}

// outcomeOf returns [Forbidden] if every error is about a ceiling, else [Invalid].
func outcomeOf(errs field.ErrorList) Outcome {
	for _, err := range errs {
		switch api.ReasonOf(err) {
		case api.VaultNotAllowed, api.IdentityNotAllowed, api.SecretNameNotAllowed:
		default:
			return Invalid
		}
	}
	return Forbidden
}
