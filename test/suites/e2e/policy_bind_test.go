package e2e_test

import (
	"context"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
)

// TestRelabellingByBinding binds pods to a node as a scheduler does. The API server copies the
// labels of the Binding to the pod. Policy must reject identity labels in a Binding, and no other
// labels.
func TestRelabellingByBinding(t *testing.T) {
	t.Parallel()
	bind := map[string]func(ctx context.Context, namespace string, b *corev1.Binding) error{
		"pods-binding": func(ctx context.Context, namespace string, b *corev1.Binding) error {
			return client.CoreV1().Pods(namespace).Bind(ctx, b, metav1.CreateOptions{})
		},
		"bindings": func(ctx context.Context, namespace string, b *corev1.Binding) error {
			return client.CoreV1().RESTClient().Post().Namespace(namespace).Resource("bindings").
				VersionedParams(&metav1.CreateOptions{}, scheme.ParameterCodec).Body(b).Do(ctx).Error()
		},
	}
	const ceiling = `{identity.io/allowed-names: access-*}`
	for namespace, test := range map[string]struct{ labels, annotations, reason string }{
		"policy-bind-required": {`{identity.io/enforce: required}`, `{}`, "IdentityNotAllowed"},
		"policy-bind-bound":    {`{identity.io/enforce: bound}`, `{}`, "IdentityNotAllowed"},
		"policy-bind-ceiling":  {`{identity.io/enforce: bound}`, ceiling, "IdentityNotAllowed"},
		"policy-bind-enabled":  {`{keyvault.io/injection: enabled}`, ceiling, ""},
		"policy-bind-warned":   {`{identity.io/warn: required}`, `{}`, ""},
		"policy-bind-none":     {`{}`, ceiling, ""},
	} {
		newGoverned(t, namespace, test.labels, test.annotations, document(binding))
		for way, bind := range bind {
			t.Run(namespace+" "+way, func(t *testing.T) {
				for name, attempt := range map[string]struct {
					labels map[string]string
					reason string
				}{
					"pod-identity":      {map[string]string{"aadpodidbinding": "admin"}, test.reason},
					"none":              {map[string]string{"aadpodidbinding": ""}, test.reason},
					"workload-identity": {map[string]string{"azure.workload.identity/use": "true"}, test.reason},
					"zone":              {map[string]string{"topology.kubernetes.io/zone": "1"}, ""},
				} {
					pod := bound(way+"-"+name, "access-blob")
					createPod(t, namespace, pod)
					err := bind(t.Context(), namespace, &corev1.Binding{
						// The mirror annotation exempts pods, but no Binding.
						ObjectMeta: metav1.ObjectMeta{Name: pod.Name, Labels: attempt.labels, Annotations: map[string]string{"kubernetes.io/config.mirror": "x"}},
						Target:     corev1.ObjectReference{Kind: "Node", Name: "nowhere"},
					})
					checkForbidden(t, err, attempt.reason)
				}
			})
		}
	}
}
