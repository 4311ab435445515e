package ha

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// retryAfter is the time between a failed creation and its only retry. A real controller retries at
// once, and again with a backoff.
const retryAfter = 2 * time.Second

// creations creates pods at a steady rate.
type creations struct {
	client kubernetes.Interface
	rate   int
	prefix string // of the pods' names
	pod    func(name string) *corev1.Pod
	// want returns what is wrong with a created pod.
	want func(*corev1.Pod) error

	mu    sync.Mutex
	phase *Phase // the results so far
}

// during creates pods until work returns. It waits for the creations that are due by then.
func (c *creations) during(ctx context.Context, name string, work func(context.Context) error) (*Phase, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.phase = &Phase{Name: name, errors: map[string]int{}}
	worked := make(chan error, 1)
	go func() { worked <- work(ctx) }()
	var running sync.WaitGroup
	defer running.Wait()
	interval := time.Second / time.Duration(c.rate)
	for due := time.Now(); ; due = due.Add(interval) {
		select {
		case err := <-worked:
			running.Wait()
			c.phase.latencies = measure.NewLatencies(c.phase.latencies)
			return c.phase, err
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		case <-time.After(time.Until(due)):
		}
		c.phase.Pods++
		pod := c.pod(fmt.Sprintf("%s-%d", c.prefix, c.phase.Pods))
		running.Go(func() { c.create(ctx, pod, due) })
	}
}

// create creates one pod, with at most one retry.
func (c *creations) create(ctx context.Context, pod *corev1.Pod, due time.Time) {
	created, err := c.attempt(ctx, pod)
	failed := err
	if err != nil {
		_ = process.Sleep(ctx, retryAfter) // awaitAPIServer reports that ctx has ended
		if err = c.awaitAPIServer(ctx); err == nil {
			created, err = c.attempt(ctx, pod)
		}
	}
	took := time.Since(due)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.phase.latencies = append(c.phase.latencies, took)
	if failed != nil {
		c.phase.Failed++
		c.phase.errors[failed.Error()]++
	}
	if err != nil {
		c.phase.Lost++
		c.phase.errors["again: "+err.Error()]++
		return
	}
	if err := c.want(created); err != nil {
		c.phase.Naked++
		c.phase.errors[err.Error()]++
	}
}

// attempt tries once to create a pod. If the pod already exists, the answer to an earlier attempt
// was lost.
func (c *creations) attempt(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	pods := c.client.CoreV1().Pods(pod.Namespace)
	created, err := pods.Create(ctx, pod, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return pods.Get(ctx, pod.Name, metav1.GetOptions{})
	}
	return created, err
}

func (c *creations) awaitAPIServer(ctx context.Context) error {
	return process.Within(ctx, time.Minute, "the API server", func(ctx context.Context) error {
		return c.client.CoreV1().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
	})
}
