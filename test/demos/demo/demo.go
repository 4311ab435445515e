package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

//go:embed *.yaml
var manifests embed.FS

// patience is the time limit for each thing that the cluster does, on a busy machine.
const patience = time.Minute

// demo is one run of the demonstration.
type demo struct {
	dir      string // has the manifests and the folders of the servers
	out      *page.Page
	begin    time.Time
	plane    *controlplane.ControlPlane
	injector *injector.Injector
	client   kubernetes.Interface
}

// run starts the servers, shows everything, and stops the servers.
func (d *demo) run(ctx context.Context, keep bool) (err error) {
	defer func() { err = errors.Join(err, d.stop()) }()
	if err := d.start(ctx); err != nil {
		return err
	}
	if err := d.show(ctx); err != nil {
		return err
	}
	if keep {
		d.wait(ctx)
	}
	return nil
}

// start builds and starts all servers.
func (d *demo) start(ctx context.Context) error {
	if err := os.CopyFS(d.dir, manifests); err != nil {
		return fmt.Errorf("write the manifests: %w", err)
	}
	binaries, err := controlplane.Binaries(ctx, os.Stdout)
	if err != nil {
		return err
	}
	d.begin = time.Now()

	buildCtx, cancel := context.WithCancel(ctx)
	var (
		program  string
		buildErr error
		building sync.WaitGroup
	)
	building.Go(func() { program, buildErr = injector.Build(buildCtx) })
	defer building.Wait()
	defer cancel()

	d.out.Say("")
	err = d.out.Step("Kubernetes: etcd, API server and controllers, on 127.0.0.1", func() (err error) {
		d.plane, err = controlplane.Start(ctx, controlplane.Options{
			Binaries: binaries, TempDir: d.dir, Keep: true, BeforeControllers: controlplane.InstallCRDs,
		})
		if err != nil {
			return err
		}
		d.client, err = kubernetes.NewForConfig(d.plane.Config)
		return err
	})
	if err != nil {
		return err
	}
	return d.out.Step("akv-injector: built from this tree; RBAC and webhooks as shipped", func() (err error) {
		if building.Wait(); buildErr != nil {
			return buildErr
		}
		d.injector, err = injector.Start(ctx, d.plane, injector.Options{Binary: program})
		return err
	})
}

// stop stops the servers.
func (d *demo) stop() error {
	var errs []error
	if d.injector != nil {
		errs = append(errs, d.injector.Stop())
	}
	if d.plane != nil {
		errs = append(errs, d.plane.Stop())
	}
	return errors.Join(errs...)
}

// show shows all parts.
func (d *demo) show(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 2*patience, fmt.Errorf("not finished after %s", 2*patience))
	defer cancel()
	for _, part := range []func(context.Context) error{d.optIn, d.inject, d.manage, d.misspell, d.missClass} {
		if err := part(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) optIn(ctx context.Context) error {
	d.out.Title("1. A namespace opts in. A class and an identity binding exist, as without the injector.")
	_, err := d.kubectl(ctx, true, "label", "namespace", "default", "keyvault.io/injection=enabled")
	if err != nil {
		return err
	}
	if _, err := d.kubectl(ctx, true, "apply", "-f", "cluster.yaml"); err != nil {
		return err
	}
	return injector.WaitUntilCalled(ctx, d.plane.Config, metav1.NamespaceDefault)
}

func (d *demo) inject(ctx context.Context) error {
	d.out.Title("2. Three annotations on a Deployment replace the volume, the mount, the variable and the label.")
	if _, err := d.kubectl(ctx, true, "apply", "-f", "deployment.yaml"); err != nil {
		return err
	}
	pod, err := d.podOf(ctx, "csi-demo")
	if err != nil {
		return err
	}
	written, err := manifests.ReadFile("deployment.yaml")
	if err != nil {
		return err
	}
	fields, err := d.compare(ctx, written, pod)
	if err != nil {
		return err
	}
	var request []page.Line
	for text := range strings.Lines(string(written)) {
		request = append(request, page.Line{Text: strings.TrimRight(text, "\n")})
	}
	d.out.Say("")
	d.out.Columns("deployment.yaml, as you write it", request, "its pod, with + for what is injected", fields)
	return d.sameAsByHand(pod)
}

func (d *demo) manage(ctx context.Context) error {
	d.out.Title("3. If the namespace names the vault, one annotation is enough: the injector creates the class.")
	if _, err := d.kubectl(ctx, true, "apply", "-f", "managed.yaml"); err != nil {
		return err
	}
	d.out.Say("")
	d.out.Output("The Deployment's only annotation is keyvault.io/secrets: KEYVAULT_SECRET=secret-425\n")
	const classes = "secretproviderclasses"
	if err := process.Within(ctx, patience, "the class", func(ctx context.Context) error {
		out, err := d.plane.Kubectl(ctx, "get", classes, "--namespace=shop", "-o=name").Output()
		if err == nil && len(out) == 0 {
			err = errors.New("there is none")
		}
		return err
	}); err != nil {
		return err
	}
	out, err := d.kubectl(ctx, true, "get", classes, "-n=shop", "-o=yaml")
	if err != nil {
		return err
	}
	return page.Contains(out, "app.kubernetes.io/managed-by: akv-injector", "kind: ReplicaSet", "keyvaultName: nf425csi",
		"clientID: 11111111-2222-3333-4444-555555555555", `objectName: "secret-425"`, "secretName: kv-")
}

func (d *demo) misspell(ctx context.Context) error {
	d.out.Title("4. A misspelt annotation is rejected at once.")
	out, err := d.kubectl(ctx, false, "apply", "-f", "misspelt.yaml")
	if err != nil {
		return err
	}
	return page.Contains(out, "metadata.annotations[keyvault.io/classes]", "[UnknownKey]", "did you mean keyvault.io/class?")
}

func (d *demo) missClass(ctx context.Context) error {
	d.out.Title("5. A missing class is a warning for a Deployment, and an error for its pods until the class exists.")
	wants := []string{"[ClassNotFound]", "metadata.annotations[keyvault.io/class][0]", "did you mean key-vault-secret?"}
	out, err := d.kubectl(ctx, true, "apply", "-f", "no-class.yaml")
	if err != nil {
		return err
	}
	if err := page.Contains(out, wants...); err != nil {
		return err
	}
	if err := process.Within(ctx, patience, "the ReplicaSet's event", func(ctx context.Context) error {
		events, err := d.client.CoreV1().Events(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err == nil && len(events.Items) == 0 {
			err = errors.New("there is none")
		}
		return err
	}); err != nil {
		return err
	}
	out, err = d.kubectl(ctx, true, "get", "events", "--field-selector=reason=FailedCreate", "-o=custom-columns=MESSAGE:.message")
	if err != nil {
		return err
	}
	return page.Contains(out, wants...)
}

// kubectl shows a kubectl command, runs it in the folder of the manifests, and returns its output.
// It returns an error unless the command succeeds or fails as wanted.
func (d *demo) kubectl(ctx context.Context, succeeds bool, args ...string) (string, error) {
	command := "kubectl " + strings.Join(args, " ")
	d.out.Command(command)
	cmd := d.plane.Kubectl(ctx, args...)
	cmd.Dir = d.dir
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	d.out.Output(string(out))
	switch {
	case err != nil && succeeds:
		return "", fmt.Errorf("%s: %w", command, err)
	case err == nil && !succeeds:
		return "", fmt.Errorf("%s: must be rejected, is not", command)
	}
	return string(out), nil
}

// podOf waits for the pod of a Deployment and returns it.
func (d *demo) podOf(ctx context.Context, deployment string) (*corev1.Pod, error) {
	var pod *corev1.Pod
	err := process.Within(ctx, patience, "the pod of Deployment "+deployment, func(ctx context.Context) error {
		pods, err := d.client.CoreV1().Pods(metav1.NamespaceDefault).List(ctx, metav1.ListOptions{LabelSelector: "app=" + deployment})
		if err != nil {
			return err
		}
		if len(pods.Items) == 0 {
			return errors.New("there is none")
		}
		pod = &pods.Items[0]
		return nil
	})
	return pod, err
}

// wait prints how to use the running servers. It returns when ctx ends or a server has ended
// unexpectedly; then stop returns an error that names the server.
func (d *demo) wait(ctx context.Context) {
	d.out.Title(fmt.Sprintf("All checks passed after %.1f s. The servers keep running. In another terminal:",
		time.Since(d.begin).Seconds()))
	d.out.Say(fmt.Sprintf(`
  export KUBECONFIG=%s
  export PATH=%s:$PATH

  kubectl get pod -l app=csi-demo -o yaml
  kubectl annotate deployment csi-demo keyvault.io/mount-path=/etc/vault    # a new pod, mounted there
  kubectl annotate deployment csi-demo keyvault.io/containers=web           # a warning: there is only nginx
  kubectl delete secretproviderclasses -n shop --all                        # recreated in half a second
  kubectl run try --image=nginx --annotations=keyvault.io/mount-path=etc    # an error

The manifests are in %s. Press Ctrl-C to stop and remove everything.`, d.plane.Kubeconfig, d.plane.Binaries, d.dir))
	ended, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-d.injector.Done():
			cancel()
		case <-ended.Done():
		}
	}()
	d.plane.Wait(ended)
}
