package node

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
)

// Parts are the programs of a node and of the control plane.
type Parts struct {
	// ControlPlane is the folder from [controlplane.Binaries].
	ControlPlane string
	// Kubernetes is the folder from [controlplane.NodeBinaries].
	Kubernetes string
	// Driver, Provider and Firewall are paths of programs.
	Driver, Provider, Firewall string
	// Debian is the folder into which the Debian packages are unpacked.
	Debian string
	// More is passed to the program in the machine. Build leaves it empty.
	More map[string]string
}

// Build finds, builds or downloads all parts, and prints a line to progress for each slow step. The
// results are kept for the next call. The current folder must be inside this package's module.
func Build(ctx context.Context, progress *os.File) (parts Parts, err error) {
	if parts.ControlPlane, err = controlplane.Binaries(ctx, progress); err != nil {
		return Parts{}, err
	}
	if parts.Kubernetes, err = controlplane.NodeBinaries(ctx, progress); err != nil {
		return Parts{}, err
	}
	source, err := build.ModuleFolder(ctx, build.TestModule)
	if err != nil {
		return Parts{}, err
	}
	for _, program := range []struct {
		file             *string
		name, module, of string
	}{
		{&parts.Driver, "secrets-store-csi-driver", "driver", "sigs.k8s.io/secrets-store-csi-driver/cmd/secrets-store-csi-driver"},
		{&parts.Provider, "azure-provider", "azureprovider", "github.com/Azure/secrets-store-csi-driver-provider-azure/cmd"},
		{&parts.Firewall, "kube-router", "firewall", "github.com/cloudnativelabs/kube-router/v2/cmd/kube-router"},
	} {
		*program.file = filepath.Join(filepath.Dir(source), "bin", "test", program.name)
		if err := build.Announced(progress, program.name, "a minute", func() error {
			return build.Program(ctx, filepath.Join(source, "parts", program.module), *program.file, "-trimpath", "-ldflags=-s -w", program.of)
		}); err != nil {
			return Parts{}, err
		}
	}
	parts.Debian, err = unpacked(ctx, progress)
	return parts, err
}

// Machine is the environment of a process that [Enter] has started, and of its children.
type Machine struct {
	Parts Parts
	// Cgroup is the name of the cgroup for the pods of the node.
	Cgroup string

	pid     string
	started bool // a node has been started
}

// Visit returns a command that runs a shell in the machine, for a terminal outside the machine.
func (m *Machine) Visit() string {
	return "nsenter --target=" + m.pid + " --pid --mount --net --uts --ipc"
}

const (
	// folder is the machine's own folder, in memory. temporary is the folder for temporary files.
	folder    = "/run/akv-injector"
	temporary = folder + "/tmp"
	// bridge is the network of the pods. It does not lead outside the node. The kubelet does not
	// accept a loopback address as the address of its node.
	bridge      = "pods"
	nodeAddress = "10.88.0.1"
)

// PodNetwork is the address range of the pods.
const PodNetwork = "10.88.0.0/24"

// variable is the environment variable that contains the Machine as JSON, in a machine.
const variable = "AKV_INJECTOR_TEST_MACHINE"

// Inside returns the machine in which this process was started, or nil outside a machine. Call it
// once, before anything else. In the first process of a machine it does not return.
func Inside() (*Machine, error) {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	m := &Machine{}
	if err := json.Unmarshal([]byte(text), m); err != nil {
		return nil, fmt.Errorf("set up the machine: %w", err)
	}
	if os.Getpid() == 1 {
		return nil, fmt.Errorf("start the machine: %w", bury())
	}
	if err := errors.Join(m.setEnvironment(), m.settle()); err != nil {
		return nil, fmt.Errorf("set up the machine: %w", err)
	}
	return m, nil
}

// setEnvironment sets the environment variables for the processes of the machine.
func (m *Machine) setEnvironment() error {
	errs := []error{
		// All modules are downloaded already, and the machine has no network.
		os.Setenv("GOPROXY", "off"),
		// These files end with the machine: folders of tests, data of etcd, caches of kubectl.
		os.Setenv("TMPDIR", temporary),
		os.Setenv("KUBECACHEDIR", filepath.Join(temporary, "kubectl")),
		// containerd finds runc and its shim by PATH. The program ip may be in /usr/sbin or
		// /sbin.
		os.Setenv("PATH", strings.Join([]string{m.program("usr/bin"), m.program("usr/sbin"), os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":")),
	}
	for _, name := range []string{variable, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		errs = append(errs, os.Unsetenv(name))
	}
	return errors.Join(errs...)
}

// program returns the path of a file in the Debian packages: the first of paths that exists,
// because releases differ, or the last.
func (m *Machine) program(paths ...string) (file string) {
	for _, path := range paths {
		file = filepath.Join(m.Parts.Debian, path)
		if _, err := os.Stat(file); err == nil {
			break
		}
	}
	return file
}

// rewrite replaces a file. If the file is a symbolic link, it replaces the link.
func rewrite(name, text string) error {
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return nil
}

// command runs a command in a folder. Errors contain what the command prints.
func command(ctx context.Context, dir string, args ...string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("%s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}
