package rotation

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Values of the metric's label result.
const (
	started   = "started"
	succeeded = "succeeded"
	failed    = "failed"
	rejected  = "rejected" // by the API server, because of another webhook or a policy; or pods are updated in place
)

type rotationMetrics struct {
	restarts           *prometheus.CounterVec
	stale, oldestStale prometheus.Gauge
}

// newMetrics registers the metrics of rotation.
func newMetrics(registry prometheus.Registerer, t *table) *rotationMetrics {
	m := &rotationMetrics{
		restarts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_restarts_total",
			Help: "Restarts of workloads for new versions of Key Vault objects, by result.",
		}, []string{"result"}),
		stale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "akv_injector_stale_pods",
			Help: "Pods of workloads that wait for a restart: their env vars have an old version of an object. " +
				"Only the replica that holds the Lease of rotation reports more than 0.",
		}),
		oldestStale: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "akv_injector_oldest_stale_pod_seconds",
			Help: "How long the workload that waits longest has waited for its restart, in seconds; 0 if none waits.",
		}),
	}
	for _, result := range []string{started, succeeded, failed, rejected} {
		m.restarts.WithLabelValues(result) // so that the first one is an increase
	}
	registry.MustRegister(m.restarts, m.stale, m.oldestStale, &reads{
		table: t,
		desc: prometheus.NewDesc("akv_injector_vault_requests_per_minute",
			"Estimated requests to Key Vault in a minute by the CSI driver on behalf of injected pods, by their namespace. "+
				"With rotation of the driver, the kubelet has each volume read about every 75 s.", []string{"namespace"}, nil),
	})
	return m
}

// observe sets the gauges.
func (m *rotationMetrics) observe(due map[workload]*pending, now time.Time) {
	pods, longest := 0, time.Duration(0)
	for _, p := range due {
		pods += p.pods
		longest = max(longest, now.Sub(p.since))
	}
	m.stale.Set(float64(pods))
	m.oldestStale.Set(longest.Seconds())
}

// clear resets the gauges of a replica that no longer holds the Lease.
func (m *rotationMetrics) clear() { m.observe(nil, time.Time{}) }

// reads collects the estimated requests to Key Vault.
type reads struct {
	table *table
	desc  *prometheus.Desc
}

// Describe implements [prometheus.Collector].
func (r *reads) Describe(to chan<- *prometheus.Desc) { to <- r.desc }

// Collect implements [prometheus.Collector].
func (r *reads) Collect(to chan<- prometheus.Metric) {
	r.table.mu.Lock()
	requests := make(map[string]int, len(r.table.namespaces))
	for namespace, pods := range r.table.namespaces {
		for _, p := range pods {
			for i := range p.statuses {
				requests[namespace] += p.statuses[i].requests()
			}
		}
	}
	r.table.mu.Unlock()
	for namespace, n := range requests {
		to <- prometheus.MustNewConstMetric(r.desc, prometheus.GaugeValue, class.RequestsPerMinute(n), namespace)
	}
}

// requests returns how many requests read a class once: one for each object, and one more for each
// type, which is answered with a demand for a token.
func (s *status) requests() int {
	var types []string
	for _, v := range s.versions {
		of, _, _ := strings.Cut(v.id.Value(), "/")
		if !slices.Contains(types, of) {
			types = append(types, of)
		}
	}
	return len(s.versions) + len(types)
}

// changesOf describes the changes for which a workload is restarted.
func changesOf(held api.Versions, v *verdict) string {
	changes := make([]string, len(v.changed))
	for i, object := range v.changed {
		vault, id, _ := strings.Cut(object, "/")
		changes[i] = fmt.Sprintf("%s of vault %s has version %s (before: %s)", id, vault, v.current[object], held[object])
	}
	return "restarts the pods: " + strings.Join(changes, ", ")
}

// event writes an event on a workload.
func (r *Rotator) event(w workload, o *object, of string, reason api.Reason, note string) {
	about := &corev1.ObjectReference{
		APIVersion: w.kind.Resource.GroupVersion().String(), Kind: w.kind.Name,
		Namespace: w.namespace, Name: w.name, UID: o.Metadata.UID,
	}
	r.Events.Eventf(about, nil, of, string(reason), "Restart", "%s", api.Cut(note, maxNote))
}

// maxNote is how many bytes the API server accepts as the note of an event.
const maxNote = 1024
