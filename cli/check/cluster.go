package check

import (
	"context"
	"fmt"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/class"
)

// Resources that only this package reads.
var (
	budgets      = schema.GroupVersionResource{Group: "policy", Version: "v1", Resource: "poddisruptionbudgets"}
	certificates = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
)

// cluster is what was read of the cluster.
type cluster struct {
	*Options

	version              string // of the API server
	mutating, validating known[[]kube.Configuration]
	nodes                known[[]string] // names
	// registered are the names of the nodes on which the driver is registered.
	registered known[map[string]bool]
	daemonSets known[[]appsv1.DaemonSet]
	csiDriver  known[*storagev1.CSIDriver]
	// hasClasses and hasBindings report whether the cluster has the driver's kinds and those of AAD
	// pod identity.
	hasClasses, hasBindings known[bool]
	syncs                   known[bool]

	// service is what the configurations call; empty if that is a URL. Installed is the namespace of
	// the installation.
	service     types.NamespacedName
	installed   string
	deployments known[[]appsv1.Deployment]
	pods        known[[]corev1.Pod]
	ready       known[int] // endpoints of the service
	budgets     known[[]policyv1.PodDisruptionBudget]
	// identityReady is the number of endpoints of Azure's workload identity webhook.
	identityReady known[int]
}

// of returns the configuration of that name; nil if there is none.
func of(configurations []kube.Configuration, name string) *kube.Configuration {
	at := slices.IndexFunc(configurations, func(c kube.Configuration) bool { return c.Metadata.Name == name })
	if at < 0 {
		return nil
	}
	return &configurations[at]
}

func list[T any](
	ctx context.Context, r *kube.Reader, resource schema.GroupVersionResource, namespace, selector string,
) (all known[[]T]) {
	all.value, all.err = kube.List[T](ctx, r, resource, namespace, metav1.ListOptions{LabelSelector: selector})
	return all
}

// readCluster reads what is the same for every installation. It returns an error if the API server
// does not answer.
func readCluster(ctx context.Context, o *Options) (*cluster, error) {
	c := &cluster{Options: o}
	info, err := o.Reader.Discovery.ServerVersion()
	if err != nil {
		return nil, fmt.Errorf("read the version of the API server: %w", err)
	}
	c.version = info.GitVersion
	c.mutating = list[kube.Configuration](ctx, o.Reader, kube.MutatingConfigurations, "", "")
	c.validating = list[kube.Configuration](ctx, o.Reader, kube.ValidatingConfigurations, "", "")
	c.readNodes(ctx)
	c.readDriver(ctx)
	c.hasClasses.value, c.hasClasses.err = o.Reader.HasKind(kube.Classes)
	c.hasBindings.value, c.hasBindings.err = o.Reader.HasKind(kube.Bindings)
	c.syncs = known[bool]{err: c.daemonSets.err}
	if driver := c.daemonSet(kube.Driver); driver != nil {
		account := types.NamespacedName{Namespace: driver.Namespace, Name: driver.Spec.Template.Spec.ServiceAccountName}
		c.syncs.value, c.syncs.err = o.Reader.MayWriteSecrets(ctx, account, "")
	}
	if webhook := identityWebhook(c.mutating.value); webhook != nil {
		c.identityReady = c.endpoints(ctx, webhook.Service())
	}
	return c, nil
}

// readDriver reads the objects of the driver.
func (c *cluster) readDriver(ctx context.Context) {
	c.daemonSets = list[appsv1.DaemonSet](ctx, c.Reader, kube.DaemonSets, "", "")
	c.csiDriver.value, c.csiDriver.err = kube.Read[storagev1.CSIDriver](ctx, c.Reader, kube.CSIDrivers, "", class.Driver)
}

// readNodes reads the nodes that run Linux and pods, and on which of them the driver is registered.
func (c *cluster) readNodes(ctx context.Context) {
	c.nodes.err = kube.Each(ctx, c.Reader, kube.Nodes, "", func(n *metav1.PartialObjectMetadata) error {
		// A virtual kubelet mounts no CSI volumes.
		if n.Labels[corev1.LabelOSStable] == string(corev1.Linux) && n.Labels["type"] != "virtual-kubelet" {
			c.nodes.value = append(c.nodes.value, n.Name)
		}
		return nil
	})
	c.registered.value = map[string]bool{}
	c.registered.err = kube.Each(ctx, c.Reader, kube.CSINodes, "", func(n *storagev1.CSINode) error {
		isDriver := func(d storagev1.CSINodeDriver) bool { return d.Name == class.Driver }
		c.registered.value[n.Name] = slices.ContainsFunc(n.Spec.Drivers, isDriver)
		return nil
	})
}

// readInstallation finds the installation, and reads its objects.
func (c *cluster) readInstallation(ctx context.Context) {
	c.locate()
	if c.service.Name == "" {
		return // the injector runs outside the cluster
	}
	c.deployments = list[appsv1.Deployment](ctx, c.Reader, kube.Deployments, c.installed, selector)
	c.pods = list[corev1.Pod](ctx, c.Reader, kube.Pods, c.installed, selector)
	c.budgets = list[policyv1.PodDisruptionBudget](ctx, c.Reader, budgets, c.installed, "")
	c.ready = c.endpoints(ctx, c.service)
}

// endpoints returns the number of ready endpoints of a Service.
func (c *cluster) endpoints(ctx context.Context, service types.NamespacedName) (ready known[int]) {
	ready.value, ready.err = kube.ReadyEndpoints(ctx, c.Reader, service)
	return ready
}

// deployment returns the Deployment of the installation; nil if there is none or it is not known.
func (c *cluster) deployment() *appsv1.Deployment {
	if len(c.deployments.value) == 0 {
		return nil
	}
	return &c.deployments.value[0]
}

// injector returns the container of the injector; nil if there is none or it is not known.
func (c *cluster) injector() *corev1.Container {
	if deployment := c.deployment(); deployment != nil {
		return kube.Injector(&deployment.Spec.Template.Spec)
	}
	return nil
}

// daemonSet returns the DaemonSet of Linux nodes in which find finds a container; nil if there is none
// or it is not known.
func (c *cluster) daemonSet(find func(*corev1.PodSpec) *corev1.Container) *appsv1.DaemonSet {
	for i := range c.daemonSets.value {
		spec := &c.daemonSets.value[i].Spec.Template.Spec
		if spec.NodeSelector[corev1.LabelOSStable] != string(corev1.Windows) && find(spec) != nil {
			return &c.daemonSets.value[i]
		}
	}
	return nil
}
