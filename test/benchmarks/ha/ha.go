// Package ha shows what a cluster notices when replicas of the injector, the API server or etcd come to grief: pods are created at a steady
// rate through a real API server that calls two replicas behind a Service, as shipped and failing closed, while one fault follows
// the other.
//
// It knows of the injector only what everyone in a cluster does: how it is started and ended, what its probes say, and how a pod looks
// that was injected.
package ha

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// Options say how hard it is. None may be zero but MemoryLimit, and Progress, which then tells nobody.
type Options struct {
	// Binary is the injector.
	Binary string
	// Rate is how many pods are created a second.
	Rate int
	// Rounds is how often each fault comes.
	Rounds int
	// Calm is how long pods are created before each fault and after it.
	Calm time.Duration
	// Frozen is how long a replica is stopped, Outage how long all are gone.
	Frozen, Outage time.Duration
	// DrainPeriod is that of the replicas.
	DrainPeriod time.Duration
	// MemoryLimit is that of each replica in bytes. Zero means none.
	MemoryLimit int64
	Probe       Probe
	Progress    io.Writer
}

// cluster is what the faults come over.
type cluster struct {
	Options

	plane    *controlplane.ControlPlane
	client   kubernetes.Interface
	service  *balancer
	replicas []*injector.Injector
}

// Run lets the faults come, and returns what each came to, also where it could not go on.
func Run(ctx context.Context, plane *controlplane.ControlPlane, o Options) (_ []*Phase, err error) {
	c, err := start(ctx, plane, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	var phases []*Phase
	for round := range o.Rounds {
		var these []*Phase
		for i, fault := range []struct {
			name    string
			strike  func(context.Context) error
			mayFail bool
		}{
			{name: "nothing", strike: c.nothing},
			{name: "rolling update: each replaced", strike: c.replaceEach},
			{name: "scaled down: one told to end", strike: c.scaleDownAndUp},
			{name: "one killed", strike: c.killOne, mayFail: true},
			{name: "one frozen and thawed", strike: c.freezeOne, mayFail: true},
			{name: "API server restarted", strike: plane.RestartAPIServer, mayFail: true},
			{name: "etcd restarted", strike: plane.RestartEtcd, mayFail: true},
		} {
			c.progress("round %d: %s ...", round+1, fault.name)
			phase, err := c.creations(fmt.Sprintf("asks-%d-%d", round, i), asking, injected).during(ctx, fault.name, func(ctx context.Context) error {
				return c.amidCalm(ctx, fault.strike)
			})
			if err != nil {
				return merge(phases, these), fmt.Errorf("%s: %w", fault.name, err)
			}
			phase.mayFail = fault.mayFail
			these = append(these, phase)
		}
		c.progress("round %d: outage ...", round+1)
		phase, err := c.outage(ctx, round)
		if err != nil {
			return merge(phases, these), fmt.Errorf("outage: %w", err)
		}
		phases = merge(phases, append(these, phase))
	}
	return phases, c.checkPods(ctx)
}

func start(ctx context.Context, plane *controlplane.ControlPlane, o Options) (_ *cluster, err error) {
	quiet := rest.CopyConfig(plane.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(quiet)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	c := &cluster{Options: o, plane: plane, client: client}
	if c.service, err = newBalancer(ctx, o.Probe); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, c.stop())
		}
	}()
	for range 2 {
		if err := c.add(ctx); err != nil {
			return nil, err
		}
	}
	apply := plane.Kubectl(ctx, "apply", "--filename=-")
	apply.Stdin = strings.NewReader(objects)
	if out, err := apply.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("apply the cluster: %w: %s", err, out)
	}
	if err := plane.WaitForServiceAccount(ctx, namespace); err != nil {
		return nil, err
	}
	return c, injector.WaitUntilCalled(ctx, plane.Config, namespace)
}

func (c *cluster) stop() error {
	errs := []error{c.service.close()}
	for _, r := range c.replicas {
		errs = append(errs, r.Stop())
	}
	return errors.Join(errs...)
}

func (c *cluster) progress(format string, args ...any) {
	if c.Progress != nil {
		fmt.Fprintf(c.Progress, format+"\n", args...)
	}
}

// add starts a replica, and returns when the Service leads to it.
func (c *cluster) add(ctx context.Context) error {
	r, err := injector.Start(ctx, c.plane, injector.Options{
		Binary: c.Binary, Service: c.service.address(), MemoryLimit: c.MemoryLimit,
		Args: []string{"--drain-period=" + c.DrainPeriod.String()},
	})
	if err != nil {
		return err
	}
	c.replicas = append(c.replicas, r)
	c.service.add(ctx, r.Address, r.Readiness)
	return c.awaitLead(ctx, r)
}

// awaitLead returns when the Service leads to a replica.
func (c *cluster) awaitLead(ctx context.Context, r *injector.Injector) error {
	return process.Until(ctx, func(context.Context) error {
		if !c.service.leadsTo(r.Address) {
			return errors.New("the Service does not lead to a replica that is ready")
		}
		return nil
	})
}

// end sends the oldest replica a signal that ends it, and returns when it has ended.
func (c *cluster) end(ctx context.Context, signal syscall.Signal) error {
	r := c.replicas[0]
	c.replicas = c.replicas[1:]
	if err := syscall.Kill(r.PID(), signal); err != nil {
		return errors.Join(fmt.Errorf("end a replica: %w", err), r.Stop())
	}
	defer c.service.remove(r.Address)
	select {
	case <-r.Done():
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("end a replica: %w", context.Cause(ctx)), r.Stop())
	}
}

// amidCalm strikes between two calm times.
func (c *cluster) amidCalm(ctx context.Context, strike func(context.Context) error) error {
	if err := wait(ctx, c.Calm); err != nil {
		return err
	}
	if err := strike(ctx); err != nil {
		return err
	}
	return wait(ctx, c.Calm)
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (c *cluster) nothing(context.Context) error { return nil }

// replaceEach does as the shipped Deployment's rolling update does: a new one first, then an old one goes.
func (c *cluster) replaceEach(ctx context.Context) error {
	for range len(c.replicas) {
		if err := errors.Join(c.add(ctx), c.end(ctx, syscall.SIGTERM)); err != nil {
			return err
		}
	}
	return nil
}

// scaleDownAndUp leaves it to the other replica for a while, as an eviction does.
func (c *cluster) scaleDownAndUp(ctx context.Context) error {
	return errors.Join(c.end(ctx, syscall.SIGTERM), c.add(ctx))
}

func (c *cluster) killOne(ctx context.Context) error {
	return errors.Join(c.end(ctx, syscall.SIGKILL), c.add(ctx))
}

// freezeOne stops a replica, whose connections stay, and lets it go on.
func (c *cluster) freezeOne(ctx context.Context) error {
	r := c.replicas[0]
	if err := syscall.Kill(r.PID(), syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze a replica: %w", err)
	}
	err := wait(ctx, c.Frozen)
	return errors.Join(err, syscall.Kill(r.PID(), syscall.SIGCONT), c.awaitLead(ctx, r))
}

// creations are those of pods of one kind.
func (c *cluster) creations(prefix string, pod func(string) *corev1.Pod, want func(*corev1.Pod) error) *creations {
	return &creations{client: c.client, rate: c.Rate, prefix: prefix, pod: pod, want: want}
}

// checkPods reads all pods once more: whoever asked is injected.
func (c *cluster) checkPods(ctx context.Context) error {
	pods, err := c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "asks=true"})
	if err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	if len(pods.Items) == 0 {
		return errors.New("there are no pods")
	}
	for i := range pods.Items {
		if err := injected(&pods.Items[i]); err != nil {
			return err
		}
	}
	return nil
}
