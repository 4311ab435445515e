package main

import (
	"bytes"
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
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// experiment measures the injector in a filled cluster.
type experiment struct {
	*cluster

	plane   *controlplane.ControlPlane
	program string
	watch   *classWatch
	fresh   int // number of classes requested so far by one pod only
}

// run runs the experiment and prints the tables.
func (e *experiment) run(ctx context.Context) (err error) {
	if err := e.createClasses(ctx); err != nil {
		return err
	}
	without, started, err := e.startInFullCluster(ctx, "--findings=false")
	if err != nil {
		return err
	}
	if err := started.Stop(); err != nil {
		return err
	}
	with, started, err := e.startInFullCluster(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, started.Stop()) }()
	printStarts(e.settle, without, with)
	if e.rotation {
		if err := started.Stop(); err != nil {
			return err
		}
		return e.measureRotation(ctx, with)
	}
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

func (e *experiment) start(ctx context.Context, args ...string) (*injector.Injector, error) {
	return injector.Start(ctx, e.plane, injector.Options{Binary: e.program, Args: args})
}

// createClasses lets the injector create the classes that the pods mount, and prints how long that
// takes.
func (e *experiment) createClasses(ctx context.Context) (err error) {
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
	if _, err := e.writesInAll(ctx); err != nil { // wait until the injector has finished
		return err
	}
	fmt.Printf("\nWithout any class at the start, all %d exist %.1f s after the injector has read the pods.\n",
		len(keys), took.Percentile(1)/1000)
	return nil
}

// measuredStart is the cost of a start of the injector.
type measuredStart struct {
	ready, following time.Duration // since the start
	// early is the usage then, settled that after [sizes.settle], and idle that after twice that time.
	early, settled, idle measure.Usage
	writes               int // to classes and events
}

// startInFullCluster starts the injector in a cluster that has all pods and classes.
func (e *experiment) startInFullCluster(ctx context.Context, args ...string) (_ *measuredStart, _ *injector.Injector, err error) {
	before, err := e.writesInAll(ctx)
	if err != nil {
		return nil, nil, err
	}
	started, err := e.start(ctx, args...)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, started.Stop())
		}
	}()
	ready := time.Now()
	pods, following, err := awaitFollowing(ctx, started)
	if err != nil {
		return nil, nil, err
	}
	if pods != e.pods {
		return nil, nil, fmt.Errorf("the injector follows %d pods, want %d", pods, e.pods)
	}
	var m measuredStart
	for _, usage := range []*measure.Usage{&m.early, &m.settled, &m.idle} {
		if usage != &m.early {
			progress("waiting for %s while the injector is idle ...", e.settle)
			select {
			case <-time.After(e.settle):
			case <-started.Done():
			case <-ctx.Done():
				return nil, nil, context.Cause(ctx)
			}
		}
		if *usage, err = measure.UsageOf(started.PID()); err != nil {
			return nil, nil, err
		}
	}
	after, err := e.writesInAll(ctx)
	if err != nil {
		return nil, nil, err
	}
	m.ready, m.following = ready.Sub(m.early.Started), following.Sub(m.early.Started)
	m.writes = after.all - before.all
	return &m, started, nil
}

// printStarts prints the cost of a start without and with findings.
func printStarts(settle time.Duration, starts ...*measuredStart) {
	fmt.Print("\nA start of the injector with all of these objects in the cluster:\n\n| | without findings | with findings |\n|---|--:|--:|\n")
	row := func(what string, value func(m *measuredStart) string) {
		fmt.Printf("| %s |", what)
		for _, m := range starts {
			fmt.Printf(" %s |", value(m))
		}
		fmt.Println()
	}
	rss := func(u measure.Usage) string { return fmt.Sprintf("%.0f (peak %.0f)", u.RSS, u.Peak) }
	row("ready after, s", func(m *measuredStart) string { return fmt.Sprintf("%.2f", m.ready.Seconds()) })
	row("pods and classes read after, s", func(m *measuredStart) string { return fmt.Sprintf("%.2f", m.following.Seconds()) })
	row("CPU until then, s", func(m *measuredStart) string { return fmt.Sprintf("%.2f", m.early.CPU.Seconds()) })
	row("RSS then, MiB", func(m *measuredStart) string { return rss(m.early) })
	row(fmt.Sprintf("CPU in the next %s, s", settle), func(m *measuredStart) string { return fmt.Sprintf("%.2f", (m.settled.CPU - m.early.CPU).Seconds()) })
	row("RSS then, MiB", func(m *measuredStart) string { return rss(m.settled) })
	row(fmt.Sprintf("CPU in the %s after that, s", settle), func(m *measuredStart) string { return fmt.Sprintf("%.2f", (m.idle.CPU - m.settled.CPU).Seconds()) })
	row("RSS then, MiB", func(m *measuredStart) string { return rss(m.idle) })
	row("writes to classes and events (goal: none)", func(m *measuredStart) string { return strconv.Itoa(m.writes) })
}

// withNewClass returns a pod that requests objects that no other pod requests.
func (e *experiment) withNewClass(n int) *corev1.Pod {
	return e.requesting(n, fmt.Sprintf("fresh-%d", e.fresh+n))
}

// withItsReplicaSetsClass returns a pod that requests the same objects as the other pods of its
// ReplicaSet.
func (e *experiment) withItsReplicaSetsClass(n int) *corev1.Pod {
	return e.requesting(n, "")
}

// load creates pods and prints a row of the table. If newClass is true, it waits for the class of
// each pod.
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

// lateness waits for the classes of the pods. It returns the times from the creation of each pod to
// the event about its class.
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

// cpuOf returns the CPU time that all replicas together have used.
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

// writes counts the requests that change classes and events. Only the injector sends such requests.
type writes struct{ all, failed int }

// writesInAll returns the writes since the start of the API server. It waits until the number is
// stable.
func (e *experiment) writesInAll(ctx context.Context) (writes, error) {
	last, err := e.readWrites(ctx)
	for err == nil {
		if err := process.Sleep(ctx, 2*time.Second); err != nil {
			return writes{}, err
		}
		before := last
		if last, err = e.readWrites(ctx); last == before {
			return last, err
		}
	}
	return writes{}, err
}

// readWrites reads the writes from the metrics of the API server.
func (e *experiment) readWrites(ctx context.Context) (writes, error) {
	text, err := e.client.RESTClient().Get().AbsPath("/metrics").DoRaw(ctx)
	if err != nil {
		return writes{}, fmt.Errorf("read the API server's metrics: %w", err)
	}
	metrics, err := measure.ParseMetrics(bytes.NewReader(text))
	if err != nil {
		return writes{}, fmt.Errorf("read the API server's metrics: %w", err)
	}
	var w writes
	for metric, count := range metrics {
		if !strings.HasPrefix(metric, "apiserver_request_total{") || !isWrite(metric) {
			continue
		}
		w.all += int(count)
		if !strings.Contains(metric, `code="2`) {
			w.failed += int(count)
		}
	}
	return w, nil
}

// isWrite reports whether an apiserver_request_total metric with these labels counts writes to
// classes or events.
func isWrite(labels string) bool {
	for _, verb := range []string{"POST", "PUT", "PATCH", "APPLY", "DELETE"} {
		if strings.Contains(labels, `verb="`+verb+`"`) {
			return strings.Contains(labels, `resource="secretproviderclasses"`) || strings.Contains(labels, `resource="events"`)
		}
	}
	return false
}
