// Package certmanager runs cert-manager beside a control plane: its real controllers and its cainjector, built from their packages
// into one program. Its folder controllers has that program, in a module of its own.
//
// It knows nothing of the injector.
package certmanager

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// Approver is the controller that approves every request. Without it, requests wait for somebody's approval or denial.
const Approver = "certificaterequests-approver"

// Build builds the program and returns its path. The go command must find this package's module: call it from a folder inside.
func Build(ctx context.Context) (string, error) {
	module, err := module(ctx)
	if err != nil {
		return "", err
	}
	program := filepath.Join(filepath.Dir(module), "bin", "test", "cert-manager")
	if err := build.Program(ctx, controllers(module), program, "-trimpath", "-ldflags=-s -w", "."); err != nil {
		return "", err
	}
	return program, nil
}

// InstallCRDs applies cert-manager's custom resource definitions, of the version that Build builds, and returns when they are
// served.
func InstallCRDs(ctx context.Context, plane *controlplane.ControlPlane) error {
	module, err := module(ctx)
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
		if out, err := plane.Kubectl(ctx, args...).CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// Start runs the program that Build has built, with an administrator's rights and without the controllers that are named. What it
// does shows in the cluster. Whoever starts it must stop it, before the control plane.
func Start(plane *controlplane.ControlPlane, program string, without ...string) (*process.Process, error) {
	dir, err := os.MkdirTemp(plane.Dir, "cert-manager-")
	if err != nil {
		return nil, fmt.Errorf("start cert-manager: %w", err)
	}
	return process.Start(dir, program, "--kubeconfig="+plane.Kubeconfig, "--without="+strings.Join(without, ","))
}

// module is the folder of this package's module.
func module(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/akv-injector/akv-injector/test").Output()
	if err != nil {
		return "", fmt.Errorf("find the source of cert-manager's program: %w", err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", errors.New("find the source of cert-manager's program: must be called from a folder of its module")
	}
	return dir, nil
}

func controllers(module string) string { return filepath.Join(module, "parts", "certmanager") }
