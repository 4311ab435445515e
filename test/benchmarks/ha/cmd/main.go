// Command ha measures the availability of the injector: two replicas behind a Service, and a real
// API server in which pods are created at a steady rate.
//
//	go run ./benchmarks/ha/cmd faults   replaces, kills and freezes replicas, restarts the API server
//	                                    and etcd, and stops all replicas for a while
//	go run ./benchmarks/ha/cmd soak     runs for long without faults; goroutines and memory must not grow
//	go run ./benchmarks/ha/cmd attacks  sends requests that tenants and pods could send to overload replicas
//
// It prints the tables of docs/performance.md. It exits with status 1 if a promise is broken. All
// servers that it starts listen on loopback and end with it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/benchmarks/ha"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	process.Main("ha", run)
}

func run(ctx context.Context) error {
	// The defaults are those of the shipped manifests.
	o := ha.Options{
		DrainPeriod: 15 * time.Second,
		Probe:       ha.Probe{Period: 2 * time.Second, Failures: 2, Delay: time.Second},
		Progress:    os.Stderr,
	}
	flag.IntVar(&o.Rate, "rate", 20, "`number` of pods created per second")
	flag.IntVar(&o.Rounds, "rounds", 4, "`number` of times that each fault is caused")
	flag.DurationVar(&o.Calm, "calm", 5*time.Second, "how long pods are created before and after each fault")
	flag.DurationVar(&o.Frozen, "frozen", 20*time.Second, "how long a replica is frozen")
	flag.DurationVar(&o.Outage, "outage", 20*time.Second, "how long no replica runs")
	flag.DurationVar(&o.DrainPeriod, "drain-period", o.DrainPeriod, "drain period of the replicas")
	flag.DurationVar(&o.Probe.Delay, "delay", o.Probe.Delay, "time from a change of readiness until the Service follows it")
	duration := flag.Duration("duration", 10*time.Minute, "how long a soak lasts")
	senders := flag.Int("senders", 64, "`number` of connections that attack at the same time")
	attack := flag.Duration("attack", time.Minute, "how long each attack lasts")
	flag.Parse()
	command := flag.Arg(0)
	if flag.NArg() != 1 || (command != "faults" && command != "soak" && command != "attacks") {
		flag.Usage()
		return fmt.Errorf("the argument must be faults, soak or attacks, not %q", strings.Join(flag.Args(), " "))
	}
	if o.Rate < 1 || o.Rounds < 1 {
		return errors.New("-rate and -rounds must be positive")
	}
	return withControlPlane(ctx, o, func(plane *controlplane.ControlPlane, o ha.Options) error {
		switch command {
		case "soak":
			return soak(ctx, plane, o, *duration)
		case "attacks":
			return attacks(ctx, plane, o, *senders, *attack)
		default:
			return faults(ctx, plane, o)
		}
	})
}

func withControlPlane(ctx context.Context, o ha.Options, work func(*controlplane.ControlPlane, ha.Options) error) (err error) {
	if o.Binary, err = injector.Build(ctx); err != nil {
		return err
	}
	plane, err := controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	fmt.Println(measure.Machine())
	return work(plane, o)
}

func faults(ctx context.Context, plane *controlplane.ControlPlane, o ha.Options) error {
	phases, err := ha.Run(ctx, plane, o)
	fmt.Printf("\n%d pods a second, each fault %d times, drain period %s, endpoints %s late:\n\n", o.Rate, o.Rounds, o.DrainPeriod, o.Probe.Delay)
	ha.Table(os.Stdout, phases)
	return errors.Join(err, ha.Errs(phases))
}

func attacks(ctx context.Context, plane *controlplane.ControlPlane, o ha.Options, senders int, duration time.Duration) error {
	o.MemoryLimit = ha.MemoryLimit
	results, err := ha.Attacks(ctx, plane, o, senders, duration)
	fmt.Printf("\n%d pods a second, each attack for %s, replicas limited to %d MiB of memory:\n\n", o.Rate, duration, o.MemoryLimit>>20)
	ha.AttackTable(os.Stdout, results)
	errs := []error{err}
	for _, result := range results {
		errs = append(errs, result.Err())
	}
	return errors.Join(errs...)
}

func soak(ctx context.Context, plane *controlplane.ControlPlane, o ha.Options, duration time.Duration) error {
	soaked, err := ha.Soak(ctx, plane, o, duration)
	if err != nil {
		return err
	}
	fmt.Printf("\n%d pods a second for %s:\n\n", o.Rate, duration)
	ha.Table(os.Stdout, []*ha.Phase{soaked.Phase})
	fmt.Printf("\nRSS before the first pod, MiB: %.0f. CPU of both replicas for 1000 pods, s: %.2f.\n", soaked.Idle, soaked.CPU)
	fmt.Print("\n| replica | lowest in a while | at the start | at the end |\n|--:|---|--:|--:|\n")
	for _, row := range soaked.Rows() {
		fmt.Println(row)
	}
	return soaked.Err()
}
