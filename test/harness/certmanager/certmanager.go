// Package certmanager runs cert-manager next to a control plane: its real controllers and its
// cainjector. The program is in test/parts/certmanager, because it needs its own module.
//
//	err := certmanager.InstallCRDs(ctx, plane)
//	program, err := certmanager.Build(ctx)
//	controllers, err := certmanager.Start(plane, program)
//
// The package does not know the injector.
package certmanager

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// Approver is the controller that approves every request. Without it, requests wait until a test
// approves or denies them.
const Approver = "certificaterequests-approver"

// Build builds the program and returns its path. The current folder must be inside this package's
// module.
func Build(ctx context.Context) (string, error) {
	module, err := build.ModuleFolder(ctx, build.TestModule)
	if err != nil {
		return "", err
	}
	program := filepath.Join(filepath.Dir(module), "bin", "test", "cert-manager")
	if err := build.Program(ctx, controllers(module), program, "-trimpath", "-ldflags=-s -w", "."); err != nil {
		return "", err
	}
	return program, nil
}

// InstallCRDs applies cert-manager's custom resource definitions, of the version that Build builds,
// and waits until the API server serves them.
func InstallCRDs(ctx context.Context, plane *controlplane.ControlPlane) error {
	module, err := build.ModuleFolder(ctx, build.TestModule)
	if err != nil {
		return err
	}
	download := exec.CommandContext(ctx, "go", "mod", "download", "-json", "github.com/cert-manager/cert-manager")
	download.Dir = controllers(module)
	out, err := download.Output()
	if err != nil {
		return fmt.Errorf("download cert-manager: %w", err)
	}
	var source struct{ Dir string }
	if err := json.Unmarshal(out, &source); err != nil {
		return fmt.Errorf("download cert-manager: %w", err)
	}
	crds := filepath.Join(source.Dir, "deploy", "crds")
	for _, args := range [][]string{
		{"apply", "--server-side", "--force-conflicts", "--filename", crds},
		{"wait", "--for=condition=Established", "--timeout=1m", "--filename", crds},
	} {
		if err := plane.RunKubectl(ctx, "", args...); err != nil {
			return err
		}
	}
	return nil
}

// Start runs the program that Build has built, with the rights of an administrator and without the
// named controllers. It does not wait until the controllers are ready. The caller must stop the
// process before the control plane.
func Start(plane *controlplane.ControlPlane, program string, without ...string) (*process.Process, error) {
	dir, err := os.MkdirTemp(plane.Dir, "cert-manager-")
	if err != nil {
		return nil, fmt.Errorf("start cert-manager: %w", err)
	}
	return process.Start(dir, program, "--kubeconfig="+plane.Kubeconfig, "--without="+strings.Join(without, ","))
}

// controllers returns the folder of the program.
func controllers(module string) string { return filepath.Join(module, "parts", "certmanager") }
