package claims_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/controller/claims"
	"github.com/akv-injector/akv-injector/core/api"
)

var _ cache.TransformingStore = (*claims.Table)(nil)

const (
	one = "kv-0123456789"
	two = "kv-abcdef0123"
)

// pod returns a pod in namespace shop that mounts classes.
func pod(name string, classes ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, UID: types.UID("uid-" + name), ResourceVersion: "1"}}
	for _, c := range classes {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
			Driver: "secrets-store.csi.k8s.io", VolumeAttributes: map[string]string{"secretProviderClass": c},
		}}})
	}
	return p
}

// ownedBy returns the pod with a ReplicaSet as its controller.
func ownedBy(p *corev1.Pod, owner string) *corev1.Pod {
	p.OwnerReferences = []metav1.OwnerReference{
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: owner, UID: types.UID("uid-" + owner), Controller: new(true), BlockOwnerDeletion: new(true)},
	}
	return p
}

// ofKind returns the pod with a controller of that kind, and with the label that pods of a revision
// have.
func ofKind(p *corev1.Pod, apiVersion, kind string) *corev1.Pod {
	p = ownedBy(p, "set")
	p.OwnerReferences[0].APIVersion, p.OwnerReferences[0].Kind = apiVersion, kind
	p.Labels = map[string]string{"controller-revision-hash": "set-1"}
	return p
}

func withoutLabels(p *corev1.Pod) *corev1.Pod {
	p.Labels = nil
	return p
}

// named returns the pod with another name of its owner.
func named(p *corev1.Pod, owner string) *corev1.Pod {
	p.OwnerReferences[0].Name = owner
	return p
}

// alsoOwned returns the pod with one more owner.
func alsoOwned(p *corev1.Pod) *corev1.Pod {
	p.OwnerReferences = append(p.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: "other", UID: "uid-other"})
	return p
}

// crooked returns the pod with a name of its owner that does not fit the UID.
func crooked(p *corev1.Pod) *corev1.Pod {
	return named(p, "another")
}

// table returns a table with pods, and the classes for which it has called changed.
func table(t *testing.T, pods ...*corev1.Pod) (*claims.Table, *[]string) {
	t.Helper()
	var changed []string
	table := claims.NewTable(func(class types.NamespacedName) { changed = append(changed, class.String()) })
	for _, p := range pods {
		if err := table.Add(p); err != nil {
			t.Fatal(err)
		}
	}
	return table, &changed
}

// show returns a line for each claim: "CLASS KIND/OWNER: PODS".
func show(table *claims.Table, known ...metav1.OwnerReference) []string {
	var lines []string
	for _, class := range table.Classes() {
		for _, c := range table.Of(class, known) {
			var names []string
			for _, p := range c.Pods {
				names = append(names, p.Name)
			}
			lines = append(lines, fmt.Sprintf("%s %s/%s: %s", class, c.Owner.Kind, c.Owner.Name, strings.Join(names, " ")))
		}
	}
	slices.Sort(lines)
	return lines
}

func TestClaims(t *testing.T) {
	deleted := pod("deleted", one)
	deleted.DeletionTimestamp = new(metav1.Now())
	inline := pod("inline", one)
	inline.Spec.Volumes[0].CSI.Driver = "disk.csi.azure.com"
	for behaviour, test := range map[string]struct {
		pods []*corev1.Pod
		want []string
	}{
		"a pod without a controller owns its class":               {[]*corev1.Pod{pod("a", one)}, []string{"shop/" + one + " Pod/a: a"}},
		"a pod's controller owns it for the pod":                  {[]*corev1.Pod{ownedBy(pod("a", one), "set"), ownedBy(pod("b", one), "set")}, []string{"shop/" + one + " ReplicaSet/set: a b"}},
		"a Job owns it":                                           {[]*corev1.Pod{ofKind(pod("a", one), "batch/v1", "Job")}, []string{"shop/" + one + " Job/set: a"}},
		"a StatefulSet's revision owns it":                        {[]*corev1.Pod{ofKind(pod("a", one), "apps/v1", "StatefulSet")}, []string{"shop/" + one + " ControllerRevision/set-1: a"}},
		"a DaemonSet's revision owns it":                          {[]*corev1.Pod{ofKind(pod("a", one), "apps/v1", "DaemonSet")}, []string{"shop/" + one + " ControllerRevision/set-set-1: a"}},
		"a pod without a revision owns it itself":                 {[]*corev1.Pod{withoutLabels(ofKind(pod("a", one), "apps/v1", "StatefulSet"))}, []string{"shop/" + one + " Pod/a: a"}},
		"a pod whose owner has an impossible name owns it itself": {[]*corev1.Pod{named(ownedBy(pod("a", one), "set"), "a/b")}, []string{"shop/" + one + " Pod/a: a"}},
		"no other kind owns it":                                   {[]*corev1.Pod{ofKind(pod("a", one), "v1", "Namespace"), ofKind(pod("b", one), "example.org/v1", "Job")}, []string{"shop/" + one + " Pod/a: a", "shop/" + one + " Pod/b: b"}},
		"a pod with more owners is its own":                       {[]*corev1.Pod{alsoOwned(ownedBy(pod("a", one), "set"))}, []string{"shop/" + one + " Pod/a: a"}},
		"pods that disagree on an owner are their own": {
			[]*corev1.Pod{ownedBy(pod("b", one), "set"), ownedBy(pod("c", one), "set"), crooked(ownedBy(pod("a", one), "set"))},
			[]string{"shop/" + one + " Pod/a: a", "shop/" + one + " Pod/b: b", "shop/" + one + " Pod/c: c"},
		},
		"owners share a class":             {[]*corev1.Pod{pod("a", one), ownedBy(pod("b", one), "set")}, []string{"shop/" + one + " Pod/a: a", "shop/" + one + " ReplicaSet/set: b"}},
		"a pod may mount two, either once": {[]*corev1.Pod{pod("a", one, two, one)}, []string{"shop/" + one + " Pod/a: a", "shop/" + two + " Pod/a: a"}},
		"no name of a managed class":       {[]*corev1.Pod{pod("a", "kv-012345678", "kv-0123456789a", "kv-0123456789-x", "kv-012345678G", "KV-0123456789", "")}, nil},
		"another driver's volume":          {[]*corev1.Pod{inline}, nil},
		"a pod that is being deleted":      {[]*corev1.Pod{deleted}, nil},
	} {
		t.Run(behaviour, func(t *testing.T) {
			table, _ := table(t, test.pods...)
			if diff := cmp.Diff(test.want, show(table)); diff != "" {
				t.Errorf("claims differ (-want +got):\n%s", diff)
			}
		})
	}
}

// TestHeld counts the owners in a list that have pods with a claim on a class.
func TestHeld(t *testing.T) {
	table, _ := table(t, pod("a", one), ownedBy(pod("b", one), "set"), ofKind(pod("c", one), "apps/v1", "StatefulSet"), pod("d", two))
	owners := []metav1.OwnerReference{
		{APIVersion: "v1", Kind: "Pod", Name: "a", UID: "uid-a"},
		{APIVersion: "v1", Kind: "Pod", Name: "b", UID: "uid-b"}, // the claim is its controller's
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "set", UID: "uid-set"},
		{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "other", UID: "uid-set"},
		{APIVersion: "apps/v1", Kind: "ControllerRevision", Name: "set-1", UID: "uid-set-1"},
		{APIVersion: "v1", Kind: "Pod", Name: "d", UID: "uid-d"}, // mounts another class
		{APIVersion: "v1", Kind: "Pod", Name: "gone", UID: "uid-gone"},
	}
	class := types.NamespacedName{Namespace: "shop", Name: one}
	if got := table.Held(class, owners); got != 3 {
		t.Errorf("%d owners have pods, want 3", got)
	}
	// Pods with contradicting owner references own the class themselves.
	if err := table.Add(crooked(ownedBy(pod("e", one), "set"))); err != nil {
		t.Fatal(err)
	}
	if got := table.Held(class, owners); got != 3 {
		t.Errorf("%d owners have pods, want 3: the pod b instead of its controller", got)
	}
	// A pod is the owner in place of a revision that does not exist.
	if got := table.Held(class, []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "c", UID: "uid-c"}}); got != 1 {
		t.Errorf("%d owners have pods, want 1", got)
	}
}

func TestOwnerReference(t *testing.T) {
	table, _ := table(t, ownedBy(pod("a", one), "set"))
	want := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "set", UID: "uid-set"}
	if diff := cmp.Diff(want, table.Of(types.NamespacedName{Namespace: "shop", Name: one}, nil)[0].Owner); diff != "" {
		t.Errorf("owner, without controller and blockOwnerDeletion (-want +got):\n%s", diff)
	}
	if left := show(table, want); left != nil {
		t.Errorf("claims of a known owner: %v", left)
	}
	want.Name = "another"
	if left := show(table, want); len(left) != 1 {
		t.Errorf("claims of an owner that is known by another name: %v", left)
	}
}

func TestChanges(t *testing.T) {
	ended := pod("a", one)
	ended.DeletionTimestamp = new(metav1.Now())
	requesting := pod("a", one)
	requesting.Annotations = map[string]string{api.Secrets: "team-kv/a"}
	running := pod("a", one)
	running.ResourceVersion, running.Status.Phase = "2", corev1.PodRunning
	running.Annotations = map[string]string{api.Status: "{}", "other": "x"}
	again := pod("a", one)
	again.UID = "another"
	for behaviour, test := range map[string]struct {
		change  func(*claims.Table) error
		changes bool
		claims  int
	}{
		"a new status changes nothing":                   {func(t *claims.Table) error { return t.Update(running) }, false, 1},
		"a new request changes the class":                {func(t *claims.Table) error { return t.Update(requesting) }, true, 1},
		"a new pod of the same name changes the class":   {func(t *claims.Table) error { return t.Update(again) }, true, 1},
		"a pod that is being deleted has no claim":       {func(t *claims.Table) error { return t.Update(ended) }, false, 0},
		"a deleted pod has no claim":                     {func(t *claims.Table) error { return t.Delete(pod("a")) }, false, 0},
		"a pod that is missing in a list has no claim":   {func(t *claims.Table) error { return t.Replace(nil, "2") }, false, 0},
		"a list with the same pod changes nothing":       {func(t *claims.Table) error { return t.Replace([]any{running}, "2") }, false, 1},
		"a list with one more pod changes the class":     {func(t *claims.Table) error { return t.Replace([]any{running, pod("b", one)}, "2") }, true, 2},
		"a list may contain pods that were read already": {func(t *claims.Table) error { return replaceRead(t, pod("b", one)) }, true, 1},
	} {
		t.Run(behaviour, func(t *testing.T) {
			table, changed := table(t, pod("a", one))
			*changed = nil
			if err := test.change(table); err != nil {
				t.Fatal(err)
			}
			if (len(*changed) > 0) != test.changes {
				t.Errorf("changed was called for %v", *changed)
			}
			if left := show(table); len(left) != test.claims || table.Pods() != test.claims {
				t.Errorf("claims are %v of %d pods, want %d", left, table.Pods(), test.claims)
			}
		})
	}
	table, _ := table(t)
	if err := table.Add("no pod"); err == nil || err.Error() != "must be a Pod, is string" {
		t.Errorf("got error %v", err)
	}
}

// replaceRead reads a pod and replaces the objects, as a reflector does with a streamed list.
func replaceRead(table *claims.Table, p *corev1.Pod) error {
	read, err := table.Transformer()(p)
	if err != nil {
		return err
	}
	return table.Replace([]any{read}, "2")
}
