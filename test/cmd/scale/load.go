package main

import (
	"context"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
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
		sleepUntil(due)
		created, err := c.create(ctx, request)
		if err != nil {
			return err
		}
		creations[n] = creation{class: classOf(created), due: due, answered: time.Now()}
		return nil
	})
	return creations, err
}

// sleepUntil is exact to some 0.1 ms, where [time.Sleep] in an idle process may be a millisecond late.
func sleepUntil(at time.Time) {
	for left := time.Until(at); left > 0; left = time.Until(at) {
		wait := syscall.NsecToTimespec(left.Nanoseconds())
		_ = syscall.Nanosleep(&wait, nil) // an interrupted sleep is begun again
	}
}

// latencies are in order, from the shortest.
type latencies []time.Duration

func newLatencies(n int, of func(int) time.Duration) latencies {
	l := make(latencies, n)
	for i := range l {
		l[i] = of(i)
	}
	slices.Sort(l)
	return l
}

// percentile is in milliseconds; p is from 0 to 1.
func (l latencies) percentile(p float64) float64 {
	return float64(l[int(p*float64(len(l)-1))]) / float64(time.Millisecond)
}
