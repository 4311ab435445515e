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

// team is a namespace with defaults, in which a pod requests a secret by one annotation.
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

// newTeam creates a namespace from team, with the objects in it.
func newTeam(t *testing.T, name string, list ...*unstructured.Unstructured) {
	t.Helper()
	newNamespace(t, name, "enabled", append(documents(strings.ReplaceAll(team, "NAME", name)), list...)...)
}

// asking returns the pod or workload of a manifest with another name, and with the one annotation
// keyvault.io/secrets.
func asking(manifest, name, secrets string) *unstructured.Unstructured {
	return document(strings.NewReplacer("name: app", "name: "+name, "app: app", "app: "+name, annotations, "{keyvault.io/secrets: '"+secrets+"'}").Replace(manifest))
}

// newPod creates a pod that has only the annotation keyvault.io/secrets.
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

// classFor returns the name of the class that a new pod would mount.
func classFor(ctx context.Context, t *testing.T, on dynamic.Interface, namespace, secrets string) string {
	t.Helper()
	object := in(asking(pod, "dry-run", secrets), namespace)
	got, err := resource(on, object, namespace).Create(ctx, object, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && strings.Contains(err.Error(), "which the injector added for another request") {
		// Another webhook caused a reinvocation, and what the class is derived from changed in
		// between.
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

// mounted returns the names of the managed classes that a pod mounts.
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

// derived returns the class of that name that the core derives for a pod from the cluster's current
// objects.
func derived(t *testing.T, pod *corev1.Pod, name string) *managed.SecretProviderClass {
	t.Helper()
	live, err := cluster.NewLive(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	result, err := reviews.Reviewer{Source: live, Defaults: inject.Defaults{Mode: "auto"}}.Classes(t.Context(), pods.SubjectOf(corpus.Read(pod)), pod.Namespace, true)
	wanted := result.Class(name)
	if err != nil || wanted == nil {
		t.Fatalf("the core derives no class for pod %s/%s named %s, but %v: %v", pod.Namespace, pod.Name, name, result.Classes, err)
	}
	return wanted
}

// ownerOf returns an owner reference as the injector writes it: without the flags controller and
// blockOwnerDeletion.
func ownerOf(apiVersion, kind string, object metav1.Object) metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: apiVersion, Kind: kind, Name: object.GetName(), UID: object.GetUID()}
}

// podOwner returns an owner reference to a pod without a controller.
func podOwner(pod *corev1.Pod) metav1.OwnerReference { return ownerOf("v1", "Pod", pod) }

// controllerOf returns an owner reference to the controller of a pod, which must be of that kind.
func controllerOf(t *testing.T, pod *corev1.Pod, kind string) metav1.OwnerReference {
	t.Helper()
	c := metav1.GetControllerOf(pod)
	if c == nil || c.Kind != kind {
		t.Fatalf("the controller of pod %s/%s is %v, want a %s", pod.Namespace, pod.Name, c, kind)
	}
	return metav1.OwnerReference{APIVersion: c.APIVersion, Kind: c.Kind, Name: c.Name, UID: c.UID}
}

// revisionOf returns an owner reference to the ControllerRevision of a StatefulSet's pod.
func revisionOf(t *testing.T, pod *corev1.Pod) metav1.OwnerReference {
	t.Helper()
	revision, err := client.AppsV1().ControllerRevisions(pod.Namespace).Get(t.Context(), pod.Labels["controller-revision-hash"], metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return ownerOf("apps/v1", "ControllerRevision", revision)
}

// exactly returns an error unless a class equals the wanted one, has the injector's label, and has
// these owners.
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
		return fmt.Errorf("class %s differs (-want +got):\n%s", got.GetName(), diff)
	}
	return nil
}

// waitForClass waits until a class exists and check returns no error, and returns the class.
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

// waitUntilKept waits until every class that a pod mounts is what the core derives, with these
// owners. It returns the first class.
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
	waitFor(t, fmt.Sprintf("deletion of class %s/%s", namespace, name), func(ctx context.Context) error {
		return gone(ctx, namespace, name)
	})
}

// gone returns an error if the class exists.
func gone(ctx context.Context, namespace, name string) error {
	_, err := objects.Resource(managed.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err == nil:
		return fmt.Errorf("class %s/%s exists", namespace, name)
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

// TestClassOfWorkloads checks for workloads of every kind that the class appears, and that the pods
// read from the Secret that it syncs.
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

// TestClassIdentities compares the identity parameters of classes for each source of the identity.
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
		"no mode, and a name that an AzureIdentityBinding has": {
			annotations: `identity.io/name: access-blob, keyvault.io/secrets: shared-kv/db-password`,
			want: []map[string]any{
				{"keyvaultName": "shared-kv", "objects": object, "tenantID": "00000000-0000-4000-8000-000000000001", "usePodIdentity": "true"},
			},
		},
		"no mode and no name, and a ServiceAccount with a client id": {
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

// TestClassRefused compares the errors for managed classes that could not be mounted.
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
		"no tenant id": {
			`{identity.io/name: access-blob, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[TenantIDRequired] metadata.annotations[identity.io/tenant-id]: Required value: must be set for a managed class; annotate the pod or its namespace with identity.io/tenant-id, or the ServiceAccount with azure.workload.identity/tenant-id`,
		},
		"no client id": {
			`{identity.io/name: tenant-sa, identity.io/mode: workload-identity, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[ClientIDRequired] metadata.annotations[identity.io/client-id]: Required value: must be set for a managed class in mode workload-identity; annotate ServiceAccount tenant-sa with azure.workload.identity/client-id, or the pod with identity.io/client-id`,
		},
		"no vault": {
			`{identity.io/name: access-blob, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47, keyvault.io/secrets: db-password}`,
			`[VaultRequired] metadata.annotations[keyvault.io/secrets][0].vault: Required value: must be set for a managed class; set annotation keyvault.io/vault, write VAULT/ before the object, or name a class in keyvault.io/class`,
		},
		"the node's identity without the server's flag": {
			`{identity.io/mode: none, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47, keyvault.io/vault: team-kv, keyvault.io/secrets: db-password}`,
			`[IdentityRequired] metadata.annotations[identity.io/mode]: Invalid value: "none": must be another mode: a managed class reads the vault as some identity; set identity.io/name, or name a class of your own in keyvault.io/class`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			object := document(strings.Replace(pod, annotations, test.annotations, 1))
			_, err := resource(objects, object, namespace).Create(t.Context(), in(object, namespace), metav1.CreateOptions{})
			if !apierrors.IsInvalid(err) {
				t.Fatalf("the API server answers %v, want a rejection", err)
			}
			if diff := cmp.Diff(denied+test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}
