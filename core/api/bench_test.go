package api_test

import (
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
)

// BenchmarkParseRequest parses the annotations of recorded pods.
func BenchmarkParseRequest(b *testing.B) {
	for _, review := range reviews.All() {
		request, err := review.Request()
		if err != nil {
			b.Fatal(err)
		}
		annotations := api.Annotations{Pod: request.Object.Annotations}
		b.Run("review="+review.Size, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, errs, _ := api.ParseRequest(annotations); len(errs) > 0 {
					b.Fatal(errs)
				}
			}
		})
	}
}
