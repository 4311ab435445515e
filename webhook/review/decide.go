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
	result, err := decide(ctx, source, subject, namespace, defaults, (*inject.Plan).Decide, false)
	if err != nil || !stale(&result) {
		return result, err
	}
	return decide(ctx, source, subject, namespace, defaults, (*inject.Plan).Decide, true)
}

// Classes says which managed classes the annotations of a pod in a namespace amount to. Of the subject's spec it takes what
// [inject.Plan.DecideClasses] does. A pod may have been reviewed on facts that source does not know yet, which fresh ones are then.
func Classes(ctx context.Context, source facts.Source, subject inject.Subject, namespace string, defaults inject.Defaults, fresh bool) (inject.Result, error) {
	return decide(ctx, source, subject, namespace, defaults, (*inject.Plan).DecideClasses, fresh)
}

// stale reports whether fresher facts could give another result.
func stale(result *inject.Result) bool {
	return result.NotOptedIn || result.Missed || len(result.Unresolved) > 0
}

func decide(ctx context.Context, source facts.Source, subject inject.Subject, name string, defaults inject.Defaults, what func(*inject.Plan, inject.Facts) inject.Result, fresh bool) (inject.Result, error) {
	namespace, err := source.Namespace(ctx, name, fresh)
	if err != nil {
		return inject.Result{}, fmt.Errorf("look up namespace %s: %w", name, err)
	}
	plan := inject.NewPlan(subject, namespace, defaults)
	needs := plan.Needs()
	if needs.IsEmpty() {
		return what(plan, inject.Facts{}), nil
	}
	found, err := source.Facts(ctx, name, needs, fresh)
	if err != nil {
		return inject.Result{}, fmt.Errorf("look up what namespace %s holds: %w", name, err)
	}
	return what(plan, found), nil
}
