// Command controlplane builds and runs the control plane that the tests use.
//
//	go run ./demos/controlplane build   build what is missing, print the folder of the binaries (good as KUBEBUILDER_ASSETS)
//	go run ./demos/controlplane start   run it, with the CRDs, until interrupted
//
// It knows nothing of the injector.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var command string
	if len(os.Args) == 2 {
		command = os.Args[1]
	}
	var err error
	switch command {
	case "build":
		err = build(ctx)
	case "start":
		err = start(ctx)
	default:
		fmt.Fprintln(os.Stderr, "usage: controlplane build|start")
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "controlplane:", err)
		os.Exit(1)
	}
}

func build(ctx context.Context) error {
	dir, err := controlplane.Binaries(ctx, os.Stderr)
	if err != nil {
		return err
	}
	fmt.Println(dir)
	return nil
}

func start(ctx context.Context) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	if err := controlplane.InstallCRDs(ctx, plane.Config); err != nil {
		return err
	}
	fmt.Printf(`Running at %s. In another terminal:

  export KUBECONFIG=%s
  %s get pods --all-namespaces

Logs are in %s. Interrupt to stop.
`, plane.Config.Host, plane.Kubeconfig, filepath.Join(plane.Binaries, "kubectl"), plane.Dir)
	plane.Wait(ctx)
	return nil
}
