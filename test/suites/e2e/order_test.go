package e2e_test

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// sidecars returns a patch as the webhook of a service mesh makes it: a container before all
// others, a restartable init container, and a volume for both. A pod that has them gets no patch.
func sidecars(pod *corev1.Pod) string {
	if slices.ContainsFunc(pod.Spec.Containers, func(c corev1.Container) bool { return c.Name == "sidecar" }) {
		return ""
	}
	return `[
		{"op": "add", "path": "/spec/containers/0", "value":
			{"name": "sidecar", "image": "sidecar", "env": [{"name": "MESH", "value": "on"}], "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}]}},
		{"op": "add", "path": "/spec/initContainers", "value":
			[{"name": "mesh-init", "image": "sidecar", "restartPolicy": "Always", "volumeMounts": [{"name": "mesh", "mountPath": "/mesh"}]}]},
		{"op": "add", "path": "/spec/volumes/0", "value": {"name": "mesh", "emptyDir": {}}}
	]`
}

// TestSidecars has another webhook add containers, before or after the injector. In both cases the
// injector injects these containers too, unless the annotation excludes them, and no container
// loses anything.
func TestSidecars(t *testing.T) {
	t.Parallel()
	for configuration, position := range map[string]string{"aa-mesh": "before", "zz-mesh": "after"} {
		for name, test := range map[string]struct {
			containers string   // value of keyvault.io/containers
			want       []string // containers that are injected
			again      string   // outcome of the second review, if the sidecars were added after the first
		}{
			"all":        {"", []string{"mesh-init", "sidecar", "app"}, "injected"},
			"app-only":   {"app", []string{"app"}, "unchanged"},
			"no-sidecar": {"!sidecar,!mesh-*", []string{"app"}, "unchanged"},
		} {
			t.Run(position+"/"+name, func(t *testing.T) {
				t.Parallel()
				namespace := "mesh-" + position + "-" + name
				newNamespace(t, namespace, "enabled", surroundings()...)
				addWebhook(t, configuration+"-"+name, namespace, nil, sidecars)
				asks := document(pod).GetAnnotations()
				if test.containers != "" {
					asks["keyvault.io/containers"] = test.containers
				}
				got := createThroughBoth(t, namespace, asks, func(pod *corev1.Pod) bool { return len(pod.Spec.Containers) == 2 })
				if err := injected(got); err != nil {
					t.Error(err)
				}
				if len(got.Spec.Volumes) != 3 { // of the mesh, of the injector, of the ServiceAccount's token
					t.Errorf("volumes: %v", got.Spec.Volumes)
				}
				for _, c := range slices.Concat(got.Spec.InitContainers, got.Spec.Containers) {
					var mounts, env []string
					for _, m := range c.VolumeMounts {
						if !tokenVolume.MatchString(m.Name) {
							mounts = append(mounts, m.Name)
						}
					}
					for _, e := range c.Env {
						env = append(env, e.Name)
					}
					var wantMounts, wantEnv []string
					if c.Name != "app" {
						wantMounts = append(wantMounts, "mesh")
					}
					if slices.Contains(test.want, c.Name) {
						wantMounts, wantEnv = append(wantMounts, "keyvault"), append(wantEnv, "KEYVAULT_SECRET")
					}
					if c.Name == "sidecar" {
						wantEnv = append(wantEnv, "MESH")
					}
					if diff := cmp.Diff(wantMounts, mounts); diff != "" {
						t.Errorf("mounts of %s (-want +got):\n%s", c.Name, diff)
					}
					if diff := cmp.Diff(wantEnv, env); diff != "" {
						t.Errorf("env vars of %s (-want +got):\n%s", c.Name, diff)
					}
				}
				var status struct{ Containers []string }
				if err := json.Unmarshal([]byte(got.Annotations["keyvault.io/status"]), &status); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(slices.Sorted(slices.Values(test.want)), slices.Sorted(slices.Values(status.Containers))); diff != "" {
					t.Errorf("containers of the status (-want +got):\n%s", diff)
				}
				want := []string{"injected", test.again}
				if position == "before" {
					// The API server has added the token to the sidecars meanwhile.
					want[1] = "unchanged"
				}
				if diff := cmp.Diff(want, outcomes(t, namespace, "app")); diff != "" {
					t.Errorf("outcomes of the reviews (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// outcomes returns the outcomes of a pod's reviews at /mutate/pods, without those of dry runs.
func outcomes(t *testing.T, namespace, name string) []string {
	t.Helper()
	var all []string
	for _, review := range logged(t, namespace) {
		if review["path"] == "/mutate/pods" && review["name"] == name && review["dryRun"] == false {
			all = append(all, fmt.Sprint(review["outcome"]))
		}
	}
	return all
}

// createThroughBoth creates a pod as soon as the API server calls the other webhook.
func createThroughBoth(t *testing.T, namespace string, annotations map[string]string, called func(*corev1.Pod) bool) *corev1.Pod {
	t.Helper()
	asks := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "app", Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "nginx"}}},
	}
	waitFor(t, "the API server to call the other webhook", func(ctx context.Context) error {
		got, err := client.CoreV1().Pods(namespace).Create(ctx, asks, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && !called(got) {
			err = fmt.Errorf("it did not change the pod: %v", got.Spec)
		}
		return err
	})
	got, err := client.CoreV1().Pods(namespace).Create(t.Context(), asks, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// addWebhook runs a webhook that patches the pods of a namespace with the labels. Its reinvocation
// policy is IfNeeded.
func addWebhook(t *testing.T, name, namespace string, labels map[string]string, patch func(*corev1.Pod) string) {
	t.Helper()
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var review admissionv1.AdmissionReview
		var pod corev1.Pod
		err := json.NewDecoder(r.Body).Decode(&review)
		if err == nil && review.Request == nil {
			err = errors.New("no request in the review")
		}
		if err == nil {
			err = json.Unmarshal(review.Request.Object.Raw, &pod)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
		if text := patch(&pod); text != "" {
			review.Response.Patch, review.Response.PatchType = []byte(text), new(admissionv1.PatchTypeJSONPatch)
		}
		_ = json.NewEncoder(w).Encode(&review)
	}))
	t.Cleanup(other.Close)
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
		FailurePolicy:           new(admissionregistrationv1.Fail),
		SideEffects:             new(admissionregistrationv1.SideEffectClassNone),
		ReinvocationPolicy:      new(admissionregistrationv1.IfNeededReinvocationPolicy),
		AdmissionReviewVersions: []string{"v1"},
	}
	addConfiguration(t, &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []admissionregistrationv1.MutatingWebhook{webhook},
	})
}

// addConfiguration creates a configuration and deletes it when the test ends.
func addConfiguration(t *testing.T, c *admissionregistrationv1.MutatingWebhookConfiguration) {
	t.Helper()
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	if _, err := configurations.Create(t.Context(), c, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := configurations.Delete(context.Background(), c.Name, metav1.DeleteOptions{}); err != nil {
			t.Error(err)
		}
	})
}
