package webhook

import (
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
			Buckets: []float64{.0001, .00025, .0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5},
		}, []string{"path"}),
	}
	registry.MustRegister(m.reviews, m.duration)
	return m
}

// pathMetrics are the metrics of one path.
type pathMetrics struct {
	reviews  *prometheus.CounterVec
	duration prometheus.Observer
}

// at are the metrics of a path, with the outcomes that everyone asks for there from the start.
func (m *Metrics) at(path string) *pathMetrics {
	reviews := m.reviews.MustCurryWith(prometheus.Labels{"path": path})
	for _, outcome := range []inject.Outcome{inject.NotRequested, inject.Unchanged, inject.Injected, failed, malformed} {
		reviews.WithLabelValues(string(outcome), "")
	}
	return &pathMetrics{reviews: reviews, duration: m.duration.WithLabelValues(path)}
}

func (m *pathMetrics) observe(outcome inject.Outcome, reason api.Reason, start time.Time) {
	m.reviews.WithLabelValues(string(outcome), string(reason)).Inc()
	m.duration.Observe(time.Since(start).Seconds())
}
