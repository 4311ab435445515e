package inject

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
)

// report collects what a decision finds.
type report struct {
	// errors can be corrected only in this object; unresolved may be corrected in another one.
	errors, unresolved, warnings field.ErrorList
	// missed is true if the decision depends on something that does not exist.
	missed bool
	// offers counts the messages that list names.
	offers int
}

// maxReported is how many errors, and how many warnings, one pod gets: it can have a hundred
// thousand mounts that conflict.
const maxReported = 1_000

func put(list *field.ErrorList, reason api.Reason, err *field.Error) {
	if len(*list) < maxReported {
		*list = append(*list, api.Because(reason, err))
	}
}

func (r *report) fail(reason api.Reason, err *field.Error) {
	put(&r.errors, reason, err)
}

func (r *report) unresolve(reason api.Reason, err *field.Error) {
	put(&r.unresolved, reason, err)
}

func (r *report) warn(reason api.Reason, err *field.Error) {
	put(&r.warnings, reason, err)
}

// failOrUnresolve is unresolve if guessed: another object may then turn the decision that the error
// follows from.
func (r *report) failOrUnresolve(guessed bool, reason api.Reason, err *field.Error) {
	if guessed {
		r.unresolve(reason, err)
	} else {
		r.fail(reason, err)
	}
}

// forbid adds an error of policy, which carries its Reason; nil adds nothing.
func (r *report) forbid(err *field.Error) {
	if err != nil {
		r.unresolve(api.ReasonOf(err), err)
	}
}

// all returns the errors of both kinds.
func (r *report) all() field.ErrorList {
	if len(r.errors) == 0 {
		return r.unresolved
	}
	return append(slices.Clip(r.errors), r.unresolved...)
}

// maxOffers is how many messages of a report list names: each compares what was written with every
// name that exists.
const maxOffers = 5

// offer reports whether one more message may list names.
func (r *report) offer() bool {
	r.offers++
	return r.offers <= maxOffers
}

// available is [api.Available] for the first messages of a report, and empty for the others.
func (r *report) available(name, kind string, names []string) string {
	if !r.offer() {
		return ""
	}
	return api.Available(name, kind, names)
}

// maxListed is how many elements of a list a message names.
const maxListed = 3

// few joins the first elements of a list.
func few[T any](list []T, text func(T) string) string {
	var parts []string
	for _, v := range list[:min(len(list), maxListed)] {
		parts = append(parts, text(v))
	}
	if len(list) > maxListed {
		parts = append(parts, "…")
	}
	return strings.Join(parts, ", ")
}

func asIs(s string) string { return s }

// joinOr joins names by "or", sorted, without duplicates.
func joinOr(names []string) string {
	return strings.Join(slices.Compact(slices.Sorted(slices.Values(names))), " or ")
}
