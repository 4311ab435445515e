package main

import (
	"context"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// creation is the result of creating one pod.
type creation struct {
	class types.NamespacedName
	// due is the time set by the rate. answered is the time of the API server's answer.
	due, answered time.Time
}

// createAtRate creates pods at the times set by the rate, independently of the answers.
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

// latencies returns the latencies of n items.
func latencies(n int, of func(int) time.Duration) measure.Latencies {
	all := make([]time.Duration, n)
	for i := range all {
		all[i] = of(i)
	}
	return measure.NewLatencies(all)
}
