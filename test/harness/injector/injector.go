// Package injector runs the injector beside a control plane as it runs in a cluster: its own ServiceAccount's token and
// what deploy/kustomize ships, RBAC and webhook configuration, so that a test shows these to be enough. Only the way by
// which the API server calls is another: a URL on loopback, or a Service that leads to loopback.
//
// It knows nothing of what the injector decides.
package injector

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/cgroups"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	name      = "akv-injector"
	namespace = name + "-system"
)

// Options says how the injector is run. The zero value is fine.
type Options struct {
	// Binary is the program. Empty means that of the function Build.
	Binary string
	// Args are added to serve's own, each as "--flag=value"; the last one of a flag holds. Without any of them it does not drain.
	Args []string
	// Service is the address on loopback that the Service of the injector leads to. The API server then calls as it does in a
	// cluster: by HTTP/1.1 on connections that it keeps, with the Service's name in the certificate. Whoever says an address listens
	// there, and passes connections on. Empty means that the API server calls the URL of the injector that was started last.
	Service string
	// MemoryLimit is the limit of its memory in bytes, by a cgroup. The injector is started with the GOMEMLIMIT of the chart, seven eighths of it. It
	// needs root. Zero means no limit.
	MemoryLimit int64
}

// Injector is a running injector. Whoever starts one must stop it, before the control plane.
type Injector struct {
	*process.Process
	// URL is where it serves reviews, over HTTPS; the paths are those of the webhook configuration.
	URL string
	// Address is the host and port of URL.
	Address string
	// Readiness is the URL of its readiness probe.
	Readiness string
	// Metrics is the URL of its metrics.
	Metrics string
	// Dir has its kubeconfig and its log, akv-injector.log. It is a folder in that of the control plane.
	Dir string

	limited *cgroups.Group // nil unless its memory is limited
}

// Build builds the injector from the tree around this module, as it is shipped, and returns the program's path. The go
// command must find this package's module: call it from a folder inside.
func Build(ctx context.Context) (string, error) {
	root, err := tree(ctx)
	if err != nil {
		return "", err
	}
	program := filepath.Join(root, "bin", "test", name)
	if err := build.Program(ctx, root, program, "-trimpath", "-ldflags=-s -w", "."); err != nil {
		return "", err
	}
	return program, nil
}

// Start applies what deploy/kustomize ships, but the Deployment and its Service, runs the injector with the rights of its
// ServiceAccount, and returns when it is ready. The API server may take another second to call it: see WaitUntilCalled.
// The context bounds the start only.
func Start(ctx context.Context, plane *controlplane.ControlPlane, opts Options) (_ *Injector, err error) {
	if opts.Binary == "" {
		if opts.Binary, err = Build(ctx); err != nil {
			return nil, err
		}
	}
	addresses, err := process.FreeAddresses(3)
	if err != nil {
		return nil, fmt.Errorf("start the injector: %w", err)
	}
	dir, err := os.MkdirTemp(plane.Dir, name+"-")
	if err != nil {
		return nil, fmt.Errorf("start the injector: %w", err)
	}
	i := &Injector{
		URL: "https://" + addresses[0], Address: addresses[0], Dir: dir,
		Metrics: "http://" + addresses[1] + "/metrics", Readiness: "http://" + addresses[2] + "/readyz",
	}
	route := func(object *unstructured.Unstructured) error { return callByURL(object, i.URL) }
	if opts.Service != "" {
		if route, err = byService(ctx, plane.Config, opts.Service); err != nil {
			return nil, err
		}
	}
	if err := apply(ctx, plane.Config, route); err != nil {
		return nil, err
	}
	kubeconfig := filepath.Join(dir, "kubeconfig")
	if err := plane.WriteKubeconfig(ctx, namespace, name, kubeconfig); err != nil {
		return nil, err
	}
	cmd := exec.Command(opts.Binary, append([]string{
		"serve", "--certs=self-signed", "--drain-period=0", "--kubeconfig=" + kubeconfig, "--namespace=" + namespace,
		"--webhook-bind-address=" + addresses[0],
		"--metrics-bind-address=" + addresses[1],
		"--health-probe-bind-address=" + addresses[2],
	}, opts.Args...)...)
	if err := i.run(cmd, opts.MemoryLimit); err != nil {
		return nil, fmt.Errorf("start the injector: %w", err)
	}
	ready := func(ctx context.Context) error { return process.Healthy(ctx, i.Readiness) }
	if err := i.Await(ctx, ready); err != nil {
		return nil, errors.Join(fmt.Errorf("start the injector: %w", err), i.Stop())
	}
	return i, nil
}

func (i *Injector) run(cmd *exec.Cmd, memoryLimit int64) (err error) {
	if memoryLimit != 0 {
		if i.limited, err = cgroups.Make(cgroups.NewName()); err != nil {
			return err
		}
		if err := i.limited.LimitMemory(memoryLimit); err != nil {
			return errors.Join(err, i.limited.Remove())
		}
		cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%dB", memoryLimit/8*7))
	}
	i.Process, err = process.StartCommand(i.Dir, cmd)
	if i.limited == nil {
		return err
	}
	if err == nil {
		err = i.limited.Add(i.PID())
	}
	if err != nil {
		return errors.Join(err, i.Stop())
	}
	return nil
}

// Stop ends it, as [process.Process.Stop] does.
func (i *Injector) Stop() error {
	var err error
	if i.Process != nil {
		err = i.Process.Stop()
	}
	if i.limited != nil {
		err = errors.Join(err, i.limited.Remove())
	}
	return err
}

// WaitUntilCalled returns when the API server asks the injector about pods of a namespace. The namespace must have opted
// in and have its ServiceAccount default; nothing is created in it.
func WaitUntilCalled(ctx context.Context, cfg *rest.Config, namespace string) error {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("make a client: %w", err)
	}
	// Only the injector refuses this pod.
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "probe-", Annotations: map[string]string{"keyvault.io/inject": "perhaps"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "probe", Image: "probe"}}},
	}
	return process.Until(ctx, func(ctx context.Context) error {
		_, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		switch {
		case err == nil:
			return errors.New("the injector is not called yet")
		case strings.Contains(err.Error(), "denied the request"):
			return nil
		default:
			return err
		}
	})
}

// tree is the folder of the injector's own module.
func tree(ctx context.Context) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/akv-injector/akv-injector").Output()
	if err != nil {
		return "", fmt.Errorf("find the injector's source: %w", err)
	}
	return strings.TrimSpace(string(out)), nil
}
