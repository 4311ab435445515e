package page

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

// Main is the main function of a demonstration. It calls run with a page on standard output, and
// with a context that ends when the process gets SIGINT, SIGTERM or SIGHUP, or when standard output
// is closed. Main exits with the status that run returns, with 1 if run returns an error, and with
// 130 if run returns an error because the context has ended.
func Main(name string, run func(context.Context, *Page) (status int, err error)) {
	// A closed pipe must not end the process before it has stopped its servers. With SIGPIPE
	// ignored, the write fails instead.
	signal.Ignore(syscall.SIGPIPE)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	status, err := run(ctx, New(os.Stdout, stop))
	switch {
	case err == nil:
	case ctx.Err() != nil:
		fmt.Fprintf(os.Stderr, "\n%s: interrupted; all that it started is stopped\n", name)
		status = 130
	default:
		fmt.Fprintf(os.Stderr, "\n%s: %v\n", name, err)
		status = 1
	}
	stop()
	os.Exit(status)
}
