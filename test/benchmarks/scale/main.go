// Command scale measures the controller of managed classes in a large cluster, on a real API server:
//
//	go run ./benchmarks/scale
//
// It fills the API server with namespaces and injected pods, and lets the injector make their classes. Then it prints the tables
// that docs/performance.md shows: what a start costs beside all that, and what new pods cost, with classes of their own and with
// classes that exist. There is no kube-controller-manager: it would work on all of these pods too, on the same processors.
//
// Everything it starts listens on loopback and ends with it. It reads /proc, so it needs Linux.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// limit bounds a run without the building of programs before it. At the default sizes a run takes half of that.
const limit = 15 * time.Minute

// sizes say how much there is, and how much comes.
type sizes struct {
	namespaces, accounts, pods, classes int
	// rate is how many pods are created a second.
	rate int
	// duration is how long they are, settle how long the injector is left alone after its start.
	duration, settle time.Duration
}

// accountsEach is how many ServiceAccounts a namespace has: the two that are needed, and others.
func (s *sizes) accountsEach() int { return max(2, s.accounts/s.namespaces) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "scale:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	var s sizes
	flag.IntVar(&s.namespaces, "namespaces", 2000, "how many namespaces there are")
	flag.IntVar(&s.accounts, "accounts", 10000, "how many ServiceAccounts there are, as many in each namespace; at least two are")
	flag.IntVar(&s.pods, "pods", 20000, "how many injected pods there are")
	flag.IntVar(&s.classes, "classes", 2000, "how many managed classes they mount, one each")
	flag.IntVar(&s.rate, "rate", 100, "how many pods are created a second")
	flag.DurationVar(&s.duration, "duration", time.Minute, "how long they are, each way")
	flag.DurationVar(&s.settle, "settle", time.Minute, "how long the injector is left alone after its start")
	keep := flag.Bool("keep", false, "leave the folder that has the logs")
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
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	begin := time.Now()
	if err := fillAndRun(ctx, s, program, controlplane.Options{Binaries: binaries, NoControllers: true, Keep: *keep}); err != nil {
		return err
	}
	progress("all of it took %s", time.Since(begin).Round(time.Second))
	return nil
}

// fillAndRun runs a control plane and prints the tables.
func fillAndRun(ctx context.Context, s sizes, program string, options controlplane.Options) (err error) {
	plane, err := controlplane.Start(ctx, options)
	if err != nil {
		return err
	}
	if options.Keep {
		progress("logs: %s", plane.Dir)
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	if err := controlplane.InstallCRDs(ctx, plane.Config); err != nil {
		return err
	}
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
	fmt.Printf("\n%d namespaces, %d ServiceAccounts, %d injected pods of %.1f KB (JSON), %d classes; no kube-controller-manager\n", s.namespaces, s.namespaces*s.accountsEach(), s.pods, c.podSize()/1000, s.classes)
	return e.run(ctx)
}

// progress tells whoever waits.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}
