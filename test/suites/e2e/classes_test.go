package e2e_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/dynamic"

	"github.com/akv-injector/akv-injector/cluster"
	managed "github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	reviews "github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// team is a namespace in which one line of a pod asks for a secret: the rest is said for all of them.
const team = `
apiVersion: v1
kind: Namespace
metadata:
  name: NAME
  labels: {keyvault.io/injection: enabled}
  annotations: {keyvault.io/vault: team-kv, identity.io/name: blob-sa}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: blob-sa
  annotations:
    azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90
    azure.workload.identity/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47
`

// newTeam makes a namespace of that kind, with the objects in it.
func newTeam(t *testing.T, name string, list ...*unstructured.Unstructured) {
	t.Helper()
	newNamespace(t, name, "enabled", append(documents(strings.ReplaceAll(team, "NAME", name)), list...)...)
}

// asking is the pod or the workload of a manifest by another name, and with that one line.
func asking(manifest, name, secrets string) *unstructured.Unstructured {
	return document(strings.NewReplacer("name: app", "name: "+name, "app: app", "app: "+name, annotations, "{keyvault.io/secrets: '"+secrets+"'}").Replace(manifest))
}

// newPod makes a pod that asks for secrets by that one line.
func newPod(t *testing.T, namespace, name, secrets string) *corev1.Pod {
	t.Helper()
	if err := apply(t.Context(), namespace, asking(pod, name, secrets)); err != nil {
		t.Fatal(err)
	}
	made, err := client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// classFor is the name of the class that a pod would mount by now.
func classFor(ctx context.Context, t *testing.T, on dynamic.Interface, namespace, secrets string) string {
	t.Helper()
	object := in(asking(pod, "dry-run", secrets), namespace)
	got, err := resource(on, object, namespace).Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && strings.Contains(err.Error(), "which the injector added for another request") {
		// Another webhook had the injector called a second time, and what the class is derived from changed in between.
		got, err = resource(on, object, namespace).Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	}
	if err != nil {
		t.Fatal(err)
	}
	var made corev1.Pod
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(got.Object, &made); err != nil {
		t.Fatal(err)
	}
	return mounted(t, &made)[0]
}

// mounted are the names of the managed classes that a pod mounts.
func mounted(t *testing.T, pod *corev1.Pod) []string {
	t.Helper()
	var names []string
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == managed.Driver && managed.IsManagedName(v.CSI.VolumeAttributes[managed.Attribute]) {
			names = append(names, v.CSI.VolumeAttributes[managed.Attribute])
		}
	}
	if len(names) == 0 {
		t.Fatalf("pod %s/%s mounts no managed class: %v", pod.Namespace, pod.Name, pod.Spec.Volumes)
	}
	return names
}

// derived is the class of that name that the core gives a pod, by what the cluster holds now.
func derived(t *testing.T, pod *corev1.Pod, name string) *managed.SecretProviderClass {
	t.Helper()
	live, err := cluster.NewLive(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	result, err := reviews.Reviewer{Source: live, Defaults: inject.Defaults{Mode: "auto"}}.Classes(t.Context(), pods.SubjectOf(corpus.Read(pod)), pod.Namespace, true)
	wanted := result.Class(name)
	if err != nil || wanted == nil {
		t.Fatalf("the core gives pod %s/%s no class %s but %v: %v", pod.Namespace, pod.Name, name, result.Classes, err)
	}
	return wanted
}

// ownerOf is how a class names its owner: without the flags that would make it the owner's controller, or hold up its deletion.
func ownerOf(apiVersion, kind string, object metav1.Object) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: apiVersion, Kind: kind, Name: object.GetName(), UID: object.GetUID()}
}

// podOwner is a pod that nobody controls.
func podOwner(pod *corev1.Pod) metav1.OwnerReference { return ownerOf("v1", "Pod", pod) }

// controllerOf is a pod's, which must be of that kind.
func controllerOf(t *testing.T, pod *corev1.Pod, kind string) metav1.OwnerReference {
	t.Helper()
	c := metav1.GetControllerOf(pod)
	if c == nil || c.Kind != kind {
		t.Fatalf("the controller of pod %s/%s is %v, want a %s", pod.Namespace, pod.Name, c, kind)
	}
	return metav1.OwnerReference{APIVersion: c.APIVersion, Kind: c.Kind, Name: c.Name, UID: c.UID}
}

// revisionOf is the revision that a pod of a StatefulSet is of.
func revisionOf(t *testing.T, pod *corev1.Pod) metav1.OwnerReference {
	t.Helper()
	revision, err := client.AppsV1().ControllerRevisions(pod.Namespace).Get(t.Context(), pod.Labels["controller-revision-hash"], metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ownerOf("apps/v1", "ControllerRevision", revision)
}

// exactly is an error unless a class is the wanted one to the letter, ours, and of these owners.
func exactly(got *unstructured.Unstructured, want *managed.SecretProviderClass, owners ...metav1.OwnerReference) error {
	spec, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&want.Spec)
	if err != nil {
		return err
	}
	byName := func(a, b metav1.OwnerReference) int { return strings.Compare(a.Name, b.Name) }
	found := got.GetOwnerReferences()
	slices.SortFunc(found, byName)
	slices.SortFunc(owners, byName)
	type all struct {
		Spec   any
		Labels map[string]string
		Owners []metav1.OwnerReference
	}
	if diff := cmp.Diff(all{spec, want.Labels, owners}, all{got.Object["spec"], got.GetLabels(), found}); diff != "" {
		return fmt.Errorf("class %s is another (-want +got):\n%s", got.GetName(), diff)
	}
	return nil
}

// waitForClass waits until a class is there and check gives no error, and returns it.
func waitForClass(t *testing.T, on dynamic.Interface, namespace, name string, check func(*unstructured.Unstructured) error) *unstructured.Unstructured {
	t.Helper()
	var got *unstructured.Unstructured
	waitFor(t, fmt.Sprintf("class %s/%s", namespace, name), func(ctx context.Context) (err error) {
		if got, err = on.Resource(managed.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{}); err == nil && check != nil {
			err = check(got)
		}
		return err
	})
	return got
}

// waitUntilKept waits until every class that a pod mounts is exactly what the core gives, of these owners. It returns the first.
func waitUntilKept(t *testing.T, pod *corev1.Pod, owners ...metav1.OwnerReference) *unstructured.Unstructured {
	t.Helper()
	var first *unstructured.Unstructured
	for _, name := range mounted(t, pod) {
		want := derived(t, pod, name)
		got := waitForClass(t, objects, pod.Namespace, name, func(got *unstructured.Unstructured) error { return exactly(got, want, owners...) })
		if first == nil {
			first = got
		}
	}
	return first
}

// waitUntilGone waits until a namespace has no class of that name.
func waitUntilGone(t *testing.T, namespace, name string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("class %s/%s to go", namespace, name), func(ctx context.Context) error {
		return gone(ctx, namespace, name)
	})
}

// gone is an error where there is a class of that name.
func gone(ctx context.Context, namespace, name string) error {
	_, err := objects.Resource(managed.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return fmt.Errorf("class %s/%s is there", namespace, name)
	}
	return err
}

// deleteClass deletes a class as a user would.
func deleteClass(t *testing.T, on dynamic.Interface, namespace, name string) {
	t.Helper()
	if err := on.Resource(managed.Resource).Namespace(namespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// TestClassOfWorkloads sees the class of an annotated workload of every kind appear, and the pods read from the Secret that it syncs.
func TestClassOfWorkloads(t *testing.T) {
	t.Parallel()
	const spec = `{template: {metadata: {labels: {app: app}}, spec: {restartPolicy: Never, containers: [{name: app, image: nginx}]}}}`
	const selected = `{selector: {matchLabels: {app: app}}, template: ` + template + `}`
	workload := func(version, kind, spec string) string {
		return `{apiVersion: ` + version + `, kind: ` + kind + `, metadata: {name: app, annotations: ` + annotations + `}, spec: ` + spec + `}`
	}
	for kind, test := range map[string]struct{ manifest, owner string }{
		"Deployment":  {deployment, "ReplicaSet"},
		"StatefulSet": {workload("apps/v1", "StatefulSet", selected), "ControllerRevision"},
		"Job":         {workload("batch/v1", "Job", spec), "Job"},
		"CronJob":     {workload("batch/v1", "CronJob", `{schedule: "* * * * *", suspend: true, jobTemplate: {spec: `+spec+`}}`), "Job"},
		"Pod":         {pod, ""},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			namespace := "class-of-" + strings.ToLower(kind)
			newTeam(t, namespace)
			if err := apply(t.Context(), namespace, asking(test.manifest, "app", "DB_PASSWORD=db-password, api-token")); err != nil {
				t.Fatal(err)
			}
			if kind == "CronJob" {
				trigger(t, namespace, "app")
			}
			pod := &waitForPods(t, namespace, 1, anyPod)[0]
			owner := podOwner(pod)
			switch test.owner {
			case "":
			case "ControllerRevision":
				owner = revisionOf(t, pod)
			default:
				owner = controllerOf(t, pod, test.owner)
			}
			class := waitUntilKept(t, pod, owner)

			if pod.Spec.ServiceAccountName != "blob-sa" {
				t.Errorf("the pod's ServiceAccount is %s, want blob-sa", pod.Spec.ServiceAccountName)
			}
			selector := &corev1.SecretKeySelector{LocalObjectReference: corev1.LocalObjectReference{Name: class.GetName()}, Key: "db-password"}
			env := []corev1.EnvVar{{Name: "DB_PASSWORD", ValueFrom: &corev1.EnvVarSource{SecretKeyRef: selector}}}
			if diff := cmp.Diff(env, pod.Spec.Containers[0].Env); diff != "" {
				t.Errorf("env (-want +got):\n%s", diff)
			}
		})
	}
}

// TestClassIdentities compares what classes say of how the vault is read, by who says it to the pod.
func TestClassIdentities(t *testing.T) {
	t.Parallel()
	const namespace = "class-identities"
	newNamespace(t, namespace, "enabled", documents(`
apiVersion: v1
kind: Namespace
metadata:
  name: `+namespace+`
  labels: {keyvault.io/injection: enabled}
  annotations: {keyvault.io/vault: team-kv, identity.io/tenant-id: 00000000-0000-4000-8000-000000000001}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: client-sa, annotations: {azure.workload.identity/client-id: 00000000-0000-4000-8000-000000000002}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: tenant-sa
  annotations:
    azure.workload.identity/client-id: 00000000-0000-4000-8000-000000000003
    azure.workload.identity/tenant-id: 00000000-0000-4000-8000-000000000004
---`+binding)...)
	const object = "array:\n- |\n  objectName: \"db-password\"\n  objectType: secret\n"
	for name, test := range map[string]struct {
		annotations, account string
		want                 []map[string]any // the parameters of each class
	}{
		"pod identity": {
			annotations: `identity.io/mode: pod-identity, identity.io/name: access-blob, keyvault.io/secrets: db-password`,
			want: []map[string]any{
				{"keyvaultName": "team-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000001", "usePodIdentity": "true"},
			},
		},
		"a workload identity, with the tenant of the namespace": {
			annotations: `identity.io/mode: workload-identity, identity.io/name: client-sa, keyvault.io/secrets: db-password`,
			want: []map[string]any{
				{"keyvaultName": "team-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000001", "clientID": "00000000-0000-4000-8000-000000000002"},
			},
		},
		"a workload identity, with the ServiceAccount's own tenant": {
			annotations: `identity.io/mode: workload-identity, identity.io/name: tenant-sa, keyvault.io/secrets: db-password`,
			want: []map[string]any{
				{"keyvaultName": "team-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000004", "clientID": "00000000-0000-4000-8000-000000000003"},
			},
		},
		"a workload identity, with the pod's own ids": {
			annotations: `identity.io/mode: workload-identity, identity.io/name: tenant-sa, keyvault.io/secrets: db-password, ` +
				`identity.io/client-id: 00000000-0000-4000-8000-000000000005, identity.io/tenant-id: 00000000-0000-4000-8000-000000000006`,
			want: []map[string]any{
				{"keyvaultName": "team-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000006", "clientID": "00000000-0000-4000-8000-000000000005"},
			},
		},
		"an identity binding": {
			annotations: `identity.io/mode: identity-binding, identity.io/name: tenant-sa, keyvault.io/secrets: db-password`,
			want: []map[string]any{
				{"keyvaultName": "team-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000004", "clientID": "00000000-0000-4000-8000-000000000003", "useAzureTokenProxy": "true"},
			},
		},
		"no mode, by an AzureIdentityBinding of the name": {
			annotations: `identity.io/name: access-blob, keyvault.io/secrets: shared-kv/db-password`,
			want: []map[string]any{
				{"keyvaultName": "shared-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000001", "usePodIdentity": "true"},
			},
		},
		"no mode and no name, by the pod's own ServiceAccount": {
			annotations: `keyvault.io/secrets: shared-kv/db-password`, account: "tenant-sa",
			want: []map[string]any{
				{"keyvaultName": "shared-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000004", "clientID": "00000000-0000-4000-8000-000000000003"},
			},
		},
		"two vaults make two classes": {
			annotations: `identity.io/name: client-sa, keyvault.io/secrets: "db-password as first, edge-kv/db-password as second"`,
			want: []map[string]any{
				{
					"keyvaultName": "team-kv", "tenantID": "00000000-0000-4000-8000-000000000001", "clientID": "00000000-0000-4000-8000-000000000002",
					"objects": object + "  objectAlias: \"first\"\n",
				},
				{
					"keyvaultName": "edge-kv", "tenantID": "00000000-0000-4000-8000-000000000001", "clientID": "00000000-0000-4000-8000-000000000002",
					"objects": object + "  objectAlias: \"second\"\n",
				},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			object := document(`{apiVersion: v1, kind: Pod, metadata: {generateName: app-, annotations: {` + test.annotations + `}}, ` +
				`spec: {serviceAccountName: "` + test.account + `", containers: [{name: app, image: nginx}]}}`)
			created, err := resource(objects, object, namespace).Create(t.Context(), in(object, namespace), metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			pod, err := client.CoreV1().Pods(namespace).Get(t.Context(), created.GetName(), metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			waitUntilKept(t, pod, podOwner(pod))
			var got []map[string]any
			for _, name := range mounted(t, pod) {
				class := waitForClass(t, objects, namespace, name, nil)
				parameters, _, _ := unstructured.NestedMap(class.Object, "spec", "parameters")
				got = append(got, parameters)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("parameters (-want +got):\n%s", diff)
			}
		})
	}
}

// TestClassRefused reads what an author is told at once who asks for a class that could not be mounted.
func TestClassRefused(t *testing.T) {
	t.Parallel()
	const namespace = "class-refused"
	newNamespace(t, namespace, "enabled", documents(binding+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: tenant-sa, annotations: {azure.workload.identity/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47}}
`)...)
	const denied = `admission webhook "pods.akv-injector.io" denied the request: `
	for name, test := range map[string]struct{ annotations, want string }{
		"no tenant": {
			`{identity.io/name: access-blob, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[TenantIDRequired] metadata.annotations[identity.io/tenant-id]: Required value: must be known for a managed class; annotate the pod or its namespace with identity.io/tenant-id, or the ServiceAccount with azure.workload.identity/tenant-id`,
		},
		"no client": {
			`{identity.io/name: tenant-sa, identity.io/mode: workload-identity, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[ClientIDRequired] metadata.annotations[identity.io/client-id]: Required value: must be known for a managed class in mode workload-identity; annotate ServiceAccount tenant-sa with azure.workload.identity/client-id, or the pod with identity.io/client-id`,
		},
		"no vault": {
			`{identity.io/name: access-blob, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47, keyvault.io/secrets: db-password}`,
			`[VaultRequired] metadata.annotations[keyvault.io/secrets][0].vault: Required value: must be known for a managed class; set annotation keyvault.io/vault, write VAULT/ before the object, or name a class in keyvault.io/class`,
		},
		"the node's identity, which the server's flags don't allow": {
			`{identity.io/mode: none, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[IdentityRequired] metadata.annotations[identity.io/mode]: Invalid value: "none": must be another mode: a managed class reads the vault as some identity; set identity.io/name, or name a class of your own in keyvault.io/class`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			object := document(strings.Replace(pod, annotations, test.annotations, 1))
			_, err := resource(objects, object, namespace).Create(t.Context(), in(object, namespace), metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				t.Fatalf("the API server answers %v, want a refusal", err)
			}
			if diff := cmp.Diff(denied+test.want, err.Error()); diff != "" {
				t.Errorf("refusal (-want +got):\n%s", diff)
			}
		})
	}
}
