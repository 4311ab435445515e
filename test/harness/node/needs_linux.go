package node

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"github.com/akv-injector/akv-injector/test/harness/cgroups"
)

// namespaces are the namespaces of a machine.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// tries are the steps by which a machine is set up, in their order, and what each step needs from
// the kernel.
var tries = []struct{ command, needs string }{
	{"mount --make-rprivate /", "mounts"},
	{"mount -t proc proc /proc", "mounts of /proc"},
	{"mount -t tmpfs tmpfs /run && mkdir /run/above /run/work", "the file system tmpfs"},
	{
		"mount -t overlay -o lowerdir=/var/lib,upperdir=/run/above,workdir=/run/work overlay /var/lib",
		"the file system overlay (modprobe overlay), over /var/lib",
	},
	{"mount --bind /dev/null /proc/sys/kernel/panic", "mounts over the kernel's settings"},
	{"ip link set lo up && ip link add " + bridge + " type bridge", "a network namespace with a bridge (modprobe bridge)"},
}

// Missing returns what this machine lacks to run a node, one item per line. It tries the steps
// instead of reading configurations.
func Missing() []string {
	var missing []string
	for _, program := range []struct{ name, of string }{
		{"ip", "package iproute2"},
		{"mount", "package mount"},
		{"apt-get", "of Debian or Ubuntu, whose containerd and runc a node runs"},
		{"dpkg-deb", "of Debian or Ubuntu, as well"},
	} {
		if _, err := exec.LookPath(program.name); err != nil {
			missing = append(missing, fmt.Sprintf("the program %s, %s", program.name, program.of))
		}
	}
	if os.Geteuid() != 0 {
		return append(missing, "root: a node needs namespaces, mounts and cgroups")
	}
	if len(missing) > 0 {
		return missing // the steps below need these programs
	}
	if err := try(); err != nil {
		missing = append(missing, err.Error())
	}
	group, err := cgroups.Make(cgroups.NewName())
	if err == nil {
		err = group.Remove()
	}
	if err != nil {
		missing = append(missing, fmt.Sprintf("writable cgroups: %v; a container must be privileged and run with --cgroupns=host", err))
	}
	return missing
}

// try runs a shell that sets up a machine and ends. The error is the first thing that this machine
// lacks.
func try() error {
	var script strings.Builder
	for at, step := range tries {
		fmt.Fprintf(&script, "{ %s; } || exit %d\n", step.command, at+1)
	}
	cmd := exec.Command("sh", "-c", script.String())
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: namespaces}
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0 && exit.ExitCode() <= len(tries):
		return fmt.Errorf("%s: %s; a container must be privileged", tries[exit.ExitCode()-1].needs, strings.TrimSpace(string(out)))
	case err != nil:
		return fmt.Errorf("namespaces for processes, mounts, network, names and IPC: %w; a container must be privileged", err)
	}
	return nil
}
