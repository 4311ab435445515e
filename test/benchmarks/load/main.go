// Command load measures what the injector costs, beside something to compare with:
//
//	go run ./benchmarks/load tls        reviews over TLS on loopback, answered by the injector, by a server that only echoes the UID, and by Azure's workload identity webhook
//	go run ./benchmarks/load apiserver  a pod's creation at a real API server: without the injector, with it, and with a MutatingAdmissionPolicy instead
//	go run ./benchmarks/load            both
//
// It prints the tables that docs/performance.md shows. Everything it starts listens on loopback and ends with it. It reads
// /proc, so it needs Linux.
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

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// limit bounds the whole run, building of the control plane included.
const limit = 30 * time.Minute

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("it takes too long"))
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "load:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	seconds := flag.Int("seconds", 5, "how long each of the runs over TLS takes")
	rounds := flag.Int("rounds", 3, "how often each of the runs over TLS is repeated; the table has the medians")
	runs := flag.Int("runs", 5, "how often the creations at the API server are measured")
	pods := flag.Int("pods", 600, "how many pods are created each way in each of these runs")
	flag.Parse()
	switch command := flag.Arg(0); {
	case command == serveCommand && flag.NArg() == 4:
		return serve(ctx, flag.Arg(1), flag.Arg(2), flag.Arg(3))
	case flag.NArg() > 1 || (command != "" && command != "tls" && command != "apiserver"):
		flag.Usage()
		return fmt.Errorf("must be called with tls, apiserver or nothing, not %q", strings.Join(flag.Args(), " "))
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
