package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// blobAccount is a ServiceAccount with a client id.
const blobAccount = `
apiVersion: v1
kind: ServiceAccount
metadata: {name: blob-sa, annotations: {azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90}}
`

// waitUntilJudged waits until the API server calls the injector for policy of pods in a namespace
// that requires an identity.
func waitUntilJudged(ctx context.Context, namespace string) error {
	return process.Until(ctx, func(ctx context.Context) error {
		if err := tryPod(ctx, namespace, bare("probe")); !apierrors.IsForbidden(err) {
			return errors.Join(errors.New("the pod is not rejected"), err)
		}
		return nil
	})
}

// bare is a pod without labels, annotations and volumes.
func bare(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "nginx"}}}}
}

// bound is a pod with the label of AAD pod identity.
func bound(name, binding string) *corev1.Pod {
	pod := bare(name)
	pod.Labels = map[string]string{"aadpodidbinding": binding}
	return pod
}

// withVolumes adds volumes of the driver to a pod, each with attributes.
func withVolumes(pod *corev1.Pod, attributes ...map[string]string) *corev1.Pod {
	for i := range attributes {
		pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{
			Name: fmt.Sprint("secrets-", i),
			VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true), VolumeAttributes: attributes[i],
			}},
		})
	}
	return pod
}

// tryPod creates a pod as a dry run.
func tryPod(ctx context.Context, namespace string, pod *corev1.Pod) error {
	_, err := client.CoreV1().Pods(namespace).Create(ctx, pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	return err
}

func createPod(t *testing.T, namespace string, pod *corev1.Pod) {
	t.Helper()
	if _, err := client.CoreV1().Pods(namespace).Create(t.Context(), pod, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// newGoverned creates a namespace with labels and annotations in YAML, and the objects in it.
func newGoverned(t *testing.T, name, labels, annotations string, list ...*unstructured.Unstructured) {
	t.Helper()
	namespace := document(`{apiVersion: v1, kind: Namespace, metadata: {name: ` + name + `, labels: ` + labels + `, annotations: ` + annotations + `}}`)
	if err := apply(t.Context(), name, append([]*unstructured.Unstructured{namespace}, list...)...); err != nil {
		t.Fatal(err)
	}
	if err := plane.WaitForServiceAccount(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// checkForbidden requires a policy rejection with a Reason, or no error if reason is empty.
func checkForbidden(t *testing.T, err error, reason string) {
	t.Helper()
	if reason == "" {
		if err != nil {
			t.Error(err)
		}
		return
	}
	if !apierrors.IsForbidden(err) || !denied.MatchString(err.Error()) || !strings.Contains(err.Error(), "["+reason+"]") {
		t.Errorf("the API server answers %v, want a rejection with %s", err, reason)
	}
}

// reviewsOf returns the reviews of a namespace at a path in the server's log, as "OPERATION NAME
// OUTCOME".
func reviewsOf(t *testing.T, namespace, path string) []string {
	t.Helper()
	var reviews []string
	for _, entry := range logged(t, namespace) {
		if entry["path"] == path {
			reviews = append(reviews, fmt.Sprint(entry["operation"], " ", entry["name"], " ", entry["outcome"]))
		}
	}
	return reviews
}

// TestOrigin applies two Deployments in a namespace that requires an identity. One gets its pod.
// The events of the other's ReplicaSet name the fix.
func TestOrigin(t *testing.T) {
	t.Parallel()
	const namespace = "policy-origin"
	newGoverned(t, namespace, `{identity.io/enforce: required}`, `{}`, documents(binding+"---"+blobAccount)...)
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"access-blob", "no-access-blob"} {
		i := slices.IndexFunc(archives, func(a *corpus.Archive) bool { return a.Name == "policy-origin-"+name })
		file := filepath.Join(t.TempDir(), name+".yaml")
		if err := os.WriteFile(file, corpus.JSON(archives[i].Subject), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := plane.Kubectl(t.Context(), "apply", "--namespace="+namespace, "--filename="+file).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl apply: %v\n%s", err, out)
		}
		got := "$ kubectl apply --filename=" + name + ".yaml\n" + string(out)
		if name == "no-access-blob" {
			message := failedCreate(t, namespace)
			got += "$ kubectl events\n" + generated.ReplaceAllString(message, "no-access-blob-HASH") + "\n"
		}
		golden(t, "policy-"+name+".txt", got)
	}
	waitFor(t, "a second attempt in the event", func(ctx context.Context) error {
		events, err := client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err == nil && (len(events.Items) != 1 || events.Items[0].Count < 2) {
			err = fmt.Errorf("there are %d events, the first %+v", len(events.Items), events.Items)
		}
		return err
	})
	for _, pod := range waitForPods(t, namespace, 1, anyPod) {
		if pod.Labels["aadpodidbinding"] != "access-blob" {
			t.Errorf("pod %s was admitted, with labels %v", pod.Name, pod.Labels)
		}
	}
}

// generated matches the generated name of the ReplicaSet of no-access-blob.
var generated = regexp.MustCompile(`no-access-blob-[0-9a-z]{5,10}`)

// TestLateBinding creates the binding 100 milliseconds after the first pod of a ReplicaSet was
// rejected. The ReplicaSet must succeed on a retry.
func TestLateBinding(t *testing.T) {
	t.Parallel()
	const namespace = "policy-late-binding"
	newGoverned(t, namespace, `{identity.io/enforce: required}`, `{}`)
	labelled := strings.Replace(template, "app: app", "app: app, aadpodidbinding: access-blob", 1)
	d := document(`{apiVersion: apps/v1, kind: Deployment, metadata: {name: app}, spec: {selector: {matchLabels: {app: app}}, template: ` + labelled + `}}`)
	if err := apply(t.Context(), namespace, d); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the first attempt", func(context.Context) error {
		if len(reviewsOf(t, namespace, "/validate/pods")) == 0 {
			return errors.New("no review yet")
		}
		return nil
	})
	<-time.After(100 * time.Millisecond) // the delay of the binding
	if err := apply(t.Context(), namespace, document(binding)); err != nil {
		t.Fatal(err)
	}
	waitForPods(t, namespace, 1, anyPod)
	outcomes := reviewsOf(t, namespace, "/validate/pods")
	if !strings.HasSuffix(outcomes[0], " forbidden") || !strings.HasSuffix(outcomes[len(outcomes)-1], " allowed") {
		t.Errorf("the reviews are %q, want a rejection first and none last", outcomes)
	}
}

// TestInOneBreath applies a namespace, the objects that a pod needs, and the pod, faster than a
// cache is updated. No pod may be rejected.
func TestInOneBreath(t *testing.T) {
	t.Parallel()
	for i := range 30 {
		namespace := fmt.Sprint("policy-breath-", i)
		newGoverned(t, namespace, `{identity.io/enforce: required}`, `{identity.io/allowed-names: access-*, keyvault.io/allowed-vaults: team-*}`)
		if err := tryPod(t.Context(), namespace, bound("app", "access-blob")); !apierrors.IsForbidden(err) {
			t.Errorf("without a binding the API server answers %v", err)
		}
		if err := apply(t.Context(), namespace, surroundings()...); err != nil {
			t.Fatal(err)
		}
		checkForbidden(t, tryPod(t.Context(), namespace, withVolumes(bound("app", "access-blob"), map[string]string{"secretProviderClass": "key-vault-secret"})), "")
	}
}

// TestRelabelling changes the labels of running pods by each kind of request that the API server
// has.
func TestRelabelling(t *testing.T) {
	t.Parallel()
	const namespace = "policy-relabelling"
	newGoverned(t, namespace, `{identity.io/enforce: required}`, `{identity.io/allowed-names: access-*}`,
		documents(binding+"---"+strings.ReplaceAll(binding, "access-blob", "access-queue")+"---"+strings.ReplaceAll(binding, "access-blob", "admin"))...)
	pods := client.CoreV1().Pods(namespace)
	patched := func(kind types.PatchType, subresources ...string) func(ctx context.Context, name, label string) error {
		return func(ctx context.Context, name, label string) error {
			body := fmt.Sprintf(`{"apiVersion":"v1","kind":"Pod","metadata":{"labels":{"aadpodidbinding":%q}}}`, label)
			options := metav1.PatchOptions{}
			if kind == types.ApplyPatchType {
				options = metav1.PatchOptions{FieldManager: "another-manager", Force: new(true)}
			}
			_, err := pods.Patch(ctx, name, kind, []byte(body), options, subresources...)
			return err
		}
	}
	updated := func(update func(context.Context, *corev1.Pod, metav1.UpdateOptions) (*corev1.Pod, error)) func(ctx context.Context, name, label string) error {
		return func(ctx context.Context, name, label string) error {
			pod, err := pods.Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			pod.Labels["aadpodidbinding"] = label
			_, err = update(ctx, pod, metav1.UpdateOptions{})
			return err
		}
	}
	for way, relabel := range map[string]func(ctx context.Context, name, label string) error{
		"update":          updated(pods.Update),
		"update-status":   updated(pods.UpdateStatus),
		"patch":           patched(types.MergePatchType),
		"patch-status":    patched(types.MergePatchType, "status"),
		"strategic-patch": patched(types.StrategicMergePatchType),
		"apply":           patched(types.ApplyPatchType),
		"apply-status":    patched(types.ApplyPatchType, "status"),
	} {
		t.Run(way, func(t *testing.T) {
			pod := bound(way, "access-blob")
			createPod(t, namespace, pod)
			if err := makeReady(t.Context(), pod.DeepCopy()); err != nil && !apierrors.IsNotFound(err) {
				t.Fatal(err)
			}
			for _, to := range []struct{ label, reason, stored string }{
				{"gone", "IdentityNotBound", "access-blob"},
				{"admin", "IdentityNotAllowed", "access-blob"},
				{"", "IdentityRequired", "access-blob"},
				{"access-queue", "", "access-queue"},
			} {
				checkForbidden(t, relabel(t.Context(), way, to.label), to.reason)
				got, err := pods.Get(t.Context(), way, metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if got.Labels["aadpodidbinding"] != to.stored {
					t.Errorf("relabelled to %q the pod has %q, want %q", to.label, got.Labels["aadpodidbinding"], to.stored)
				}
			}
		})
	}
}

// TestRelabellingWhereOnlyIdentitiesMatter removes the label at level bound, where pods without an
// identity are not reviewed. A pod that mounts a class still needs the label.
func TestRelabellingWhereOnlyIdentitiesMatter(t *testing.T) {
	t.Parallel()
	const namespace = "policy-bound"
	newGoverned(t, namespace, `{identity.io/enforce: bound}`, `{}`, surroundings()...)
	remove := []byte(`{"metadata":{"labels":{"aadpodidbinding":null}}}`)
	createPod(t, namespace, withVolumes(bound("mounts", "access-blob"), map[string]string{"secretProviderClass": "key-vault-secret"}))
	createPod(t, namespace, bound("plain", "access-blob"))
	for name, reason := range map[string]string{"mounts": "IdentityRequired", "plain": ""} {
		_, err := client.CoreV1().Pods(namespace).Patch(t.Context(), name, types.MergePatchType, remove, metav1.PatchOptions{})
		checkForbidden(t, err, reason)
	}
}

// TestServiceAccountGone enables workload identity on a running pod whose ServiceAccount was
// deleted. The API server itself rejects a new pod without its ServiceAccount.
func TestServiceAccountGone(t *testing.T) {
	t.Parallel()
	const namespace = "policy-account-gone"
	newGoverned(t, namespace, `{identity.io/enforce: bound}`, `{}`, document(blobAccount))
	pod := bare("app")
	pod.Spec.ServiceAccountName = "blob-sa"
	createPod(t, namespace, pod)
	use := func(value string) error {
		body := `{"metadata":{"labels":{"azure.workload.identity/use":` + value + `}}}`
		_, err := client.CoreV1().Pods(namespace).Patch(t.Context(), "app", types.MergePatchType, []byte(body), metav1.PatchOptions{})
		return err
	}
	checkForbidden(t, use(`"true"`), "")
	checkForbidden(t, use(`null`), "")
	if err := client.CoreV1().ServiceAccounts(namespace).Delete(t.Context(), "blob-sa", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the injector to see the deleted ServiceAccount", func(context.Context) error {
		if err := use(`"true"`); err == nil {
			return errors.Join(errors.New("the pod is still admitted"), use(`null`))
		}
		return nil
	})
	checkForbidden(t, use(`"true"`), "ServiceAccountNotFound")
}

// TestSlippingPast tries to bypass policy. Each pod would be admitted but for one change.
func TestSlippingPast(t *testing.T) {
	t.Parallel()
	const namespace = "policy-slipping"
	newGoverned(t, namespace, `{identity.io/enforce: required, keyvault.io/injection: enabled}`,
		`{identity.io/exempt: builder, identity.io/allowed-names: "access-*,builder", keyvault.io/allowed-vaults: team-*}`,
		append(surroundings(), documents(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: builder}}`+"\n---"+
			strings.NewReplacer("name: key-vault-secret}", "name: other}", "team-kv", "other-kv").Replace(class))...)...)
	mount := map[string]string{"secretProviderClass": "key-vault-secret"}
	for behaviour, test := range map[string]struct {
		change func(*corev1.Pod)
		reason string
	}{
		"nothing": {func(*corev1.Pod) {}, ""},
		"a vault in the volume attributes": {func(p *corev1.Pod) {
			withVolumes(p, map[string]string{"secretProviderClass": "key-vault-secret", "keyvaultName": "other-kv"})
		}, "VaultNotAllowed"},
		"another volume attribute": {func(p *corev1.Pod) {
			withVolumes(p, map[string]string{"secretProviderClass": "key-vault-secret", "useVMManagedIdentity": "true"})
		}, "AttributeNotAllowed"},
		"a second volume":                    {func(p *corev1.Pod) { withVolumes(p, mount, map[string]string{"secretProviderClass": "other"}) }, "VaultNotAllowed"},
		"a second class that does not exist": {func(p *corev1.Pod) { withVolumes(p, mount, map[string]string{"secretProviderClass": "gone"}) }, "ClassNotFound"},
		"generateName":                       {func(p *corev1.Pod) { p.Name, p.GenerateName, p.Labels = "", "app-", nil }, "IdentityRequired"},
		"an exempt name as owner": {func(p *corev1.Pod) {
			p.Labels = nil
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "builder", UID: "3e4a5e4e-6f0c-4a55-9f37-6a2d1b7f2c11", Controller: new(true)}}
		}, "IdentityRequired"},
		"an exempt ServiceAccount above the ceiling": {func(p *corev1.Pod) {
			p.Spec.ServiceAccountName = "builder"
			p.Labels["aadpodidbinding"] = "admin"
		}, "IdentityNotAllowed"},
		"the namespace labels on the pod": {func(p *corev1.Pod) {
			p.Labels = map[string]string{"identity.io/exempt": "app", "identity.io/enforce": "bound"}
		}, "IdentityRequired"},
		"the labels and annotations of an injected pod": {func(p *corev1.Pod) {
			p.Labels["keyvault.io/injected"] = "true"
			p.Annotations = map[string]string{"keyvault.io/status": `{"volumes":[{"name":"secrets-0","class":"kv-0123456789","managed":true}]}`}
			withVolumes(p, map[string]string{"secretProviderClass": "kv-0123456789"})
		}, "ClassNotFound"},
		"an opt-out": {func(p *corev1.Pod) {
			p.Labels, p.Annotations = nil, map[string]string{"keyvault.io/inject": "false"}
		}, "IdentityRequired"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := bound("app", "access-blob")
			test.change(pod)
			checkForbidden(t, tryPod(t.Context(), namespace, pod), test.reason)
		})
	}
}

// TestLabelledLater has another webhook change a pod's identity after the injector was called.
func TestLabelledLater(t *testing.T) {
	t.Parallel()
	const namespace = "policy-labelled-later"
	newGoverned(t, namespace, `{identity.io/enforce: bound}`, `{identity.io/allowed-names: access-*}`, document(binding))
	checkForbidden(t, tryPod(t.Context(), namespace, bound("app", "access-blob")), "")
	addWebhook(t, "zz-label", namespace, nil, func(*corev1.Pod) string {
		return `[{"op":"add","path":"/metadata/labels/aadpodidbinding","value":"admin"}]`
	})
	var err error
	waitFor(t, "the API server to call the other webhook", func(ctx context.Context) error {
		if err = tryPod(ctx, namespace, bound("app", "access-blob")); err == nil {
			return errors.New("the pod is admitted")
		}
		return nil
	})
	checkForbidden(t, err, "IdentityNotAllowed")
}

// TestEphemeralContainers adds an ephemeral container to a running pod, with a changed identity
// label in the same request. The API server stores the container only, and does not call the
// injector.
func TestEphemeralContainers(t *testing.T) {
	t.Parallel()
	const namespace = "policy-ephemeral"
	newGoverned(t, namespace, `{identity.io/enforce: required}`, `{}`, document(binding))
	createPod(t, namespace, bound("app", "access-blob"))
	body := `{"metadata":{"labels":{"aadpodidbinding":"admin"}},"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox"}]}}`
	got, err := client.CoreV1().Pods(namespace).Patch(t.Context(), "app", types.StrategicMergePatchType, []byte(body), metav1.PatchOptions{}, "ephemeralcontainers")
	if err != nil {
		t.Fatal(err)
	}
	if len(got.Spec.EphemeralContainers) != 1 || got.Labels["aadpodidbinding"] != "access-blob" {
		t.Errorf("the pod has ephemeral containers %v and labels %v", got.Spec.EphemeralContainers, got.Labels)
	}
}

// TestOtherUpdates changes every mutable field of a running pod except its identity. The API server
// sends none of these updates to the injector.
func TestOtherUpdates(t *testing.T) {
	t.Parallel()
	const namespace = "policy-other-updates"
	newGoverned(t, namespace, `{identity.io/enforce: required, identity.io/warn: required}`, `{}`, documents(binding+"---"+blobAccount)...)
	createPod(t, namespace, bound("app", "access-blob"))
	for _, change := range []struct{ body, subresource string }{
		{`{"metadata":{"annotations":{"note":"x","identity.io/name":"admin"}}}`, ""},
		{`{"metadata":{"labels":{"app":"x","keyvault.io/injected":"true","identity.io/name":"admin"}}}`, ""},
		{`{"metadata":{"finalizers":["example.com/wait"]}}`, ""},
		{`{"spec":{"containers":[{"name":"app","image":"nginx:2"}]}}`, ""},
		{`{"spec":{"ephemeralContainers":[{"name":"debug","image":"busybox"}]}}`, "ephemeralcontainers"},
		{`{"spec":{"containers":[{"name":"app","resources":{"requests":{"cpu":"100m"}}}]}}`, "resize"},
		{`{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`, "status"},
		{`{"metadata":{"finalizers":null}}`, ""},
	} {
		var subresources []string
		if change.subresource != "" {
			subresources = append(subresources, change.subresource)
		}
		_, err := client.CoreV1().Pods(namespace).Patch(t.Context(), "app", types.StrategicMergePatchType, []byte(change.body), metav1.PatchOptions{}, subresources...)
		if err != nil && change.subresource != "resize" { // the pod has QoS class BestEffort, which resize can't change
			t.Errorf("%s: %v", change.body, err)
		}
	}
	createPod(t, namespace, bound("later", "access-blob"))
	relabel := []byte(`{"metadata":{"labels":{"azure.workload.identity/use":"false"}}}`)
	if _, err := client.CoreV1().Pods(namespace).Patch(t.Context(), "app", types.MergePatchType, relabel, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"CREATE app allowed", "CREATE later allowed", "UPDATE app allowed"}
	var got []string
	waitFor(t, "the last review in the log", func(context.Context) error {
		if got = reviewsOf(t, namespace, "/validate/pods"); len(got) == 0 || got[len(got)-1] != want[2] {
			return fmt.Errorf("the reviews are %q", got)
		}
		return nil
	})
	// The API server calls the webhook again if its first copy of the pod was outdated.
	if diff := cmp.Diff(want, slices.Compact(got)); diff != "" {
		t.Errorf("reviews (-want +got):\n%s", diff)
	}
}

// TestReviewedOnce creates a namespace for every combination of labels, and counts the reviews of
// its pods and workloads.
func TestReviewedOnce(t *testing.T) {
	t.Parallel()
	// Policy reviews of a pod that uses nothing, of one that mounts a class, and of a workload; and
	// all reviews of a pod with annotations.
	type counts struct{ Plain, Mounts, Workloads, Asks int }
	want, got := map[string]counts{}, map[string]counts{}
	namespaces := map[string]string{}
	for _, enforce := range []string{"", "bound", "required", "strict"} {
		for _, warn := range []string{"", "bound"} {
			for _, audit := range []string{"", "required"} {
				for _, injection := range []string{"", "enabled"} {
					var labels []string
					for _, label := range [][2]string{{"identity.io/enforce", enforce}, {"identity.io/warn", warn}, {"identity.io/audit", audit}, {"keyvault.io/injection", injection}} {
						if label[1] != "" {
							labels = append(labels, label[0]+": "+label[1])
						}
					}
					namespace, key := fmt.Sprint("policy-once-", len(namespaces)), "{"+strings.Join(labels, ", ")+"}"
					namespaces[key] = namespace
					newGoverned(t, namespace, key, `{}`)
					var a counts
					if warn != "" || audit != "" || (enforce != "" && enforce != "bound") {
						a.Plain = 1
					}
					if enforce != "" || warn != "" || audit != "" {
						a.Mounts, a.Asks = 1, 1
					}
					if injection != "" {
						a.Asks++
					}
					if enforce != "" || warn != "" {
						a.Workloads = 1 // audit applies to pods only
					}
					want[key] = a
				}
			}
		}
	}
	for _, namespace := range namespaces {
		asking := withVolumes(bare("asks"), map[string]string{"secretProviderClass": "gone"})
		asking.Annotations = map[string]string{"keyvault.io/env": "auto"}
		for _, pod := range []*corev1.Pod{bare("plain"), withVolumes(bare("mounts"), map[string]string{"secretProviderClass": "gone"}), asking} {
			if err := tryPod(t.Context(), namespace, pod); err != nil && !apierrors.IsForbidden(err) {
				t.Fatal(err)
			}
		}
		d := document(strings.Replace(deployment, "annotations: "+annotations, "annotations: {}", 1))
		if _, err := resource(objects, d, namespace).Create(t.Context(), in(d, namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Fatal(err)
		}
	}
	// A superfluous review is in the log by the time all others are.
	waitFor(t, "the reviews in the log", func(context.Context) error {
		for key, namespace := range namespaces {
			var a counts
			for _, review := range reviewsOf(t, namespace, "/validate/pods") {
				switch {
				case strings.Contains(review, " plain "):
					a.Plain++
				case strings.Contains(review, " mounts "):
					a.Mounts++
				default:
					a.Asks++
				}
			}
			a.Asks += len(reviewsOf(t, namespace, "/mutate/pods"))
			a.Workloads = len(reviewsOf(t, namespace, "/validate/workloads"))
			got[key] = a
		}
		for key := range want {
			if now, then := got[key], want[key]; now.Plain < then.Plain || now.Mounts < then.Mounts || now.Workloads < then.Workloads || now.Asks < then.Asks {
				return fmt.Errorf("%s has %+v", key, got[key])
			}
		}
		return nil
	})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("reviews (-want +got):\n%s", diff)
	}
}

// TestExemptNamespaces labels the system namespaces and the injector's. The API server must not
// call the injector for their pods.
func TestExemptNamespaces(t *testing.T) {
	t.Parallel()
	label := func(ctx context.Context, namespace, value string) error {
		body := `{"metadata":{"labels":{"identity.io/enforce":` + value + `,"identity.io/warn":` + value + `,"keyvault.io/injection":` + value + `}}}`
		_, err := client.CoreV1().Namespaces().Patch(ctx, namespace, types.MergePatchType, []byte(body), metav1.PatchOptions{})
		return err
	}
	for _, namespace := range []string{"kube-system", "kube-public", "kube-node-lease", injectorNamespace} {
		t.Run(namespace, func(t *testing.T) {
			if err := plane.WaitForServiceAccount(t.Context(), namespace); err != nil {
				t.Fatal(err)
			}
			if err := label(t.Context(), namespace, `"required"`); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := label(context.Background(), namespace, "null"); err != nil {
					t.Error(err)
				}
			})
			pod := withVolumes(bound("app", "gone"), map[string]string{"secretProviderClass": "gone"})
			// The injector's namespace enforces the Pod Security level restricted.
			pod.Spec.SecurityContext = &corev1.PodSecurityContext{RunAsNonRoot: new(true), SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault}}
			pod.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{
				AllowPrivilegeEscalation: new(false), Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
			}
			checkForbidden(t, tryPod(t.Context(), namespace, pod), "")
			if reviews := logged(t, namespace); len(reviews) > 0 {
				t.Errorf("the injector was called: %v", reviews)
			}
		})
	}
}

// TestPolicyAudit reads the audit annotations for a pod in the API server's audit log.
func TestPolicyAudit(t *testing.T) {
	t.Parallel()
	const namespace = "policy-audit"
	newGoverned(t, namespace, `{identity.io/enforce: bound, identity.io/audit: required}`, `{}`)
	createPod(t, namespace, bare("app"))
	want := map[string]string{
		"bound-audited.pods.akv-injector.io/outcome": "allowed",
		"bound-audited.pods.akv-injector.io/violations": "[IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; " +
			"there is none here: apply an AzureIdentityBinding, or a ServiceAccount with annotation azure.workload.identity/client-id; required by namespace label identity.io/audit=required",
	}
	waitFor(t, "the audit log", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(auditDir, "audit.log"))
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(text)) {
			var event struct {
				ObjectRef   struct{ Namespace, Name string }
				Annotations map[string]string
			}
			if json.Unmarshal([]byte(line), &event) != nil || event.ObjectRef.Namespace != namespace {
				continue
			}
			for key := range event.Annotations {
				if !strings.Contains(key, "akv-injector.io/") {
					delete(event.Annotations, key)
				}
			}
			if diff := cmp.Diff(want, event.Annotations); diff != "" {
				t.Errorf("audit annotations (-want +got):\n%s", diff)
			}
			return nil
		}
		return errors.New("no entry for the pod")
	})
}
