package webhook_test

import (
	"maps"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/webhook"
)

// TestEveryReviewIsCounted sends the whole corpus to all webhooks. Each review is counted with the
// outcome of its response, and in a series that exists from the start: no content of an object adds
// a series.
func TestEveryReviewIsCounted(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	registry := prometheus.NewPedanticRegistry()
	metrics := webhook.NewMetrics(registry)
	serve := func(source facts.Source) http.Handler {
		mux := http.NewServeMux()
		webhook.Register(mux.Handle, webhook.Options{Reviewer: review.Reviewer{Source: source}, Log: logr.Discard(), Metrics: metrics})
		return mux
	}
	handlers := map[*corpus.Archive]http.Handler{}
	for _, a := range archives {
		source, err := a.Facts()
		if err != nil {
			t.Fatal(err)
		}
		handlers[a] = serve(source)
	}
	before := counted(t, registry)
	want := map[string]int{}
	count := func(path, outcome, reason string) { want[path+" "+outcome+" "+reason]++ }
	for _, a := range archives {
		for _, path := range []string{pathOf(a), strings.Replace(pathOf(a), "mutate", "validate", 1)} {
			response := decode(t, post(handlers[a], path, reviewOf(t, a)))
			reason, _, _ := strings.Cut(response.AuditAnnotations["reasons"], ",")
			count(path, response.AuditAnnotations["outcome"], reason)
		}
	}
	post(handlers[archives[0]], webhook.MutatePods, []byte("{"))
	count(webhook.MutatePods, "malformed", "")
	post(serve(brokenSource{}), webhook.MutatePods, reviewOf(t, load(t, "origin-demo")))
	count(webhook.MutatePods, "error", "")

	after := counted(t, registry)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(before)), slices.Sorted(maps.Keys(after))); diff != "" {
		t.Errorf("series (-at the start +after the corpus):\n%s", diff)
	}
	maps.DeleteFunc(after, func(_ string, n int) bool { return n == 0 })
	if diff := cmp.Diff(want, after); diff != "" {
		t.Errorf("reviews (-answered +counted):\n%s", diff)
	}
	if len(before) > 300 {
		t.Errorf("there are %d series of reviews, want at most 300", len(before))
	}
}

// counted returns the number of reviews of each series, by path, outcome and Reason.
func counted(t *testing.T, registry *prometheus.Registry) map[string]int {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int{}
	for _, family := range families {
		if family.GetName() != "akv_injector_reviews_total" {
			continue
		}
		for _, m := range family.GetMetric() {
			of := map[string]string{}
			for _, label := range m.GetLabel() {
				of[label.GetName()] = label.GetValue()
			}
			counts[of["path"]+" "+of["outcome"]+" "+of["reason"]] = int(m.GetCounter().GetValue())
		}
	}
	return counts
}
