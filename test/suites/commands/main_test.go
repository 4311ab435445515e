// Package commands_test runs the commands that read a cluster, check and list, on a real API server
// with the injector and the controllers that create pods. There is no kubelet: the tests bind pods to
// a node and make them ready, as a scheduler and a kubelet would.
//
// The tests break real objects, one after the other, so none of them is parallel.
package commands_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	version           = "v1.2.3"
	configuration     = "akv-injector"
	injectorNamespace = "akv-injector-system"
	// patience is the timeout of everything that a test waits for.
	patience = 40 * time.Second
)

// What all tests share.
var (
	plane   *controlplane.ControlPlane
	server  *injector.Injector
	program string // the command with a version
	client  kubernetes.Interface
	objects dynamic.Interface
	// kubeconfigs are those of users: admin, tenant (ClusterRole edit in namespace shop) and nobody.
	kubeconfigs = map[string]string{}
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "commands:", err)
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
	quiet := rest.CopyConfig(plane.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	if client, err = kubernetes.NewForConfig(quiet); err != nil {
		return 0, err
	}
	if objects, err = dynamic.NewForConfig(quiet); err != nil {
		return 0, err
	}
	root, err := build.ModuleFolder(ctx, build.Module)
	if err != nil {
		return 0, err
	}
	program = filepath.Join(plane.Dir, "akv-injector")
	if err := build.Program(ctx, root, program, "-trimpath", "-ldflags=-s -w -X main.version="+version, "."); err != nil {
		return 0, err
	}
	if err := startInjector(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := certmanager.InstallCRDs(ctx, plane); err != nil {
		return 0, err
	}
	if err := install(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// startInjector starts the injector behind its Service.
func startInjector(ctx context.Context) error {
	addresses, err := process.FreeAddresses(1)
	if err != nil {
		return err
	}
	server, err = injector.Start(ctx, plane, injector.Options{
		Binary: program, Service: addresses[0], Args: []string{"--webhook-bind-address=" + addresses[0], "--tenant-id=" + tenantID},
	})
	return err
}

const tenantID = "11111111-2222-3333-4444-555555555555"

// install applies the rest of a healthy cluster, and makes its pods ready.
func install(ctx context.Context) error {
	for _, file := range []string{"testdata/cluster.yaml", "testdata/shop.yaml"} {
		if err := plane.RunKubectl(ctx, "", "apply", "--filename="+file); err != nil {
			return err
		}
	}
	certificate := []byte(`{"status": {"notAfter": "2099-01-02T00:00:00Z", "conditions": [{"type": "Ready", "status": "True"}]}}`)
	if _, err := objects.Resource(certificates).Namespace(injectorNamespace).
		Patch(ctx, "akv-injector", types.MergePatchType, certificate, metav1.PatchOptions{}, "status"); err != nil {
		return err
	}
	for user, account := range map[string]string{"tenant": "tenant", "nobody": "default"} {
		kubeconfigs[user] = filepath.Join(plane.Dir, user+".kubeconfig")
		if err := errors.Join(plane.WaitForServiceAccount(ctx, "shop"), plane.WriteKubeconfig(ctx, "shop", account, kubeconfigs[user])); err != nil {
			return err
		}
	}
	kubeconfigs["admin"] = plane.Kubeconfig
	if err := injector.WaitUntilCalled(ctx, plane.Config, "shop"); err != nil {
		return err
	}
	if err := plane.RunKubectl(ctx, "", "apply", "--filename=testdata/workloads.yaml"); err != nil {
		return err
	}
	return awaitReady(ctx)
}

// awaitReady binds all pods to the node, makes them ready, and waits until the controllers have
// seen it.
func awaitReady(ctx context.Context) error {
	return process.Within(ctx, patience, "ready pods", func(ctx context.Context) error {
		pods, err := client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range pods.Items {
			if err := makeReady(ctx, &pods.Items[i]); err != nil {
				return err
			}
		}
		deployments, err := client.AppsV1().Deployments("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range deployments.Items {
			if d.Status.ReadyReplicas != *d.Spec.Replicas || d.Status.ObservedGeneration != d.Generation {
				return fmt.Errorf("%d replicas of Deployment %s/%s are ready", d.Status.ReadyReplicas, d.Namespace, d.Name)
			}
		}
		daemonSets, err := client.AppsV1().DaemonSets("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, d := range daemonSets.Items {
			if d.Status.NumberReady != 1 {
				return fmt.Errorf("%d pods of DaemonSet %s/%s are ready", d.Status.NumberReady, d.Namespace, d.Name)
			}
		}
		return nil
	})
}

// makeReady does what scheduler and kubelet would do for a pod.
func makeReady(ctx context.Context, pod *corev1.Pod) error {
	if pod.DeletionTimestamp != nil {
		err := client.CoreV1().Pods(pod.Namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64)})
		return ignoreNotFound(err)
	}
	if pod.Spec.NodeName == "" {
		binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Namespace: pod.Namespace}, Target: corev1.ObjectReference{Kind: "Node", Name: "node-1"}}
		if err := client.CoreV1().Pods(pod.Namespace).Bind(ctx, binding, metav1.CreateOptions{}); err != nil && !apierrors.IsConflict(err) {
			return ignoreNotFound(err)
		}
	}
	return setReady(ctx, pod, corev1.ConditionTrue)
}

func setReady(ctx context.Context, pod *corev1.Pod, ready corev1.ConditionStatus) error {
	patch := fmt.Sprintf(`{"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": %q}]}}`, ready)
	_, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}, "status")
	return ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// outcome is what a command printed, and its exit status.
type outcome struct {
	stdout, stderr string
	status         int
}

// akv runs the command as a user.
func akv(ctx context.Context, t *testing.T, user string, args ...string) outcome {
	t.Helper()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfigs[user])
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if _, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok && ctx.Err() == nil {
		t.Fatal(err)
	}
	return outcome{stdout.String(), stderr.String(), cmd.ProcessState.ExitCode()}
}

// line is a line of a report.
type line struct {
	State   string   `json:"state"`
	Text    string   `json:"text"`
	Details []string `json:"details"`
	Next    []string `json:"next"`
}

// check runs akv-injector check as a user, and returns the lines by section.
func check(t *testing.T, user string, args ...string) (sections map[string][]line, status int) {
	t.Helper()
	got := akv(t.Context(), t, user, append([]string{"check", "--output=json"}, args...)...)
	sections, err := parse(got)
	if err != nil {
		t.Fatal(err)
	}
	return sections, got.status
}

// parse returns the lines of a report by section.
func parse(got outcome) (map[string][]line, error) {
	var report struct {
		Sections []struct {
			Title string `json:"title"`
			Lines []line `json:"lines"`
		} `json:"sections"`
	}
	if err := json.Unmarshal([]byte(got.stdout), &report); err != nil || got.stderr != "" {
		return nil, fmt.Errorf("status %d, standard output\n%s\nstandard error\n%s\n%w", got.status, got.stdout, got.stderr, err)
	}
	sections := map[string][]line{}
	for _, s := range report.Sections {
		sections[s.Title] = s.Lines
	}
	return sections, nil
}

var certificates = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}

// change changes an object, or with a nil change deletes it, until the test ends.
func change(t *testing.T, in dynamic.ResourceInterface, name string, change func(object map[string]any)) {
	t.Helper()
	before, err := in.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := restore(context.WithoutCancel(t.Context()), in, before); err != nil {
			t.Fatal(err)
		}
	})
	if change == nil {
		err = in.Delete(t.Context(), name, metav1.DeleteOptions{})
	} else {
		after := before.DeepCopy()
		change(after.Object)
		_, err = in.Update(t.Context(), after, metav1.UpdateOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
}

// restore makes an object what it was.
func restore(ctx context.Context, in dynamic.ResourceInterface, before *unstructured.Unstructured) error {
	before = before.DeepCopy()
	now, err := in.Get(ctx, before.GetName(), metav1.GetOptions{})
	before.SetResourceVersion("")
	if apierrors.IsNotFound(err) {
		before.SetUID("")
		created, err := in.Create(ctx, before, metav1.CreateOptions{})
		if err != nil || before.Object["status"] == nil {
			return err
		}
		created.Object["status"] = before.Object["status"]
		_, err = in.UpdateStatus(ctx, created, metav1.UpdateOptions{})
		if apierrors.IsConflict(err) { // a controller was faster
			return nil
		}
		return ignoreNotFound(err)
	}
	if err != nil {
		return err
	}
	before.SetResourceVersion(now.GetResourceVersion())
	_, err = in.Update(ctx, before, metav1.UpdateOptions{})
	return err
}
