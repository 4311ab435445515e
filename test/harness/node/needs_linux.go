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

// namespaces are what a machine has of its own.
const namespaces = syscall.CLONE_NEWPID | syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC

// tries are what a machine does to become one, one after the other, and what the kernel must have or allow for it.
var tries = []struct{ command, needs string }{
	{"mount --make-rprivate /", "mounts"},
	{"mount -t proc proc /proc", "mounts of /proc"},
	{"mount -t tmpfs tmpfs /run && mkdir /run/above /run/work", "the file system tmpfs"},
	{
		"mount -t overlay -o lowerdir=/var/lib,upperdir=/run/above,workdir=/run/work overlay /var/lib",
		"the file system overlay (modprobe overlay), over /var/lib",
	},
	{"mount --bind /dev/null /proc/sys/kernel/panic", "mounts over the kernel's settings"},
	{"ip link set lo up && ip link add " + bridge + " type bridge", "a network of its own, with a bridge (modprobe bridge)"},
}

// Missing returns what this machine lacks for a node, a line each; nothing where it lacks nothing. It tries rather than asks.
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
		return append(missing, "root: a node makes namespaces, mounts and cgroups")
	}
	if len(missing) > 0 {
		return missing // it takes them to try the rest
	}
	if err := try(); err != nil {
		missing = append(missing, err.Error())
	}
	group, err := cgroups.Make(cgroups.NewName())
	if err == nil {
		err = group.Remove()
	}
	if err != nil {
		missing = append(missing, fmt.Sprintf("cgroups to write to: %v; a container must be a privileged one, with --cgroupns=host", err))
	}
	return missing
}

// try makes a machine of a shell, which ends at once. The error is the first thing that this machine lacks for it.
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
		return fmt.Errorf("%s: %s; a container must be a privileged one", tries[exit.ExitCode()-1].needs, strings.TrimSpace(string(out)))
	case err != nil:
		return fmt.Errorf("namespaces for processes, mounts, network, names and IPC: %w; a container must be a privileged one", err)
	}
	return nil
}
