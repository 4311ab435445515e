package node_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/node"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// machine is the machine in which the tests of a node run. It is nil outside.
var machine *node.Machine

// idle is an environment variable. If it is set, this program enters a machine and waits there.
const idle = "AKV_INJECTOR_TEST_IDLE"

func TestMain(m *testing.M) {
	var err error
	if machine, err = node.Inside(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	switch missing := []string(nil); {
	case os.Getenv(idle) != "":
		os.Exit(beIdle())
	case machine == nil:
		if missing = node.Missing(); len(missing) > 0 {
			fmt.Fprintf(os.Stderr, "NO TEST OF THE NODE RUNS HERE; this machine lacks\n  - %s\n", strings.Join(missing, "\n  - "))
			return
		}
	}
	os.Exit(m.Run())
}

// beIdle enters a machine and starts a process in a child of the machine's cgroup, as pods do. It
// ends when it reads from standard input.
func beIdle() int {
	if machine == nil {
		ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
		defer stop()
		status, err := node.Enter(ctx, node.Parts{})
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 99
		}
		return status
	}
	sleep := exec.Command("sleep", "1000")
	if err := sleep.Start(); err != nil {
		fmt.Println(err)
		return 1
	}
	folders, _ := cgroups(machine.Cgroup)
	for _, folder := range folders {
		pod := filepath.Join(folder, "pod")
		err := os.Mkdir(pod, 0o755)
		// In version 1, a new cgroup of the controller cpuset accepts no process.
		if err == nil && !strings.Contains(pod, "/cpuset/") {
			err = os.WriteFile(filepath.Join(pod, "cgroup.procs"), []byte(strconv.Itoa(sleep.Process.Pid)), 0o644)
		}
		if err != nil {
			fmt.Println(err)
			return 1
		}
	}
	fmt.Println(machine.Visit())
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		<-time.After(time.Minute) // standard input is closed; a signal must end this process
	}
	return 3
}

// TestEnter ends machines in all possible ways, with a pod's process in them.
func TestEnter(t *testing.T) {
	if machine != nil {
		t.Fatal("only TestNode runs in the machine")
	}
	signalled := func(signal syscall.Signal) func(outside, _ int, _ io.Writer) error {
		return func(outside, _ int, _ io.Writer) error { return syscall.Kill(outside, signal) }
	}
	for behaviour, test := range map[string]struct {
		end    func(outside, inside int, stdin io.Writer) error
		status int // -1 for a signal that kills
		left   bool
	}{
		"it ends with its program and returns its status": {end: func(_, _ int, stdin io.Writer) error { _, err := stdin.Write([]byte("\n")); return err }, status: 3},
		"it ends on SIGINT":                  {end: signalled(syscall.SIGINT), status: 99},
		"it ends on SIGTERM":                 {end: signalled(syscall.SIGTERM), status: 99},
		"it ends on SIGHUP":                  {end: signalled(syscall.SIGHUP), status: 99},
		"it ends when its program is killed": {end: func(_, inside int, _ io.Writer) error { return syscall.Kill(inside, syscall.SIGKILL) }, status: 137},

		"it ends when the program outside is killed, and the next one removes the cgroup": {end: signalled(syscall.SIGKILL), status: -1, left: true},
	} {
		t.Run(behaviour, func(t *testing.T) {
			before := traces(t)
			cmd := exec.Command("/proc/self/exe")
			cmd.Env = append(os.Environ(), idle+"=1")
			cmd.Stderr = os.Stderr
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			cgroup := fmt.Sprintf("akv-injector-test-%d-*", cmd.Process.Pid)
			line, err := bufio.NewReader(stdout).ReadString('\n')
			var program int
			if _, scanErr := fmt.Sscanf(line, "nsenter --target=%d ", &program); scanErr != nil {
				t.Fatalf("it prints %q: %v", line, errors.Join(err, scanErr, stdin.Close(), cmd.Wait()))
			}
			processes := inside(t, cgroup)
			if len(processes) == 0 {
				t.Error("the pod must have a process")
			}
			if err := test.end(cmd.Process.Pid, program, stdin); err != nil {
				t.Fatal(err)
			}

			late := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
			_ = cmd.Wait()
			if !late.Stop() {
				t.Error("it does not end within 10 s")
			}
			if got := cmd.ProcessState.ExitCode(); got != test.status {
				t.Errorf("status %d, want %d", got, test.status)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			defer cancel()
			if err := process.Until(ctx, func(context.Context) error {
				for _, id := range append(processes, program) {
					if err := syscall.Kill(id, 0); !errors.Is(err, syscall.ESRCH) {
						return fmt.Errorf("process %d is still there", id)
					}
				}
				return nil
			}); err != nil {
				t.Error(err)
			}
			if left, _ := cgroups(cgroup); (len(left) > 0) != test.left {
				t.Errorf("remaining cgroups: %q", left)
			}
			if missing := node.Missing(); len(missing) > 0 { // Missing creates a cgroup
				t.Error(missing)
			}
			if left, _ := cgroups(cgroup); len(left) > 0 {
				t.Errorf("cgroups that remain after the next machine: %q", left)
			}
			if diff := cmp.Diff(before, traces(t)); diff != "" {
				t.Errorf("the machine has left something behind (-before +after):\n%s", diff)
			}
		})
	}
}

// cgroups returns the folders of a cgroup, one for each hierarchy that has it.
func cgroups(name string) ([]string, error) {
	first, err := filepath.Glob("/sys/fs/cgroup/*/" + name)
	if err != nil {
		return nil, err
	}
	second, err := filepath.Glob("/sys/fs/cgroup/" + name)
	return append(first, second...), err
}

// inside returns the process IDs in the child cgroup of the pods.
func inside(t *testing.T, cgroup string) []int {
	t.Helper()
	folders, err := cgroups(cgroup + "/pod")
	if err != nil {
		t.Fatal(err)
	}
	found := map[int]bool{}
	for _, folder := range folders {
		text, err := os.ReadFile(filepath.Join(folder, "cgroup.procs"))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.FieldsSeq(string(text)) {
			id, err := strconv.Atoi(line)
			if err != nil {
				t.Fatal(err)
			}
			found[id] = true
		}
	}
	return slices.Collect(maps.Keys(found))
}

// traces returns what a node could change on a machine: kernel settings, mounts, networks, cgroups,
// files and processes. Of folders it returns the names. It excludes other machines that run at the
// same time.
func traces(t *testing.T) map[string]string {
	t.Helper()
	found := map[string]string{}
	for _, settings := range []string{"/proc/sys/kernel", "/proc/sys/net", "/proc/sys/vm"} {
		err := filepath.WalkDir(settings, func(path string, entry fs.DirEntry, err error) error {
			switch filepath.Base(path) {
			case "random", "ns_last_pid", "nr", "nf_conntrack_count", "perf_event_max_sample_rate":
				// The kernel changes these.
				if err == nil && entry.IsDir() {
					return fs.SkipDir
				}
				return nil
			}
			if err == nil && !entry.IsDir() {
				found[path] = content(path)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"/etc/hosts", "/etc/resolv.conf", "/proc/self/mountinfo", "/proc/net/route", "/proc/net/if_inet6", "/proc/net/ip_tables_names",
		"/proc/net/ip6_tables_names", fmt.Sprintf("/proc/self/task/%d/children", os.Getpid()),
	} {
		found[file] = content(file)
	}
	home, err := os.UserHomeDir()
	if err != nil {
		t.Fatal(err)
	}
	folders := []string{
		"/", "/dev", "/dev/shm", "/etc", "/etc/cni", "/etc/cni/net.d", "/etc/containerd", "/opt", "/opt/cni", "/opt/containerd", "/run",
		"/run/akv-injector", "/run/cni", "/run/containerd", "/run/netns", "/run/secrets-store-csi-providers", "/sys/class/net", "/sys/fs/bpf",
		"/usr/libexec", "/usr/libexec/kubernetes", "/var", "/var/cache", "/var/lib", "/var/lib/cni", "/var/lib/containerd",
		"/var/lib/kubelet", "/var/log", "/var/log/containers", "/var/log/pods", "/var/tmp", home, filepath.Join(home, ".kube"),
	}
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*")
	if err != nil {
		t.Fatal(err)
	}
	folders = append(folders, "/sys/fs/cgroup")
	folders = append(folders, hierarchies...)
	own := fmt.Sprintf("akv-injector-test-%d-", os.Getpid())
	for _, folder := range folders {
		entries, err := os.ReadDir(folder)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
			t.Fatal(err)
		}
		for _, entry := range entries {
			if name := entry.Name(); strings.HasPrefix(name, own) || !strings.HasPrefix(name, "akv-injector-test-") {
				found[folder] += name + "\n"
			}
		}
	}
	return found
}

// content returns the content of a file, or the error.
func content(path string) string {
	text, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(text)
}
