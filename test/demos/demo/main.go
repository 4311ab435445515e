// Command demo shows on a real API server what the injector does: an annotated Deployment becomes an injected pod, and
// a mistake becomes an error that says what would be right. It checks what it shows: the exit status is 0 only if
// everything is as it should be.
//
//	go run ./demos/demo          show it and leave nothing behind
//	go run ./demos/demo --keep   leave it running, to try kubectl on, until interrupted
//
// It knows nothing of how the injector decides.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	keep := flag.Bool("keep", false, "leave it running until interrupted")
	flag.Parse()
	// Not even a closed pipe may leave servers behind: that nobody reads on is an error of writing, then.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := run(ctx, stop, *keep)
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\ndemo: interrupted; all that it started is stopped")
		os.Exit(130)
	default:
		fmt.Fprintln(os.Stderr, "\ndemo:", err)
		os.Exit(1)
	}
}

// run runs the demo in a folder of its own, which it removes. The logs survive a failure. Stop ends ctx.
func run(ctx context.Context, stop func(), keep bool) (err error) {
	dir, err := os.MkdirTemp("", "akv-injector-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\n\n%s", err, process.SaveLogs(dir, "demo"))
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	d := &demo{dir: dir, out: page.New(os.Stdout, stop)}
	if err := d.run(ctx, keep); err != nil {
		return err
	}
	if !keep {
		d.out.Say(fmt.Sprintf("\nAll as it should be, and all stopped again, in %.1f s.", time.Since(d.begin).Seconds()))
	}
	return nil
}
