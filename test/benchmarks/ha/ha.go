// Package ha measures what a cluster notices when replicas of the injector, the API server or etcd
// fail. It creates pods at a steady rate through a real API server, which calls two replicas behind
// a Service with failure policy Fail, as in the shipped manifests. Meanwhile it causes one fault
// after the other:
//
//	phases, err := ha.Run(ctx, plane, ha.Options{Binary: binary, Rate: 20, Rounds: 4, ...})
//	ha.Table(os.Stdout, phases)
//
// It uses only what is visible in a cluster: how the injector is started and stopped, what its
// probes return, and how an injected pod looks. It does not measure latency without faults; see
// benchmarks/load and benchmarks/scale for that.
package ha

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// Options are the parameters of a run. All fields are required except MemoryLimit and Progress.
type Options struct {
	// Binary is the path of the injector.
	Binary string
	// Rate is the number of pods created per second.
	Rate int
	// Rounds is the number of times that each fault is caused.
	Rounds int
	// Calm is how long pods are created before and after each fault.
	Calm time.Duration
	// Frozen is how long a replica is stopped by SIGSTOP. Outage is how long no replica runs.
	Frozen, Outage time.Duration
	// DrainPeriod is the value of the replicas' flag --drain-period.
	DrainPeriod time.Duration
	// MemoryLimit is the memory limit of each replica in bytes. Zero means no limit.
	MemoryLimit int64
	// Probe is how the Service follows the readiness of replicas.
	Probe Probe
	// Progress gets a line for each fault. Nil means no output.
	Progress io.Writer
}

// cluster is the cluster in which faults are caused.
type cluster struct {
	Options

	plane    *controlplane.ControlPlane
	client   kubernetes.Interface
	service  *balancer
	replicas []*injector.Injector
}

// Run causes the faults and returns one result for each kind of fault. If a fault cannot be caused,
// Run returns the results so far and the error.
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
			{name: "scaled down: one ends", strike: c.scaleDownAndUp},
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
		return nil, fmt.Errorf("create a client: %w", err)
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
	if err := plane.RunKubectl(ctx, objects, "apply", "--filename=-"); err != nil {
		return nil, err
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

// add starts a replica and waits until the Service sends connections to it.
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

// awaitLead waits until the Service sends connections to a replica.
func (c *cluster) awaitLead(ctx context.Context, r *injector.Injector) error {
	return process.Until(ctx, func(context.Context) error {
		if !c.service.leadsTo(r.Address) {
			return errors.New("the Service does not send connections to the replica")
		}
		return nil
	})
}

// end sends a signal to the oldest replica, and waits until the replica has ended.
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

// amidCalm calls strike with a calm time before and after it.
func (c *cluster) amidCalm(ctx context.Context, strike func(context.Context) error) error {
	if err := process.Sleep(ctx, c.Calm); err != nil {
		return err
	}
	if err := strike(ctx); err != nil {
		return err
	}
	return process.Sleep(ctx, c.Calm)
}

func (c *cluster) nothing(context.Context) error { return nil }

// replaceEach replaces the replicas like a rolling update of the shipped Deployment: it starts a
// new replica before it ends an old one.
func (c *cluster) replaceEach(ctx context.Context) error {
	for range len(c.replicas) {
		if err := errors.Join(c.add(ctx), c.end(ctx, syscall.SIGTERM)); err != nil {
			return err
		}
	}
	return nil
}

// scaleDownAndUp leaves one replica running for a while, like an eviction.
func (c *cluster) scaleDownAndUp(ctx context.Context) error {
	return errors.Join(c.end(ctx, syscall.SIGTERM), c.add(ctx))
}

func (c *cluster) killOne(ctx context.Context) error {
	return errors.Join(c.end(ctx, syscall.SIGKILL), c.add(ctx))
}

// freezeOne stops a replica with SIGSTOP and continues it. Its connections stay open.
func (c *cluster) freezeOne(ctx context.Context) error {
	r := c.replicas[0]
	if err := syscall.Kill(r.PID(), syscall.SIGSTOP); err != nil {
		return fmt.Errorf("freeze a replica: %w", err)
	}
	err := process.Sleep(ctx, c.Frozen)
	return errors.Join(err, syscall.Kill(r.PID(), syscall.SIGCONT), c.awaitLead(ctx, r))
}

// creations returns creations of pods of one kind.
func (c *cluster) creations(prefix string, pod func(string) *corev1.Pod, want func(*corev1.Pod) error) *creations {
	return &creations{client: c.client, rate: c.Rate, prefix: prefix, pod: pod, want: want}
}

// checkPods reads all pods that request injection, and returns an error unless all are injected.
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
