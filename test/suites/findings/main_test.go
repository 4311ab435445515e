// Package findings_test tests what the injector reports about objects that exist, with a real API
// server and the shipped rights: its findings, and its canary. The API server calls the injector by
// its Service, through a forwarder that tests can break. All tests share one control plane, and run
// one after the other.
package findings_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const canaryNamespace = chart.Namespace + "-canary"

// What all tests share.
var (
	plane  *controlplane.ControlPlane
	client kubernetes.Interface
	server *injector.Injector // called by the API server
	front  *forwarder         // between the API server and server
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "findings:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Building the control plane takes minutes when it is not cached.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if plane, err = controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	if client, err = kubernetes.NewForConfig(plane.Config); err != nil {
		return 0, err
	}
	if front, err = newForwarder(); err != nil {
		return 0, err
	}
	defer front.stop()
	if err := applyCanary(ctx); err != nil {
		return 0, err
	}
	server, err = injector.Start(ctx, plane, injector.Options{
		Service: front.address, Args: []string{
			"--canary-namespace=" + canaryNamespace, "--canary-interval=10s",
			"--env-files=check", "--env-files-namespace=" + canaryNamespace, "--env-file-image=localhost/akv-injector:1",
		},
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop(), checkLogs()) }()
	front.forwardTo(server.Address)
	if err := injector.WaitUntilCalled(ctx, plane.Config, canaryNamespace); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// applyCanary applies what the chart adds for the canary and for env files.
func applyCanary(ctx context.Context) error {
	objects, err := chart.Render(ctx, chart.Options{Values: map[string]any{
		"canary": map[string]any{"enabled": true}, "envFiles": map[string]any{"mode": "check"},
	}})
	if err != nil {
		return err
	}
	for _, object := range objects {
		name := object.GetName()
		if object.GetNamespace() != canaryNamespace && name != canaryNamespace && name != "canary.akv-injector.io" &&
			name != "akv-injector-env-files" {
			continue
		}
		if err := process.Until(ctx, func(ctx context.Context) error { // the namespace must exist before the rest
			data, err := object.MarshalJSON()
			if err != nil {
				return err
			}
			return plane.RunKubectl(ctx, string(data), "apply", "--filename=-")
		}); err != nil {
			return err
		}
	}
	return plane.WaitForServiceAccount(ctx, canaryNamespace)
}

// checkLogs reads the logs of all injectors. The API server may have denied no request but those of
// the test in which the canary lacks its right.
func checkLogs() error {
	files, err := filepath.Glob(filepath.Join(plane.Dir, "*", "akv-injector.log"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("find the injectors' logs: %w", err)
	}
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		errs = append(errs, err)
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, "is forbidden: User ") && !strings.Contains(line, `cannot create resource \"pods\"`) {
				errs = append(errs, fmt.Errorf("the injector lacks a right: %s", line))
			}
		}
	}
	return errors.Join(errs...)
}

// forwarder accepts connections on loopback and forwards them.
type forwarder struct {
	address string

	mu       sync.Mutex
	listener net.Listener
	target   string // empty: connections hang
	open     []net.Conn
}

func newForwarder() (*forwarder, error) {
	addresses, err := process.FreeAddresses(1)
	if err != nil {
		return nil, err
	}
	f := &forwarder{address: addresses[0]}
	return f, f.listen()
}

func (f *forwarder) listen() error {
	listener, err := net.Listen("tcp", f.address)
	if err != nil {
		return err
	}
	f.listener = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			f.accept(conn)
		}
	}()
	return nil
}

func (f *forwarder) accept(conn net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open = append(f.open, conn)
	if f.target == "" {
		return
	}
	to, err := net.Dial("tcp", f.target)
	if err != nil {
		_ = conn.Close()
		return
	}
	f.open = append(f.open, to)
	for _, pair := range [][2]net.Conn{{conn, to}, {to, conn}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1]) // until either side ends
			_ = pair[0].Close()
		}()
	}
}

// forwardTo forwards all connections to an address; with an empty one, they hang.
func (f *forwarder) forwardTo(target string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.target = target
	for _, conn := range f.open {
		_ = conn.Close()
	}
	f.open = nil
}

// stop ends all connections and listens no longer.
func (f *forwarder) stop() {
	_ = f.listener.Close()
	f.forwardTo(f.target)
}
