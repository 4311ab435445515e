package rotation_test

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/akv-injector/akv-injector/core/api"
)

// extraKind is a kind that the chart's workloads.extra lists.
type extraKind struct {
	kind, path string
	resource   schema.GroupVersionResource
	// status is the status of a complete rollout of two pods of GENERATION; empty for a kind without one.
	status string
	// metadata is the schema of the metadata of the pod template.
	metadata string
}

const anything = "{type: object, x-kubernetes-preserve-unknown-fields: true}"

// extraKinds has kinds like those of Argo Rollouts and OpenKruise, one with another path, and one whose
// schema drops the annotations of the pod template.
var extraKinds = map[string]*extraKind{
	"Rollout": {
		"Rollout", "spec.template",
		schema.GroupVersionResource{Group: "argoproj.io", Version: "v1alpha1", Resource: "rollouts"},
		`{"observedGeneration":"GENERATION","replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2}`, anything,
	},
	"CloneSet": {
		"CloneSet", "spec.template",
		schema.GroupVersionResource{Group: "apps.kruise.io", Version: "v1beta1", Resource: "clonesets"},
		`{"observedGeneration":GENERATION,"replicas":2,"updatedReplicas":2,"readyReplicas":2,"availableReplicas":2}`, anything,
	},
	"Fleet": {
		"Fleet", "spec.pods.template", schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "fleets"}, "", anything,
	},
	"Crate": {
		"Crate", "spec.template", schema.GroupVersionResource{Group: "example.com", Version: "v1", Resource: "crates"}, "", "{type: object}",
	},
}

// value is the kind in workloads.extra.
func (k *extraKind) value() map[string]any {
	return map[string]any{
		"group": k.resource.Group, "version": k.resource.Version, "kind": k.kind, "resource": k.resource.Resource, "template": k.path,
	}
}

func (k *extraKind) flag() string {
	r := k.resource
	return fmt.Sprintf("--extra-workload=%s=%s.%s.%s:%s", k.kind, r.Resource, r.Version, r.Group, k.path)
}

func (k *extraKind) client(namespace string) dynamic.ResourceInterface {
	return dynamicClient.Resource(k.resource).Namespace(namespace)
}

// restartedFor returns the annotation of the pod template.
func (k *extraKind) restartedFor(o *unstructured.Unstructured) string {
	path := append(strings.Split(k.path, "."), "metadata", "annotations", api.RestartedFor)
	text, _, _ := unstructured.NestedString(o.Object, path...)
	return text
}

// at returns a JSON object that has a value at a path.
func at(path, value string) string {
	for _, name := range slices.Backward(strings.Split(path, ".")) {
		value = fmt.Sprintf("{%q:%s}", name, value)
	}
	return value
}

// install creates the CustomResourceDefinition.
func (k *extraKind) install(ctx context.Context) error {
	properties := "metadata: " + k.metadata
	for _, name := range slices.Backward(strings.Split(k.path, ".")) {
		properties = fmt.Sprintf("%s: {type: object, x-kubernetes-preserve-unknown-fields: true, properties: {%s}}", name, properties)
	}
	name := k.resource.Resource + "." + k.resource.Group
	err := plane.RunKubectl(ctx, fmt.Sprintf(`
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %s}
spec:
  group: %s
  names: {kind: %s, plural: %s}
  scope: Namespaced
  versions: [{name: %s, served: true, storage: true, subresources: {status: {}}, schema: {openAPIV3Schema: {
    type: object, x-kubernetes-preserve-unknown-fields: true, properties: {%s}}}}]
`, name, k.resource.Group, k.kind, k.resource.Resource, k.resource.Version, properties), "create", "--filename=-")
	if err != nil {
		return err
	}
	return plane.RunKubectl(ctx, "", "wait", "--for=condition=established", "crd/"+name)
}

// create creates workload app without pods. Spec has more fields of its spec.
func (k *extraKind) create(t *testing.T, namespace string, spec map[string]any) {
	t.Helper()
	o := &unstructured.Unstructured{}
	if err := json.Unmarshal([]byte(at(k.path, podTemplate("", ""))), &o.Object); err != nil {
		t.Fatal(err)
	}
	for field, value := range spec {
		if err := unstructured.SetNestedField(o.Object, value, "spec", field); err != nil {
			t.Fatal(err)
		}
	}
	o.SetGroupVersionKind(k.resource.GroupVersion().WithKind(k.kind))
	o.SetName("app")
	if _, err := k.client(namespace).Create(t.Context(), o, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// podTemplate returns a pod template with the annotation restarted-for, and the hash in a label.
func podTemplate(restartedFor, hash string) string {
	if restartedFor != "" {
		restartedFor = fmt.Sprintf(", %q: %q", api.RestartedFor, restartedFor)
	}
	return fmt.Sprintf(`{"metadata": {"labels": {"app": "app", "rollouts-pod-template-hash": %q},
  "annotations": {"keyvault.io/secrets": %q, "keyvault.io/on-rotation": "restart"%s}},
  "spec": {"serviceAccountName": "app", "containers": [{"name": "app", "image": "app"}]}}`, hash, secrets, restartedFor)
}

// rollOut stands for the controller of the kind: it replaces the pods of workload app, and writes its
// status. The pods of a Rollout belong to a ReplicaSet.
func (k *extraKind) rollOut(t *testing.T, namespace string) {
	t.Helper()
	o, err := k.client(namespace).Get(t.Context(), "app", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	kubectl(t, "", "delete", "replicasets,pods", "--selector=app=app", "--namespace="+namespace)
	hash := strconv.FormatInt(o.GetGeneration(), 10)
	template := podTemplate(k.restartedFor(o), hash)
	owner := fmt.Sprintf(`"namespace": %q, "ownerReferences": [{"apiVersion": %q, "kind": %q, "name": "app", "uid": %q, "controller": true}]`,
		namespace, o.GetAPIVersion(), o.GetKind(), o.GetUID())
	if k.kind == "Rollout" {
		kubectl(t, fmt.Sprintf(`{"apiVersion": "apps/v1", "kind": "ReplicaSet",
  "metadata": {"name": "app-%[1]s", "labels": {"app": "app"}, %[2]s}, "spec": {"replicas": 2,
  "selector": {"matchLabels": {"rollouts-pod-template-hash": %[1]q}}, "template": %[3]s}}`, hash, owner, template),
			"create", "--filename=-")
	} else {
		for i := range 2 {
			meta := fmt.Sprintf(`{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "app-%s-%d", %s,`, hash, i, owner)
			kubectl(t, strings.Replace(template, `{"metadata": {`, meta, 1), "create", "--filename=-")
		}
	}
	if k.status != "" {
		patch := at("status", strings.Replace(k.status, "GENERATION", hash, 1))
		if _, err := k.client(namespace).Patch(t.Context(), "app", types.MergePatchType, []byte(patch), metav1.PatchOptions{}, "status"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestExtraKinds restarts workloads of kinds that the chart lists, and checks what else of them the
// injector's ServiceAccount can change.
func TestExtraKinds(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Rollout", "CloneSet", "Fleet"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k, in := extraKinds[kind], "extra-"+strings.ToLower(kind)
			inNamespace(t, in)
			k.create(t, in, map[string]any{"replicas": int64(2)})
			k.rollOut(t, in)
			expect(t, kind, in, "app", "v1", "", 1)
			settle()
			node.rotate(in, "secret/db", "v2")
			expect(t, kind, in, "app", "v2", "v2", 2)
			k.rollOut(t, in)
			settle()
			node.rotate(in, "secret/tls", "v2") // only a file
			time.Sleep(timeout)                 // of the restart
			expect(t, kind, in, "app", "v2", "v2", 2)
			if err := hasEvent(t.Context(), in, api.Restarted, "secret/db of vault "+in+"-vault has version v2 (before: v1)"); err != nil {
				t.Error(err)
			}
			if hasEvent(t.Context(), in, api.RestartFailed, "") == nil {
				t.Error("the restart has failed")
			}
			k.isConfined(t, in)
		})
	}
}

// isConfined checks what the injector's ServiceAccount can change in workload app.
func (k *extraKind) isConfined(t *testing.T, namespace string) {
	t.Helper()
	replica, err := replicas[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	const restart = `{"keyvault.io/restarted-for":"a@b"}`
	above, _ := strings.CutSuffix(k.path, ".template")
	for patch, allowed := range map[string]bool{
		at("metadata.annotations", restart):                         true,
		at(k.path+".metadata.annotations", restart):                 true,
		at("metadata.annotations", `{"keyvault.io/secrets":"A=b"}`): false,
		at("metadata.labels", `{"a":"b"}`):                          false,
		at("metadata.finalizers", `["a.b/c"]`):                      false,
		at("spec.replicas", `0`):                                    false,
		at(above+".added", `1`):                                     false,
		at(k.path, `null`):                                          false,
		at(k.path+".added", `1`):                                    false,
		at(k.path+".metadata.annotations", `{"kubectl.kubernetes.io/restartedAt":"now"}`): false,
		at(k.path+".metadata.labels", `{"a":"b"}`):                                        false,
		at(k.path+".spec.serviceAccountName", `"default"`):                                false,
		at(k.path+".spec.containers", `[{"name":"app","image":"attacker"}]`):              false,
	} {
		err := replica.CoreV1().RESTClient().Patch(types.MergePatchType).
			AbsPath("apis", k.resource.Group, k.resource.Version, "namespaces", namespace, k.resource.Resource, "app").
			Param("dryRun", "All").Body([]byte(patch)).Do(t.Context()).Error()
		if (err == nil) != allowed || err != nil && !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("%s: %v", patch, err)
		}
	}
}

// TestWithoutRestart has workloads that a new annotation of the template does not restart. The injector
// reports it, and does not record the new version.
func TestWithoutRestart(t *testing.T) {
	t.Parallel()
	for kind, test := range map[string]struct {
		spec map[string]any
		want string
	}{
		"CloneSet": {map[string]any{"updateStrategy": map[string]any{"type": "InPlaceIfPossible"}}, "updates pods in place"},
		"Crate":    {map[string]any{"replicas": int64(2)}, "drops annotations of the pod template"},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			k, in := extraKinds[kind], "obstacle-"+strings.ToLower(kind)
			inNamespace(t, in)
			k.create(t, in, test.spec)
			k.rollOut(t, in)
			expect(t, kind, in, "app", "v1", "", 1)
			settle()
			node.rotate(in, "secret/db", "v2")
			waitFor(t, "the event", func(ctx context.Context) error { return hasEvent(ctx, in, api.RestartRejected, test.want) })
			waitFor(t, "the old version", func(ctx context.Context) error {
				s, err := stateOf(ctx, kind, in, "app")
				if err == nil && (s.own != in+"-vault/secret/db@v1" || s.template != "") {
					err = fmt.Errorf("has %+v", s)
				}
				return err
			})
		})
	}
}
