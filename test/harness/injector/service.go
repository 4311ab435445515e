package injector

import (
	"context"
	"fmt"
	"net"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	corev1apply "k8s.io/client-go/applyconfigurations/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
)

// byService makes the injector's Service an alias of localhost. It returns a function that makes
// the webhooks of an object call the Service at the port of address.
func byService(ctx context.Context, cfg *rest.Config, address string) (func(*unstructured.Unstructured) error, error) {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return nil, fmt.Errorf("route the Service to %s: %w", address, err)
	}
	port, err := strconv.ParseInt(text, 10, 32)
	if err != nil {
		return nil, fmt.Errorf("route the Service to %s: %w", address, err)
	}
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	options := metav1.ApplyOptions{FieldManager: name + "-test-service", Force: true}
	if _, err := client.CoreV1().Namespaces().Apply(ctx, corev1apply.Namespace(namespace), options); err != nil {
		return nil, fmt.Errorf("apply Namespace %s: %w", namespace, err)
	}
	service := corev1apply.Service(name, namespace).
		WithSpec(corev1apply.ServiceSpec().WithType(corev1.ServiceTypeExternalName).WithExternalName("localhost"))
	if _, err := client.CoreV1().Services(namespace).Apply(ctx, service, options); err != nil {
		return nil, fmt.Errorf("apply Service %s: %w", name, err)
	}
	return func(object *unstructured.Unstructured) error {
		webhooks, found, err := unstructured.NestedSlice(object.Object, "webhooks")
		if err != nil || !found {
			return err
		}
		for _, webhook := range webhooks {
			webhook, ok := webhook.(map[string]any)
			if !ok {
				return fmt.Errorf("webhooks: must be objects, one is %T", webhook)
			}
			if err := unstructured.SetNestedField(webhook, port, "clientConfig", "service", "port"); err != nil {
				return err
			}
		}
		return unstructured.SetNestedSlice(object.Object, webhooks, "webhooks")
	}, nil
}
