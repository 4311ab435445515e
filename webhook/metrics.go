package webhook

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
)

// Metrics count reviews. Their names are a stable interface; docs/metrics.md lists them.
type Metrics struct {
	reviews  *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_reviews_total",
			Help: "Admission reviews by webhook path, outcome and, for a rejection, its first Reason.",
		}, []string{"path", "outcome", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "akv_injector_review_duration_seconds",
			Help:    "Seconds from reading the first byte of a review to writing the last byte of its response, by webhook path.",
			Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"path"}),
	}
	registry.MustRegister(m.reviews, m.duration)
	return m
}

// pathMetrics are the metrics of one path. All series exist from the start, so that the first
// rejection is an increase, and no text of a review can add a series.
type pathMetrics struct {
	reviews  map[series]prometheus.Counter
	duration prometheus.Observer
	// others counts combinations that the path should never have.
	others func(series) prometheus.Counter
}

// series identifies a series of a path.
type series struct {
	outcome inject.Outcome
	reason  api.Reason
}

// unused are the outcomes that a path never has.
var unused = map[string][]inject.Outcome{
	MutatePods:        {inject.Allowed},
	MutateWorkloads:   {inject.Allowed},
	ValidatePods:      {inject.Unchanged, inject.Injected, inject.Invalid},
	ValidateWorkloads: {inject.Unchanged, inject.Injected, inject.Invalid},
}

// at returns the metrics of a path.
func (m *Metrics) at(path string) *pathMetrics {
	p := &pathMetrics{reviews: map[series]prometheus.Counter{}, duration: m.duration.WithLabelValues(path), others: func(s series) prometheus.Counter {
		return m.reviews.WithLabelValues(path, string(s.outcome), string(s.reason))
	}}
	for _, outcome := range inject.Outcomes {
		if slices.Contains(unused[path], outcome) {
			continue
		}
		reasons := []api.Reason{""}
		if outcome.Rejects() {
			reasons = reasons[:0]
			for _, doc := range api.Reasons {
				reasons = append(reasons, doc.Reason)
			}
		}
		for _, reason := range reasons {
			p.reviews[series{outcome, reason}] = p.others(series{outcome, reason})
		}
	}
	return p
}

// observe counts a review.
func (p *pathMetrics) observe(outcome inject.Outcome, reason api.Reason, start time.Time) {
	counter, ok := p.reviews[series{outcome, reason}]
	if !ok {
		counter = p.others(series{outcome, reason})
	}
	counter.Inc()
	p.duration.Observe(time.Since(start).Seconds())
}
