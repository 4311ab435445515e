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

// What pods are told, with the name of the class as %[1]s. Whoever changes a word of these changes what users read and search for.
const (
	noteTaken = "SecretProviderClass %[1]s is another than the pod asks for, and the injector did not make it, so it was left alone; " +
		"delete it, and the right one is made"
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
	noteMissing = "SecretProviderClass %[1]s is missing and is not made, since %[2]s; change that back, or replace the pod, for example by kubectl rollout restart"
	noteEdited  = "SecretProviderClass %[1]s was edited and is not put back, since %[2]s; change that back, or replace the pod, for example by kubectl rollout restart"
)

// eventsOf are what a pod was told for a reason.
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

// waitForEvent waits until a pod is told something for a reason, and compares it.
func waitForEvent(t *testing.T, on kubernetes.Interface, namespace, pod, reason, note string) {
	t.Helper()
	var found []eventsv1.Event
	waitFor(t, fmt.Sprintf("event %s of %s/%s", reason, namespace, pod), func(ctx context.Context) (err error) {
		if found, err = eventsOf(ctx, on, namespace, pod, reason); err == nil && len(found) == 0 {
			err = errors.New("there is none")
		}
		return err
	})
	type event struct{ Type, Reason, Controller, Note string }
	for _, e := range found { // every replica tells it
		want := event{corev1.EventTypeWarning, reason, "akv-injector", note}
		if diff := cmp.Diff(want, event{e.Type, e.Reason, e.ReportingController, e.Note}); diff != "" {
			t.Errorf("event (-want +got):\n%s", diff)
		}
	}
}

// makeClass makes a class as somebody would who is not the injector.
func makeClass(t *testing.T, namespace string, object *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	made, err := objects.Resource(managed.Resource).Namespace(namespace).Create(t.Context(), in(object, namespace), metav1.CreateOptions{FieldManager: "somebody"})
	if err != nil {
		t.Fatal(err)
	}
	return made
}

// TestClassNameTaken finds somebody else's class where a pod's should be.
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
	// One line for each replica that tells.
	line := regexp.MustCompile(`^ +Warning  ClassNameTaken  \S+( \(x\d+ over \S+\))? +akv-injector  ` + regexp.QuoteMeta(fmt.Sprintf(noteTaken, name)) + "\n")
	if lines := strings.SplitAfterN(described, "\n", 4); len(lines) < 4 || !line.MatchString(lines[2]) {
		t.Errorf("kubectl describe pod prints\n%s\nwant a third line like %s", described, line)
	}
	waitFor(t, "the log to tell", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(server.Dir, "akv-injector.log"))
		want := `"msg":"Class is not as its pods need it","namespace":"` + namespace + `","class":"` + name + `","why":"somebody else made another class of that name"}`
		if err == nil && !strings.Contains(string(text), want) {
			err = errors.New("no line has " + want)
		}
		return err
	})
	if got := waitForClass(t, objects, namespace, name, nil); !cmp.Equal(theirs, got) {
		t.Errorf("the class was touched (-before +after):\n%s", cmp.Diff(theirs, got))
	}
	deleteClass(t, objects, namespace, name)
	waitUntilKept(t, pod, podOwner(pod))
}

// TestClassNamesTaken finds somebody else's classes where both of a pod's should be. The pod is told of each.
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
	waitFor(t, "an event for each class", func(ctx context.Context) error {
		found, err := eventsOf(ctx, client, namespace, "app", "ClassNameTaken")
		if err != nil {
			return err
		}
		var notes []string
		for _, e := range found {
			if e.Related == nil || e.Related.Kind != managed.Kind || !strings.Contains(e.Note, " "+e.Related.Name+" ") {
				return fmt.Errorf("the event %q is related to %v, want its class", e.Note, e.Related)
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

// TestClassMadeBySomebody finds the right class where a pod's should be, and lets it be.
func TestClassMadeBySomebody(t *testing.T) {
	t.Parallel()
	const namespace = "class-by-somebody"
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
	waitUntilKept(t, after, podOwner(after)) // by when the first pod has been seen
	if got := waitForClass(t, objects, namespace, name, nil); !cmp.Equal(theirs, got) {
		t.Errorf("the class was touched (-before +after):\n%s", cmp.Diff(theirs, got))
	}
	if events, err := eventsOf(t.Context(), client, namespace, "app", ""); err != nil || len(events) > 0 {
		t.Errorf("the pod was told %v: %v", events, err)
	}
	deleteClass(t, objects, namespace, name)
	waitUntilKept(t, pod, podOwner(pod))
}

// TestClassFromManifests applies what `akv-injector inject` prints. The class has our label, so it is ours from then on.
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
	apply("--selector=app.kubernetes.io/managed-by=akv-injector") // else the injector may be quicker than kubectl
	for round := range 3 {                                        // as a pipeline does again and again
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

// TestClassOutdated changes what a running pod's class was derived from. The class stays as it is until somebody spoils it: then the pod
// is told, and it is put back only when the change is taken back.
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
			why: "the pod, its namespace and its ServiceAccount by now ask for %s",
		},
		"another-client": {
			change: setClient(`"00000000-0000-4000-8000-000000000001"`),
			back:   setClient(`"0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90"`),
			spoil: func(t *testing.T, namespace, name string) {
				t.Helper()
				patchClass(t, namespace, name, types.MergePatchType, `{"spec":{"parameters":{"useVMManagedIdentity":"true"}}}`)
			},
			note: noteEdited,
			why:  "the pod, its namespace and its ServiceAccount by now ask for %s",
		},
		"a-ceiling": {
			change: setNamespace(`{"metadata":{"annotations":{"keyvault.io/allowed-vaults":"other-*"}}}`),
			back:   setNamespace(`{"metadata":{"annotations":{"keyvault.io/allowed-vaults":null}}}`),
			spoil:  remove, note: noteMissing,
			why: `what the pod asks for is refused by now: [VaultNotAllowed] metadata.annotations[keyvault.io/secrets][0]: Forbidden: ` +
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
				waitFor(t, "the injector to hear of the change", func(ctx context.Context) error {
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
				t.Error("the class was put back although the pod asks for something else by now")
			}
			test.back(t, namespace)
			waitUntilKept(t, pod, podOwner(pod))
		})
	}
}

// TestClassOverQuota runs into a quota of no classes at all, which is raised later.
func TestClassOverQuota(t *testing.T) {
	t.Parallel()
	const namespace, counted = "class-over-quota", "count/secretproviderclasses.secrets-store.csi.x-k8s.io"
	quota := func(n string) *unstructured.Unstructured {
		return document(`{apiVersion: v1, kind: ResourceQuota, metadata: {name: no-classes}, spec: {hard: {` + counted + `: ` + n + `}}}`)
	}
	newTeam(t, namespace, quota(`"0"`))
	waitFor(t, "the quota to hold", func(ctx context.Context) error {
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
	t.Logf("made %s after the quota was raised", time.Since(begin).Round(time.Millisecond))
}

// waitForNotes waits until a pod was told exactly that for a reason.
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

// TestClassTroubleChanges sees a pod be told again when what it is told changes.
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
		waitFor(t, "the vault to be known", func(ctx context.Context) error {
			before := asked
			if asked = classFor(ctx, t, objects, namespace, "db-password"); asked == before {
				return errors.New("pods ask for " + asked)
			}
			return nil
		})
		if i == 0 {
			deleteClass(t, objects, namespace, name) // which until then would be put back
		}
		want = append(want, fmt.Sprintf(noteMissing, name, "the pod, its namespace and its ServiceAccount by now ask for "+asked))
		waitForNotes(t, namespace, "app", "ClassOutdated", want...)
	}
}
