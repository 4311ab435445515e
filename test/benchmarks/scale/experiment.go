package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// experiment is what is measured with a filled cluster.
type experiment struct {
	*cluster

	plane   *controlplane.ControlPlane
	program string
	watch   *classWatch
	fresh   int // how many classes were asked for that no other pod mounts
}

// run prints the tables.
func (e *experiment) run(ctx context.Context) (err error) {
	if err := e.makeClasses(ctx); err != nil {
		return err
	}
	started, err := e.startBesideAll(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, started.Stop()) }()
	if err := injector.WaitUntilCalled(ctx, e.plane.Config, e.namespace(0).Name); err != nil {
		return err
	}
	fmt.Printf(`
%d pods a second for %s each way, through admission. A pod's creation counts from when it was due; a class is late by the time from
the API server's answer about its pod to a watch's event about the class (goal: 50 ms at p99). Writes are the injector's, to classes
and events (goal: one for a new class, else none). The CPU is the injector's too, admission included.

`, e.rate, e.duration)
	fmt.Println("| pods | pods/s | creation p50 ms | p99 | class p50 ms | p99 | max | writes per pod | failed | CPU ms per pod |")
	fmt.Println("|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|")
	if err := e.load(ctx, "each with a new class", e.withNewClass, true, started); err != nil {
		return err
	}
	if err := e.load(ctx, "with classes that exist", e.withItsReplicaSetsClass, false, started); err != nil {
		return err
	}
	second, err := e.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, second.Stop()) }()
	if _, _, err := awaitFollowing(ctx, second); err != nil {
		return err
	}
	return e.load(ctx, "each with a new class, two replicas", e.withNewClass, true, started, second)
}

func (e *experiment) start(ctx context.Context) (*injector.Injector, error) {
	return injector.Start(ctx, e.plane, injector.Options{Binary: e.program})
}

// makeClasses has the injector make the classes that the pods mount.
func (e *experiment) makeClasses(ctx context.Context) (err error) {
	keys := make([]types.NamespacedName, e.classes)
	for n := range keys {
		pod, err := e.injected(n)
		if err != nil {
			return err
		}
		keys[n] = classOf(pod)
	}
	started, err := e.start(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, started.Stop()) }()
	_, following, err := awaitFollowing(ctx, started)
	if err != nil {
		return err
	}
	times, err := e.watch.await(ctx, keys)
	if err != nil {
		return err
	}
	took := latencies(len(times), func(i int) time.Duration { return times[i].Sub(following) })
	if _, err := e.writesInAll(ctx); err != nil { // the injector is left to finish
		return err
	}
	fmt.Printf("\nWhere no class is there, all %d are %.1f s after the injector has read the pods.\n", len(keys), took.Percentile(1)/1000)
	return nil
}

// startBesideAll starts the injector where everything is there already, and prints what that takes.
func (e *experiment) startBesideAll(ctx context.Context) (_ *injector.Injector, err error) {
	before, err := e.writesInAll(ctx)
	if err != nil {
		return nil, err
	}
	started, err := e.start(ctx)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, started.Stop())
		}
	}()
	ready := time.Now()
	pods, following, err := awaitFollowing(ctx, started)
	if err != nil {
		return nil, err
	}
	if pods != e.pods {
		return nil, fmt.Errorf("the injector follows %d pods, want %d", pods, e.pods)
	}
	early, err := measure.UsageOf(started.PID())
	if err != nil {
		return nil, err
	}
	progress("the injector is left alone for %s ...", e.settle)
	select {
	case <-time.After(e.settle):
	case <-started.Done():
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	late, err := measure.UsageOf(started.PID())
	if err != nil {
		return nil, err
	}
	after, err := e.writesInAll(ctx)
	if err != nil {
		return nil, err
	}
	fmt.Print("\nA start of the injector where all of that is there:\n\n| | |\n|---|--:|\n")
	fmt.Printf("| ready after, s | %.2f |\n", ready.Sub(early.Started).Seconds())
	fmt.Printf("| pods and classes read after, s | %.2f |\n", following.Sub(early.Started).Seconds())
	fmt.Printf("| CPU until then, s | %.2f |\n", early.CPU.Seconds())
	fmt.Printf("| RSS then, MiB | %.0f (peak %.0f) |\n", early.RSS, early.Peak)
	fmt.Printf("| RSS %s later, MiB | %.0f (peak %.0f) |\n", e.settle, late.RSS, late.Peak)
	fmt.Printf("| CPU in between, s | %.2f |\n", (late.CPU - early.CPU).Seconds())
	fmt.Printf("| writes to classes and events (goal: none) | %d |\n", after.all-before.all)
	return started, nil
}

// withNewClass is a pod that asks for what no other pod does.
func (e *experiment) withNewClass(n int) *corev1.Pod {
	return e.requesting(n, fmt.Sprintf("fresh-%d", e.fresh+n))
}

// withItsReplicaSetsClass is a pod that asks for what the others of its ReplicaSet do.
func (e *experiment) withItsReplicaSetsClass(n int) *corev1.Pod {
	return e.requesting(n, "")
}

// load creates pods and prints what came of them. With newClass it waits for the class of each.
func (e *experiment) load(ctx context.Context, what string, pod func(n int) *corev1.Pod, newClass bool, replicas ...*injector.Injector) error {
	writesBefore, err := e.writesInAll(ctx)
	if err != nil {
		return err
	}
	cpuBefore, err := cpuOf(replicas)
	if err != nil {
		return err
	}
	begin := time.Now()
	creations, err := e.createAtRate(ctx, pod)
	if err != nil {
		return err
	}
	took := time.Since(begin)
	class := "| | | |"
	if newClass {
		e.fresh += len(creations)
		l, err := e.lateness(ctx, creations)
		if err != nil {
			return err
		}
		class = fmt.Sprintf("| %.1f | %.1f | %.1f |", l.Percentile(0.50), l.Percentile(0.99), l.Percentile(1))
	}
	writesAfter, err := e.writesInAll(ctx)
	if err != nil {
		return err
	}
	cpuAfter, err := cpuOf(replicas)
	if err != nil {
		return err
	}
	n := float64(len(creations))
	creation := latencies(len(creations), func(i int) time.Duration { return creations[i].answered.Sub(creations[i].due) })
	fmt.Printf("| %s | %.0f | %.1f | %.1f %s %.3f | %d | %.2f |\n",
		what, n/took.Seconds(), creation.Percentile(0.50), creation.Percentile(0.99), class,
		float64(writesAfter.all-writesBefore.all)/n, writesAfter.failed-writesBefore.failed, (cpuAfter-cpuBefore).Seconds()*1000/n)
	return nil
}

// lateness waits for the classes of the pods, and returns how long after its pod each was there.
func (e *experiment) lateness(ctx context.Context, creations []creation) (measure.Latencies, error) {
	keys := make([]types.NamespacedName, len(creations))
	for i := range creations {
		keys[i] = creations[i].class
	}
	times, err := e.watch.await(ctx, keys)
	if err != nil {
		return nil, err
	}
	return latencies(len(times), func(i int) time.Duration { return times[i].Sub(creations[i].answered) }), nil
}

// cpuOf is what the replicas have used together.
func cpuOf(replicas []*injector.Injector) (time.Duration, error) {
	var sum time.Duration
	for _, r := range replicas {
		u, err := measure.UsageOf(r.PID())
		if err != nil {
			return 0, err
		}
		sum += u.CPU
	}
	return sum, nil
}

// writes are requests that change classes and events. Nobody but the injector makes such.
type writes struct{ all, failed int }

// writesInAll are those since the API server's start. It returns when they don't become more.
func (e *experiment) writesInAll(ctx context.Context) (writes, error) {
	last, err := e.readWrites(ctx)
	for err == nil {
		select {
		case <-ctx.Done():
			return writes{}, context.Cause(ctx)
		case <-time.After(2 * time.Second):
		}
		before := last
		if last, err = e.readWrites(ctx); last == before {
			return last, err
		}
	}
	return writes{}, err
}

// readWrites asks the API server's own metrics.
func (e *experiment) readWrites(ctx context.Context) (writes, error) {
	text, err := e.client.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return writes{}, fmt.Errorf("read the API server's metrics: %w", err)
	}
	var w writes
	for line := range strings.SplitSeq(string(text), "\n") {
		labels, value, ok := strings.Cut(line, "} ")
		if !ok || !strings.HasPrefix(labels, "apiserver_request_total{") || !isWrite(labels) {
			continue
		}
		count, err := strconv.ParseFloat(value, 64)
		if err != nil {
			return writes{}, fmt.Errorf("read the API server's metrics: %w", err)
		}
		w.all += int(count)
		if !strings.Contains(labels, `code="2`) {
			w.failed += int(count)
		}
	}
	return w, nil
}

// isWrite is about the labels of apiserver_request_total.
func isWrite(labels string) bool {
	for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY", "DELETE"} {
		if strings.Contains(labels, `verb="`+verb+`"`) {
			return strings.Contains(labels, `resource="secretproviderclasses"`) || strings.Contains(labels, `resource="events"`)
		}
	}
	return false
}
