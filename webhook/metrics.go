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
	reviews  *prometheus.CounterVec // by outcome and Reason
	duration prometheus.Observer
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
	p := &pathMetrics{
		reviews:  m.reviews.MustCurryWith(prometheus.Labels{"path": path}),
		duration: m.duration.WithLabelValues(path),
	}
	for _, outcome := range inject.Outcomes {
		switch {
		case slices.Contains(unused[path], outcome):
		case outcome.Rejects():
			for _, doc := range api.Reasons {
				if !slices.Contains(api.EventReasons, doc.Reason) {
					p.reviews.WithLabelValues(string(outcome), string(doc.Reason))
				}
			}
		default:
			p.reviews.WithLabelValues(string(outcome), "")
		}
	}
	return p
}

// observe counts a review.
func (p *pathMetrics) observe(outcome inject.Outcome, reason api.Reason, start time.Time) {
	p.reviews.WithLabelValues(string(outcome), string(reason)).Inc()
	p.duration.Observe(time.Since(start).Seconds())
}
