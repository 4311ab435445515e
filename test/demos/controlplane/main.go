// Command controlplane builds and runs the control plane of the tests.
//
//	go run ./demos/controlplane build   builds what is missing and prints the folder of the binaries,
//	                                    which is also valid as KUBEBUILDER_ASSETS
//	go run ./demos/controlplane start   runs it with the CRDs until interrupted
//
// It does not run the injector.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

func main() {
	commands := map[string]func(context.Context) error{"build": build, "start": start}
	var run func(context.Context) error
	if len(os.Args) == 2 {
		run = commands[os.Args[1]]
	}
	if run == nil {
		fmt.Fprintln(os.Stderr, "usage: controlplane build|start")
		os.Exit(2)
	}
	process.Main("controlplane", run)
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
	plane, err := controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	fmt.Printf(`Running at %s. In another terminal:

  export KUBECONFIG=%s
  %s get pods --all-namespaces

Logs are in %s. Interrupt to stop.
`, plane.Config.Host, plane.Kubeconfig, filepath.Join(plane.Binaries, "kubectl"), plane.Dir)
	plane.Wait(ctx)
	return nil
}
