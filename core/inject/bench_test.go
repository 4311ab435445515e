package inject_test

import (
	"testing"

	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
)

// BenchmarkInject plans, decides and renders the patch of a decoded pod, with facts in memory.
func BenchmarkInject(b *testing.B) {
	source, err := reviews.Facts()
	if err != nil {
		b.Fatal(err)
	}
	for _, review := range reviews.All() {
		request, err := review.Request()
		if err != nil {
			b.Fatal(err)
		}
		subject := pods.SubjectOf(&request.Pod)
		namespace, err := source.Namespace(b.Context(), request.Namespace, false)
		if err != nil {
			b.Fatal(err)
		}
		needs := inject.NewPlan(subject, namespace, inject.Defaults{}).Needs()
		facts, err := source.Facts(b.Context(), request.Namespace, needs, false)
		if err != nil {
			b.Fatal(err)
		}
		b.Run("review="+review.Size, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				result := inject.NewPlan(subject, namespace, inject.Defaults{}).Decide(facts)
				if len(result.Change.Operations(&subject)) == 0 {
					b.Fatalf("outcome %s, want a patch: %v", result.Outcome, result.AllErrors())
				}
			}
		})
	}
}
