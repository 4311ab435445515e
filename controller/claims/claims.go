// Package claims records which pods of a cluster mount which managed classes, and which objects own
// the classes for these pods.
//
//	table := claims.NewTable(enqueue)
//	f, err := claims.Follow(config, httpClient, table)
//	go f.Run(ctx)
//	<-f.Filled()
//	for _, claim := range table.Of(class, existingOwners) {
//		// claim.Owner must become an owner of the class, if one of claim.Pods requests it
//	}
//
// The package does not read classes: whether a class exists, and its content, are the concern of
// package controller.
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

// Claimant is the part of an injected pod that a Table keeps: a few hundred bytes, however large
// the pod's annotations are.
type Claimant struct {
	// ObjectMeta has only the namespace, name, UID and resource version.
	metav1.ObjectMeta

	// Owner is the owner of the classes that the pod mounts: the ReplicaSet, ReplicationController
	// or Job that controls the pod, the ControllerRevision of a pod of a StatefulSet or DaemonSet,
	// or else the pod. The reference to a ControllerRevision has no UID.
	Owner metav1.OwnerReference
	// Digest is the digest of the outline from which the classes are derived; see [Table.Outline].
	Digest [sha256.Size]byte

	// Classes are the names of the classes that the pod mounts and that may be managed; none for a
	// pod that is being deleted.
	Classes []string
}

// podOf also returns the pod's outline; nil if the pod mounts no class.
func podOf(object *corev1.Pod) (*Claimant, *inject.Outline) {
	p := &Claimant{ObjectMeta: metav1.ObjectMeta{
		Namespace: object.Namespace, Name: object.Name, UID: object.UID, ResourceVersion: object.ResourceVersion,
	}}
	if object.DeletionTimestamp != nil {
		return p, nil // its volumes are mounted already
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
			break // no request has more classes
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

// ownerOf returns the owner of the classes of a pod. The owner must not outlive the pods that mount
// the class, and must not be an object that is never deleted, because the author of a pod can write
// any owner reference. So the owner is the ReplicaSet, ReplicationController or Job that controls
// the pod. For a StatefulSet or DaemonSet, which outlives many classes, it is the pod's
// ControllerRevision. In all other cases it is the pod itself, also if the pod has several owners:
// such a pod exists as long as one of them does.
func (p *Claimant) ownerOf(object *corev1.Pod) metav1.OwnerReference {
	controller := metav1.GetControllerOfNoCopy(object)
	if controller == nil || len(object.OwnerReferences) != 1 || !isName(controller.Name) {
		return p.itself()
	}
	revision := object.Labels[appsv1.ControllerRevisionHashLabelKey]
	switch controller.APIVersion + " " + controller.Kind {
	case "apps/v1 ReplicaSet", "v1 ReplicationController", "batch/v1 Job":
		return metav1.OwnerReference{
			APIVersion: controller.APIVersion, Kind: controller.Kind, Name: controller.Name, UID: controller.UID,
		}
	case "apps/v1 DaemonSet":
		revision = controller.Name + "-" + revision
	case "apps/v1 StatefulSet":
	default:
		return p.itself()
	}
	if !isName(revision) { // an adopted pod may lack the label
		return p.itself()
	}
	return metav1.OwnerReference{APIVersion: "apps/v1", Kind: revisionKind, Name: revision}
}

func isName(text string) bool { return len(validation.IsDNS1123Subdomain(text)) == 0 }

// revisionKind is the kind of the revisions of StatefulSets and DaemonSets.
const revisionKind = "ControllerRevision"

// IsRevision reports whether an owner is a ControllerRevision. Pods do not have the UIDs of their
// revisions.
func IsRevision(owner metav1.OwnerReference) bool {
	return owner.Kind == revisionKind
}

// idOf returns an identifier of an owner that is unique within a namespace.
func idOf(owner metav1.OwnerReference) types.UID {
	if IsRevision(owner) {
		return types.UID(owner.Kind + "/" + owner.Name) // UIDs have no slash
	}
	return owner.UID
}

// needsTheSame reports whether two versions of a pod need the same classes and owners. Most updates
// of a pod change only its status.
func (p *Claimant) needsTheSame(other *Claimant) bool {
	return p.UID == other.UID && p.Owner == other.Owner &&
		slices.Equal(p.Classes, other.Classes) && p.Digest == other.Digest
}

func (p *Claimant) key() types.NamespacedName {
	return types.NamespacedName{Namespace: p.Namespace, Name: p.Name}
}

// keys returns the names of the classes that a pod mounts, with the namespace.
func (p *Claimant) keys() []types.NamespacedName {
	keys := make([]types.NamespacedName, len(p.Classes))
	for i, name := range p.Classes {
		keys[i] = types.NamespacedName{Namespace: p.Namespace, Name: name}
	}
	return keys
}

// Claim means that an owner must own a class for its pods.
type Claim struct {
	Owner metav1.OwnerReference
	Pods  []*Claimant // at least one
}

// Table keeps the claims of a cluster's pods. It is the store of a [feed.Feed], and nothing else
// may write to it. It is safe for concurrent reads.
type Table struct {
	changed func(class types.NamespacedName)
	// recent holds outlines of the latest pods, by digest. Most outlines are needed once, a moment
	// after the pod is created.
	recent *lru.Cache
	get    func(ctx context.Context, p *Claimant) (*corev1.Pod, error)

	mu   sync.RWMutex
	pods map[types.NamespacedName]*Claimant
	// claims has the pods by class and the owner's idOf.
	claims map[types.NamespacedName]map[types.UID]set
}

type set map[*Claimant]struct{}

// any returns one of the pods; nil for an empty set.
func (s set) any() *Claimant {
	for p := range s {
		return p
	}
	return nil
}

// agree reports whether all pods have the same owner.
func (s set) agree() bool {
	first := s.any()
	for p := range s {
		if p.Owner != first.Owner {
			return false
		}
	}
	return true
}

// A Table remembers the outlines of the maxRecent latest pods, if an outline has at most
// maxRecentSize bytes.
const (
	maxRecent     = 512
	maxRecentSize = 4 << 10
)

// ErrChanged means that a pod differs from what the table has. The table receives the change in a
// moment.
var ErrChanged = errors.New("the pod has changed")

// Outline returns the part of a pod from which its classes are derived. If the table does not
// remember the outline, Outline reads the pod from the API server. The error is [ErrChanged] if the
// pod has changed or no longer exists.
func (t *Table) Outline(ctx context.Context, p *Claimant) (*inject.Outline, error) {
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

// NewTable returns an empty table. The table calls changed for every class whose claims may have
// changed: when a pod that mounts it is added or changes, and when such a pod is deleted and other
// pods mount the class. Changed must not block.
func NewTable(changed func(class types.NamespacedName)) *Table {
	return &Table{
		changed: changed,
		recent:  lru.New(maxRecent),
		pods:    map[types.NamespacedName]*Claimant{},
		claims:  map[types.NamespacedName]map[types.UID]set{},
	}
}

// Of returns the claims on a class without those of the known owners. Claims are sorted by the
// owners' names and UIDs, and the pods of a claim by name.
func (t *Table) Of(class types.NamespacedName, known []metav1.OwnerReference) []Claim {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var claims []Claim
	for _, pods := range t.claims[class] {
		list := slices.SortedFunc(maps.Keys(pods), func(a, b *Claimant) int { return strings.Compare(a.Name, b.Name) })
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

// Held returns how many of the owners have claims on a class.
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

// holds reports whether an owner has a claim as [Table.Of] returns it, or is a pod that is the
// owner in place of its revision. mu must be locked.
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

// claimsOf returns the claims of pods whose owners have the same UID. This is one claim if the
// owner references are equal. Otherwise an author has written a false reference. A class can have
// each UID only once, so each pod then owns the class itself.
func claimsOf(pods []*Claimant) []Claim {
	owner := pods[0].Owner
	if !slices.ContainsFunc(pods, func(p *Claimant) bool { return p.Owner != owner }) {
		return []Claim{{owner, pods}}
	}
	claims := make([]Claim, len(pods))
	for i, p := range pods {
		claims[i] = Claim{p.itself(), pods[i : i+1]}
	}
	return claims
}

// itself returns a reference to the pod as an owner.
func (p *Claimant) itself() metav1.OwnerReference {
	return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID}
}

// Itself returns a reference to the first pod of a claim, which is the owner if Owner does not
// exist.
func (c *Claim) Itself() metav1.OwnerReference {
	return c.Pods[0].itself()
}

// same reports whether two references name the same object.
func same(a, b metav1.OwnerReference) bool {
	return idOf(a) == idOf(b) && a.Name == b.Name && a.Kind == b.Kind && a.APIVersion == b.APIVersion
}

// Classes returns the classes that any pod mounts, in no particular order.
func (t *Table) Classes() []types.NamespacedName {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return slices.Collect(maps.Keys(t.claims))
}

// Pods returns the number of pods that mount a class.
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
	old := t.pods[p.key()] // no lock: the feed's goroutine is the only writer
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

// left calls changed for the classes that a pod mounted, because another pod may have to become
// their owner.
func (t *Table) left(old *Claimant) {
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

// put replaces old by p; either may be nil.
func (t *Table) put(old, p *Claimant) {
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

// Resync implements [cache.ReflectorStore]. It does nothing.
func (t *Table) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore], so that a streamed list does not hold whole
// pods.
func (t *Table) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return t.read(object) }
}

// read returns the part of an object that the table keeps. The objects of a streamed list have been
// read before.
func (t *Table) read(object any) (*Claimant, error) {
	switch o := object.(type) {
	case *Claimant:
		return o, nil
	case *corev1.Pod:
		p, outline := podOf(o)
		if outline != nil && outline.Size() <= maxRecentSize {
			t.recent.Add(p.Digest, outline)
		}
		return p, nil
	}
	return nil, fmt.Errorf("must be a Pod, is %T", object)
}
