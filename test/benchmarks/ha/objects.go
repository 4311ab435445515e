package ha

import (
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const (
	namespace = "payments"
	image     = "REGISTRY/checkout"
)

// objects are the manifests of the cluster before the run.
const objects = `
apiVersion: v1
kind: Namespace
metadata:
  name: ` + namespace + `
  labels: {keyvault.io/injection: enabled, identity.io/enforce: bound}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: checkout, namespace: ` + namespace + `}
spec:
  provider: azure
  parameters:
    keyvaultName: payments-kv
    tenantID: 72f988bf-86f1-41af-91ab-2d7cd011db47
    clientID: 0f3cbb3a-5d5a-4b5d-9d0f-2a7f6a0c1f11
    objects: |
      array:
      - |
        objectName: db-password
        objectType: secret
  secretObjects:
  - secretName: checkout
    type: Opaque
    data:
    - {objectName: db-password, key: db-password}
`

// asks returns the metadata of a pod, or of a pod template, that requests injection.
func asks() metav1.ObjectMeta {
	return metav1.ObjectMeta{
		Labels:      map[string]string{"asks": "true"},
		Annotations: map[string]string{"keyvault.io/class": "checkout", "keyvault.io/secrets": "DB_PASSWORD=db-password", "identity.io/mode": "none"},
	}
}

func container() corev1.PodSpec {
	return corev1.PodSpec{Containers: []corev1.Container{{Name: "checkout", Image: image}}}
}

// asking returns a pod that requests injection.
func asking(name string) *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: asks(), Spec: container()}
	pod.Name, pod.Namespace = name, namespace
	return pod
}

// bystander returns a pod that does not request injection.
func bystander(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: container()}
}

// injected returns an error unless a pod that requests injection is injected.
func injected(pod *corev1.Pod) error {
	var errs []error
	if pod.Labels["keyvault.io/injected"] != "true" {
		errs = append(errs, errors.New("the label"))
	}
	if !slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.CSI != nil }) {
		errs = append(errs, errors.New("the volume"))
	}
	if !slices.ContainsFunc(pod.Spec.Containers[0].Env, func(v corev1.EnvVar) bool { return v.Name == "DB_PASSWORD" }) {
		errs = append(errs, errors.New("the env var"))
	}
	if len(errs) > 0 {
		return fmt.Errorf("a pod that requests injection lacks %w", errors.Join(errs...))
	}
	return nil
}

// untouched returns an error if a pod that does not request injection is injected.
func untouched(pod *corev1.Pod) error {
	if injected(pod) == nil || pod.Labels["keyvault.io/injected"] != "" {
		return errors.New("a pod that does not request injection is injected")
	}
	return nil
}
