// Package injector runs the injector next to a control plane with its own ServiceAccount's token
// and with the RBAC and the webhook configurations of deploy/kustomize, so that a test also proves
// that these are sufficient. The only difference from a cluster is how the API server reaches the
// injector: by a URL on loopback, or by a Service that leads to loopback.
//
//	started, err := injector.Start(ctx, plane, injector.Options{})
//	defer started.Stop()
//	err = injector.WaitUntilCalled(ctx, plane.Config, namespace)
//
// The package does not know what the injector decides.
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
	"k8s.io/client-go/tools/clientcmd"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/cgroups"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	name      = "akv-injector"
	namespace = name + "-system"
)

// Options are the options of [Start]. The zero value is valid.
type Options struct {
	// Binary is the path of the program. Empty means the result of [Build].
	Binary string
	// Args are additional arguments of the command serve, each as "--flag=value". The last value of
	// a flag applies. The default drain period is zero.
	Args []string
	// Service is the address on loopback to which the injector's Service leads. The API server then
	// calls the injector as in a cluster: over HTTP/1.1 on persistent connections, with the
	// Service's name in the certificate. The caller must listen on the address and forward
	// connections to the injector. Empty means that the API server calls the URL of the injector
	// that was started last.
	Service string
	// MemoryLimit is the memory limit in bytes, which a cgroup enforces. As in the chart,
	// GOMEMLIMIT is seven eighths of it. A limit needs root. Zero means no limit.
	MemoryLimit int64
}

// Injector is a running injector. The caller of [Start] must stop it, before the control plane.
type Injector struct {
	*process.Process
	// URL is the HTTPS URL of the webhook server. The paths are those of the webhook
	// configurations.
	URL string
	// Address is the host and port of URL.
	Address string
	// Readiness is the URL of its readiness probe.
	Readiness string
	// Metrics is the URL of its metrics.
	Metrics string
	// Dir has the kubeconfig and the log, akv-injector.log. It is in the folder of the control
	// plane.
	Dir string

	limited *cgroups.Group // nil unless its memory is limited
}

// Build builds the injector from the surrounding source tree, with the flags of a release, and
// returns the path of the program. The current folder must be inside this package's module.
func Build(ctx context.Context) (string, error) {
	root, err := build.ModuleFolder(ctx, build.Module)
	if err != nil {
		return "", err
	}
	program := filepath.Join(root, "bin", "test", name)
	if err := build.Program(ctx, root, program, "-trimpath", "-ldflags=-s -w", "."); err != nil {
		return "", err
	}
	if err := build.Program(ctx, root, filepath.Join(filepath.Dir(program), EnvProgram), "-trimpath", "-ldflags=-s -w", "./"+EnvProgram); err != nil {
		return "", err
	}
	return program, nil
}

// EnvProgram is the name of the program in the injector's image that writes env files. [Build] builds it
// next to the injector.
const EnvProgram = "akv-env"

// Start applies the manifests of deploy/kustomize except the Deployment and the Service, runs the
// injector with the rights of its ServiceAccount, and waits until it is ready. The API server may
// take another second until it calls the injector; see [WaitUntilCalled]. The context limits the
// start only.
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

// Client returns a client with the rights of the injector's ServiceAccount. It ignores warnings.
func (i *Injector) Client() (kubernetes.Interface, error) {
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(i.Dir, "kubeconfig"))
	if err != nil {
		return nil, fmt.Errorf("read the injector's kubeconfig: %w", err)
	}
	config.WarningHandlerWithContext = rest.NoWarnings{}
	return kubernetes.NewForConfig(config)
}

// Stop stops the injector like [process.Process.Stop], and removes its cgroup.
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

// WaitUntilCalled waits until the API server calls the injector for pods of a namespace. The
// namespace must have opted in and have its ServiceAccount default. WaitUntilCalled creates no
// object.
func WaitUntilCalled(ctx context.Context, cfg *rest.Config, namespace string) error {
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	// Only the injector rejects this pod.
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
