// Command load measures the cost of the injector, and compares it with other servers:
//
//	go run ./benchmarks/load tls        sends reviews over TLS on loopback to the injector, to a server that
//	                                    only echoes the UID, and to Azure's workload identity webhook
//	go run ./benchmarks/load apiserver  creates pods in a real API server without the injector, with it, and
//	                                    with a MutatingAdmissionPolicy instead
//	go run ./benchmarks/load            does both
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
const limit = 30 * time.Minute

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
	flag.Parse()
	switch command := flag.Arg(0); {
	case command == serveCommand && flag.NArg() == 4:
		return serve(ctx, flag.Arg(1), flag.Arg(2), flag.Arg(3))
	case flag.NArg() > 1 || (command != "" && command != "tls" && command != "apiserver"):
		flag.Usage()
		return fmt.Errorf("the argument must be tls or apiserver, or be omitted, not %q", strings.Join(flag.Args(), " "))
	}
	fmt.Println(measure.Machine())
	if flag.Arg(0) != "apiserver" {
		if err := overTLS(ctx, time.Duration(*seconds)*time.Second, *rounds); err != nil {
			return err
		}
	}
	if flag.Arg(0) != "tls" {
		return atAPIServer(ctx, *runs, *pods)
	}
	return nil
}
