// Command load measures the cost of the injector, and compares it with other servers:
//
//	go run ./benchmarks/load tls        sends reviews over TLS on loopback to the injector, to a server that
//	                                    only echoes the UID, and to Azure's workload identity webhook
//	go run ./benchmarks/load apiserver  creates pods in a real API server without the injector, with it, and
//	                                    with a MutatingAdmissionPolicy instead
//	go run ./benchmarks/load advice     creates objects without annotations in a real API server, with and
//	                                    without the chart's policy that warns
//	go run ./benchmarks/load            does all
//
// It prints the tables of docs/performance.md. All servers that it starts listen on loopback and
// end with it. It reads /proc, so it needs Linux.
package main

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// limit is the time limit of the whole run, including the build of the control plane.
const limit = time.Hour

func main() {
	process.Main("load", func(ctx context.Context) error {
		ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not finished after %s", limit))
		defer cancel()
		return run(ctx)
	})
}

func run(ctx context.Context) error {
	seconds := flag.Int("seconds", 5, "duration of each run over TLS, in `seconds`")
	rounds := flag.Int("rounds", 3, "`number` of runs over TLS for each row; the table has the medians")
	runs := flag.Int("runs", 5, "`number` of runs with the API server")
	pods := flag.Int("pods", 600, "`number` of pods created each way in each run with the API server")
	groups := flag.Int("groups", 20_000, "`number` of groups of objects of each kind with and without the advice")
	flag.Parse()
	switch command := flag.Arg(0); {
	case command == serveCommand && flag.NArg() == 4:
		return serve(ctx, flag.Arg(1), flag.Arg(2), flag.Arg(3))
	case flag.NArg() > 1 || (command != "" && command != "tls" && command != "apiserver" && command != "advice"):
		flag.Usage()
		return fmt.Errorf("the argument must be tls, apiserver or advice, or be omitted, not %q", strings.Join(flag.Args(), " "))
	}
	fmt.Println(measure.Machine())
	isMeasured := func(command string) bool { return flag.NArg() == 0 || flag.Arg(0) == command }
	if isMeasured("tls") {
		if err := overTLS(ctx, time.Duration(*seconds)*time.Second, *rounds); err != nil {
			return err
		}
	}
	if isMeasured("apiserver") {
		if err := atAPIServer(ctx, *runs, *pods); err != nil {
			return err
		}
	}
	if isMeasured("advice") {
		return ofAdvice(ctx, *groups)
	}
	return nil
}
