package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/akv-injector/akv-injector/test/harness/cgroups"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// Enter runs this program again, with args, in a machine, and returns its exit status; a signal
// that kills it counts as 128 plus the number of the signal. When ctx ends, the machine ends at
// once with all its processes and mounts.
func Enter(ctx context.Context, parts Parts, args ...string) (status int, err error) {
	m := Machine{Parts: parts, Cgroup: cgroups.NewName()}
	group, err := cgroups.Make(m.Cgroup)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, group.Remove()) }()
	text, err := json.Marshal(m)
	if err != nil {
		return 0, fmt.Errorf("describe the machine: %w", err)
	}
	// Linux sends the parent-death signal when the thread ends that started the child.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", args...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), variable+"="+string(text))
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// An interrupt in the terminal is for this process only.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL, Cloneflags: namespaces}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0, nil
	case ctx.Err() != nil:
		return 0, context.Cause(ctx)
	case errors.As(err, &exit) && exit.Exited():
		return exit.ExitCode(), nil
	default:
		return 0, fmt.Errorf("run the machine: %w", err)
	}
}

// bury is the init process of a machine: it runs the program again and reaps orphaned processes,
// which the program cannot do. It exits with the program's status, and the machine ends with it.
func bury() error {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("run the program: %w", err)
	}
	for {
		var status syscall.WaitStatus
		switch pid, err := syscall.Wait4(-1, &status, 0, nil); {
		case errors.Is(err, syscall.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the program: %w", err)
		case pid == cmd.Process.Pid && status.Signaled():
			os.Exit(128 + int(status.Signal()))
		case pid == cmd.Process.Pid && status.Exited():
			os.Exit(status.ExitStatus())
		}
	}
}

// settle makes the new namespaces a machine: mounts and files in it are invisible outside.
func (m *Machine) settle() (err error) {
	// This link still has the process ID outside the machine, because the namespace's /proc is not
	// mounted yet.
	if m.pid, err = os.Readlink("/proc/self"); err != nil {
		return fmt.Errorf("find the process: %w", err)
	}
	if err := syscall.Sethostname([]byte(Name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	for _, mount := range []struct {
		source, target, kind string
		flags                uintptr
		data                 string
	}{
		{target: "/", flags: syscall.MS_REC | syscall.MS_PRIVATE},
		{source: "proc", target: "/proc", kind: "proc"},
		{source: "tmpfs", target: "/run", kind: "tmpfs", data: "mode=0755"},
	} {
		if err := syscall.Mount(mount.source, mount.target, mount.kind, mount.flags, mount.data); err != nil {
			return fmt.Errorf("mount %s: %w", mount.target, err)
		}
	}
	for _, dir := range []string{"/etc", "/var/lib", "/var/log"} {
		if err := writable(dir); err != nil {
			return err
		}
	}
	for _, tunable := range tunables {
		if err := cover(tunable.name, tunable.value); err != nil {
			return err
		}
	}
	for _, part := range []string{m.Parts.ControlPlane, m.Parts.Kubernetes, m.Parts.Driver, m.Parts.Provider, m.Parts.Firewall, m.Parts.Debian} {
		if _, err := os.Stat(part); part != "" && err != nil {
			return fmt.Errorf("find a part of the node, which must not be below /run, nor on a file system that is mounted below /etc, /var/lib or /var/log: %w", err)
		}
	}
	if err := errors.Join(rewrite("/etc/resolv.conf", ""), os.MkdirAll(temporary, 0o755)); err != nil {
		return err
	}
	for _, args := range []string{
		"link set lo up",
		"address add " + controlplane.ServiceIP + "/32 dev lo",
		// Without a fixed address, the bridge takes the lowest address of its ports. When a
		// new port changes it, pods with the old address in their caches lose the network
		// for seconds.
		"link add " + bridge + " address 02:00:00:00:00:01 type bridge",
		"address add " + nodeAddress + "/24 dev " + bridge,
		"link set " + bridge + " up",
	} {
		if out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput(); err != nil {
			return fmt.Errorf("ip %s: %w: %s", args, err, out)
		}
	}
	return nil
}

// writable mounts an overlay on a folder, so that changes stay in the machine.
func writable(dir string) error {
	above, work := filepath.Join(folder, "above", dir), filepath.Join(folder, "work", dir)
	for _, made := range []string{above, work} {
		if err := os.MkdirAll(made, 0o755); err != nil {
			return fmt.Errorf("cover %s: %w", dir, err)
		}
	}
	err := syscall.Mount("overlay", dir, "overlay", 0, "lowerdir="+dir+",upperdir="+above+",workdir="+work)
	if err != nil {
		return fmt.Errorf("cover %s: %w", dir, err)
	}
	return nil
}

// tunables are kernel settings that the kubelet changes for the whole machine unless they have
// these values (upstream: pkg/kubelet/cm/container_manager_linux.go). The machine shows it these
// values.
var tunables = []struct{ name, value string }{
	{"/proc/sys/vm/overcommit_memory", "1"},
	{"/proc/sys/vm/panic_on_oom", "0"},
	{"/proc/sys/kernel/panic", "10"},
	{"/proc/sys/kernel/panic_on_oops", "1"},
	{"/proc/sys/kernel/keys/root_maxkeys", "1000000"},
	{"/proc/sys/kernel/keys/root_maxbytes", "25000000"},
}

// cover mounts a file of the machine over a kernel setting.
func cover(name, value string) error {
	file := filepath.Join(folder, "tunables", name)
	if err := rewrite(file, value+"\n"); err != nil {
		return err
	}
	if err := syscall.Mount(file, name, "", syscall.MS_BIND, ""); err != nil {
		return fmt.Errorf("cover %s: %w", name, err)
	}
	return nil
}
