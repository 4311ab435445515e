// Command demo shows on a real API server what the injector does: an annotated Deployment becomes an injected pod, and
// a mistake becomes an error that says what would be right. It checks what it shows: the exit status is 0 only if
// everything is as it should be.
//
//	go run ./cmd/demo          show it and leave nothing behind
//	go run ./cmd/demo --keep   leave it running, to try kubectl on, until interrupted
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
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	keep := flag.Bool("keep", false, "leave it running until interrupted")
	flag.Parse()
	// Not even a closed pipe may leave servers behind.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	defer stop()
	err := run(ctx, *keep)
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

// run runs the demo in a folder of its own, which it removes. The logs survive a failure.
func run(ctx context.Context, keep bool) (err error) {
	dir, err := os.MkdirTemp("", "akv-injector-demo-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer func() {
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w\n\n%s", err, saveLogs(dir))
		}
		err = errors.Join(err, os.RemoveAll(dir))
	}()
	d := &demo{dir: dir, out: newPage(os.Stdout)}
	if err := d.run(ctx, keep); err != nil {
		return err
	}
	if !keep {
		d.out.say(fmt.Sprintf("\nAll as it should be, and all stopped again, in %.1f s.", time.Since(d.begin).Seconds()))
	}
	return nil
}

// saveLogs puts all logs into one file that stays, and says where.
func saveLogs(dir string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err.Error()
	}
	var logs []byte
	err = filepath.WalkDir(dir, func(name string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(name) != ".log" {
			return err
		}
		log, err := os.ReadFile(name)
		logs = fmt.Appendf(logs, "==> %s\n%s\n", filepath.Base(name), log)
		return err
	})
	if err != nil {
		return err.Error()
	}
	file := filepath.Join(cache, "akv-injector", "demo.log")
	if err := os.WriteFile(file, logs, 0o600); err != nil {
		return err.Error()
	}
	return "The servers' logs are in " + file
}
