// Package claims keeps which pods of a cluster mount which managed classes, and who owns these classes for them.
//
// It knows nothing of what a class holds, or whether it is there.
package claims

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/tools/cache"
	"k8s.io/utils/lru"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
)

// Pod is what is kept of an injected pod: some hundred bytes, whatever its annotations.
type Pod struct {
	// ObjectMeta has namespace, name, UID and resource version, and nothing else.
	metav1.ObjectMeta

	// Owner is the owner of the classes that the pod mounts; see ownerOf. A ControllerRevision has no UID here.
	Owner metav1.OwnerReference
	// Digest is that of the outline which the classes are derived from; see [Table.Outline].
	Digest [sha256.Size]byte

	// Classes are those that the pod mounts and that may be managed; none for a pod that needs none any more.
	Classes []string
}

// podOf also returns the pod's outline; nil where the pod mounts no class.
func podOf(object *corev1.Pod) (*Pod, *inject.Outline) {
	p := &Pod{ObjectMeta: metav1.ObjectMeta{
		Namespace: object.Namespace, Name: object.Name, UID: object.UID, ResourceVersion: object.ResourceVersion,
	}}
	if object.DeletionTimestamp != nil {
		return p, nil // what it mounts is mounted
	}
	for i := range object.Spec.Volumes {
		csi := object.Spec.Volumes[i].CSI
		if csi == nil || csi.Driver != class.Driver {
			continue
		}
		if name := csi.VolumeAttributes[class.Attribute]; class.IsManagedName(name) && !slices.Contains(p.Classes, name) {
			p.Classes = append(p.Classes, name)
		}
		if len(p.Classes) == api.MaxItems {
			break // no request comes to more
		}
	}
	if len(p.Classes) == 0 {
		return p, nil
	}
	p.Owner = p.ownerOf(object)
	outline := inject.OutlineOf(object)
	p.Digest = outline.Digest()
	return p, &outline
}

// ownerOf is the owner of the classes of a pod. It must go no later than the pods that mount the class, and never is an object that stays forever: a
// pod's author may write any owner. So it is the ReplicaSet, ReplicationController or Job that controls the pod; of a StatefulSet or DaemonSet, which outlives
// many classes, the revision that the pod is of; and otherwise the pod itself. With several owners a pod stays while one of them does.
func (p *Pod) ownerOf(object *corev1.Pod) metav1.OwnerReference {
	controller := metav1.GetControllerOfNoCopy(object)
	if controller == nil || len(object.OwnerReferences) != 1 || !isName(controller.Name) {
		return p.itself()
	}
	revision := object.Labels[appsv1.ControllerRevisionHashLabelKey]
	switch controller.APIVersion + " " + controller.Kind {
	case "apps/v1 ReplicaSet", "v1 ReplicationController", "batch/v1 Job":
		return metav1.OwnerReference{APIVersion: controller.APIVersion, Kind: controller.Kind, Name: controller.Name, UID: controller.UID}
	case "apps/v1 DaemonSet":
		revision = controller.Name + "-" + revision
	case "apps/v1 StatefulSet":
	default:
		return p.itself()
	}
	if !isName(revision) { // an adopted pod may have no label
		return p.itself()
	}
	return metav1.OwnerReference{APIVersion: "apps/v1", Kind: revisionKind, Name: revision}
}

func isName(text string) bool { return len(validation.IsDNS1123Subdomain(text)) == 0 }

// revisionKind is the kind of the revisions of StatefulSets and DaemonSets.
const revisionKind = "ControllerRevision"

// IsRevision reports whether an owner is a ControllerRevision, whose UID no pod has.
func IsRevision(owner metav1.OwnerReference) bool {
	return owner.Kind == revisionKind
}

// idOf identifies an owner within a namespace.
func idOf(owner metav1.OwnerReference) types.UID {
	if IsRevision(owner) {
		return types.UID(owner.Kind + "/" + owner.Name) // no UID has a slash
	}
	return owner.UID
}

// needsTheSame reports whether nothing that matters here differs: most updates of a pod are of its status.
func (p *Pod) needsTheSame(other *Pod) bool {
	return p.UID == other.UID && p.Owner == other.Owner && slices.Equal(p.Classes, other.Classes) && p.Digest == other.Digest
}

func (p *Pod) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// keys name the classes that a pod mounts.
func (p *Pod) keys() []types.NamespacedName {
	keys := make([]types.NamespacedName, len(p.Classes))
	for i, name := range p.Classes {
		keys[i] = types.NamespacedName{Namespace: p.Namespace, Name: name}
	}
	return keys
}

// Claim says that an owner has a class for its pods, of which there is one at least.
type Claim struct {
	Owner metav1.OwnerReference
	Pods  []*Pod
}

// Table keeps the claims of a cluster's pods. It is the store of a feed, which alone writes to it; anyone may read.
type Table struct {
	changed func(class types.NamespacedName)
	// recent holds outlines of pods that were read lately, by digest: most are needed once, moments after the pod appears.
	recent *lru.Cache
	get    func(ctx context.Context, p *Pod) (*corev1.Pod, error)

	mu   sync.RWMutex
	pods map[types.NamespacedName]*Pod
	// claims are by class and the owner's idOf.
	claims map[types.NamespacedName]map[types.UID]set
}

// set is a set of pods.
type set map[*Pod]struct{}

// any is one of the pods of a set that is not empty.
func (s set) any() *Pod {
	for p := range s {
		return p
	}
	return nil
}

// agree reports whether all pods of a set have the same owner.
func (s set) agree() bool {
	first := s.any()
	for p := range s {
		if p.Owner != first.Owner {
			return false
		}
	}
	return true
}

// Outlines of at most maxRecentSize bytes are remembered of maxRecent different pods.
const (
	maxRecent     = 512
	maxRecentSize = 4 << 10
)

// ErrChanged is the error of a pod that is not any more what the table knows of it. The table will know it in a moment.
var ErrChanged = errors.New("the pod has changed")

// Outline is what the classes of a pod are derived from. Where it is not at hand, the API server is asked for the pod.
func (t *Table) Outline(ctx context.Context, p *Pod) (*inject.Outline, error) {
	if recent, ok := t.recent.Get(p.Digest); ok {
		return recent.(*inject.Outline), nil //nolint:forcetypeassert // it holds nothing else
	}
	object, err := t.get(ctx, p)
	switch {
	case apierrors.IsNotFound(err):
		return nil, ErrChanged
	case err != nil:
		return nil, fmt.Errorf("read pod %s: %w", p.Name, err)
	}
	now, outline := podOf(object)
	if outline == nil || !p.needsTheSame(now) {
		return nil, ErrChanged
	}
	return outline, nil
}

// NewTable is an empty table. It lets changed, which must return at once, hear of every class that a pod mounts which came or changed.
func NewTable(changed func(class types.NamespacedName)) *Table {
	return &Table{changed: changed, recent: lru.New(maxRecent), pods: map[types.NamespacedName]*Pod{}, claims: map[types.NamespacedName]map[types.UID]set{}}
}

// Of are the claims on a class, but for those of the known owners, in the order of the owners' names; pods are in the order of theirs.
func (t *Table) Of(class types.NamespacedName, known []metav1.OwnerReference) []Claim {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var claims []Claim
	for _, pods := range t.claims[class] {
		list := slices.SortedFunc(maps.Keys(pods), func(a, b *Pod) int { return strings.Compare(a.Name, b.Name) })
		claims = append(claims, claimsOf(list)...)
	}
	claims = slices.DeleteFunc(claims, func(c Claim) bool {
		return slices.ContainsFunc(known, func(owner metav1.OwnerReference) bool { return same(c.Owner, owner) })
	})
	slices.SortFunc(claims, func(a, b Claim) int {
		return cmp.Or(strings.Compare(a.Owner.Name, b.Owner.Name), strings.Compare(string(a.Owner.UID), string(b.Owner.UID)))
	})
	return claims
}

// Held counts the owners that have claims on a class.
func (t *Table) Held(class types.NamespacedName, owners []metav1.OwnerReference) (n int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, owner := range owners {
		if t.holds(class, owner) {
			n++
		}
	}
	return n
}

// holds reports whether an owner has a claim of [Table.Of], or is a pod that stands for its revision.
func (t *Table) holds(class types.NamespacedName, owner metav1.OwnerReference) bool {
	if pods := t.claims[class][idOf(owner)]; len(pods) > 0 && pods.agree() && same(pods.any().Owner, owner) {
		return true
	}
	p := t.pods[types.NamespacedName{Namespace: class.Namespace, Name: owner.Name}]
	if p == nil || !same(p.itself(), owner) {
		return false
	}
	pods := t.claims[class][idOf(p.Owner)]
	_, mounts := pods[p]
	return mounts && (IsRevision(p.Owner) || !pods.agree())
}

// claimsOf are the claims of pods whose owners have one UID: one, unless the pods disagree on whose it is. A pod's author may write anything
// there, and a class can have a UID but once, so then each pod owns its class by itself.
func claimsOf(pods []*Pod) []Claim {
	owner := pods[0].Owner
	if !slices.ContainsFunc(pods, func(p *Pod) bool { return p.Owner != owner }) {
		return []Claim{{owner, pods}}
	}
	claims := make([]Claim, len(pods))
	for i, p := range pods {
		claims[i] = Claim{p.itself(), pods[i : i+1]}
	}
	return claims
}

// itself is the pod as an owner.
func (p *Pod) itself() metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
}

// Itself is the pod of a claim as an owner, for an owner that does not exist.
func (c *Claim) Itself() metav1.OwnerReference {
	return c.Pods[0].itself()
}

// same reports whether two references are to the same object.
func same(a, b metav1.OwnerReference) bool {
	return idOf(a) == idOf(b) && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion
}

// Classes are those that any pod mounts.
func (t *Table) Classes() []types.NamespacedName {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.claims))
}

// Pods is how many pods there are that mount any class.
func (t *Table) Pods() int {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.pods)
}

// Add implements [cache.ReflectorStore].
func (t *Table) Add(object any) error {
	p, err := t.read(object)
	if err != nil {
		return err
	}
	old := t.pods[p.key()] // the feed, the only writer, needs no lock to read
	if old != nil && old.needsTheSame(p) {
		return nil
	}
	t.put(old, p)
	for _, class := range p.keys() {
		t.changed(class)
	}
	t.left(old)
	return nil
}

// left looks at the classes that a pod mounted: another of their pods may have to own them.
func (t *Table) left(old *Pod) {
	if old == nil {
		return
	}
	for _, class := range old.keys() {
		if t.claims[class] != nil {
			t.changed(class)
		}
	}
}

// Update implements [cache.ReflectorStore].
func (t *Table) Update(object any) error {
	return t.Add(object)
}

// Delete implements [cache.ReflectorStore].
func (t *Table) Delete(object any) error {
	p, err := t.read(object)
	if err != nil {
		return err
	}
	old := t.pods[p.key()]
	t.put(old, nil)
	t.left(old)
	return nil
}

// put has p in the place of old; either may be nil.
func (t *Table) put(old, p *Pod) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if old != nil {
		delete(t.pods, old.key())
		for _, class := range old.keys() {
			owners, id := t.claims[class], idOf(old.Owner)
			delete(owners[id], old)
			if len(owners[id]) == 0 {
				delete(owners, id)
			}
			if len(owners) == 0 {
				delete(t.claims, class)
			}
		}
	}
	if p == nil || len(p.Classes) == 0 {
		return
	}
	t.pods[p.key()] = p
	for _, class := range p.keys() {
		if t.claims[class] == nil {
			t.claims[class] = map[types.UID]set{}
		}
		id := idOf(p.Owner)
		if t.claims[class][id] == nil {
			t.claims[class][id] = set{}
		}
		t.claims[class][id][p] = struct{}{}
	}
}

// Replace implements [cache.ReflectorStore].
func (t *Table) Replace(objects []any, _ string) error {
	gone := maps.Clone(t.pods)
	for _, object := range objects {
		p, err := t.read(object)
		if err != nil {
			return err
		}
		if err := t.Add(p); err != nil {
			return err
		}
		delete(gone, p.key())
	}
	for _, p := range gone {
		t.put(p, nil)
		t.left(p)
	}
	return nil
}

// Resync implements [cache.ReflectorStore]. Nothing here is derived from elsewhere.
func (t *Table) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore], so that a streamed list never holds whole pods.
func (t *Table) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return t.read(object) }
}

// read takes what is kept of an object that the feed has, which may have been read already.
func (t *Table) read(object any) (*Pod, error) {
	switch o := object.(type) {
	case *Pod:
		return o, nil
	case *corev1.Pod:
		p, outline := podOf(o)
		if outline != nil && outline.Size() <= maxRecentSize {
			t.recent.Add(p.Digest, outline)
		}
		return p, nil
	}
	return nil, fmt.Errorf("read %T: no pod", object)
}
