package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// judgeBy has the API server call a replica for policy until the test ends. A test that uses it
// must not be parallel.
func judgeBy(t *testing.T, r *replica) {
	t.Helper()
	setJudge(t.Context(), t, "https://"+r.address)
	log := filepath.Join(plane.Dir, "replica-"+strings.TrimPrefix(r.address, "127.0.0.1:"), "akv-injector.log")
	waitForJudge(t, log)
	t.Cleanup(func() {
		setJudge(context.Background(), t, server.URL)
		if err := waitUntilJudged(context.Background(), "probe"); err != nil {
			t.Error(err)
		}
	})
}

// setJudge applies the shipped validating webhook configuration with another URL.
func setJudge(ctx context.Context, t *testing.T, url string) {
	t.Helper()
	shipped, err := injector.Shipped(ctx, "validating-webhook-configuration.yaml", url)
	if err != nil {
		t.Fatal(err)
	}
	configurations := objects.Resource(schema.GroupVersionResource{Group: "admissionregistration.k8s.io", Version: "v1", Resource: "validatingwebhookconfigurations"})
	for _, object := range shipped {
		// The same field manager as before, so that the URL is replaced. The injector owns
		// the CA bundle.
		if _, err := configurations.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "akv-injector-test", Force: true}); err != nil {
			t.Fatal(err)
		}
	}
}

// waitForJudge waits until the log of an injector has a review of policy.
func waitForJudge(t *testing.T, log string) {
	t.Helper()
	waitFor(t, "the API server to call the injector", func(ctx context.Context) error {
		if err := tryPod(ctx, "probe", bare("probe")); !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("the pod is not rejected"), err)
		}
		text, err := os.ReadFile(log)
		if err == nil && !strings.Contains(string(text), `"path":"/validate/pods"`) {
			err = errors.New("another injector is called")
		}
		return err
	})
}

// TestPolicyWithoutAnInjector stops the injector that checks policy. What policy enforces must fail
// closed, everything else must be admitted.
func TestPolicyWithoutAnInjector(t *testing.T) {
	const prefix = "policy-outage-"
	for name, labels := range map[string]string{
		"required": `{identity.io/enforce: required, identity.io/warn: required}`, "bound": `{identity.io/enforce: bound}`,
		"warned": `{identity.io/warn: required}`, "audited": `{identity.io/audit: required}`,
		"ceilings": `{keyvault.io/injection: enabled}`, "none": `{}`,
	} {
		newGoverned(t, prefix+name, labels, `{}`, document(binding))
		createPod(t, prefix+name, bound("running", "access-blob"))
	}
	r := startReplica(t)
	r.waitReady(t)
	judgeBy(t, r)
	if err := r.Stop(); err != nil {
		t.Fatal(err)
	}
	plain, uses := bare("plain"), bound("uses", "access-blob")
	for _, test := range []struct {
		namespace string
		pod       *corev1.Pod
		closed    bool
	}{
		{"required", plain, true},
		{"required", uses, true},
		{"bound", plain, false}, // no identity and no class to check
		{"bound", uses, true},
		{"warned", plain, false},
		{"warned", uses, false},
		{"audited", plain, false},
		{"audited", uses, false},
		{"ceilings", plain, false},
		{"ceilings", uses, false},
		{"none", uses, false},
	} {
		t.Run(fmt.Sprint(test.namespace, " ", test.pod.Name), func(t *testing.T) {
			checkOutage(t, tryPod(t.Context(), prefix+test.namespace, test.pod), test.closed)
		})
	}
	for name, closed := range map[string]bool{"required": true, "bound": true, "warned": false, "audited": false, "ceilings": false, "none": false} {
		t.Run(name+" running", func(t *testing.T) {
			pod, err := client.CoreV1().Pods(prefix+name).Get(t.Context(), "running", metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if err := makeReady(t.Context(), pod); err != nil {
				t.Errorf("the status of a running pod: %v", err)
			}
			if pod, err = client.CoreV1().Pods(prefix+name).Get(t.Context(), "running", metav1.GetOptions{}); err != nil {
				t.Fatal(err)
			}
			pod.Labels["aadpodidbinding"] = "admin"
			_, err = client.CoreV1().Pods(prefix+name).Update(t.Context(), pod, metav1.UpdateOptions{})
			checkOutage(t, err, closed)
			d := document(strings.Replace(deployment, "annotations: "+annotations, "annotations: {}", 1))
			if _, err := resource(objects, d, prefix+name).Create(t.Context(), in(d, prefix+name), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
				t.Errorf("a Deployment: %v", err)
			}
			if err := client.CoreV1().Pods(prefix+name).Delete(t.Context(), "running", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
				t.Errorf("delete a running pod: %v", err)
			}
		})
	}
}

// checkOutage requires that a request fails because no injector answers, or that it succeeds.
func checkOutage(t *testing.T, err error, closed bool) {
	t.Helper()
	if closed != (apierrors.IsInternalError(err) && strings.Contains(err.Error(), "failed calling webhook")) || (err != nil) != closed {
		t.Errorf("the API server answers %v, want fail closed: %t", err, closed)
	}
}

// TestBindingsComeAndGo removes and reinstalls the CRD AzureIdentityBinding while injectors run,
// without restarting them.
func TestBindingsComeAndGo(t *testing.T) {
	const namespace = "policy-bindings-come"
	newGoverned(t, namespace, `{identity.io/enforce: required, keyvault.io/injection: enabled}`, `{}`, document(class))
	uses := bound("uses", "access-blob")
	await := func(what, reason string) {
		t.Helper()
		var err error
		waitFor(t, what, func(ctx context.Context) error {
			if err = tryPod(ctx, namespace, uses); (err == nil) != (reason == "") {
				return errors.Join(errors.New("not yet"), err)
			}
			return nil
		})
		checkForbidden(t, err, reason)
	}
	t.Cleanup(func() {
		if err := controlplane.InstallCRDs(context.Background(), plane.Config); err != nil {
			t.Error(err)
		}
	})
	removeBindings(t)
	r := startReplica(t) // starts without the CRD
	r.waitReady(t)
	judgeBy(t, r)
	for range 2 {
		await("the pod to be rejected without the CRD", "IdentityNotBound")
		if err := controlplane.InstallCRDs(t.Context(), plane.Config); err != nil {
			t.Fatal(err)
		}
		await("the pod to be rejected without a binding", "IdentityNotBound")
		if err := apply(t.Context(), namespace, document(binding)); err != nil {
			t.Fatal(err)
		}
		checkForbidden(t, tryPod(t.Context(), namespace, uses), "") // without a delay
		removeBindings(t)
	}
	await("the pod to be rejected again", "IdentityNotBound")

	// The shared injector saw the same. It reads the names that it suggests from its cache; no
	// verdict depends on them.
	if err := controlplane.InstallCRDs(t.Context(), plane.Config); err != nil {
		t.Fatal(err)
	}
	if err := apply(t.Context(), namespace, document(binding)); err != nil {
		t.Fatal(err)
	}
	in, heard := listening(t)
	asks := document(`{apiVersion: v1, kind: Pod, metadata: {name: asks, annotations: {keyvault.io/class: key-vault-secret}}, spec: {containers: [{name: app, image: nginx}]}}`)
	waitFor(t, "the injector to suggest the binding", func(ctx context.Context) error {
		_, err := resource(in, asks, namespace).Create(ctx, asks, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if texts := heard.take(); !slices.ContainsFunc(texts, func(text string) bool { return strings.HasSuffix(text, "available here: access-blob") }) {
			return errors.Join(fmt.Errorf("the warnings are %q", texts), err)
		}
		return nil
	})
}

// removeBindings deletes the CRD AzureIdentityBinding and all its objects.
func removeBindings(t *testing.T) {
	t.Helper()
	const name = "azureidentitybindings.aadpodidentity.k8s.io"
	definitions := objects.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	if err := definitions.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the CRD to be deleted", func(ctx context.Context) error {
		_, err := definitions.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return errors.Join(errors.New("it still exists"), err)
	})
}
