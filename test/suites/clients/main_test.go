// Package clients_test applies annotated workloads with kubectl, Helm 3 and 4, and the engines of
// Argo CD and Flux, to a real API server that calls the injector.
package clients_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// What all tests share.
var (
	plane  *controlplane.ControlPlane
	server *injector.Injector
	client kubernetes.Interface
	// Paths of the clients' programs.
	helm3, helm4, argocd, flux string
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "clients:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Building the control plane takes minutes when it is not cached.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if helm3, err = chart.Helm(ctx, 3, os.Stderr); err != nil {
		return 0, err
	}
	if helm4, err = chart.Helm(ctx, 4, os.Stderr); err != nil {
		return 0, err
	}
	if argocd, err = engineProgram(ctx, "argocd"); err != nil {
		return 0, err
	}
	if flux, err = engineProgram(ctx, "flux"); err != nil {
		return 0, err
	}
	if plane, err = controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	quiet := rest.CopyConfig(plane.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	if client, err = kubernetes.NewForConfig(quiet); err != nil {
		return 0, err
	}
	if server, err = injector.Start(ctx, plane, injector.Options{}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	return m.Run(), nil
}

// engineProgram builds the engine of Argo CD or Flux. Each is a module of its own, with its own
// versions of the Kubernetes libraries.
func engineProgram(ctx context.Context, name string) (string, error) {
	module, err := filepath.Abs(filepath.Join("..", "..", "parts", name))
	if err != nil {
		return "", err
	}
	program := filepath.Join(module, "..", "..", "..", "bin", "test", name)
	return program, build.Announced(os.Stderr, name, "minutes", func() error {
		return build.Program(ctx, module, program, "-trimpath", "-ldflags=-s -w", ".")
	})
}
