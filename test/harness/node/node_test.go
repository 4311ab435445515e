//go:build linux

package node_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/node"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	tenant   = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	clientID = "11111111-2222-3333-4444-555555555555"
)

// enter runs the test again in a machine, and checks that it leaves no traces outside.
func enter(t *testing.T) {
	t.Helper()
	ctx, stop := signal.NotifyContext(t.Context(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parts, err := node.Build(ctx, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	before := traces(t)
	status, err := node.Enter(ctx, parts, "-test.run=^"+t.Name()+"$", "-test.v="+strconv.FormatBool(testing.Verbose()))
	if status != 0 || err != nil {
		t.Errorf("in the machine: status %d, error %v", status, err)
	}
	if diff := cmp.Diff(before, traces(t)); diff != "" {
		t.Errorf("the node has left something behind (-before +after):\n%s", diff)
	}
}

// TestNode checks when a node does not start, starts a node, mounts a secret in a pod, and then
// ends a part of the node.
func TestNode(t *testing.T) {
	if machine == nil {
		enter(t)
		return
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{
		Binaries: machine.Parts.ControlPlane, TempDir: t.TempDir(), APIServerArgs: node.APIServerArgs, BeforeControllers: controlplane.InstallCRDs,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(t *testing.T, want string) {
		t.Helper()
		again, err := machine.Start(ctx, plane, node.Options{})
		if err == nil {
			t.Fatal(errors.Join(errors.New("it started"), again.Stop()))
		}
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got error %v, which must say %q", err, want)
		}
	}

	t.Run("a node whose port is taken does not start", func(t *testing.T) {
		taken, err := net.Listen("tcp", "127.0.0.1:10250")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		refused(t, ":10250: bind: address already in use")
	})

	started, err := machine.Start(ctx, plane, node.Options{
		Tenant:    tenant,
		Federated: map[string][]string{"default/default": {clientID}},
		Vaults: map[string]keyvault.Vault{"team-kv": {Tenant: tenant, Readers: []string{clientID}, Objects: []keyvault.Object{
			{Kind: keyvault.Secrets, Name: "db-password", Versions: []keyvault.Version{{ID: "0123456789abcdef0123456789abcdef", Value: "hunter2"}}},
		}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if stopped {
			return
		}
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
	})

	t.Run("a second node does not start", func(t *testing.T) { refused(t, "only one node") })

	t.Run("a container reads the secret from the vault, with the identity of its ServiceAccount", func(t *testing.T) {
		createClass(t, plane)
		pod := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "reader"},
			Spec: corev1.PodSpec{
				RestartPolicy: corev1.RestartPolicyNever,
				Containers: []corev1.Container{{
					Name: "reader", Image: node.Image, Command: []string{"cat", "/secrets/db-password"},
					VolumeMounts: []corev1.VolumeMount{{Name: "secrets", MountPath: "/secrets", ReadOnly: true}},
				}},
				Volumes: []corev1.Volume{{Name: "secrets", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
					Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true), VolumeAttributes: map[string]string{"secretProviderClass": "team"},
				}}}},
			},
		}
		pods := client.CoreV1().Pods("default")
		if _, err := pods.Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := process.Until(ctx, func(ctx context.Context) error {
			pod, err := pods.Get(ctx, "reader", metav1.GetOptions{})
			if err == nil && pod.Status.Phase != corev1.PodSucceeded {
				err = fmt.Errorf("the pod is %s", pod.Status.Phase)
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
		log, err := pods.GetLogs("reader", &corev1.PodLogOptions{}).DoRaw(t.Context())
		if err != nil || string(log) != "hunter2" {
			t.Errorf("the container reads %q, error %v", log, err)
		}
		record := started.Azure.Take()
		if len(record.Tokens) == 0 || len(record.Refused) > 0 || len(record.Strays) > 0 {
			t.Errorf("Azure got the requests %+v", record)
		}
		for _, token := range record.Tokens {
			if diff := cmp.Diff(keyvault.Identity{Tenant: tenant, ClientID: clientID}, token.For); diff != "" || token.Issuer != keyvault.Entra {
				t.Errorf("a token by %s for (-want +got)\n%s", token.Issuer, diff)
			}
		}
	})

	t.Run("Stop names a part that has ended", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := started.Kill("azure-provider"); err != nil {
			t.Fatal(err)
		}
		started.Wait(ctx)
		stopped = true
		err := started.Stop()
		if ctx.Err() != nil || err == nil || !strings.Contains(err.Error(), "azure-provider ended") {
			t.Errorf("got error %v, which must name the provider", err)
		}
	})
}

// createClass creates a class for workload identity.
func createClass(t *testing.T, plane *controlplane.ControlPlane) {
	t.Helper()
	client, err := dynamic.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	class := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "secrets-store.csi.x-k8s.io/v1", "kind": "SecretProviderClass", "metadata": map[string]any{"name": "team"},
		"spec": map[string]any{"provider": "azure", "parameters": map[string]any{
			"clientID": clientID, "keyvaultName": "team-kv", "tenantID": tenant,
			"objects": "array:\n- |\n  objectName: db-password\n  objectType: secret\n",
		}},
	}}
	classes := schema.GroupVersionResource{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses"}
	if _, err := client.Resource(classes).Namespace("default").Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}
