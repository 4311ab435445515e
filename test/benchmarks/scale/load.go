package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// creation is that of a pod.
type creation struct {
	class types.NamespacedName
	// due is when it was to be asked for, answered when the API server's answer was there.
	due, answered time.Time
}

// createAtRate creates pods at the times that the rate sets, whether or not the answers come.
func (c *cluster) createAtRate(ctx context.Context, pod func(n int) *corev1.Pod) ([]creation, error) {
	creations := make([]creation, int(float64(c.rate)*c.duration.Seconds()))
	begin, interval := time.Now().Add(10*time.Millisecond), time.Second/time.Duration(c.rate)
	err := inParallel(ctx, "new pods", len(creations), func(ctx context.Context, n int) error {
		request := pod(n)
		due := begin.Add(time.Duration(n) * interval)
		measure.SleepUntil(due)
		created, err := c.create(ctx, request)
		if err != nil {
			return err
		}
		creations[n] = creation{class: classOf(created), due: due, answered: time.Now()}
		return nil
	})
	return creations, err
}

// latencies are those of n things.
func latencies(n int, of func(int) time.Duration) measure.Latencies {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = of(i)
	}
	return measure.NewLatencies(all)
}
