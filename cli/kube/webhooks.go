package kube

import (
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Configuration is a MutatingWebhookConfiguration or a ValidatingWebhookConfiguration.
type Configuration struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Webhooks []Webhook         `json:"webhooks"`
}

// Webhook has the fields of a webhook that both kinds of configurations have.
type Webhook struct {
	Name              string                                       `json:"name"`
	ClientConfig      admissionregistrationv1.WebhookClientConfig  `json:"clientConfig"`
	Rules             []admissionregistrationv1.RuleWithOperations `json:"rules"`
	FailurePolicy     *admissionregistrationv1.FailurePolicyType   `json:"failurePolicy"`
	NamespaceSelector *metav1.LabelSelector                        `json:"namespaceSelector"`
	ObjectSelector    *metav1.LabelSelector                        `json:"objectSelector"`
	TimeoutSeconds    *int32                                       `json:"timeoutSeconds"`
	MatchConditions   []admissionregistrationv1.MatchCondition     `json:"matchConditions"`
}

// Service returns the Service that the webhook calls; empty if it calls a URL.
func (w *Webhook) Service() types.NamespacedName {
	if s := w.ClientConfig.Service; s != nil {
		return types.NamespacedName{Namespace: s.Namespace, Name: s.Name}
	}
	return types.NamespacedName{}
}

// Service returns the Service that the first webhook with a Service calls; empty if there is none,
// or if c is nil.
func (c *Configuration) Service() (service types.NamespacedName) {
	for i := 0; c != nil && i < len(c.Webhooks) && service.Name == ""; i++ {
		service = c.Webhooks[i].Service()
	}
	return service
}

// FailsOpen reports whether the API server goes on without an answer of the webhook. The default is
// to fail.
func (w *Webhook) FailsOpen() bool {
	return w.FailurePolicy != nil && *w.FailurePolicy == admissionregistrationv1.Ignore
}
