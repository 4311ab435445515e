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
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// TestControlPlane starts a control plane once. It checks that the control plane creates a pod,
// that the garbage collector deletes an object without an owner, that the API server can be
// restarted, and that Stop leaves nothing behind.
func TestControlPlane(t *testing.T) {
	// A first build takes minutes. After that the whole test takes seconds.
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	begin := time.Now()
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Binaries:          binaries,
		APIServerArgs:     []string{"--max-mutating-requests-inflight=100"},
		BeforeControllers: controlplane.InstallCRDs,
		TempDir:           t.TempDir(),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plane.Stop() }) // for a test that ends early; a second Stop does nothing
	t.Logf("ready after %s", time.Since(begin))

	for _, resource := range []string{"secretproviderclasses", "azureidentitybindings"} {
		if out, err := plane.Kubectl(ctx, "get", resource).CombinedOutput(); err != nil {
			t.Errorf("kubectl get %s: %v\n%s", resource, err, out)
		}
	}
	collect(ctx, t, plane)
	makePod(ctx, t, plane)
	restart(ctx, t, plane)

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

// collect deletes the owner of a class, and waits until the garbage collector has deleted the
// class.
func collect(ctx context.Context, t *testing.T, plane *controlplane.ControlPlane) {
	t.Helper()
	// A garbage collector that knows the kind needs a fraction of a second. Otherwise it discovers
	// the kind after 30 seconds.
	ctx, cancel := context.WithTimeout(ctx, 15*time.Second)
	defer cancel()
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	dynamicClient, err := dynamic.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	owners := client.CoreV1().ConfigMaps(metav1.NamespaceDefault)
	owner, err := owners.Create(ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "owner"}}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	resource := schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses"}
	class := &unstructured.Unstructured{}
	class.SetGroupVersionKind(resource.GroupVersion().WithKind("SecretProviderClass"))
	class.SetName("owned")
	class.SetOwnerReferences([]metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: owner.Name, UID: owner.UID}})
	classes := dynamicClient.Resource(resource).Namespace(metav1.NamespaceDefault)
	if _, err := classes.Create(ctx, class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	if err := owners.Delete(ctx, owner.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	begin := time.Now()
	if err := wait.PollUntilContextCancel(ctx, 20*time.Millisecond, true, func(ctx context.Context) (bool, error) {
		_, err := classes.Get(ctx, class.GetName(), metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	}); err != nil {
		t.Fatalf("wait until the class without an owner is gone: %v", err)
	}
	t.Logf("collected after %s", time.Since(begin))
}

// restart restarts the API server, and checks that its data is still there.
func restart(ctx context.Context, t *testing.T, plane *controlplane.ControlPlane) {
	t.Helper()
	waited := make(chan struct{})
	waiting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		defer close(waited)
		plane.Wait(waiting)
	}()
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	before, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Create(
		ctx, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "before"}}, metav1.CreateOptions{},
	)
	if err != nil {
		t.Fatal(err)
	}
	pids := plane.PIDs()
	begin := time.Now()
	if err := plane.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	t.Logf("restarted after %s", time.Since(begin))
	if restarted := plane.PIDs(); restarted[0] != pids[0] || restarted[1] == pids[1] || restarted[2] != pids[2] {
		t.Errorf("processes were %v and are %v, want only the second to change", pids, restarted)
	}
	after, err := client.CoreV1().ConfigMaps(metav1.NamespaceDefault).Get(ctx, before.Name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if after.UID != before.UID {
		t.Errorf("the object has another UID after the restart: %s, was %s", after.UID, before.UID)
	}
	select {
	case <-waited:
		t.Error("Wait returned although the API server was restarted deliberately")
	default:
	}
}

// makePod creates a namespace and a Deployment, and waits for the Deployment's pod.
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

func TestWaitReturnsWhenAServerEnds(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{NoControllers: true, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = plane.Stop() })
	if err := plane.RestartAPIServer(ctx); err != nil {
		t.Fatal(err)
	}
	pids := plane.PIDs()
	if len(pids) != 2 {
		t.Fatalf("got processes %v, want those of etcd and of the API server only", pids)
	}
	if err := syscall.Kill(pids[1], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	plane.Wait(ctx)
	if ctx.Err() != nil {
		t.Error("Wait did not return when the restarted API server was killed")
	}
	if err := plane.Stop(); err == nil || !strings.Contains(err.Error(), "kube-apiserver ended") {
		t.Errorf("Stop returned %v, want an error that names kube-apiserver", err)
	}
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
