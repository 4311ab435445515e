package main

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	programs "github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/node"
	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

//go:embed manifests
var embedded embed.FS

// patience is the time limit for each thing that the cluster does, on a busy machine.
const patience = time.Minute

// The programs of the show that are not parts of the node.
const injectorProgram, certManagerProgram, helmProgram = "akv-injector", "cert-manager", "helm"

// buildPrograms builds the programs unless they are up to date, and returns their paths by name.
func buildPrograms(ctx context.Context) (map[string]string, error) {
	built := map[string]string{}
	for _, program := range []struct {
		name string
		make func(context.Context) (string, error)
	}{
		{injectorProgram, injector.Build},
		{certManagerProgram, certmanager.Build},
	} {
		var file string
		if err := programs.Announced(os.Stdout, program.name, "a minute", func() (err error) {
			file, err = program.make(ctx)
			return err
		}); err != nil {
			return nil, err
		}
		built[program.name] = file
	}
	file, err := chart.Helm(ctx, 4, os.Stdout)
	built[helmProgram] = file
	return built, err
}

// show is one run, in a machine.
type show struct {
	machine *node.Machine
	dir     string // has the manifests and the folders of the servers
	out     *page.Page
	begin   time.Time
	scene   int // number of the current scene
	// watch ends the show when wait returns, which means that a server has ended unexpectedly.
	watch func(wait func(context.Context))

	azure       node.Options
	plane       *controlplane.ControlPlane
	node        *node.Node
	certManager *process.Process
}

// parts are the parts of the show in their order. Their names are arguments of the command.
var parts = []struct {
	name   string
	scenes []scene
}{
	{"stories", stories},
	{"failures", failures},
	{"faults", faults},
	{"attacks", attacks},
}

// The parts that run only if they are named.
const measureLatency, measureRotation, measureRestarts = "latency", "rotation", "restarts"

// run starts the servers, shows the parts in only, or all parts if only is empty, and stops the
// servers.
func (s *show) run(ctx context.Context, only []string, keep bool) (err error) {
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	s.watch = func(wait func(context.Context)) {
		go func() {
			wait(ctx)
			end(errors.New("a server has ended"))
		}()
	}
	defer func() {
		if ctx.Err() != nil {
			err = context.Cause(ctx) // other errors are only consequences
		}
		err = errors.Join(err, s.stop()) // stop returns which server has ended
	}()
	if err := s.start(ctx); err != nil {
		return err
	}
	for _, part := range parts {
		if len(only) > 0 && !slices.Contains(only, part.name) {
			continue
		}
		if err := s.play(ctx, part.scenes); err != nil {
			return err
		}
	}
	for name, measure := range map[string]func(context.Context) error{
		measureLatency: s.latency, measureRotation: s.readsOfRotation, measureRestarts: s.restarts,
	} {
		if !slices.Contains(only, name) {
			continue
		}
		if err := measure(ctx); err != nil {
			return err
		}
	}
	s.out.Say(fmt.Sprintf("\nAll checks passed after %.1f s.", time.Since(s.begin).Seconds()))
	if keep {
		s.out.Say(fmt.Sprintf(`The servers keep running. In another terminal, as root:

  %s
  export KUBECONFIG=%s
  export PATH=%s:$PATH

Press Ctrl-C to stop and remove everything.`, s.machine.Visit(), s.plane.Kubeconfig, s.plane.Binaries))
		<-ctx.Done()
	}
	return nil
}

// start starts the cluster, and installs cert-manager and the injector.
func (s *show) start(ctx context.Context) error {
	manifests, err := fs.Sub(embedded, "manifests")
	if err == nil {
		err = os.CopyFS(s.dir, manifests)
	}
	if err != nil {
		return fmt.Errorf("write the manifests: %w", err)
	}
	s.out.Say("")
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"Kubernetes: etcd, API server and controllers", s.startPlane},
		{"a node: scheduler, kubelet, containerd, firewall, CSI driver, Azure provider", s.startNode},
		{"cert-manager, and akv-injector by its chart, as shipped", s.install},
	} {
		if err := s.out.Step(step.what, func() error { return step.do(ctx) }); err != nil {
			return err
		}
	}
	return nil
}

func (s *show) startPlane(ctx context.Context) (err error) {
	s.plane, err = controlplane.Start(ctx, controlplane.Options{
		Binaries: s.machine.Parts.ControlPlane, TempDir: s.dir, Keep: true,
		APIServerArgs: node.APIServerArgs, BeforeControllers: controlplane.InstallCRDs,
	})
	if err == nil {
		s.watch(s.plane.Wait)
	}
	return err
}

func (s *show) startNode(ctx context.Context) (err error) {
	if s.azure, err = fakeAzure(); err != nil {
		return err
	}
	if s.node, err = s.machine.Start(ctx, s.plane, s.azure); err == nil {
		s.watch(s.node.Wait)
	}
	return err
}

// install installs the injector as docs/operations.md describes, except that cert-manager's
// controllers run outside the cluster.
func (s *show) install(ctx context.Context) (err error) {
	const repository, tag = "localhost/akv-injector", "1"
	program := s.machine.Parts.More[injectorProgram]
	if err := s.node.Load(ctx, repository+":"+tag, program, filepath.Join(filepath.Dir(program), injector.EnvProgram)); err != nil {
		return err
	}
	if err := certmanager.InstallCRDs(ctx, s.plane); err != nil {
		return err
	}
	if s.certManager, err = certmanager.Start(s.plane, s.machine.Parts.More[certManagerProgram]); err != nil {
		return err
	}
	s.watch(func(ctx context.Context) {
		select {
		case <-s.certManager.Done():
		case <-ctx.Done():
		}
	})
	if err := s.plane.RunKubectl(ctx, "", "create", "namespace", chart.Namespace); err != nil {
		return err
	}
	objects, err := chart.Render(ctx, chart.Options{
		Helm: s.machine.Parts.More[helmProgram], Values: map[string]any{
			"image":         map[string]any{"repository": repository, "tag": tag},
			"envFiles":      map[string]any{"mode": "check"},
			"networkPolicy": map[string]any{"podCIDRs": []string{node.PodNetwork}},
			"rotation":      map[string]any{"enabled": true, "minInterval": "1s", "timeout": "1m"},
		},
	})
	if err != nil {
		return err
	}
	if _, err := chart.Apply(ctx, s.plane.Config, objects, metav1.PatchOptions{}); err != nil {
		return err
	}
	return s.plane.RunKubectl(ctx, "", "rollout", "status", "deployment/"+chart.Name, "--namespace="+chart.Namespace,
		"--timeout="+patience.String())
}

// stop stops the servers.
func (s *show) stop() error {
	var errs []error
	if s.certManager != nil {
		errs = append(errs, s.certManager.Stop())
	}
	if s.node != nil {
		errs = append(errs, s.node.Stop())
	}
	if s.plane != nil {
		errs = append(errs, s.plane.Stop())
	}
	return errors.Join(errs...)
}
