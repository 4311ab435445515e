package webhook

import (
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// Metrics count reviews. Their names are part of the product's interface.
type Metrics struct {
	reviews  *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

// NewMetrics registers the metrics.
func NewMetrics(registry prometheus.Registerer) *Metrics {
	m := &Metrics{
		reviews: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_reviews_total",
			Help: "Admission reviews by webhook path, by what came of them, and for a refusal by its first Reason.",
		}, []string{"path", "outcome", "reason"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name:    "akv_injector_review_duration_seconds",
			Help:    "Seconds from the first byte of a review read to the last byte of its answer written, by webhook path.",
			Buckets: []float64{.00005, .0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"path"}),
	}
	registry.MustRegister(m.reviews, m.duration)
	return m
}

// pathMetrics are the metrics of one path. All of its series are there from the start, so that the first refusal is an increase
// already, and no text of a review can make another.
type pathMetrics struct {
	reviews  map[result]prometheus.Counter
	duration prometheus.Observer
}

// result is what came of a review, as it is counted.
type result struct {
	outcome inject.Outcome
	reason  api.Reason
}

// at are the metrics of a path where reviews come to outcomes, if they come to anything.
func (m *Metrics) at(path string, outcomes []inject.Outcome) *pathMetrics {
	p := &pathMetrics{reviews: map[result]prometheus.Counter{}, duration: m.duration.WithLabelValues(path)}
	add := func(outcome inject.Outcome, reason api.Reason) {
		p.reviews[result{outcome, reason}] = m.reviews.WithLabelValues(path, string(outcome), string(reason))
	}
	for _, outcome := range slices.Concat(outcomes, []inject.Outcome{failed, malformed, abandoned}) {
		if outcome != inject.Invalid && outcome != inject.Forbidden {
			add(outcome, "")
			continue
		}
		for _, doc := range api.Reasons {
			add(outcome, doc.Reason)
		}
	}
	return p
}

// observe counts a review. One that comes to what its path does not know is a fault of ours.
func (p *pathMetrics) observe(outcome inject.Outcome, reason api.Reason, start time.Time) {
	counter, known := p.reviews[result{outcome, reason}]
	if !known {
		counter = p.reviews[result{outcome: failed}]
	}
	counter.Inc()
	p.duration.Observe(time.Since(start).Seconds())
}
