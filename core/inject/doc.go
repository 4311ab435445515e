// Package inject decides what a pod gets, and renders the decision as a JSON Patch.
//
//	plan := inject.NewPlan(subject, namespace, defaults) // parse the request
//	answer, err := source.Facts(ctx, namespace.Name, plan.Needs(), false)
//	result := plan.Decide(answer)
//	patch := result.Change.Operations(&subject)
//
// It never modifies its input, and looks nothing up: package review calls it with the facts of a
// namespace.
package inject
