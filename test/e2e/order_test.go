package e2e_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// TestReinvocation lets another webhook add a container after the injector has had its turn. The injector is asked again, and
// gives the container what it gave the others.
func TestReinvocation(t *testing.T) {
	t.Parallel()
	const namespace = "reinvocation"
	newNamespace(t, namespace, "enabled", cluster()...)
	addWebhook(t, "zz-sidecar", namespace, nil, `[{"op":"add","path":"/spec/containers/-","value":{"name":"sidecar","image":"sidecar"}}]`)
	got := createThroughBoth(t, namespace, document(pod).GetAnnotations(), func(pod *corev1.Pod) bool { return len(pod.Spec.Containers) == 2 })
	app, sidecar := &got.Spec.Containers[0], &got.Spec.Containers[1]
	if sidecar.Name != "sidecar" || len(sidecar.Env) == 0 {
		t.Fatalf("the container that was added later has no env vars: %+v", sidecar)
	}
	if diff := cmp.Diff(app.Env, sidecar.Env); diff != "" {
		t.Errorf("env vars (-app +sidecar):\n%s", diff)
	}
	if diff := cmp.Diff(app.VolumeMounts, sidecar.VolumeMounts, cmp.FilterValues(isTokenMount, cmp.Ignore())); diff != "" {
		t.Errorf("mounts (-app +sidecar):\n%s", diff)
	}
	if err := injected(got); err != nil {
		t.Error(err)
	}
	var status struct{ Containers []string }
	if err := json.Unmarshal([]byte(got.Annotations["keyvault.io/status"]), &status); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"app", "sidecar"}, status.Containers); diff != "" {
		t.Errorf("containers of the status (-want +got):\n%s", diff)
	}
}

func isTokenMount(a, b corev1.VolumeMount) bool {
	return tokenVolume.MatchString(a.Name) && tokenVolume.MatchString(b.Name)
}

// TestBeforeWorkloadIdentity shows that Azure's own webhook, which selects pods by a label that the injector sets, is called for
// them: a webhook that the label passed by in the first round would not be called in a second.
func TestBeforeWorkloadIdentity(t *testing.T) {
	t.Parallel()
	const namespace = "workload-identity"
	newNamespace(t, namespace, "enabled", document(
		`{apiVersion: v1, kind: ServiceAccount, metadata: {name: blob-sa, annotations: {azure.workload.identity/client-id: 6f1c8f2e-1f2b-4c51-9a55-111111111111}}}`))
	addWebhook(t, "azure-wi-webhook-mutating-webhook-configuration", namespace, map[string]string{"azure.workload.identity/use": "true"},
		`[{"op":"add","path":"/spec/containers/0/env","value":[{"name":"AZURE_CLIENT_ID","value":"6f1c8f2e-1f2b-4c51-9a55-111111111111"}]}]`)
	asks := map[string]string{"identity.io/mode": "workload-identity", "identity.io/name": "blob-sa"}
	got := createThroughBoth(t, namespace, asks, func(pod *corev1.Pod) bool { return len(pod.Spec.Containers[0].Env) == 1 })
	if got.Spec.ServiceAccountName != "blob-sa" || got.Labels["azure.workload.identity/use"] != "true" {
		t.Errorf("the pod has ServiceAccount %s and labels %v", got.Spec.ServiceAccountName, got.Labels)
	}
}

// createThroughBoth creates a pod as soon as the API server calls the other webhook too.
func createThroughBoth(t *testing.T, namespace string, annotations map[string]string, called func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	asks := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "nginx"}}},
	}
	waitFor(t, "the API server to call the other webhook", func(ctx context.Context) error {
		got, err := client.CoreV1().Pods(namespace).Create(ctx, asks, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && !called(got) {
			err = fmt.Errorf("it left no trace: %v", got.Spec)
		}
		return err
	})
	got, err := client.CoreV1().Pods(namespace).Create(t.Context(), asks, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// addWebhook runs a webhook that makes the same patch of every pod of a namespace with the labels.
func addWebhook(t *testing.T, name, namespace string, labels map[string]string, patch string) {
	t.Helper()
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		if err := json.NewDecoder(r.Body).Decode(&review); err != nil || review.Request == nil {
			http.Error(w, errors.Join(errors.New("no review"), err).Error(), http.StatusBadRequest)
			return
		}
		patchType := admissionv1.PatchTypeJSONPatch
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true, Patch: []byte(patch), PatchType: &patchType}
		_ = json.NewEncoder(w).Encode(&review)
	}))
	t.Cleanup(other.Close)
	fail, none := admissionregistrationv1.Fail, admissionregistrationv1.SideEffectClassNone
	webhook := admissionregistrationv1.MutatingWebhook{
		Name: "other.webhook.example",
		ClientConfig: admissionregistrationv1.WebhookClientConfig{
			URL: &other.URL, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: other.Certificate().Raw}),
		},
		Rules: []admissionregistrationv1.RuleWithOperations{{
			Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
			Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
		}},
		NamespaceSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelMetadataName: namespace}},
		ObjectSelector:          &metav1.LabelSelector{MatchLabels: labels},
		FailurePolicy:           &fail,
		SideEffects:             &none,
		AdmissionReviewVersions: []string{"v1"},
	}
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	_, err := configurations.Create(t.Context(), &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.MutatingWebhook{webhook},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := configurations.Delete(context.Background(), name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
