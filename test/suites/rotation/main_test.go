// Package rotation_test tests restarts for new versions of Key Vault objects, with a real API server,
// its controllers, two replicas of the injector and the rights of the chart. There is no node: a
// function of this package stands for the kubelet and the CSI driver. It makes pods ready and writes
// the versions of a vault that the tests rotate. test/demos/node has the real ones.
package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	secretsstore "sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"

	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// timeout is --rotation-timeout of the replicas.
const timeout = 20 * time.Second

// What all tests share.
var (
	plane         *controlplane.ControlPlane
	client        kubernetes.Interface
	dynamicClient dynamic.Interface
	driver        secretsstore.Interface
	replicas      []*injector.Injector
	node          *kubelet
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "rotation:", err)
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
	if driver, err = secretsstore.NewForConfig(plane.Config); err != nil {
		return 0, err
	}
	if err := plane.RunKubectl(ctx, "", "create", "namespace", chart.Namespace); err != nil {
		return 0, err
	}
	if dynamicClient, err = dynamic.NewForConfig(plane.Config); err != nil {
		return 0, err
	}
	var extra []any
	for _, k := range extraKinds {
		if err := k.install(ctx); err != nil {
			return 0, err
		}
		extra = append(extra, k.value())
	}
	if err := injector.AllowRotation(ctx, plane, extra...); err != nil {
		return 0, err
	}
	defer func() {
		for _, replica := range replicas {
			err = errors.Join(err, replica.Stop())
		}
	}()
	for range 2 {
		if err := startReplica(ctx); err != nil {
			return 0, err
		}
	}
	// A DaemonSet has a pod for each Node without taints.
	if err := plane.RunKubectl(ctx, "{apiVersion: v1, kind: Node, metadata: {name: node}}", "create", "--filename=-"); err != nil {
		return 0, err
	}
	if err := plane.RunKubectl(ctx, "", "taint", "node", "node", "node.kubernetes.io/not-ready-"); err != nil {
		return 0, err
	}
	node = &kubelet{vault: map[string]string{}, broken: map[string]bool{}}
	running, stop := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		node.run(running)
	}()
	defer func() {
		stop()
		<-done
	}()
	return m.Run(), nil
}

func startReplica(ctx context.Context) error {
	args := []string{"--rotation", "--rotation-min-interval=1s", "--rotation-timeout=" + timeout.String()}
	for _, k := range extraKinds {
		args = append(args, k.flag())
	}
	replica, err := injector.Start(ctx, plane, injector.Options{Args: args})
	if err == nil {
		replicas = append(replicas, replica)
	}
	return err
}

// patience is the longest time that a test waits for one thing.
const patience = 90 * time.Second

func waitFor(t *testing.T, what string, condition func(context.Context) error) {
	t.Helper()
	if err := process.Within(t.Context(), patience, what, condition); err != nil {
		t.Fatal(err)
	}
}
