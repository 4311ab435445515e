package check

import (
	"context"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
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
	mutating, validating known[[]configuration]
	nodes                known[[]node]
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

// node has the fields of a Node that are read.
type node struct {
	Metadata struct {
		Name   string            `json:"name"`
		Labels map[string]string `json:"labels"`
	} `json:"metadata"`
}

// configuration is a MutatingWebhookConfiguration or a ValidatingWebhookConfiguration.
type configuration struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Webhooks []webhook         `json:"webhooks"`
}

// webhook has the fields that are checked of a webhook of both kinds of configurations.
type webhook struct {
	Name              string                                       `json:"name"`
	ClientConfig      admissionregistrationv1.WebhookClientConfig  `json:"clientConfig"`
	Rules             []admissionregistrationv1.RuleWithOperations `json:"rules"`
	FailurePolicy     *admissionregistrationv1.FailurePolicyType   `json:"failurePolicy"`
	NamespaceSelector *metav1.LabelSelector                        `json:"namespaceSelector"`
	ObjectSelector    *metav1.LabelSelector                        `json:"objectSelector"`
	TimeoutSeconds    *int32                                       `json:"timeoutSeconds"`
	MatchConditions   []admissionregistrationv1.MatchCondition     `json:"matchConditions"`
}

// of returns the configuration of that name; nil if there is none.
func of(configurations []configuration, name string) *configuration {
	at := slices.IndexFunc(configurations, func(c configuration) bool { return c.Metadata.Name == name })
	if at < 0 {
		return nil
	}
	return &configurations[at]
}

func list[T any](ctx context.Context, r *kube.Reader, resource schema.GroupVersionResource, namespace, selector string) (all known[[]T]) {
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
	c.mutating = list[configuration](ctx, o.Reader, kube.MutatingConfigurations, "", "")
	c.validating = list[configuration](ctx, o.Reader, kube.ValidatingConfigurations, "", "")
	c.readNodes(ctx)
	c.readDriver(ctx)
	c.hasClasses.value, c.hasClasses.err = o.Reader.HasKind(kube.Classes)
	c.hasBindings.value, c.hasBindings.err = o.Reader.HasKind(kube.Bindings)
	c.syncs = known[bool]{err: c.daemonSets.err}
	if driver := c.daemonSet(isDriver); driver != nil {
		account := types.NamespacedName{Namespace: driver.Namespace, Name: driver.Spec.Template.Spec.ServiceAccountName}
		c.syncs.value, c.syncs.err = o.Reader.MayWriteSecrets(ctx, account, "")
	}
	if webhook := identityWebhook(c.mutating.value); webhook != nil {
		service := webhook.ClientConfig.Service
		c.identityReady = c.endpoints(ctx, types.NamespacedName{Namespace: service.Namespace, Name: service.Name})
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
	c.nodes.err = kube.Each(ctx, c.Reader, kube.Nodes, "", func(n *node) error {
		// A virtual kubelet mounts no CSI volumes.
		if n.Metadata.Labels[corev1.LabelOSStable] == string(corev1.Linux) && n.Metadata.Labels["type"] != "virtual-kubelet" {
			c.nodes.value = append(c.nodes.value, *n)
		}
		return nil
	})
	c.registered.value = map[string]bool{}
	c.registered.err = kube.Each(ctx, c.Reader, kube.CSINodes, "", func(n *storagev1.CSINode) error {
		c.registered.value[n.Name] = slices.ContainsFunc(n.Spec.Drivers, func(d storagev1.CSINodeDriver) bool { return d.Name == class.Driver })
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
func (c *cluster) endpoints(ctx context.Context, service types.NamespacedName) known[int] {
	slices := list[discoveryv1.EndpointSlice](ctx, c.Reader, kube.EndpointSlices, service.Namespace, discoveryv1.LabelServiceName+"="+service.Name)
	ready := known[int]{err: slices.err}
	for i := range slices.value {
		for _, endpoint := range slices.value[i].Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				ready.value++
			}
		}
	}
	return ready
}

// deployment returns the Deployment of the installation; nil if there is none or it is not known.
func (c *cluster) deployment() *appsv1.Deployment {
	if len(c.deployments.value) == 0 {
		return nil
	}
	return &c.deployments.value[0]
}

// container returns the injector's container in a pod; nil if there is none.
func container(spec *corev1.PodSpec) *corev1.Container {
	for i := range spec.Containers {
		if spec.Containers[i].Name == name || len(spec.Containers) == 1 {
			return &spec.Containers[i]
		}
	}
	return nil
}

// daemonSet returns the DaemonSet of Linux nodes with a container that is; nil if there is none or
// it is not known.
func (c *cluster) daemonSet(is func(*corev1.Container) bool) *appsv1.DaemonSet {
	for i := range c.daemonSets.value {
		spec := &c.daemonSets.value[i].Spec.Template.Spec
		if spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows) {
			continue
		}
		for j := range spec.Containers {
			if is(&spec.Containers[j]) {
				return &c.daemonSets.value[i]
			}
		}
	}
	return nil
}

// words returns the command and the arguments of a container.
func words(container *corev1.Container) []string {
	return slices.Concat(container.Command, container.Args)
}

// argument returns the value of the last argument --NAME=VALUE or -NAME=VALUE, and whether it is
// there. A flag without a value is "true", as in package flag.
func argument(container *corev1.Container, name string) (value string, ok bool) {
	for _, word := range words(container) {
		flag, v, has := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(word, "-"), "-"), "=")
		if flag == name && strings.HasPrefix(word, "-") {
			value, ok = v, true
			if !has {
				value = "true"
			}
		}
	}
	return value, ok
}

// program returns the name of the container's image, without its repository, tag and digest.
func program(container *corev1.Container) string {
	image, _, _ := strings.Cut(container.Image, "@")
	image, _, _ = strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return image
}

// isDriver reports whether a container is the Secrets Store CSI driver: it has the flag that only
// the driver has (secrets-store-csi-driver, cmd/secrets-store-csi-driver).
func isDriver(container *corev1.Container) bool {
	_, ok := argument(container, "provider-volume")
	return ok
}

// isProvider reports whether a container is the Azure provider (the charts of
// secrets-store-csi-driver-provider-azure and of AKS).
func isProvider(container *corev1.Container) bool {
	return program(container) == "provider-azure" || container.Name == "provider-azure-installer"
}

// isNMI reports whether a container is the Node Managed Identity server of AAD pod identity.
func isNMI(container *corev1.Container) bool {
	return program(container) == "nmi" || container.Name == "nmi"
}
