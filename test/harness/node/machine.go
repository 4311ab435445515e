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

// Parts are the programs that a node is made of, and those of the control plane.
type Parts struct {
	// ControlPlane is the folder of function controlplane.Binaries.
	ControlPlane string
	// Kubernetes is the folder of function controlplane.NodeBinaries.
	Kubernetes string
	// Driver, Provider and Firewall are programs.
	Driver, Provider, Firewall string
	// Debian is a folder into which Debian's packages are unpacked.
	Debian string
	// More is what the caller of Enter wants to find again in the machine. Build leaves it empty.
	More map[string]string
}

// Build finds, builds or downloads all parts, with a line on progress wherever that takes long. What it has made is kept for the
// next time. The go command must find this package's module: call it from a folder inside.
func Build(ctx context.Context, progress *os.File) (parts Parts, err error) {
	if parts.ControlPlane, err = controlplane.Binaries(ctx, progress); err != nil {
		return Parts{}, err
	}
	if parts.Kubernetes, err = controlplane.NodeBinaries(ctx, progress); err != nil {
		return Parts{}, err
	}
	source, err := moduleFolder(ctx)
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

// moduleFolder is the folder of this package's module.
func moduleFolder(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/akv-injector/akv-injector/test").Output()
	if err != nil {
		return "", fmt.Errorf("find the source of the node: %w", err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", errors.New("find the source of the node: must be called from a folder of its module")
	}
	return dir, nil
}

// Machine is what a process that [Enter] has started has to itself, with its children.
type Machine struct {
	Parts Parts
	// Cgroup is the one that is for the node's pods.
	Cgroup string

	pid     string
	started bool // a node was
}

// Visit is a command that runs a shell in the machine, for those outside.
func (m *Machine) Visit() string {
	return "nsenter --target=" + m.pid + " --pid --mount --net --uts --ipc"
}

const (
	// folder is the machine's own, in memory; temporary is where programs make theirs.
	folder    = "/run/akv-injector"
	temporary = folder + "/tmp"
	// bridge is the network of the pods, which leads no further than the node. kubelet takes no loopback address for its node's.
	bridge      = "pods"
	nodeAddress = "10.88.0.1"
)

// PodNetwork has the addresses of the pods.
const PodNetwork = "10.88.0.0/24"

// variable tells a process that it is in a machine, and about it.
const variable = "AKV_INJECTOR_TEST_MACHINE"

// Inside returns the machine that this process was started in, or nil where it was not. It is to be called once, before anything else
// is done there. In the machine's first process it does not return.
func Inside() (*Machine, error) {
	text, ok := os.LookupEnv(variable)
	if !ok {
		return nil, nil
	}
	m := &Machine{}
	if err := json.Unmarshal([]byte(text), m); err != nil {
		return nil, fmt.Errorf("settle in the machine: %w", err)
	}
	if os.Getpid() == 1 {
		return nil, fmt.Errorf("begin the machine: %w", bury())
	}
	if err := errors.Join(m.setEnvironment(), m.settle()); err != nil {
		return nil, fmt.Errorf("settle in the machine: %w", err)
	}
	return m, nil
}

// setEnvironment sets what the processes of the machine inherit.
func (m *Machine) setEnvironment() error {
	errs := []error{
		// Whatever the go command is asked for is there already, and nothing else can be had.
		os.Setenv("GOPROXY", "off"),
		// What is written there ends with the machine: folders of tests, data of etcd, what kubectl remembers of clusters.
		os.Setenv("TMPDIR", temporary),
		os.Setenv("KUBECACHEDIR", filepath.Join(temporary, "kubectl")),
		// containerd looks for runc and its shim there; ip is an administrator's.
		os.Setenv("PATH", strings.Join([]string{m.program("usr/bin"), m.program("usr/sbin"), os.Getenv("PATH"), "/usr/sbin", "/sbin"}, ":")),
	}
	for _, name := range []string{variable, "HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy"} {
		errs = append(errs, os.Unsetenv(name))
	}
	return errors.Join(errs...)
}

// program is a file of Debian's packages: at the first of paths where there is one, since releases differ, or else the last.
func (m *Machine) program(paths ...string) (file string) {
	for _, path := range paths {
		file = filepath.Join(m.Parts.Debian, path)
		if _, err := os.Stat(file); err == nil {
			break
		}
	}
	return file
}

// rewrite writes a file anew: not through a link, should it be one.
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

// command runs a command in a folder. What it prints is in the error.
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
