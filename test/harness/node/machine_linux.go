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

// Enter runs this program once more, with args, in a machine, and returns its exit status: 128 and the signal where one has killed it. When
// ctx is done, the machine ends at once. All that it was goes with it: there is nothing to end gently, or to tidy up.
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
	// A terminal's interrupt is for this process alone.
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

// bury is what the first process of a machine does, and nothing else: it runs the program once more, and takes note of whoever ends. It
// inherits all processes whose parents have ended, and they stay until somebody has waited for them; the program itself must wait for its
// own children alone. It ends with the program's status, and with it ends the machine.
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

// settle makes the namespaces a machine: nothing that is mounted or written from here on is seen outside.
func (m *Machine) settle() (err error) {
	// As it was outside: the process files of the namespace are not mounted yet.
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
		// Else it takes the lowest address of its ports, and pods that knew it by another lose their network for seconds as one is added.
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

// writable covers a folder with a view of it whose changes stay in the machine.
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

// tunables are the kernel's settings that kubelet changes for the whole machine unless it finds them so (upstream:
// pkg/kubelet/cm/container_manager_linux.go). It finds them so.
var tunables = []struct{ name, value string }{
	{"/proc/sys/vm/overcommit_memory", "1"},
	{"/proc/sys/vm/panic_on_oom", "0"},
	{"/proc/sys/kernel/panic", "10"},
	{"/proc/sys/kernel/panic_on_oops", "1"},
	{"/proc/sys/kernel/keys/root_maxkeys", "1000000"},
	{"/proc/sys/kernel/keys/root_maxbytes", "25000000"},
}

// cover puts a file of the machine's own over one of the kernel's.
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
