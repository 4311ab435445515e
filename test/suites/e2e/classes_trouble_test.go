package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	managed "github.com/akv-injector/akv-injector/core/class"
)

// Notes of the injector's events on pods, with the name of the class as %[1]s. Users read them and
// search for them.
const (
	noteTaken = "SecretProviderClass %[1]s is not the class that the pod requests, and was not created by akv-injector; delete it to have it recreated"
	noteQuota = `SecretProviderClass %[1]s could not be written: secretproviderclasses.secrets-store.csi.x-k8s.io "%[1]s" is forbidden: ` +
		"exceeded quota: no-classes, requested: count/secretproviderclasses.secrets-store.csi.x-k8s.io=1, " +
		"used: count/secretproviderclasses.secrets-store.csi.x-k8s.io=0, limited: count/secretproviderclasses.secrets-store.csi.x-k8s.io=0; " +
		"raise the quota, or give the injector's ServiceAccount the rights of its ClusterRole"
	noteNoDriver = "SecretProviderClass %[1]s could not be written: the server could not find the requested resource; " +
		"install the Secrets Store CSI driver, whose CustomResourceDefinition is missing"
	noteNoRights = `SecretProviderClass %[1]s could not be written: secretproviderclasses.secrets-store.csi.x-k8s.io is forbidden: ` +
		`User "system:serviceaccount:akv-injector-system:akv-injector" cannot create resource "secretproviderclasses" ` +
		`in API group "secrets-store.csi.x-k8s.io" in the namespace "default"; ` +
		"raise the quota, or give the injector's ServiceAccount the rights of its ClusterRole"
	noteMissing = "SecretProviderClass %[1]s is missing and was not created, since %[2]s; change that back, or replace the pod, for example by kubectl rollout restart"
	noteEdited  = "SecretProviderClass %[1]s was edited and is not restored, since %[2]s; change that back, or replace the pod, for example by kubectl rollout restart"
)

// eventsOf returns the events of a pod with a reason.
func eventsOf(ctx context.Context, on kubernetes.Interface, namespace, pod, reason string) ([]eventsv1.Event, error) {
	list, err := on.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	var found []eventsv1.Event
	for _, e := range list.Items {
		if e.Regarding.Kind == "Pod" && e.Regarding.Name == pod && (reason == "" || e.Reason == reason) {
			found = append(found, e)
		}
	}
	return found, nil
}

// waitForEvent waits until a pod has an event with a reason, and compares it.
func waitForEvent(t *testing.T, on kubernetes.Interface, namespace, pod, reason, note string) {
	t.Helper()
	var found []eventsv1.Event
	waitFor(t, fmt.Sprintf("event %s of %s/%s", reason, namespace, pod), func(ctx context.Context) (err error) {
		if found, err = eventsOf(ctx, on, namespace, pod, reason); err == nil && len(found) == 0 {
			err = errors.New("no such event")
		}
		return err
	})
	type event struct{ Type, Reason, Controller, Note string }
	for _, e := range found { // every replica writes one
		want := event{corev1.EventTypeWarning, reason, "akv-injector", note}
		if diff := cmp.Diff(want, event{e.Type, e.Reason, e.ReportingController, e.Note}); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
	}
}

// makeClass creates a class as a user would, with another field manager than the injector's.
func makeClass(t *testing.T, namespace string, object *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	made, err := objects.Resource(managed.Resource).Namespace(namespace).Create(t.Context(), in(object, namespace), metav1.CreateOptions{FieldManager: "another-manager"})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestClassNameTaken creates a user's class with the name of a pod's managed class. The injector
// must leave it alone and write an event.
func TestClassNameTaken(t *testing.T) {
	t.Parallel()
	const namespace = "class-taken"
	newTeam(t, namespace)
	name := classFor(t.Context(), t, objects, namespace, "DB_PASSWORD=db-password")
	theirs := makeClass(t, namespace, document(strings.Replace(class, "key-vault-secret}", name+"}", 1)))
	pod := newPod(t, namespace, "app", "DB_PASSWORD=db-password")
	waitForEvent(t, client, namespace, "app", "ClassNameTaken", fmt.Sprintf(noteTaken, name))

	out, err := plane.Kubectl(t.Context(), "describe", "pod", "app", "--namespace="+namespace).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl describe: %v\n%s", err, out)
	}
	_, described, _ := strings.Cut(string(out), "\nEvents:\n")
	// Every replica writes one line.
	line := regexp.MustCompile(`^ +Warning  ClassNameTaken  \S+( \(x\d+ over \S+\))? +akv-injector  ` + regexp.QuoteMeta(fmt.Sprintf(noteTaken, name)) + "\n")
	if lines := strings.SplitAfterN(described, "\n", 4); len(lines) < 4 || !line.MatchString(lines[2]) {
		t.Errorf("kubectl describe pod prints\n%s\nwant a third line like %s", described, line)
	}
	waitFor(t, "the line in the log", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(server.Dir, "akv-injector.log"))
		want := `"msg":"Class is not as its pods need it","namespace":"` + namespace + `","class":"` + name + `","why":"another client created a class of that name"}`
		if err == nil && !strings.Contains(string(text), want) {
			err = errors.New("no line has " + want)
		}
		return err
	})
	if got := waitForClass(t, objects, namespace, name, nil); !cmp.Equal(theirs, got) {
		t.Errorf("the class was changed (-before +after):\n%s", cmp.Diff(theirs, got))
	}
	deleteClass(t, objects, namespace, name)
	waitUntilKept(t, pod, podOwner(pod))
}

// TestClassNamesTaken creates user's classes with the names of both managed classes of a pod. The
// pod must get an event for each.
func TestClassNamesTaken(t *testing.T) {
	t.Parallel()
	const namespace, secrets = "class-both-taken", "db-password, edge-kv/edge-cert"
	newTeam(t, namespace)
	early := newPod(t, namespace, "early", secrets)
	waitUntilKept(t, early, podOwner(early))
	names := mounted(t, early)
	if err := client.CoreV1().Pods(namespace).Delete(t.Context(), "early", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	var want []string
	for _, name := range names {
		waitUntilGone(t, namespace, name)
		makeClass(t, namespace, document(strings.Replace(class, "key-vault-secret}", name+"}", 1)))
		want = append(want, fmt.Sprintf(noteTaken, name))
	}
	slices.Sort(want)
	newPod(t, namespace, "app", secrets)
	waitFor(t, "events for both classes", func(ctx context.Context) error {
		found, err := eventsOf(ctx, client, namespace, "app", "ClassNameTaken")
		if err != nil {
			return err
		}
		var notes []string
		for _, e := range found {
			if e.Related == nil || e.Related.Kind != managed.Kind || !strings.Contains(e.Note, " "+e.Related.Name+" ") {
				return fmt.Errorf("event %q has related object %v, want its class", e.Note, e.Related)
			}
			notes = append(notes, e.Note)
		}
		slices.Sort(notes)
		if diff := cmp.Diff(want, slices.Compact(notes)); diff != "" {
			return fmt.Errorf("notes (-want +got):\n%s", diff)
		}
		return nil
	})
}

// TestClassMadeBySomebody creates the right class as a user, before the pod. The injector must
// leave it alone.
func TestClassMadeBySomebody(t *testing.T) {
	t.Parallel()
	const namespace = "class-by-user"
	newTeam(t, namespace)
	name := classFor(t.Context(), t, objects, namespace, "DB_PASSWORD=db-password")
	right := document(`
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: ` + name + `}
spec:
  provider: azure
  parameters:
    keyvaultName: team-kv
    tenantID: 72f988bf-86f1-41af-91ab-2d7cd011db47
    clientID: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90
    objects: "array:\n- |\n  objectName: \"db-password\"\n  objectType: secret\n"
  secretObjects:
  - {secretName: ` + name + `, type: Opaque, data: [{objectName: db-password, key: db-password}]}
`)
	theirs := makeClass(t, namespace, right)
	pod := newPod(t, namespace, "app", "DB_PASSWORD=db-password")
	after := newPod(t, namespace, "after", "after")
	waitUntilKept(t, after, podOwner(after)) // by then the injector has seen the first pod
	if got := waitForClass(t, objects, namespace, name, nil); !cmp.Equal(theirs, got) {
		t.Errorf("the class was changed (-before +after):\n%s", cmp.Diff(theirs, got))
	}
	if events, err := eventsOf(t.Context(), client, namespace, "app", ""); err != nil || len(events) > 0 {
		t.Errorf("the pod has events %v: %v", events, err)
	}
	deleteClass(t, objects, namespace, name)
	waitUntilKept(t, pod, podOwner(pod))
}

// TestClassFromManifests applies the output of `akv-injector inject`. Its class has the injector's
// label, so the injector maintains it.
func TestClassFromManifests(t *testing.T) {
	t.Parallel()
	const namespace = "class-from-manifests"
	newTeam(t, namespace)
	manifest, err := asking(deployment, "app", "DB_PASSWORD=db-password").MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	inject := exec.CommandContext(t.Context(), binary, "inject", "--cluster", "--kubeconfig="+plane.Kubeconfig, "--namespace="+namespace, "--filename=-")
	inject.Stdin = strings.NewReader(string(manifest))
	printed, err := inject.Output()
	if err != nil {
		t.Fatal(err)
	}
	apply := func(args ...string) string {
		kubectl := plane.Kubectl(t.Context(), append([]string{"apply", "--namespace=" + namespace, "--filename=-"}, args...)...)
		kubectl.Stdin = strings.NewReader(string(printed))
		out, err := kubectl.CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl apply: %v\n%s", err, out)
		}
		return string(out)
	}
	// Otherwise the injector may create the class before kubectl.
	apply("--selector=app.kubernetes.io/managed-by=akv-injector")
	for round := range 3 { // as a pipeline applies the same output repeatedly
		if out := apply(); round > 0 && strings.Count(out, "unchanged\n") != 2 {
			t.Errorf("kubectl apply, again:\n%s", out)
		}
		pod := &podsOf(t, namespace, "app", 1)[0]
		name := mounted(t, pod)[0]
		want := derived(t, pod, name)
		waitForClass(t, objects, namespace, name, func(got *unstructured.Unstructured) error {
			return exactly(got, want, controllerOf(t, pod, "ReplicaSet"))
		})
	}
}

// TestClassOutdated changes what a running pod's class was derived from. The class stays as it is.
// When a user edits or deletes it, the pod gets an event, and the class is restored only after the
// change is reverted.
func TestClassOutdated(t *testing.T) {
	t.Parallel()
	setNamespace := func(patch string) func(*testing.T, string) {
		return func(t *testing.T, namespace string) {
			t.Helper()
			if _, err := client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	setClient := func(id string) func(*testing.T, string) {
		return func(t *testing.T, namespace string) {
			t.Helper()
			patch := []byte(`{"metadata":{"annotations":{"azure.workload.identity/client-id":` + id + `}}}`)
			if _, err := client.CoreV1().ServiceAccounts(namespace).Patch(t.Context(), "blob-sa", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	remove := func(t *testing.T, namespace, name string) {
		t.Helper()
		deleteClass(t, objects, namespace, name)
	}
	for name, test := range map[string]struct {
		change, back func(*testing.T, string)
		spoil        func(t *testing.T, namespace, name string)
		note         string
		why          string // %s is the class that the pod would mount now
	}{
		"another-vault": {
			change: setNamespace(`{"metadata":{"annotations":{"keyvault.io/vault":"other-kv"}}}`),
			back:   setNamespace(`{"metadata":{"annotations":{"keyvault.io/vault":"team-kv"}}}`),
			spoil:  remove, note: noteMissing,
			why: "the pod, its namespace and its ServiceAccount now request %s",
		},
		"another-client": {
			change: setClient(`"00000000-0000-4000-8000-000000000001"`),
			back:   setClient(`"0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90"`),
			spoil: func(t *testing.T, namespace, name string) {
				t.Helper()
				patchClass(t, namespace, name, types.MergePatchType, `{"spec":{"parameters":{"useVMManagedIdentity":"true"}}}`)
			},
			note: noteEdited,
			why:  "the pod, its namespace and its ServiceAccount now request %s",
		},
		"a-ceiling": {
			change: setNamespace(`{"metadata":{"annotations":{"keyvault.io/allowed-vaults":"other-*"}}}`),
			back:   setNamespace(`{"metadata":{"annotations":{"keyvault.io/allowed-vaults":null}}}`),
			spoil:  remove, note: noteMissing,
			why: `what the pod requests is now rejected: [VaultNotAllowed] metadata.annotations[keyvault.io/secrets][0]: Forbidden: ` +
				`must not read Key Vault team-kv; namespace annotation keyvault.io/allowed-vaults allows other-*`,
		},
		"no-opt-in": {
			change: setNamespace(`{"metadata":{"labels":{"keyvault.io/injection":null}}}`),
			back:   setNamespace(`{"metadata":{"labels":{"keyvault.io/injection":"enabled"}}}`),
			spoil:  remove, note: noteMissing,
			why: "its namespace has no label keyvault.io/injection: enabled",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			namespace := "class-outdated-" + name
			newTeam(t, namespace)
			pod := newPod(t, namespace, "app", "DB_PASSWORD=db-password")
			before := waitUntilKept(t, pod, podOwner(pod))
			test.change(t, namespace)
			why := test.why
			if strings.Contains(why, "%s") {
				var now string
				waitFor(t, "the injector to see the change", func(ctx context.Context) error {
					if now = classFor(ctx, t, objects, namespace, "DB_PASSWORD=db-password"); now == before.GetName() {
						return errors.New("a pod would mount the same class")
					}
					return nil
				})
				why = fmt.Sprintf(why, now)
			}
			test.spoil(t, namespace, before.GetName())
			waitForEvent(t, client, namespace, "app", "ClassOutdated", fmt.Sprintf(test.note, before.GetName(), why))
			got, err := objects.Resource(managed.Resource).Namespace(namespace).Get(t.Context(), before.GetName(), metav1.GetOptions{})
			if err == nil && cmp.Equal(before.Object["spec"], got.Object["spec"]) {
				t.Error("the class was restored although the pod now requests another one")
			}
			test.back(t, namespace)
			waitUntilKept(t, pod, podOwner(pod))
		})
	}
}

// TestClassOverQuota sets a quota of zero classes, and raises it later.
func TestClassOverQuota(t *testing.T) {
	t.Parallel()
	const namespace, counted = "class-over-quota", "count/secretproviderclasses.secrets-store.csi.x-k8s.io"
	quota := func(n string) *unstructured.Unstructured {
		return document(`{apiVersion: v1, kind: ResourceQuota, metadata: {name: no-classes}, spec: {hard: {` + counted + `: ` + n + `}}}`)
	}
	newTeam(t, namespace, quota(`"0"`))
	waitFor(t, "the quota to take effect", func(ctx context.Context) error {
		q, err := client.CoreV1().ResourceQuotas(namespace).Get(ctx, "no-classes", metav1.GetOptions{})
		if err == nil && (len(q.Status.Hard) == 0 || len(q.Status.Used) == 0) {
			err = fmt.Errorf("its status is %v", q.Status)
		}
		return err
	})
	pod := newPod(t, namespace, "app", "DB_PASSWORD=db-password")
	waitForEvent(t, client, namespace, "app", "ClassNotWritten", fmt.Sprintf(noteQuota, mounted(t, pod)[0]))
	begin := time.Now()
	if err := apply(t.Context(), namespace, quota(`"1"`)); err != nil {
		t.Fatal(err)
	}
	waitUntilKept(t, pod, podOwner(pod))
	t.Logf("created %s after the quota was raised", time.Since(begin).Round(time.Millisecond))
}

// waitForNotes waits until a pod's events with a reason have exactly these notes.
func waitForNotes(t *testing.T, namespace, pod, reason string, want ...string) {
	t.Helper()
	slices.Sort(want)
	waitFor(t, fmt.Sprintf("events %s of %s/%s", reason, namespace, pod), func(ctx context.Context) error {
		found, err := eventsOf(ctx, client, namespace, pod, reason)
		if err != nil {
			return err
		}
		var notes []string
		for _, e := range found {
			notes = append(notes, e.Note)
		}
		slices.Sort(notes)
		if diff := cmp.Diff(want, slices.Compact(notes)); diff != "" {
			return fmt.Errorf("notes (-want +got):\n%s", diff)
		}
		return nil
	})
}

// TestClassTroubleChanges checks that a pod gets a new event when the note changes.
func TestClassTroubleChanges(t *testing.T) {
	t.Parallel()
	const namespace = "class-troubles-change"
	newTeam(t, namespace)
	pod := newPod(t, namespace, "app", "db-password")
	name := waitUntilKept(t, pod, podOwner(pod)).GetName()
	var want []string
	asked := name
	for i, vault := range []string{"first-kv", "second-kv"} {
		patch := []byte(`{"metadata":{"annotations":{"keyvault.io/vault":"` + vault + `"}}}`)
		if _, err := client.CoreV1().Namespaces().Patch(t.Context(), namespace, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the injector to see the vault", func(ctx context.Context) error {
			before := asked
			if asked = classFor(ctx, t, objects, namespace, "db-password"); asked == before {
				return errors.New("pods request " + asked)
			}
			return nil
		})
		if i == 0 {
			deleteClass(t, objects, namespace, name) // which until then would be put back
		}
		want = append(want, fmt.Sprintf(noteMissing, name, "the pod, its namespace and its ServiceAccount now request "+asked))
		waitForNotes(t, namespace, "app", "ClassOutdated", want...)
	}
}
