// Command node shows injection on a real node: a pod starts, and its container reads the secret of
// a fake Key Vault. It also checks what it shows, and exits with status 0 only if all of it is as
// expected.
//
//	go run ./demos/node            shows all parts and leaves nothing behind
//	go run ./demos/node failures   shows one part: stories, failures, faults or attacks
//	go run ./demos/node --keep     keeps it running until interrupted, to try kubectl
//	go run ./demos/node possible   prints what this machine lacks; exits with status 0 if nothing
//	go run ./demos/node build      builds the programs only
//
// Three parts measure, and run only if they are named:
//
//	go run ./demos/node -runs=10 latency           measures the time from kubectl apply to the secret;
//	                                               half an hour without -runs
//	go run ./demos/node -interval=2m rotation      counts the driver's reads of vaults, and measures how
//	                                               long a new version takes to arrive; 20 minutes
//	go run ./demos/node -runs=20 restarts          measures the time from a new version in the vault to
//	                                               the env var of a restarted pod; five minutes
//
// It needs Linux and root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/node"
	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	keep := flag.Bool("keep", false, "keep it running until interrupted")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), `node [FLAGS] [%s]...  shows these parts; the default is all except the last three
node %s|%s  prints what this machine lacks, or builds the programs only

`, strings.Join(names(), "|"), possible, build)
		flag.PrintDefaults()
	}
	flag.Parse()
	err := known(flag.Args())
	if err == nil && *runs < 1 {
		err = fmt.Errorf("-runs must be at least 1, not %d", *runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(2)
	}
	page.Main("node", func(ctx context.Context, out *page.Page) (int, error) { return run(ctx, out, *keep) })
}

// The commands that do not show a part.
const possible, build = "possible", "build"

// names returns the names of the parts.
func names() []string {
	var names []string
	for _, part := range parts {
		names = append(names, part.name)
	}
	return append(names, measureLatency, measureRotation, measureRestarts)
}

// known returns an error unless args are names of parts, or one command.
func known(args []string) error {
	for _, arg := range args {
		if len(args) == 1 && (arg == possible || arg == build) {
			return nil
		}
		if !slices.Contains(names(), arg) {
			return fmt.Errorf("unknown part %q; the parts are %s; %s and %s are commands without parts",
				arg, strings.Join(names(), ", "), possible, build)
		}
	}
	return nil
}

// run builds the programs and starts this program again in a machine. In the machine it runs the
// show.
func run(ctx context.Context, out *page.Page, keep bool) (status int, err error) {
	machine, err := node.Inside()
	if err != nil {
		return 0, err
	}
	if machine != nil {
		return 0, process.InFolder(ctx, "node", func(dir string) error {
			s := &show{machine: machine, dir: dir, out: out, begin: time.Now()}
			return s.run(ctx, flag.Args(), keep)
		})
	}
	if missing := node.Missing(); len(missing) > 0 {
		return 0, errors.New("this machine cannot run a node; it lacks\n  - " + strings.Join(missing, "\n  - ") +
			"\nInstead, use a kind cluster on another machine with the driver, its Azure provider and your own Key Vault.")
	}
	if flag.Arg(0) == possible {
		return 0, nil
	}
	parts, err := node.Build(ctx, os.Stdout)
	if err != nil {
		return 0, err
	}
	if parts.More, err = buildPrograms(ctx); err != nil || flag.Arg(0) == build {
		return 0, err
	}
	return node.Enter(ctx, parts, os.Args[1:]...)
}
