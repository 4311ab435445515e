// Command node shows the whole road on one machine: a pod starts on a real node, and its container reads what a fake Key Vault
// has. It checks what it shows: the exit status is 0 only if everything is as it should be.
//
//	go run ./demos/node            show it and leave nothing behind
//	go run ./demos/node failures   show a part: stories, failures, faults or attacks
//	go run ./demos/node latency    measure the time from kubectl apply to the secret; -runs=10 before it for less than half an hour
//	go run ./demos/node -interval=2m rotation   count the driver's reads of vaults, and measure how long a new version takes: 20 minutes
//	go run ./demos/node --keep     leave it running, to try kubectl on, until interrupted
//	go run ./demos/node possible   say what this machine lacks for it; the exit status is 0 if nothing
//	go run ./demos/node build      build what it needs, and no more
//
// It needs Linux and root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/node"
	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	keep := flag.Bool("keep", false, "leave it running until interrupted")
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "node [FLAGS] [%s]...  shows these parts; without any, all but the last two\n", strings.Join(names(), "|"))
		fmt.Fprintf(flag.CommandLine.Output(), "node %s|%s  says whether this machine can, or builds what it takes\n\n", possible, build)
		flag.PrintDefaults()
	}
	flag.Parse()
	// Not even a closed pipe may leave servers behind: that nobody reads on is an error of writing, then.
	signal.Ignore(syscall.SIGPIPE)
	err := known(flag.Args())
	if err == nil && *runs < 1 {
		err = fmt.Errorf("-runs must be at least 1, not %d", *runs)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "node:", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	status, err := run(ctx, stop, *keep)
	switch {
	case err == nil:
		os.Exit(status)
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nnode: interrupted; all that it started is stopped")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "\nnode:", err)
		os.Exit(1)
	}
}

// The commands that show nothing.
const possible, build = "possible", "build"

// names are those of what there is to show.
func names() []string {
	var names []string
	for _, part := range parts {
		names = append(names, part.name)
	}
	return append(names, measureLatency, measureRotation)
}

// known is an error where the arguments are not names of what there is to show, or one command.
func known(args []string) error {
	for _, arg := range args {
		if len(args) == 1 && (arg == possible || arg == build) {
			return nil
		}
		if !slices.Contains(names(), arg) {
			return fmt.Errorf("there is nothing called %q; there are %s, or %s or %s alone", arg, strings.Join(names(), ", "), possible, build)
		}
	}
	return nil
}

// run builds all parts, and runs the same program in a machine of its own; there, it runs the show.
func run(ctx context.Context, stop func(), keep bool) (status int, err error) {
	machine, err := node.Inside()
	if err != nil {
		return 0, err
	}
	if machine != nil {
		return 0, inside(ctx, stop, machine, keep)
	}
	if missing := node.Missing(); len(missing) > 0 {
		return 0, errors.New("this machine can't run a node, it lacks\n  - " + strings.Join(missing, "\n  - ") +
			"\nA cluster of kind on another machine does as well, with the driver, its Azure provider and a Key Vault of your own.")
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

// inside runs the show in a folder of its own, which it removes. The logs survive a failure.
func inside(ctx context.Context, stop func(), machine *node.Machine, keep bool) (err error) {
	begin := time.Now()
	dir, err := os.MkdirTemp("", "akv-injector-node-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\n\n%s", err, process.SaveLogs(dir, "node"))
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	s := &show{machine: machine, dir: dir, out: page.New(os.Stdout, stop), begin: begin}
	return s.run(ctx, flag.Args(), keep)
}
