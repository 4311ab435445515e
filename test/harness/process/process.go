// Package process runs a server as a child process that logs to a file, and waits for conditions.
// The child processes end with their parent. [Main] is the main function of programs that start
// servers.
//
//	server, err := process.Start(dir, "/path/of/etcd", "--data-dir="+dir)
//	defer server.Stop()
//	err = server.Await(ctx, func(ctx context.Context) error { return process.Healthy(ctx, url) })
//
// The package does not know what the servers do.
package process

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const (
	loopback     = "127.0.0.1"
	startTimeout = time.Minute // for a busy machine
	// On SIGTERM, the API server would wait for its watchers for a minute. Its data is not kept
	// anyway.
	stopTimeout = 2 * time.Second
)

// Process is a running server. The caller of [Start] must stop it.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
}

// Start runs the program at path. The output goes to the file NAME.log in dir.
func Start(dir, path string, args ...string) (*Process, error) {
	return StartCommand(dir, exec.Command(path, args...))
}

// StartCommand runs a command like [Start], for commands with an environment or a folder of their
// own. It sets the output and the process attributes of cmd.
func StartCommand(dir string, cmd *exec.Cmd) (*Process, error) {
	name := filepath.Base(cmd.Path)
	log, err := os.Create(filepath.Join(dir, name+".log"))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &Process{name: name, log: log.Name(), cmd: cmd, done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.SysProcAttr = childAttributes()
	started := make(chan error)
	go func() {
		// Linux sends the parent-death signal when the thread ends that started the child,
		// so this thread must not end before the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState has the result
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// PID returns the process ID.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Await waits until ready returns no error. It returns an error if the process ends or if a minute
// passes.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("%s has ended", p.name)) // Stop returns the end of the log
		case <-time.After(startTimeout):
			cancel(fmt.Errorf("%s is not ready after %s; the end of its log:\n%s", p.name, startTimeout, p.logTail()))
		case <-ctx.Done():
		}
	}()
	return Until(ctx, ready)
}

// Stop ends the process with SIGTERM, and with SIGKILL if it is still running two seconds later. If
// the process has ended before, Stop returns an error with the end of its log.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%s); the end of its log:\n%s", p.name, p.cmd.ProcessState, p.logTail())
	default:
	}
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err == nil {
		select {
		case <-p.done:
			return nil
		case <-time.After(stopTimeout):
		}
	}
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("stop %s: %w", p.name, err)
	}
	<-p.done
	return nil
}

func (p *Process) logTail() string {
	const lines = 15
	log, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	tail := strings.SplitAfter(strings.TrimSpace(string(log)), "\n")
	return strings.Join(tail[max(0, len(tail)-lines):], "")
}

// Until calls ready every 20 milliseconds until it returns no error or ctx ends.
func Until(ctx context.Context, ready func(context.Context) error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		case <-tick.C:
		}
	}
}

// Within waits like [Until], but at most for timeout. what names the condition in the error.
func Within(ctx context.Context, timeout time.Duration, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("not there after %s", timeout))
	defer cancel()
	if err := Until(ctx, ready); err != nil {
		return fmt.Errorf("wait for %s: %w", what, err)
	}
	return nil
}

// Sleep waits for d. It returns the cause if ctx ends earlier.
func Sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Healthy returns an error unless url answers with status 200.
func Healthy(ctx context.Context, url string) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s", url, response.Status)
	}
	return nil
}

// FreeAddresses returns n addresses on loopback on which no process listens. The ports are below
// the range that Linux uses for outgoing connections (net.ipv4.ip_local_port_range), so that no
// outgoing connection takes a port before the server does.
func FreeAddresses(n int) ([]string, error) {
	const first, ports, attempts = 20_000, 12_000, 1000
	var addresses []string
	for range attempts {
		l, err := net.Listen("tcp", net.JoinHostPort(loopback, strconv.Itoa(first+rand.IntN(ports))))
		if err != nil {
			continue
		}
		defer l.Close()
		if addresses = append(addresses, l.Addr().String()); len(addresses) == n {
			return addresses, nil
		}
	}
	return nil, errors.New("find a free port: all are in use")
}

// InFolder calls run with a new folder, and removes the folder afterwards. If run fails and ctx has
// not ended, InFolder first copies the logs in the folder to a file in the user's cache folder. The
// error names that file.
func InFolder(ctx context.Context, name string, run func(dir string) error) error {
	dir, err := os.MkdirTemp("", "akv-injector-"+name+"-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	err = run(dir)
	if err != nil && ctx.Err() == nil {
		err = fmt.Errorf("%w\n\n%s", err, saveLogs(dir, name))
	}
	return errors.Join(err, os.RemoveAll(dir))
}

// saveLogs copies all logs below dir to one file. It returns a sentence with the name of the file,
// or with the reason why there is none.
func saveLogs(dir, name string) string {
	cache, err := os.UserCacheDir()
	if err != nil {
		return err.Error()
	}
	var logs []byte
	err = filepath.WalkDir(dir, func(file string, _ os.DirEntry, err error) error {
		if err != nil || filepath.Ext(file) != ".log" {
			return err
		}
		log, err := os.ReadFile(file)
		logs = fmt.Appendf(logs, "==> %s\n%s\n", filepath.Base(file), log)
		return err
	})
	if err != nil {
		return err.Error()
	}
	file := filepath.Join(cache, "akv-injector", name+".log")
	if err := os.WriteFile(file, logs, 0o600); err != nil {
		return err.Error()
	}
	return "The logs are in " + file
}
