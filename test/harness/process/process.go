// Package process runs a server as a child process whose output is a file, and waits for it: the control plane's
// servers, and the injector beside them. No child outlives its parent.
//
// It knows nothing of what the servers do.
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
	startTimeout = time.Minute // on a machine that is busy with other things
	// The API server would wait a minute for its watchers, and nothing of its data is kept.
	stopTimeout = 2 * time.Second
)

// Process is a running server. Whoever starts one must stop it.
type Process struct {
	name string
	log  string
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
}

// Start runs the program at path, with the file NAME.log in dir as its output.
func Start(dir, path string, args ...string) (*Process, error) {
	return StartCommand(dir, exec.Command(path, args...))
}

// StartCommand does as Start does with a command that has more to it than arguments. Its output and its attributes are not the
// caller's to set.
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
		// Linux sends the parent-death signal when the thread ends that started the child, so this one must stay.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer log.Close()
		err := p.cmd.Start()
		started <- err
		if err == nil {
			_ = p.cmd.Wait() // ProcessState has the outcome
			close(p.done)
		}
	}()
	if err := <-started; err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return p, nil
}

// PID is the process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Await returns when ready gives no error, or when the process ends or takes too long for that.
func (p *Process) Await(ctx context.Context, ready func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-p.done:
			cancel(fmt.Errorf("%s has ended", p.name)) // Stop tells the rest
		case <-time.After(startTimeout):
			cancel(fmt.Errorf("%s is not ready after %s, the end of its log:\n%s", p.name, startTimeout, p.logTail()))
		case <-ctx.Done():
		}
	}()
	return Until(ctx, ready)
}

// Stop ends the process, gently first, and returns when it is gone. One that had ended before is an error, which has the
// end of its log.
func (p *Process) Stop() error {
	select {
	case <-p.done:
		return fmt.Errorf("%s ended (%s), the end of its log:\n%s", p.name, p.cmd.ProcessState, p.logTail())
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

// Until calls ready every few milliseconds until it gives no error, or ctx is done.
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

// Healthy is an error unless url answers 200.
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

// FreeAddresses returns n addresses on loopback on which no process listens. Their ports are below those that Linux gives to outgoing connections
// (net.ipv4.ip_local_port_range), of which one could take the port before the server does.
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
	return nil, errors.New("find a free port: there is none")
}

// SaveLogs puts all logs below dir into one file of the user's cache folder, and says in a sentence where, or why not.
func SaveLogs(dir, name string) string {
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
	return "The servers' logs are in " + file
}
