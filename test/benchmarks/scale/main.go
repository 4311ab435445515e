// Command scale measures the controller of managed classes in a large cluster, with a real API
// server:
//
//	go run ./benchmarks/scale
//
// It fills the API server with namespaces and injected pods, and lets the injector create their
// classes. Then it prints the tables of docs/performance.md: the cost of a start of the injector in
// that cluster, without and with findings, and the cost of new pods, with new classes and with
// existing classes. With -rotation, it measures restarts for new versions of objects instead of new
// pods.
// kube-controller-manager does not run: it would process all of these pods too, on the same CPUs.
//
// All servers that it starts listen on loopback and end with it. It reads /proc, so it needs Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// limit is the time limit of a run, excluding builds. A run with the default sizes takes half of
// it.
const limit = 40 * time.Minute

// sizes are the sizes of the cluster and of the load.
type sizes struct {
	namespaces, accounts, pods, classes int
	// rotation measures restarts instead of new pods.
	rotation bool
	// rate is the number of pods created per second.
	rate int
	// duration is how long pods are created each way. settle is how long the injector is idle after
	// its start before it is measured again.
	duration, settle time.Duration
}

// accountsEach returns the number of ServiceAccounts in each namespace. At least two are needed.
func (s *sizes) accountsEach() int { return max(2, s.accounts/s.namespaces) }

func main() {
	process.Main("scale", run)
}

func run(ctx context.Context) error {
	var s sizes
	flag.IntVar(&s.namespaces, "namespaces", 2000, "`number` of namespaces")
	flag.IntVar(&s.accounts, "accounts", 10000, "`number` of ServiceAccounts; each namespace has at least two")
	flag.IntVar(&s.pods, "pods", 20000, "`number` of injected pods")
	flag.IntVar(&s.classes, "classes", 2000, "`number` of managed classes; each pod mounts one")
	flag.IntVar(&s.rate, "rate", 100, "`number` of pods created per second")
	flag.DurationVar(&s.duration, "duration", time.Minute, "how long pods are created, each way")
	flag.DurationVar(&s.settle, "settle", time.Minute, "how long the injector is idle before it is measured again")
	flag.BoolVar(&s.rotation, "rotation", false, "measure restarts for new versions instead of new pods")
	keep := flag.Bool("keep", false, "keep the folder with the logs")
	flag.Parse()
	if flag.NArg() > 0 {
		flag.Usage()
		return fmt.Errorf("takes no arguments: %s", strings.Join(flag.Args(), " "))
	}
	if min(s.namespaces, s.pods, s.classes, s.rate) < 1 || min(s.duration, s.settle) <= 0 {
		return errors.New("every size must be positive")
	}
	binaries, err := controlplane.Binaries(ctx, os.Stderr)
	if err != nil {
		return err
	}
	program, err := injector.Build(ctx)
	if err != nil {
		return err
	}
	fmt.Println(measure.Machine())
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished after %s", limit))
	defer cancel()
	begin := time.Now()
	if err := fillAndRun(ctx, s, program, controlplane.Options{
		Binaries: binaries, BeforeControllers: controlplane.InstallCRDs, NoControllers: true, Keep: *keep,
	}); err != nil {
		return err
	}
	progress("done in %s", time.Since(begin).Round(time.Second))
	return nil
}

// fillAndRun starts a control plane, fills it, and runs the experiment.
func fillAndRun(ctx context.Context, s sizes, program string, options controlplane.Options) (err error) {
	plane, err := controlplane.Start(ctx, options)
	if err != nil {
		return err
	}
	if options.Keep {
		progress("logs: %s", plane.Dir)
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	c, err := newCluster(plane.Config, s)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watch, err := watchClasses(ctx, plane.Config)
	if err != nil {
		return err
	}
	if err := c.fill(ctx); err != nil {
		return err
	}
	e := &experiment{cluster: c, plane: plane, program: program, watch: watch}
	fmt.Printf("\n%d namespaces, %d ServiceAccounts, %d injected pods of %.1f KB (JSON), %d classes; no kube-controller-manager\n",
		s.namespaces, s.namespaces*s.accountsEach(), s.pods, c.podSize()/1000, s.classes)
	return e.run(ctx)
}

// progress prints a line to standard error.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
