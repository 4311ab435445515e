package kube

import (
	"context"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// configurationName is the name of both webhook configurations.
const configurationName = "akv-injector"

// Installation is an injector in a cluster.
type Installation struct {
	// Namespace and Service are where the API server sends reviews. Service is empty, and
	// Namespace too, if the webhook configuration has a URL.
	Namespace, Service string
	// Image is that of the Deployment behind the Service; empty if there is none.
	Image string
}

// FindInstallation returns the injector that the MutatingWebhookConfiguration akv-injector names;
// nil if there is no such configuration.
func FindInstallation(ctx context.Context, r *Reader) (*Installation, error) {
	configuration, err := Read[admissionregistrationv1.MutatingWebhookConfiguration](ctx, r, MutatingConfigurations, "", configurationName)
	if err != nil || configuration == nil {
		return nil, err
	}
	var found Installation
	for _, webhook := range configuration.Webhooks {
		if service := webhook.ClientConfig.Service; service != nil {
			found.Namespace, found.Service = service.Namespace, service.Name
			break
		}
	}
	if found.Namespace == "" {
		return &found, nil
	}
	deployments, err := List[appsv1.Deployment](ctx, r, Deployments, found.Namespace, metav1.ListOptions{LabelSelector: "app.kubernetes.io/name=akv-injector"})
	if err != nil {
		return nil, err
	}
	for i := range deployments {
		for _, container := range deployments[i].Spec.Template.Spec.Containers {
			found.Image = container.Image
		}
	}
	return &found, nil
}
