package kube

import (
	"context"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// Name is the name of both webhook configurations and, in the chart, of the Deployment, its
	// container, its Service and its Certificate.
	Name = "akv-injector"
	// Selector selects the Deployment of the injector and its pods.
	Selector = "app.kubernetes.io/name=" + Name
)

// Injector returns the container of the injector in one of its pods; nil if there is none.
func Injector(spec *corev1.PodSpec) *corev1.Container {
	return find(spec, func(c *corev1.Container) bool { return c.Name == Name || len(spec.Containers) == 1 })
}

// ReadInjector returns the container of the injector in the Deployment of a namespace; nil if there
// is none. The error is a [*Denied] if the user may not list Deployments.
func ReadInjector(ctx context.Context, r *Reader, namespace string) (*corev1.Container, error) {
	o := metav1.ListOptions{LabelSelector: Selector}
	deployments, err := List[appsv1.Deployment](ctx, r, Deployments, namespace, o)
	if err != nil || len(deployments) == 0 {
		return nil, err
	}
	return Injector(&deployments[0].Spec.Template.Spec), nil
}

// Driver returns the container of the Secrets Store CSI driver; nil if there is none. The charts and
// AKS give it different names, but the same flag (secrets-store-csi-driver,
// cmd/secrets-store-csi-driver).
func Driver(spec *corev1.PodSpec) *corev1.Container {
	return find(spec, func(c *corev1.Container) bool {
		_, ok := Argument(c, "provider-volume")
		return ok
	})
}

// Provider returns the container of the Azure provider; nil if there is none (the charts of
// secrets-store-csi-driver-provider-azure and of AKS).
func Provider(spec *corev1.PodSpec) *corev1.Container {
	return find(spec, func(c *corev1.Container) bool {
		return program(c) == "provider-azure" || c.Name == "provider-azure-installer"
	})
}

// NMI returns the container of the Node Managed Identity server of AAD pod identity; nil if there is
// none.
func NMI(spec *corev1.PodSpec) *corev1.Container {
	return find(spec, func(c *corev1.Container) bool { return program(c) == "nmi" || c.Name == "nmi" })
}

func find(spec *corev1.PodSpec, is func(*corev1.Container) bool) *corev1.Container {
	for i := range spec.Containers {
		if is(&spec.Containers[i]) {
			return &spec.Containers[i]
		}
	}
	return nil
}

// program returns the name of the container's image, without its repository, tag and digest.
func program(container *corev1.Container) string {
	image, _, _ := strings.Cut(container.Image, "@")
	image, _, _ = strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return image
}

// Argument returns the value of the last argument --NAME=VALUE or -NAME=VALUE, and whether it is
// there. A flag without a value is "true", as in package flag.
func Argument(container *corev1.Container, name string) (value string, ok bool) {
	for _, word := range slices.Concat(container.Command, container.Args) {
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

// ReadyEndpoints returns the number of ready endpoints of a Service. The error is a [*Denied] if the
// user may not list EndpointSlices.
func ReadyEndpoints(ctx context.Context, r *Reader, service types.NamespacedName) (ready int, err error) {
	o := metav1.ListOptions{LabelSelector: discoveryv1.LabelServiceName + "=" + service.Name}
	found, err := List[discoveryv1.EndpointSlice](ctx, r, EndpointSlices, service.Namespace, o)
	for i := range found {
		for _, endpoint := range found[i].Endpoints {
			if endpoint.Conditions.Ready == nil || *endpoint.Conditions.Ready {
				ready++
			}
		}
	}
	return ready, err
}

// HelmDriver returns the words of the command that sets a value of the driver in the chart of the
// Azure provider, which installs both.
func HelmDriver(value string) []string {
	return []string{
		"helm", "upgrade", "csi", "csi-secrets-store-provider-azure/csi-secrets-store-provider-azure",
		"--namespace", "kube-system", "--reuse-values", "--set", "secrets-store-csi-driver." + value,
	}
}
