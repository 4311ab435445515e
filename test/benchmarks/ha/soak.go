package ha

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	// kept is the number of pods that exist at a time during a soak.
	kept = 200
	// samplePeriod is the time between two readings of a replica's metrics.
	samplePeriod = 5 * time.Second
)

// gauges are the metrics that must not grow, and by how much they may. The lowest values of a
// period at the start and of a period at the end are compared, because these are the values after a
// garbage collection.
var gauges = []struct {
	metric, what string
	unit         float64
	may          func(start float64) float64
}{
	{"go_goroutines", "goroutines", 1, func(float64) float64 { return 5 }},
	{"go_memstats_heap_alloc_bytes", "heap in use, MiB", 1 << 20, func(start float64) float64 { return max(2, start/5) }},
	{"process_resident_memory_bytes", "RSS, MiB", 1 << 20, func(start float64) float64 { return max(8, start/5) }},
	{"process_open_fds", "open files", 1, func(float64) float64 { return 10 }},
}

// cpu is the metric of the CPU seconds since a replica's start.
const cpu = "process_cpu_seconds_total"

// Soaked is the result of a soak.
type Soaked struct {
	*Phase

	// Idle is the resident set of each replica before the first pod, in MiB.
	Idle []float64
	// CPU is the CPU time that all replicas together used for 1000 pods, in seconds.
	CPU float64

	// Replicas has the lowest values of each replica's gauges at the start and at the end.
	Replicas []Growth
}

// Growth has the lowest value of each metric at the start and at the end.
type Growth struct{ Start, End map[string]float64 }

// Soak creates and deletes pods at a steady rate for duration. It ignores the options of faults,
// such as Rounds.
func Soak(ctx context.Context, plane *controlplane.ControlPlane, o Options, duration time.Duration) (_ *Soaked, err error) {
	c, err := start(ctx, plane, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	if err := process.Sleep(ctx, samplePeriod); err != nil {
		return nil, err
	}
	samples := make([][]map[string]float64, len(c.replicas))
	sample := func(ctx context.Context) error {
		for i, r := range c.replicas {
			s, err := readMetrics(ctx, r)
			if err != nil {
				return err
			}
			samples[i] = append(samples[i], s)
		}
		return nil
	}
	if err := sample(ctx); err != nil {
		return nil, err
	}
	phase, err := c.creations("soak", asking, injected).during(ctx, "soak", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, duration, errSoaked)
		defer cancel()
		deleting, cleaned := context.WithCancel(ctx)
		var cleaning sync.WaitGroup
		defer cleaning.Wait()
		defer cleaned()
		cleaning.Go(func() { c.deleteOld(deleting) })
		for {
			err := process.Sleep(ctx, samplePeriod)
			if err == nil {
				err = sample(ctx)
			}
			if errors.Is(context.Cause(ctx), errSoaked) {
				return nil
			}
			if err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if err := sample(ctx); err != nil {
		return nil, err
	}
	soaked := &Soaked{Phase: phase}
	for _, s := range samples {
		soaked.Idle = append(soaked.Idle, s[0]["process_resident_memory_bytes"]/(1<<20))
		soaked.CPU += (s[len(s)-1][cpu] - s[0][cpu]) / float64(phase.Pods) * 1000
		// The first fifth is left out: buffers and pools still grow to their size.
		fifth := max(1, len(s)/5)
		if len(s) < 5 {
			return nil, fmt.Errorf("soak: %s is too short for a start and an end", duration)
		}
		soaked.Replicas = append(soaked.Replicas, Growth{Start: lowest(s[fifth:][:fifth]), End: lowest(s[len(s)-fifth:])})
	}
	return soaked, nil
}

var errSoaked = errors.New("soaked")

// Err returns the gauges that grew, and the broken promises of the phase.
func (s *Soaked) Err() error {
	errs := []error{s.Phase.Err()}
	for i, r := range s.Replicas {
		for _, g := range gauges {
			start, end := r.Start[g.metric]/g.unit, r.End[g.metric]/g.unit
			if end > start+g.may(start) {
				errs = append(errs, fmt.Errorf("replica %d: %s grew from %.1f to %.1f", i, g.what, start, end))
			}
		}
	}
	return errors.Join(errs...)
}

// Rows returns the rows of a Markdown table: each gauge of each replica, at the start and at the
// end.
func (s *Soaked) Rows() []string {
	var rows []string
	for i, r := range s.Replicas {
		for _, g := range gauges {
			rows = append(rows, fmt.Sprintf("| %d | %s | %.1f | %.1f |", i+1, g.what, r.Start[g.metric]/g.unit, r.End[g.metric]/g.unit))
		}
	}
	return rows
}

func lowest(samples []map[string]float64) map[string]float64 {
	low := map[string]float64{}
	for _, g := range gauges {
		low[g.metric] = slices.MinFunc(samples, func(a, b map[string]float64) int { return int(a[g.metric] - b[g.metric]) })[g.metric]
	}
	return low
}

// deleteOld deletes the oldest pods until ctx ends.
func (c *cluster) deleteOld(ctx context.Context) {
	pods := c.client.CoreV1().Pods(namespace)
	for process.Sleep(ctx, time.Second) == nil {
		list, err := pods.List(ctx, metav1.ListOptions{})
		if err != nil {
			c.progress("list pods: %v", err) // the next round deletes them
			continue
		}
		slices.SortFunc(list.Items, func(a, b corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
		for i := range max(0, len(list.Items)-kept) {
			if err := pods.Delete(ctx, list.Items[i].Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil && ctx.Err() == nil {
				c.progress("delete a pod: %v", err)
			}
		}
	}
}

// readMetrics reads the metrics of a replica.
func readMetrics(ctx context.Context, r *injector.Injector) (map[string]float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, r.Metrics, nil)
	if err != nil {
		return nil, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("read metrics: %w", err)
	}
	defer response.Body.Close()
	sample, err := measure.ParseMetrics(response.Body)
	if err != nil {
		return nil, err
	}
	if _, ok := sample[cpu]; !ok {
		return nil, fmt.Errorf("read metrics: there is no %s among %d", cpu, len(sample))
	}
	return sample, nil
}
