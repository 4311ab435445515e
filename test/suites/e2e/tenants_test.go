package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/json"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	spc "github.com/akv-injector/akv-injector/core/class"
)

// Ids that no object uses.
const (
	someTenant = "72f988bf-86f1-41af-91ab-2d7cd011db47"
	someClient = "0b5cdd4f-2d1c-4a19-8a6e-4d1d5a4c0e4f"
)

// crooked is an invalid id that tries to add a class parameter, for a double-quoted YAML string.
const crooked = someTenant + `\nuseVMManagedIdentity: true`

// identities are the objects in a tenant's namespace. All ServiceAccounts except blob are above its
// ceiling or have an invalid id.
const identities = binding + `---
apiVersion: v1
kind: ServiceAccount
metadata: {name: blob, annotations: {azure.workload.identity/client-id: ` + someClient + `, azure.workload.identity/tenant-id: ` + someTenant + `}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: admin, annotations: {azure.workload.identity/client-id: ` + someClient + `, azure.workload.identity/tenant-id: ` + someTenant + `}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: crooked-client, annotations: {azure.workload.identity/client-id: "` + crooked + `", azure.workload.identity/tenant-id: ` + someTenant + `}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: crooked-tenant, annotations: {azure.workload.identity/client-id: ` + someClient + `, azure.workload.identity/tenant-id: "` + crooked + `"}}
`

// ceilings are annotations of a namespace.
const ceilings = `{keyvault.io/allowed-vaults: "team-*", identity.io/allowed-names: "blob,crooked-*,access-blob"}`

// Rights of a tenant in its namespace.
const (
	toPods      = `{apiGroups: [""], resources: [pods], verbs: [create, get, list, watch, update, patch, delete]}`
	toWorkloads = toPods + `, {apiGroups: ["", apps], resources: [serviceaccounts, configmaps, deployments], verbs: [create, get, update, patch, delete]}`
	toClasses   = toPods + `, {apiGroups: [secrets-store.csi.x-k8s.io], resources: [secretproviderclasses], verbs: [create, get, list, update, patch, delete]}`
)

// tenant is a client with the rights of a ServiceAccount in one namespace.
type tenant struct {
	kubernetes.Interface

	objects   dynamic.Interface
	namespace string
}

// newTenant creates a namespace with identities, and a tenant of it.
func newTenant(t *testing.T, namespace, injection, ceilings, rights string) *tenant {
	t.Helper()
	newNamespace(t, namespace, injection, documents(identities+`---
apiVersion: v1
kind: ServiceAccount
metadata: {name: tenant}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: tenant}
rules: [`+rights+`]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: tenant}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: tenant}
subjects: [{kind: ServiceAccount, name: tenant, namespace: `+namespace+`}]
`)...)
	setNamespace(t, namespace, injection, ceilings)
	user := "system:serviceaccount:" + namespace + ":tenant"
	config := rest.CopyConfig(plane.Config)
	config.WarningHandlerWithContext = rest.NoWarnings{}
	config.ContentType = runtime.ContentTypeProtobuf // protobuf strings need not be valid UTF-8
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + namespace, "system:authenticated"}}
	n := &tenant{namespace: namespace}
	var err error
	if n.Interface, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	if n.objects, err = dynamic.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the tenant's rights", func(ctx context.Context) error { return n.may(ctx, "create", "", "pods", namespace) })
	if rights != toClasses && n.may(t.Context(), "create", spc.GroupVersion.Group, spc.Resource.Resource, namespace) == nil {
		t.Fatal("the tenant may write classes")
	}
	if n.may(t.Context(), "create", "", "pods", "default") == nil || n.may(t.Context(), "patch", "", "namespaces", "") == nil {
		t.Fatal("the tenant may leave its namespace, or change it")
	}
	return n
}

// may returns an error unless the tenant has a right.
func (n *tenant) may(ctx context.Context, verb, group, resource, namespace string) error {
	review := &authorizationv1.SelfSubjectAccessReview{Spec: authorizationv1.SelfSubjectAccessReviewSpec{
		ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Namespace: namespace},
	}}
	answer, err := n.AuthorizationV1().SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err == nil && !answer.Status.Allowed {
		err = fmt.Errorf("the tenant may not %s %s", verb, resource)
	}
	return err
}

// setNamespace sets all labels and annotations of the injector on a namespace, as its admin.
func setNamespace(t *testing.T, name, injection, annotations string) {
	t.Helper()
	if annotations == "" {
		annotations = "{}"
	}
	text := `{apiVersion: v1, kind: Namespace, metadata: {name: ` + name + `, labels: {keyvault.io/injection: "` + injection + `"}, annotations: ` + annotations + `}}`
	if err := apply(t.Context(), "", document(text)); err != nil {
		t.Fatal(err)
	}
}

// changed returns a copy of a map with some values changed. Keys with an empty value are removed.
func changed(all map[string]string, by map[string]string) map[string]string {
	all = maps.Clone(all)
	maps.Copy(all, by)
	maps.DeleteFunc(all, func(_, value string) bool { return value == "" })
	return all
}

// named turns a sentence into the name of an object, which is also used as the name of a secret.
func named(sentence string) string {
	return strings.ToLower(strings.NewReplacer(" ", "-", "'", "", ",", "").Replace(sentence))
}

// honest returns annotations that the ceilings allow and that give the class of honestRequest. Each
// item gives another class.
func honest(item string) map[string]string {
	return map[string]string{
		"identity.io/name": "blob", "identity.io/mode": "workload-identity", "keyvault.io/vault": "team-kv", "keyvault.io/secrets": "PASSWORD=" + item,
	}
}

func honestRequest(item string) spc.Request {
	return spc.Request{
		Vault: "team-kv", TenantID: someTenant, ClientID: someClient, Mode: api.ModeWorkloadIdentity,
		Items: []api.Item{{Name: item}}, Data: []spc.SecretData{{ObjectName: item, Key: item}},
	}
}

// create creates a pod as the tenant.
func (n *tenant) create(ctx context.Context, name, serviceAccount string, annotations map[string]string, also ...func(*corev1.Pod)) (*corev1.Pod, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations},
		Spec:       corev1.PodSpec{ServiceAccountName: serviceAccount, Containers: []corev1.Container{{Name: "app", Image: "nginx"}}},
	}
	for _, change := range also {
		change(pod)
	}
	return n.CoreV1().Pods(n.namespace).Create(ctx, pod, metav1.CreateOptions{})
}

// mounting returns a function that adds the volumes and mounts that the injector would add for the
// named classes.
func mounting(names ...string) func(*corev1.Pod) {
	return func(pod *corev1.Pod) {
		for i, name := range names {
			volume := fmt.Sprintf("keyvault-%d", i)
			pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: volume, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
				Driver: spc.Driver, ReadOnly: new(true), VolumeAttributes: map[string]string{spc.Attribute: name},
			}}})
			pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts,
				corev1.VolumeMount{Name: volume, MountPath: fmt.Sprintf("/mnt/%d", i), ReadOnly: true})
		}
	}
}

// labelledInjected adds the label and the status annotation that only the injector may set.
func labelledInjected(pod *corev1.Pod) {
	pod.Labels = map[string]string{"keyvault.io/injected": "true"}
	pod.Annotations = changed(pod.Annotations, map[string]string{"keyvault.io/status": `{"classes":["kv-0000000000"],"vault":"other-kv"}`})
}

// ownedBy returns a function that gives a pod a controller.
func ownedBy(owner metav1.OwnerReference) func(*corev1.Pod) {
	owner.Controller = new(true)
	return func(pod *corev1.Pod) { pod.OwnerReferences = append(pod.OwnerReferences, owner) }
}

// patch changes a pod as the tenant. A nil value removes an annotation or label.
func (n *tenant) patch(t *testing.T, pod string, annotations, labels map[string]*string) {
	t.Helper()
	text, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations, "labels": labels}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.CoreV1().Pods(n.namespace).Patch(t.Context(), pod, types.MergePatchType, text, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

func pointers(all map[string]string) map[string]*string {
	to := map[string]*string{}
	for key, value := range all {
		to[key] = &value
	}
	return to
}

// classNamed returns the class of that name, or an error.
func classNamed(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	return objects.Resource(spc.Resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
}

// waitForRequested waits until the class of a request exists and has exactly the spec that the
// injector renders.
func waitForRequested(t *testing.T, namespace string, request spc.Request) *unstructured.Unstructured {
	t.Helper()
	want := spc.Managed(request)
	var found *unstructured.Unstructured
	waitFor(t, "class "+want.Name, func(ctx context.Context) (err error) {
		if found, err = classNamed(ctx, namespace, want.Name); err != nil {
			return err
		}
		var got spc.SecretProviderClass
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(found.Object, &got); err != nil {
			return err
		}
		if diff := cmp.Diff(want.Spec, got.Spec); diff != "" {
			return fmt.Errorf("it differs (-want +got):\n%s", diff)
		}
		return nil
	})
	return found
}

// checkClasses compares the names of a namespace's classes.
func checkClasses(t *testing.T, namespace string, requests ...spc.Request) {
	t.Helper()
	list, err := objects.Resource(spc.Resource).Namespace(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, request := range requests {
		want = append(want, spc.Managed(request).Name)
	}
	for i := range list.Items {
		got = append(got, list.Items[i].GetName())
	}
	slices.Sort(want)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("classes of %s (-want +got):\n%s", namespace, diff)
	}
}

// removeClass deletes a class as an admin does.
func removeClass(t *testing.T, namespace string, request spc.Request) {
	t.Helper()
	if err := objects.Resource(spc.Resource).Namespace(namespace).Delete(t.Context(), spc.Managed(request).Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// eventOf waits for the injector's event for a pod. By then the injector has evaluated the pod's
// request.
func eventOf(t *testing.T, namespace, pod, reason string) (note string) {
	t.Helper()
	waitFor(t, "event "+reason+" of pod "+pod, func(ctx context.Context) error {
		list, err := client.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range list.Items {
			if e := &list.Items[i]; e.Regarding.Name == pod && e.Reason == reason {
				note = e.Note
				return nil
			}
		}
		return errors.New("no such event")
	})
	return note
}

// TestTenantAsksForMore sends requests that the namespace does not allow, or that try to inject
// other fields into a class. It sends each in two ways: to the webhook, and around it, by
// annotations that are added to a pod after its creation.
func TestTenantAsksForMore(t *testing.T) {
	t.Parallel()
	n := newTenant(t, "tenant-asks", "enabled", "", toWorkloads)
	other := newTenant(t, "tenant-asked", "enabled", "", toWorkloads)
	podIdentity := map[string]string{"identity.io/mode": "pod-identity", "identity.io/name": "access-blob", "identity.io/tenant-id": someTenant}
	item := func(fields string) map[string]string {
		return map[string]string{"keyvault.io/secrets": `[{"objectName": "secret-425", ` + fields + `}]`}
	}
	requests := map[string]struct {
		change         map[string]string
		serviceAccount string // default: blob
		// reason is the Reason of the rejection. If empty, the webhook admits the pod and
		// no class is created.
		reason api.Reason
		// forged changes the request to the class that a missing check would create.
		forged func(*spc.Request)
	}{
		"a vault above the ceiling": {
			change: map[string]string{"keyvault.io/vault": "other-kv"}, reason: api.VaultNotAllowed, forged: func(r *spc.Request) { r.Vault = "other-kv" },
		},
		"a vault above the ceiling, in an item": {
			change: map[string]string{"keyvault.io/secrets": "PASSWORD=other-kv/secret-425"}, reason: api.VaultNotAllowed, forged: func(r *spc.Request) { r.Vault = "other-kv" },
		},
		"a vault above the ceiling, in a structured item": {
			change: item(`"env": "PASSWORD", "vault": "other-kv"`), reason: api.VaultNotAllowed, forged: func(r *spc.Request) { r.Vault = "other-kv" },
		},
		"an identity above the ceiling": {
			change: map[string]string{"identity.io/name": "admin"}, serviceAccount: "admin", reason: api.IdentityNotAllowed,
		},
		"a ServiceAccount above the ceiling, without a name": {
			change: map[string]string{"identity.io/name": ""}, serviceAccount: "admin", reason: api.IdentityNotAllowed,
		},
		"a pod identity above the ceiling": {
			change: changed(podIdentity, map[string]string{"identity.io/name": "other"}), reason: api.IdentityNotAllowed,
			forged: func(r *spc.Request) { r.Mode = api.ModePodIdentity },
		},
		"the identity of the node": {
			change: map[string]string{"identity.io/mode": "none"}, reason: api.IdentityRequired, forged: func(r *spc.Request) { r.Mode = api.ModeNone },
		},
		"the identity of the node, by an empty client id": {
			change: map[string]string{"identity.io/mode": "none", "identity.io/name": ""}, reason: api.IdentityRequired,
			forged: func(r *spc.Request) { r.Mode, r.ClientID = api.ModeNone, "" },
		},
		"a parameter as an annotation":         {change: map[string]string{"keyvault.io/useVMManagedIdentity": "true"}, reason: api.UnknownKey},
		"a cloud as an annotation":             {change: map[string]string{"keyvault.io/cloudEnvFileName": "/etc/passwd"}, reason: api.UnknownKey},
		"a namespace as an annotation":         {change: map[string]string{"keyvault.io/namespace": other.namespace}, reason: api.UnknownKey},
		"a class of another namespace":         {change: map[string]string{"keyvault.io/class": other.namespace + "/key-vault-secret"}, reason: api.InvalidValue},
		"a path in place of a class":           {change: map[string]string{"keyvault.io/class": "../" + other.namespace}, reason: api.InvalidValue},
		"a ceiling on the pod":                 {change: map[string]string{"keyvault.io/allowed-vaults": "*"}, reason: api.UnknownKey},
		"useVMManagedIdentity in an item":      {change: item(`"useVMManagedIdentity": "true"`), reason: api.InvalidItem},
		"nodePublishSecretRef in an item":      {change: item(`"nodePublishSecretRef": "root"`), reason: api.InvalidItem},
		"cloudName in an item":                 {change: item(`"cloudName": "AzureStackCloud"`), reason: api.InvalidItem},
		"a namespace in an item":               {change: item(`"namespace": "` + other.namespace + `"`), reason: api.InvalidItem},
		"a path in place of a vault":           {change: item(`"vault": "../team-kv"`), reason: api.InvalidItem},
		"another host in place of a vault":     {change: map[string]string{"keyvault.io/vault": "team-kv.evil.example/"}, reason: api.InvalidValue},
		"a line break in a vault":              {change: map[string]string{"keyvault.io/vault": "team-kv\nuseVMManagedIdentity: true"}, reason: api.InvalidValue},
		"a line break in an item's vault":      {change: item(`"vault": "team-kv\nevil"`), reason: api.InvalidItem},
		"a line break in an object's name":     {change: item(`"objectName": "a\n  objectType: key"`), reason: api.InvalidItem},
		"a line break in a path":               {change: item(`"objectAlias": "a\n- |\n  objectName: other"`), reason: api.InvalidItem},
		"another kind of line break in a path": {change: item(`"objectAlias": "a\u2028- |\u2028  objectName: other"`), reason: api.InvalidItem},
		"a path out of the mount":              {change: item(`"objectAlias": "../../etc/passwd"`), reason: api.InvalidItem},
		"a line break in a version":            {change: item(`"objectVersion": "6a1f0c00000000000000000000abcdef\n"`), reason: api.InvalidItem},
		"a line break in a permission":         {change: item(`"filePermission": "0400\n  objectType: key"`), reason: api.InvalidItem},
		"a line break in a type":               {change: item(`"objectType": "secret\n  objectName: other"`), reason: api.InvalidItem},
		"a line break in a format":             {change: item(`"objectFormat": "pem\n  objectName: other"`), reason: api.InvalidItem},
		"a line break in an encoding":          {change: item(`"objectEncoding": "utf-8\n  objectName: other"`), reason: api.InvalidItem},
		"a line break in an env var":           {change: item(`"env": "A\nB"`), reason: api.InvalidItem},
		"a line break in a tenant":             {change: map[string]string{"identity.io/tenant-id": someTenant + "\nx: y"}, reason: api.InvalidValue},
		"a line break in a client":             {change: map[string]string{"identity.io/client-id": someClient + "\nx: y"}, reason: api.InvalidValue},
		"an invalid client id of the ServiceAccount": {
			change: map[string]string{"identity.io/name": "crooked-client"}, serviceAccount: "crooked-client", reason: api.ClientIDRequired,
			forged: func(r *spc.Request) { r.ClientID = strings.ReplaceAll(crooked, `\n`, "\n") },
		},
		"an invalid tenant id of the ServiceAccount": {
			change: map[string]string{"identity.io/name": "crooked-tenant"}, serviceAccount: "crooked-tenant", reason: api.TenantIDRequired,
			forged: func(r *spc.Request) { r.TenantID = strings.ReplaceAll(crooked, `\n`, "\n") },
		},
		"an invalid tenant id with pod identity": {
			change: changed(podIdentity, map[string]string{"identity.io/tenant-id": ""}), serviceAccount: "crooked-tenant", reason: api.TenantIDRequired,
			forged: func(r *spc.Request) {
				r.Mode, r.ClientID, r.TenantID = api.ModePodIdentity, "", strings.ReplaceAll(crooked, `\n`, "\n")
			},
		},
		"a request of an opted-out pod": {change: map[string]string{"keyvault.io/inject": "false"}},
		"nothing":                       {change: map[string]string{"keyvault.io/secrets": ""}},
	}
	forge := func(behaviour string) (serviceAccount, class string) {
		test, request := requests[behaviour], honestRequest("secret-425")
		if test.forged != nil {
			test.forged(&request)
		}
		if serviceAccount = test.serviceAccount; serviceAccount == "" {
			serviceAccount = "blob"
		}
		return serviceAccount, spc.Managed(request).Name
	}
	// Under a ceiling the webhook would reject most of these pods. It is not called for updates.
	for behaviour := range requests {
		serviceAccount, class := forge(behaviour)
		if _, err := n.create(t.Context(), named(behaviour), serviceAccount, nil, mounting(class)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := n.create(t.Context(), "later", "blob", nil, mounting(spc.Managed(honestRequest("secret-427")).Name)); err != nil {
		t.Fatal(err)
	}
	setNamespace(t, n.namespace, "enabled", ceilings)
	for behaviour, test := range requests {
		t.Run(behaviour, func(t *testing.T) {
			annotations, name := changed(honest("secret-425"), test.change), named(behaviour)
			serviceAccount, class := forge(behaviour)
			forge := mounting(class)
			_, err := n.create(t.Context(), "asking-"+name, serviceAccount, annotations, forge, labelledInjected)
			switch {
			case test.reason == "" && err != nil: // no class is created for it
				t.Errorf("the pod is rejected: %v", err)
			case test.reason != "" && (!apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "["+string(test.reason)+"]")):
				t.Errorf("the answer is %v, want [%s]", err, test.reason)
			}
			n.patch(t, name, pointers(annotations), pointers(map[string]string{"keyvault.io/injected": "true"}))
			if note := eventOf(t, n.namespace, name, string(api.ClassOutdated)); !strings.Contains(note, string(test.reason)) {
				t.Errorf("the event says %q, want %s", note, test.reason)
			}
		})
	}
	// A request within the ceilings succeeds in both ways.
	if _, err := n.create(t.Context(), "honest", "blob", honest("secret-426")); err != nil {
		t.Fatal(err)
	}
	n.patch(t, "later", pointers(honest("secret-427")), pointers(map[string]string{"keyvault.io/injected": "true"}))
	waitForRequested(t, n.namespace, honestRequest("secret-426"))
	waitForRequested(t, n.namespace, honestRequest("secret-427"))
	checkClasses(t, n.namespace, honestRequest("secret-426"), honestRequest("secret-427"))
	checkClasses(t, other.namespace)
}

// TestTenantForgesPods creates pods by hand as the injector would write them, in namespaces where
// the webhook is not called.
func TestTenantForgesPods(t *testing.T) {
	t.Parallel()
	request := honestRequest("secret-425")
	mount := mounting(spc.Managed(request).Name)
	for behaviour, test := range map[string]struct {
		namespace, injection string
		change               map[string]string
		also                 func(*corev1.Pod)
		says                 string
	}{
		"in a namespace without a label":             {namespace: "tenant-unlabelled", says: "has no label keyvault.io/injection: enabled"},
		"in a namespace that is opted out":           {namespace: "tenant-opted-out", injection: "disabled", says: "has no label keyvault.io/injection: enabled"},
		"in a namespace with an invalid label value": {namespace: "tenant-mislabelled", injection: "true", says: "has no label keyvault.io/injection: enabled"},
		"by generateName": {
			namespace: "tenant-generates", also: func(pod *corev1.Pod) { pod.GenerateName, pod.Name = "forged-", "" }, says: "has no label keyvault.io/injection: enabled",
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			n := newTenant(t, test.namespace, test.injection, "", toPods)
			also := []func(*corev1.Pod){mount, labelledInjected}
			if test.also != nil {
				also = append(also, test.also)
			}
			pod, err := n.create(t.Context(), "forged", "blob", changed(honest("secret-425"), test.change), also...)
			if err != nil {
				t.Fatal(err)
			}
			if note := eventOf(t, n.namespace, pod.Name, string(api.ClassOutdated)); !strings.Contains(note, test.says) {
				t.Errorf("the event says %q, want %q", note, test.says)
			}
			checkClasses(t, n.namespace)
			// After the namespace opts in, such a pod gets the class of a new pod, and
			// no more.
			tooMuch := request
			tooMuch.Vault = "other-kv"
			if test.injection != "enabled" {
				if _, err := n.create(t.Context(), "too-much", "blob", changed(honest("secret-425"), map[string]string{"keyvault.io/vault": tooMuch.Vault}),
					mounting(spc.Managed(tooMuch).Name), labelledInjected); err != nil {
					t.Fatal(err)
				}
				eventOf(t, n.namespace, "too-much", string(api.ClassOutdated))
				setNamespace(t, n.namespace, "enabled", ceilings)
				owner := waitForRequested(t, n.namespace, request).GetOwnerReferences()
				if len(owner) != 1 || owner[0].UID != pod.UID {
					t.Errorf("the class's owners are %v, want pod %s", owner, pod.Name)
				}
				n.patch(t, "too-much", pointers(map[string]string{"keyvault.io/env": "explicit"}), nil)
			}
			allowed := []spc.Request{honestRequest("secret-426")}
			if test.injection != "enabled" {
				allowed = append(allowed, request)
			}
			if _, err := n.create(t.Context(), "honest", "blob", honest("secret-426"), mounting(spc.Managed(allowed[0]).Name), labelledInjected); err != nil {
				t.Fatal(err)
			}
			waitForRequested(t, n.namespace, allowed[0])
			checkClasses(t, n.namespace, allowed...)
		})
	}
}

// TestTenantWritesNoText sends the injector strings that are not UTF-8. The API server accepts them
// in protobuf, and JSON cannot represent them.
func TestTenantWritesNoText(t *testing.T) {
	t.Parallel()
	n := newTenant(t, "tenant-bytes", "enabled", "", toWorkloads)
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "bytes", Annotations: map[string]string{
		"azure.workload.identity/client-id": someClient, "azure.workload.identity/tenant-id": someTenant[:35] + "\xff",
	}}}
	if _, err := n.CoreV1().ServiceAccounts(n.namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	workload := changed(honest("secret-425"), map[string]string{"identity.io/name": "bytes"})
	podIdentity := changed(honest("secret-425"), map[string]string{"identity.io/name": "access-blob", "identity.io/mode": "pod-identity"})
	alias := changed(honest("secret-425"), map[string]string{"keyvault.io/secrets": "secret-425 as a\xffb"})
	key := changed(honest("secret-425"), map[string]string{"keyvault.io/env": "auto\xff"})
	for behaviour, test := range map[string]struct {
		annotations    map[string]string
		serviceAccount string
		reason         api.Reason
	}{
		"a workload identity's tenant id": {workload, "bytes", api.TenantIDRequired},
		"a pod identity's tenant id":      {podIdentity, "bytes", api.TenantIDRequired},
		"a path":                          {alias, "blob", api.InvalidItem},
		"another value":                   {key, "blob", api.InvalidValue},
	} {
		t.Run(behaviour, func(t *testing.T) {
			name := named(behaviour)
			if _, err := n.create(t.Context(), "asking-"+name, test.serviceAccount, test.annotations); err == nil || !strings.Contains(err.Error(), "["+string(test.reason)+"]") {
				t.Errorf("the answer is %v, want [%s]", err, test.reason)
			}
			pod, err := n.create(t.Context(), name, test.serviceAccount, nil, mounting(spc.Managed(honestRequest("secret-425")).Name))
			if err != nil {
				t.Fatal(err)
			}
			pod.Annotations, pod.Labels = test.annotations, map[string]string{"keyvault.io/injected": "true"}
			if _, err := n.CoreV1().Pods(n.namespace).Update(t.Context(), pod, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
			if note := eventOf(t, n.namespace, name, string(api.ClassOutdated)); !strings.Contains(note, string(test.reason)) {
				t.Errorf("the event says %q, want %s", note, test.reason)
			}
		})
	}
	if _, err := n.create(t.Context(), "honest", "blob", honest("secret-425")); err != nil {
		t.Fatal(err)
	}
	waitForRequested(t, n.namespace, honestRequest("secret-425"))
	checkClasses(t, n.namespace, honestRequest("secret-425"))
}

// TestTenantChangesPods changes the request of an injected pod, for which no webhook is called. The
// class that the pod mounts stays as it is. It is recreated only while the pod requests it.
func TestTenantChangesPods(t *testing.T) {
	t.Parallel()
	n := newTenant(t, "tenant-changes", "enabled", ceilings, toWorkloads)
	late := document(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: crooked-late, annotations: {azure.workload.identity/client-id: ` + someClient + `, azure.workload.identity/tenant-id: ` + someTenant + `}}}`)
	if err := apply(t.Context(), n.namespace, late); err != nil {
		t.Fatal(err)
	}
	setClient := func(t *testing.T, id string) {
		t.Helper()
		patch := []byte(`{"metadata":{"annotations":{"azure.workload.identity/client-id":"` + id + `"}}}`)
		if _, err := n.CoreV1().ServiceAccounts(n.namespace).Patch(t.Context(), "crooked-late", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for behaviour, test := range map[string]struct {
		annotations, labels map[string]string
		client              string
		// says is part of the event's note. If empty, no event is expected, since the
		// injector no longer watches the pod.
		says string
		// kept is true if the pod's request stays the same.
		kept bool
	}{
		"a vault above the ceiling":               {annotations: map[string]string{"keyvault.io/vault": "other-kv"}, says: "VaultNotAllowed"},
		"another vault":                           {annotations: map[string]string{"keyvault.io/vault": "team-b"}, says: "now request kv-"},
		"other secrets":                           {annotations: map[string]string{"keyvault.io/secrets": "PASSWORD=root"}, says: "now request kv-"},
		"an existing class":                       {annotations: map[string]string{"keyvault.io/class": "key-vault-secret"}, says: "request no managed class"},
		"an identity above the ceiling":           {annotations: map[string]string{"identity.io/mode": "pod-identity", "identity.io/name": "other"}, says: "IdentityNotAllowed"},
		"the identity of the node":                {annotations: map[string]string{"identity.io/mode": "none"}, says: "IdentityRequired"},
		"another client id":                       {annotations: map[string]string{"identity.io/client-id": someTenant}, says: "now request kv-"},
		"another client id of the ServiceAccount": {client: someTenant, says: "now request kv-"},
		"an invalid client id":                    {client: crooked, says: "ClientIDRequired"},
		"an unknown key":                          {annotations: map[string]string{"keyvault.io/cloudName": "AzureStackCloud"}, says: "UnknownKey"},
		"an opt-out":                              {annotations: map[string]string{"keyvault.io/inject": "false"}, says: "request no managed class"},
		"no injected label":                       {labels: map[string]string{"keyvault.io/injected": ""}},
		"another status annotation":               {annotations: map[string]string{"keyvault.io/status": `{"vault":"other-kv","classes":["kv-0000000000"]}`}, kept: true},
	} {
		t.Run(behaviour, func(t *testing.T) {
			name := named(behaviour)
			before, serviceAccount := honest(name), "blob"
			if test.client != "" {
				serviceAccount, before["identity.io/name"] = "crooked-late", "crooked-late"
			}
			if _, err := n.create(t.Context(), name, serviceAccount, before); err != nil {
				t.Fatal(err)
			}
			request := honestRequest(name)
			class := waitForRequested(t, n.namespace, request)
			if test.client != "" {
				setClient(t, test.client)
			}
			n.patch(t, name, pointers(test.annotations), pointers(test.labels))
			n.awaitAnother(t, name+"-1")
			if now := waitForRequested(t, n.namespace, request); now.GetResourceVersion() != class.GetResourceVersion() {
				t.Error("the class was changed")
			}
			removeClass(t, n.namespace, request)
			switch {
			case test.kept:
				waitForRequested(t, n.namespace, request)
				return
			case test.says == "":
				n.awaitAnother(t, name+"-2")
			default:
				if note := eventOf(t, n.namespace, name, string(api.ClassOutdated)); !strings.Contains(note, test.says) {
					t.Errorf("the event says %q, want %q", note, test.says)
				}
			}
			if _, err := classNamed(t.Context(), n.namespace, class.GetName()); !apierrors.IsNotFound(err) {
				t.Errorf("the class was recreated: %v", err)
			}
			// The pod may request the first class again.
			if test.client != "" {
				setClient(t, someClient)
			}
			undo, labels := map[string]*string{}, pointers(map[string]string{"keyvault.io/injected": "true"})
			for key := range test.annotations {
				undo[key] = nil
			}
			maps.Copy(undo, pointers(before))
			for key := range test.labels {
				if labels[key] == nil {
					labels[key] = nil
				}
			}
			n.patch(t, name, undo, labels)
			waitForRequested(t, n.namespace, request)
		})
	}
	list, err := objects.Resource(spc.Resource).Namespace(n.namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range list.Items {
		parameters, _, err := unstructured.NestedStringMap(list.Items[i].Object, "spec", "parameters")
		if err != nil || parameters["keyvaultName"] != "team-kv" || parameters["clientID"] != someClient {
			t.Errorf("class %s has parameters %v", list.Items[i].GetName(), parameters)
		}
	}
}

// awaitAnother creates an honest pod, deletes its class, and waits until the class is recreated. By
// then the injector has processed all earlier changes.
func (n *tenant) awaitAnother(t *testing.T, name string) {
	t.Helper()
	if _, err := n.create(t.Context(), name, "blob", honest(name)); err != nil {
		t.Fatal(err)
	}
	waitForRequested(t, n.namespace, honestRequest(name))
	removeClass(t, n.namespace, honestRequest(name))
	waitForRequested(t, n.namespace, honestRequest(name))
}

// TestTenantUnderLoweredCeiling lowers a ceiling below what pods were admitted with. An existing
// class stays. A deleted class is not recreated until it is allowed again.
func TestTenantUnderLoweredCeiling(t *testing.T) {
	t.Parallel()
	for behaviour, test := range map[string]struct{ namespace, ceilings, injection, says string }{
		"the vault is no longer allowed":        {"tenant-vault-lowered", `{keyvault.io/allowed-vaults: "other-*"}`, "enabled", "VaultNotAllowed"},
		"no vault is allowed":                   {"tenant-vaults-lowered", `{keyvault.io/allowed-vaults: ""}`, "enabled", "VaultNotAllowed"},
		"the identity is no longer allowed":     {"tenant-identity-lowered", `{identity.io/allowed-names: "other"}`, "enabled", "IdentityNotAllowed"},
		"the namespace no longer has the label": {"tenant-label-lowered", ceilings, "", "has no label keyvault.io/injection: enabled"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			n := newTenant(t, test.namespace, "enabled", ceilings, toPods)
			request := honestRequest("secret-425")
			if _, err := n.create(t.Context(), "app", "blob", honest("secret-425")); err != nil {
				t.Fatal(err)
			}
			waitForRequested(t, n.namespace, request)
			setNamespace(t, n.namespace, test.injection, test.ceilings)
			removeClass(t, n.namespace, request)
			if note := eventOf(t, n.namespace, "app", string(api.ClassOutdated)); !strings.Contains(note, test.says) {
				t.Errorf("the event says %q, want %q", note, test.says)
			}
			checkClasses(t, n.namespace)
			setNamespace(t, n.namespace, "enabled", ceilings)
			waitForRequested(t, n.namespace, request)
		})
	}
}

// writesOf counts the events of each class of a namespace within a time.
func writesOf(t *testing.T, namespace string, within time.Duration) func() map[string]int {
	t.Helper()
	events, err := objects.Resource(spc.Resource).Namespace(namespace).Watch(t.Context(), metav1.ListOptions{TimeoutSeconds: new(int64(within / time.Second))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(events.Stop)
	return func() map[string]int {
		writes := map[string]int{}
		for event := range events.ResultChan() {
			if object, ok := event.Object.(*unstructured.Unstructured); ok {
				writes[object.GetName()]++
			}
		}
		return writes
	}
}

// TestTenantForgesOwners gives pods controllers that do not exist or belong elsewhere. Classes must
// get valid owners, and the injector and the garbage collector must not alternately create and
// delete them.
func TestTenantForgesOwners(t *testing.T) {
	t.Parallel()
	other := newTenant(t, "tenant-owned", "enabled", "", toWorkloads)
	n := newTenant(t, "tenant-owners", "enabled", "", toWorkloads)
	configMap := func(n *tenant, name string, finalizers ...string) metav1.OwnerReference {
		object, err := n.CoreV1().ConfigMaps(n.namespace).Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: finalizers}}, metav1.CreateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: name, UID: object.UID}
	}
	space, err := client.CoreV1().Namespaces().Get(t.Context(), other.namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	foreign, own, ending := configMap(other, "foreign"), configMap(n, "own"), configMap(n, "ending", "tenant.example/never")
	foreground := metav1.DeletePropagationForeground
	if err := client.CoreV1().ConfigMaps(n.namespace).Delete(t.Context(), "ending", metav1.DeleteOptions{PropagationPolicy: &foreground}); err != nil {
		t.Fatal(err)
	}
	renamed := own
	renamed.Name = "other"
	nowhere := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "nowhere", UID: "11111111-0000-0000-0000-000000000000"}
	count := writesOf(t, n.namespace, 10*time.Second)
	var kept []string
	for name, test := range map[string]struct {
		controller metav1.OwnerReference
		also       []metav1.OwnerReference
		stays      bool // the pod, and so its class, is not collected
	}{
		"nowhere":          {controller: nowhere},
		"foreign":          {controller: foreign},
		"renamed":          {controller: renamed},
		"ending":           {controller: ending},
		"unknown-kind":     {controller: metav1.OwnerReference{APIVersion: "tenant.example/v1", Kind: "Owner", Name: "a", UID: "22222222-0000-0000-0000-000000000000"}, stays: true},
		"renamed-kind":     {controller: metav1.OwnerReference{APIVersion: "tenant.example/v1", Kind: "Owner", Name: "a", UID: own.UID}, stays: true},
		"namespace":        {controller: metav1.OwnerReference{APIVersion: "v1", Kind: "Namespace", Name: space.Name, UID: space.UID}, stays: true},
		"own":              {controller: own, stays: true},
		"nowhere-and-own":  {controller: nowhere, also: []metav1.OwnerReference{own}, stays: true},
		"foreign-and-own":  {controller: foreign, also: []metav1.OwnerReference{own}, stays: true},
		"ending-and-own":   {controller: ending, also: []metav1.OwnerReference{own}, stays: true},
		"foreign-and-kind": {controller: foreign, also: []metav1.OwnerReference{{APIVersion: "tenant.example/v1", Kind: "Owner", Name: "b", UID: "33333333-0000-0000-0000-000000000000"}}, stays: true},
	} {
		if _, err := n.create(t.Context(), name, "blob", honest(name), ownedBy(test.controller), func(pod *corev1.Pod) {
			pod.OwnerReferences = append(pod.OwnerReferences, test.also...)
		}); err != nil {
			t.Fatal(err)
		}
		if test.stays {
			kept = append(kept, name)
		}
	}
	for _, name := range kept {
		waitForRequested(t, n.namespace, honestRequest(name))
	}
	const most = 8
	for name, writes := range count() {
		if writes > most {
			t.Errorf("class %s was written %d times, want at most %d", name, writes, most)
		}
	}
	checkClasses(t, other.namespace)
}

// TestTenantOfManyOwners creates hundreds of pods without a controller that own one class, and
// gives one pod hundreds of controllers in turn.
func TestTenantOfManyOwners(t *testing.T) {
	t.Parallel()
	const pods, atOnce = 300, 8
	n := newTenant(t, "tenant-many", "enabled", "", toPods)
	count := writesOf(t, n.namespace, 30*time.Second)
	var running sync.WaitGroup
	for worker := range atOnce {
		running.Go(func() {
			for i := worker; i < pods; i += atOnce {
				if _, err := n.create(t.Context(), fmt.Sprintf("pod-%d", i), "blob", honest("secret-425")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	running.Wait()
	owners := func(ctx context.Context, want int) error {
		class, err := classNamed(ctx, n.namespace, spc.Managed(honestRequest("secret-425")).Name)
		if err == nil && len(class.GetOwnerReferences()) < want {
			err = fmt.Errorf("it has %d", len(class.GetOwnerReferences()))
		}
		return err
	}
	waitFor(t, "some owners", func(ctx context.Context) error { return owners(ctx, 8) })
	waitForRequested(t, n.namespace, honestRequest("secret-425"))
	for i := range pods {
		patch := fmt.Sprintf(`{"metadata":{"ownerReferences":[{"apiVersion":"tenant.example/v1","kind":"Owner","name":"a","controller":true,"uid":"44444444-0000-0000-0000-%012d"}]}}`, i)
		if _, err := n.CoreV1().Pods(n.namespace).Patch(t.Context(), "pod-0", types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	n.awaitAnother(t, "another")
	for name, writes := range count() {
		t.Logf("class %s was written %d times", name, writes)
		if writes > 2*pods+10 {
			t.Errorf("class %s was written %d times, want once for each owner at most", name, writes)
		}
	}
	class := waitForRequested(t, n.namespace, honestRequest("secret-425"))
	text, err := class.MarshalJSON()
	t.Logf("the class has %d owners and %d bytes, %v", len(class.GetOwnerReferences()), len(text), err)
	if err := ownedBySome(class); err != nil {
		t.Error(err)
	}
}

// TestTenantWritesClasses uses tenants who may write classes, and who create classes with the names
// of managed ones. The injector must correct classes that have its label or field manager, and
// leave all others alone.
func TestTenantWritesClasses(t *testing.T) {
	t.Parallel()
	n := newTenant(t, "tenant-classes", "enabled", "", toClasses)
	ours := map[string]any{spc.ManagedByLabel: spc.ManagedBy}
	many := make([]any, 1000)
	for i := range many {
		many[i] = map[string]any{"apiVersion": "tenant.example/v1", "kind": "Owner", "name": "a", "uid": fmt.Sprintf("55555555-0000-0000-0000-%012d", i)}
	}
	twice := []any{
		map[string]any{"apiVersion": "tenant.example/v1", "kind": "Owner", "name": "a", "uid": "66666666-0000-0000-0000-000000000000"},
		map[string]any{"apiVersion": "tenant.example/v1", "kind": "Owner", "name": "b", "uid": "66666666-0000-0000-0000-000000000000", "controller": true},
	}
	for behaviour, test := range map[string]struct {
		metadata map[string]any
		manager  string
		deleted  bool
		taken    bool
	}{
		"a class of the tenant":                   {taken: true},
		"a class of another tool":                 {metadata: map[string]any{"labels": map[string]any{"app.kubernetes.io/managed-by": "Helm", "argocd.argoproj.io/instance": "app"}}, taken: true},
		"a class with the injector's label":       {metadata: map[string]any{"labels": ours}},
		"a class by the injector's field manager": {manager: spc.ManagedBy},
		"a class with a thousand owners":          {metadata: map[string]any{"labels": ours, "ownerReferences": many}},
		"a class with two owners of one UID":      {metadata: map[string]any{"labels": ours, "ownerReferences": twice}},
		"a labelled class with a finalizer":       {metadata: map[string]any{"labels": ours, "finalizers": []any{"tenant.example/never"}}, deleted: true},
		"a class of the tenant with a finalizer":  {metadata: map[string]any{"finalizers": []any{"tenant.example/never"}}, deleted: true, taken: true},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			name := named(behaviour)
			request, other := honestRequest(name), honestRequest(name)
			other.Vault, other.Mode = "other-kv", api.ModeNone
			content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(spc.Managed(other))
			if err != nil {
				t.Fatal(err)
			}
			class := &unstructured.Unstructured{Object: content}
			class.Object["metadata"] = changedMetadata(test.metadata, spc.Managed(request).Name)
			mine := n.objects.Resource(spc.Resource).Namespace(n.namespace)
			made, err := mine.Create(t.Context(), class, metav1.CreateOptions{FieldManager: test.manager})
			if err != nil {
				t.Fatal(err)
			}
			if test.deleted {
				if err := mine.Delete(t.Context(), made.GetName(), metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			}
			pod, err := n.create(t.Context(), name, "blob", honest(name))
			if err != nil {
				t.Fatal(err)
			}
			if test.taken {
				eventOf(t, n.namespace, name, string(api.ClassNameTaken))
				now, err := mine.Get(t.Context(), made.GetName(), metav1.GetOptions{})
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(made.Object["spec"], now.Object["spec"]); diff != "" || len(now.GetOwnerReferences()) > 0 {
					t.Errorf("the class was written, now it has owners %v and (-made +now):\n%s", now.GetOwnerReferences(), diff)
				}
			} else {
				now := waitForRequested(t, n.namespace, request)
				if !slices.ContainsFunc(now.GetOwnerReferences(), func(o metav1.OwnerReference) bool { return o.UID == pod.UID }) {
					t.Errorf("pod %s is not an owner of the class", pod.UID)
				}
			}
			if test.deleted { // and is finally deleted
				if _, err := mine.Patch(t.Context(), made.GetName(), types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`), metav1.PatchOptions{}); err != nil {
					t.Fatal(err)
				}
				waitForRequested(t, n.namespace, request)
			}
		})
	}
	t.Run("the exact managed class, edited later", func(t *testing.T) {
		request := honestRequest("secret-425")
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(spc.Managed(request))
		if err != nil {
			t.Fatal(err)
		}
		class := &unstructured.Unstructured{Object: content}
		class.Object["metadata"] = changedMetadata(nil, class.GetName())
		mine := n.objects.Resource(spc.Resource).Namespace(n.namespace)
		if _, err := mine.Create(t.Context(), class, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
		if _, err := n.create(t.Context(), "app", "blob", honest("secret-425")); err != nil {
			t.Fatal(err)
		}
		n.awaitAnother(t, "another")
		if now := waitForRequested(t, n.namespace, request); len(now.GetOwnerReferences()) > 0 {
			t.Errorf("the class has owners: %v", now.GetOwnerReferences())
		}
		edit := []byte(`{"spec":{"parameters":{"keyvaultName":"other-kv"}}}`)
		if _, err := mine.Patch(t.Context(), class.GetName(), types.MergePatchType, edit, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		eventOf(t, n.namespace, "app", string(api.ClassNameTaken))
		if err := mine.Delete(t.Context(), class.GetName(), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		waitForRequested(t, n.namespace, request)
	})
}

func changedMetadata(metadata map[string]any, name string) map[string]any {
	metadata = maps.Clone(metadata)
	if metadata == nil {
		metadata = map[string]any{}
	}
	metadata["name"] = name
	return metadata
}

// TestTenantFloods creates hundreds of pods with very long requests for classes that they do not
// mount. Pods of other tenants must get their classes meanwhile.
func TestTenantFloods(t *testing.T) {
	const pods, atOnce, honestPods = 200, 8, 20
	bystander := newTenant(t, "tenant-bystander", "enabled", "", toPods)
	bystander.awaitAnother(t, "first")
	latencies := func(t *testing.T, prefix string) {
		t.Helper()
		var all []time.Duration
		for i := range honestPods {
			name := fmt.Sprintf("%s-%d", prefix, i)
			begin := time.Now()
			if _, err := bystander.create(t.Context(), name, "blob", honest(name)); err != nil {
				t.Fatal(err)
			}
			waitForRequested(t, bystander.namespace, honestRequest(name))
			all = append(all, time.Since(begin))
		}
		slices.Sort(all)
		t.Logf("time from pod to class: p50 %s, max %s", all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond))
	}
	var items strings.Builder
	items.WriteString(strings.Repeat("# "+strings.Repeat("x", 200)+"\n", 50))
	for i := range 99 {
		fmt.Fprintf(&items, "VAR_%d=item-%d as %s/%d\n", i, i, strings.Repeat("y", 100), i)
	}
	names := make([]string, 100)
	for i := range names {
		names[i] = fmt.Sprintf("kv-%010x", i)
	}
	for behaviour, test := range map[string]struct {
		namespace, injection string
		classes              int // mounted by each pod
	}{
		"one class, in a namespace that is not injected":         {"tenant-floods-one", "", 1},
		"one class, in an injected namespace":                    {"tenant-floods-injected", "enabled", 1},
		"a hundred classes, in a namespace that is not injected": {"tenant-floods-hundred", "", 100},
		"a hundred classes, in an injected namespace":            {"tenant-floods-hundred-injected", "enabled", 100},
	} {
		t.Run(behaviour, func(t *testing.T) {
			n := newTenant(t, test.namespace, test.injection, "", toPods)
			var running sync.WaitGroup
			for worker := range atOnce {
				running.Go(func() {
					for i := worker; i < pods; i += atOnce {
						name := fmt.Sprintf("pod-%d", i)
						annotations := changed(honest("a"), map[string]string{"keyvault.io/secrets": items.String() + fmt.Sprintf("item-%d as pod", i)})
						if _, err := n.create(t.Context(), name, "blob", nil, mounting(names[:test.classes]...)); err != nil {
							t.Error(err)
							return
						}
						text, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": annotations, "labels": map[string]string{"keyvault.io/injected": "true"}}})
						if err == nil {
							_, err = n.CoreV1().Pods(n.namespace).Patch(t.Context(), name, types.MergePatchType, text, metav1.PatchOptions{})
						}
						if err != nil {
							t.Error(err)
						}
					}
				})
			}
			running.Wait()
			latencies(t, test.namespace)
			checkClasses(t, n.namespace)
			list, err := client.EventsV1().Events(n.namespace).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%d events", len(list.Items))
			if len(list.Items) > 5*pods {
				t.Errorf("there are %d events, want at most five for each pod", len(list.Items))
			}
			if err := client.CoreV1().Pods(n.namespace).DeleteCollection(t.Context(), metav1.DeleteOptions{}, metav1.ListOptions{}); err != nil {
				t.Fatal(err)
			}
		})
	}
}
