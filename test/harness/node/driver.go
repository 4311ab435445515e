package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	storagev1 "k8s.io/api/storage/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/retry"

	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

const (
	driverModule = "sigs.k8s.io/secrets-store-csi-driver"
	driverName   = "secrets-store.csi.k8s.io"
	// The driver's manifests create this ServiceAccount.
	driverNamespace, driverAccount = "kube-system", "secrets-store-csi-driver"

	driverSocket = "/var/lib/kubelet/plugins/csi-secrets-store/csi.sock"
)

// The driver's manifests: its rights, and those that its chart adds with syncSecret.enabled=true.
const (
	driverManifest = "rbac-secretproviderclass.yaml"
	syncManifest   = "rbac-secretprovidersyncing.yaml"
)

// driverResources are the custom resources of the driver.
var driverResources = []schema.GroupVersionResource{
	{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasses"},
	{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasspodstatuses"},
}

// startDriver installs and starts the driver.
func (n *Node) startDriver(ctx context.Context) error {
	if err := n.applyDriver(ctx); err != nil {
		return err
	}
	return n.runDriver(ctx)
}

// runDriver starts the driver with the rights in its manifests, and registers it with the kubelet.
func (n *Node) runDriver(ctx context.Context) error {
	kubeconfig := filepath.Join(n.Dir, "driver.kubeconfig")
	if err := n.plane.WriteKubeconfig(ctx, driverNamespace, driverAccount, kubeconfig); err != nil {
		return err
	}
	for _, socket := range []string{driverSocket, registrySocket} {
		if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
			return fmt.Errorf("start the driver: %w", err)
		}
	}
	cmd := exec.Command(n.machine.Parts.Driver, append([]string{
		"--endpoint=unix://" + driverSocket, "--nodeid=" + Name, "--provider-volume=" + providerFolder,
	}, n.opts.DriverArgs...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG="+kubeconfig)
	driver, err := n.run(cmd)
	if err != nil {
		return err
	}
	if err := driver.Await(ctx, func(ctx context.Context) error { return answers(ctx, driverSocket) }); err != nil {
		return err
	}
	n.driver = driver
	return n.register()
}

// applyDriver applies the driver's manifests and a CSIDriver. The CSIDriver makes the kubelet pass
// the tokens with which the provider signs in.
func (n *Node) applyDriver(ctx context.Context) error {
	if err := n.driverManifests(ctx, "apply", driverManifest, syncManifest); err != nil {
		return err
	}
	driver := &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{Name: driverName},
		Spec: storagev1.CSIDriverSpec{
			AttachRequired:       new(false),
			PodInfoOnMount:       new(true),
			RequiresRepublish:    new(true),
			VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{storagev1.VolumeLifecycleEphemeral},
			// The driver reads tokens from the volume context only.
			ServiceAccountTokenInSecrets: new(false),
			TokenRequests:                []storagev1.TokenRequest{{Audience: federationAudience}, {Audience: bindingAudience}},
		},
	}
	if _, err := n.client.StorageV1().CSIDrivers().Create(ctx, driver, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create CSIDriver %s: %w", driverName, err)
	}
	return nil
}

// StopDriver stops the driver on this node, and waits until the kubelet has removed its
// registration.
func (n *Node) StopDriver(ctx context.Context) error {
	n.registration.Stop() // this also removes the socket that the kubelet watches
	n.mu.Lock()
	n.parts = slices.DeleteFunc(n.parts, func(p *process.Process) bool { return p == n.driver })
	n.mu.Unlock()
	if err := n.driver.Stop(); err != nil {
		return err
	}
	if err := n.awaitRegistered(ctx, false); err != nil {
		return fmt.Errorf("stop the driver: %w", err)
	}
	return nil
}

// StartDriver reverts [Node.StopDriver].
func (n *Node) StartDriver(ctx context.Context) error {
	if err := n.runDriver(ctx); err != nil {
		return err
	}
	if err := n.awaitRegistered(ctx, true); err != nil {
		return fmt.Errorf("start the driver: %w", err)
	}
	return nil
}

func (n *Node) awaitRegistered(ctx context.Context, wanted bool) error {
	return process.Until(ctx, func(ctx context.Context) error {
		node, err := n.client.StorageV1().CSINodes().Get(ctx, Name, metav1.GetOptions{})
		if err == nil && (len(node.Spec.Drivers) > 0) != wanted {
			err = fmt.Errorf("it has %d drivers", len(node.Spec.Drivers))
		}
		return err
	})
}

// RemoveDriver uninstalls the driver from the cluster. The objects of its custom resources are
// kept, but are invisible until [Node.InstallDriver].
func (n *Node) RemoveDriver(ctx context.Context) error {
	if err := n.StopDriver(ctx); err != nil {
		return err
	}
	if err := n.driverManifests(ctx, "delete", driverManifest, syncManifest); err != nil {
		return err
	}
	if err := n.client.StorageV1().CSIDrivers().Delete(ctx, driverName, metav1.DeleteOptions{}); err != nil {
		return fmt.Errorf("delete CSIDriver %s: %w", driverName, err)
	}
	return n.serveDriverResources(ctx, false)
}

// InstallDriver reverts [Node.RemoveDriver].
func (n *Node) InstallDriver(ctx context.Context) error {
	if err := n.serveDriverResources(ctx, true); err != nil {
		return err
	}
	if err := n.applyDriver(ctx); err != nil {
		return err
	}
	return n.StartDriver(ctx)
}

// ForbidSync removes the driver's rights to write Secrets. The driver's chart grants them only with
// syncSecret.enabled=true.
func (n *Node) ForbidSync(ctx context.Context) error {
	return n.driverManifests(ctx, "delete", syncManifest)
}

// AllowSync reverts [Node.ForbidSync].
func (n *Node) AllowSync(ctx context.Context) error {
	return n.driverManifests(ctx, "apply", syncManifest)
}

// driverManifests applies or deletes manifests from the driver's source.
func (n *Node) driverManifests(ctx context.Context, verb string, files ...string) error {
	source, err := build.ModuleFolder(ctx, driverModule)
	if err != nil {
		return err
	}
	args := []string{verb}
	for _, file := range files {
		args = append(args, "--filename="+filepath.Join(source, "deploy", file))
	}
	return n.plane.RunKubectl(ctx, "", args...)
}

// serveDriverResources makes the API server serve the driver's resources, or stop serving them, and
// waits until it does. If no version of a CustomResourceDefinition is served, requests fail as if
// the definition did not exist, but its objects are kept.
func (n *Node) serveDriverResources(ctx context.Context, served bool) error {
	definitions, err := apiextensions.NewForConfig(n.plane.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	client, err := dynamic.NewForConfig(n.plane.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	for _, resource := range driverResources {
		name := resource.GroupResource().String()
		if err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
			definition, err := definitions.CustomResourceDefinitions().Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for i := range definition.Spec.Versions {
				definition.Spec.Versions[i].Served = served
			}
			_, err = definitions.CustomResourceDefinitions().Update(ctx, definition, metav1.UpdateOptions{})
			return err
		}); err != nil {
			return fmt.Errorf("change CRD %s: %w", name, err)
		}
		if err := process.Until(ctx, func(ctx context.Context) error {
			_, err := client.Resource(resource).List(ctx, metav1.ListOptions{Limit: 1})
			switch {
			case served:
				return err
			case err == nil:
				return errors.New("it is served")
			case apierrors.IsNotFound(err):
				return nil
			default:
				return err
			}
		}); err != nil {
			return fmt.Errorf("wait for CRD %s: %w", name, err)
		}
	}
	return nil
}
