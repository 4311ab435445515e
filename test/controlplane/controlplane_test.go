package controlplane_test

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/controlplane"
)

// TestControlPlane starts a control plane once, and sees it make a pod and leave nothing behind.
func TestControlPlane(t *testing.T) {
	// A first build takes minutes; after that all of this takes seconds.
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Binaries:      binaries,
		APIServerArgs: []string{"--max-mutating-requests-inflight=100"},
		TempDir:       t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plane.Stop() }) // where the test ends early; a second Stop does nothing
	t.Logf("ready after %s", time.Since(begin))

	if err := controlplane.InstallCRDs(ctx, plane.Config); err != nil {
		t.Fatal(err)
	}
	for _, resource := range []string{"secretproviderclasses", "azureidentitybindings"} {
		if out, err := plane.Kubectl(ctx, "get", resource).CombinedOutput(); err != nil {
			t.Errorf("kubectl get %s: %v\n%s", resource, err, out)
		}
	}
	makePod(ctx, t, plane)

	pids, addresses := plane.PIDs(), plane.Addresses()
	if len(pids) != 3 || len(addresses) != 3 {
		t.Fatalf("got processes %v listening on %v, want 3 and 3", pids, addresses)
	}
	for _, address := range addresses {
		if !listens(address) {
			t.Errorf("nothing listens on %s before Stop", address)
		}
	}
	begin = time.Now()
	if err := plane.Stop(); err != nil {
		t.Error(err)
	}
	t.Logf("stopped after %s", time.Since(begin))
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
			t.Errorf("process %d is left after Stop: %v", pid, err)
		}
	}
	for _, address := range addresses {
		if listens(address) {
			t.Errorf("something listens on %s after Stop", address)
		}
	}
	if _, err := os.Stat(plane.Dir); !os.IsNotExist(err) {
		t.Errorf("%s is left after Stop: %v", plane.Dir, err)
	}
}

// makePod creates a namespace and a Deployment, and waits for the pod that comes of it.
func makePod(ctx context.Context, t *testing.T, plane *controlplane.ControlPlane) {
	t.Helper()
	const namespace = "demo"
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{
		ObjectMeta: metav1.ObjectMeta{Name: namespace},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := plane.WaitForServiceAccount(ctx, namespace); err != nil {
		t.Fatal(err)
	}
	labels := map[string]string{"app": "web"}
	begin := time.Now()
	if _, err := client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "nginx"}}},
			},
		},
	}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	var pods *corev1.PodList
	if err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		pods, err = client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=web"})
		return err == nil && len(pods.Items) > 0, err
	}); err != nil {
		t.Fatalf("wait for the Deployment's pod: %v", err)
	}
	t.Logf("pod after %s", time.Since(begin))
	pod := pods.Items[0]
	if owner := metav1.GetControllerOf(&pod); owner == nil || owner.Kind != "ReplicaSet" {
		t.Errorf("pod %s is controlled by %v, want a ReplicaSet", pod.Name, owner)
	}
	// Only the ServiceAccount admission plugin sets these.
	if pod.Spec.ServiceAccountName != "default" || len(pod.Spec.Volumes) != 1 ||
		!strings.HasPrefix(pod.Spec.Volumes[0].Name, "kube-api-access-") {
		t.Errorf("pod %s has ServiceAccount %q and volumes %v, want default and its token",
			pod.Name, pod.Spec.ServiceAccountName, pod.Spec.Volumes)
	}
}

func listens(address string) bool {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return false
	}
	_ = conn.Close()
	return true
}

func TestStartReportsAServerThatEnds(t *testing.T) {
	dir := t.TempDir()
	_, err := controlplane.Start(t.Context(), controlplane.Options{APIServerArgs: []string{"--no-such-flag"}, TempDir: dir})
	if want := "unknown flag: --no-such-flag"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one with %q", err, want)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("%v is left after a failed start: %v", left, err)
	}
}
