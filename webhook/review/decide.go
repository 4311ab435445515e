package review

import (
	"context"
	"fmt"

	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// Decide says what comes of the annotations of a pod in a namespace. Whatever would be refused, or depends on something that was
// not found, is decided a second time on fresh facts: objects applied together arrive in any order.
func Decide(ctx context.Context, source facts.Source, subject inject.Subject, namespace string, defaults inject.Defaults) (inject.Result, error) {
	result, err := decide(ctx, source, subject, namespace, defaults, false)
	if err != nil || !stale(&result) {
		return result, err
	}
	return decide(ctx, source, subject, namespace, defaults, true)
}

// stale reports whether fresher facts could give another result.
func stale(result *inject.Result) bool {
	return result.NotOptedIn || result.Missed || len(result.Unresolved) > 0
}

func decide(ctx context.Context, source facts.Source, subject inject.Subject, name string, defaults inject.Defaults, fresh bool) (inject.Result, error) {
	namespace, err := source.Namespace(ctx, name, fresh)
	if err != nil {
		return inject.Result{}, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	plan := inject.NewPlan(subject, namespace, defaults)
	needs := plan.Needs()
	if needs.IsEmpty() {
		return plan.Decide(inject.Facts{}), nil
	}
	found, err := source.Facts(ctx, name, needs, fresh)
	if err != nil {
		return inject.Result{}, fmt.Errorf("look up what namespace %s holds: %w", name, err)
	}
	return plan.Decide(found), nil
}
