package findings

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/core/api"
)

// table has the units by namespace. The mutex of its [Finder] guards it.
type table struct {
	namespaces map[string]map[unitKey]*unit
	objects    map[objectKey]*unit // the unit of each object that is kept
}

func newTable() table {
	return table{namespaces: map[string]map[unitKey]*unit{}, objects: map[objectKey]*unit{}}
}

type objectKey struct {
	kind            *kind
	namespace, name string
}

type unitKey struct {
	kind *kind
	// uid is that of the workload or pod; of pods with a controller, that of the controller.
	uid types.UID
}

// unit is what is reviewed at once: a workload, a pod without a controller, or the pods of one
// controller, which usually all have the same findings.
type unit struct {
	unitKey

	namespace string
	// controller and templateHash are those of pods with a controller.
	controller   metav1.OwnerReference
	templateHash string
	members      []member // sorted by name; at least one

	// changes counts the changes of the unit and of the facts about its namespace. The latest
	// review is of the change with the number reviewed.
	changes, reviewed int
	// due is when the unit needs a turn; zero if it needs none.
	due time.Time
	// reasons are those of all findings, notes those of the findings that become events.
	reasons []api.Reason
	notes   []note
	written map[string]bool // the names of those notes whose events exist
}

// member is an object of a unit.
type member struct {
	name     string
	uid      types.UID
	version  uint64
	asked    *field.Path
	optsOut  bool
	injected bool
}

func byName(m member, name string) int { return strings.Compare(m.name, name) }

// subject is a unit when its review begins, with the member that is reviewed.
type subject struct {
	unitKey
	member

	namespace         string
	controller        metav1.OwnerReference
	templateHash      string
	covered           bool // whether the workload of a pod is a unit
	changes, reviewed int
}

// store is the store of the feed of one kind.
type store struct {
	*Finder

	kind *kind
}

// Add implements [cache.ReflectorStore].
func (s *store) Add(o any) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.put(o)
}

// Update implements [cache.ReflectorStore].
func (s *store) Update(o any) error { return s.Add(o) }

// Delete implements [cache.ReflectorStore].
func (s *store) Delete(o any) error {
	gone, ok := o.(*object)
	if !ok {
		return fmt.Errorf("must be an object of the stream, is %T", o)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.remove(objectKey{s.kind, gone.Namespace, gone.Name})
	return nil
}

// Replace implements [cache.ReflectorStore].
func (s *store) Replace(objects []any, _ string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	listed := map[objectKey]bool{}
	for _, o := range objects {
		if err := s.put(o); err != nil {
			return err
		}
		meta := o.(*object) //nolint:forcetypeassert // put has checked it
		listed[objectKey{s.kind, meta.Namespace, meta.Name}] = true
	}
	for key := range s.objects {
		if key.kind == s.kind && !listed[key] {
			s.remove(key)
		}
	}
	return nil
}

// Resync implements [cache.ReflectorStore]. It does nothing.
func (s *store) Resync() error { return nil }

// Transformer implements [cache.TransformingStore]. The stream has reduced the objects already.
func (s *store) Transformer() cache.TransformFunc { return nil }

// put adds or updates an object. mu must be locked.
func (s *store) put(added any) error {
	o, ok := added.(*object)
	if !ok {
		return fmt.Errorf("must be an object of the stream, is %T", added)
	}
	key, in := objectKey{s.kind, o.Namespace, o.Name}, unitKey{s.kind, o.UID}
	if o.controller.UID != "" {
		in.uid = o.controller.UID
	}
	if u := s.objects[key]; u != nil && (!o.kept || u.unitKey != in) {
		s.remove(key)
	}
	if !o.kept {
		return nil
	}
	if s.namespaces[o.Namespace] == nil {
		s.namespaces[o.Namespace] = map[unitKey]*unit{}
	}
	u := s.namespaces[o.Namespace][in]
	if u == nil {
		u = &unit{unitKey: in, namespace: o.Namespace, controller: o.controller, templateHash: o.templateHash}
		s.namespaces[o.Namespace][in] = u
	}
	key.namespace = u.namespace // so that the objects of a unit share its text
	s.objects[key] = u
	m := member{o.Name, o.UID, o.version, o.asked, o.optsOut, o.injected}
	switch i, found := slices.BinarySearchFunc(u.members, o.Name, byName); {
	case !found:
		u.members = slices.Insert(u.members, i, m)
	case u.members[i] == m:
		return nil
	default:
		u.members[i] = m
	}
	s.change(u)
	s.queue.AddAfter(u.namespace, s.delays.settle)
	return nil
}

// remove removes an object. mu must be locked.
func (s *store) remove(key objectKey) {
	u := s.objects[key]
	if u == nil {
		return
	}
	delete(s.objects, key)
	if i, found := slices.BinarySearchFunc(u.members, key.name, byName); found {
		u.members = slices.Delete(u.members, i, i+1)
	}
	if len(u.members) > 0 {
		s.change(u)
		s.queue.AddAfter(u.namespace, s.delays.settle)
		return
	}
	s.count(u.reasons, -1)
	delete(s.namespaces[u.namespace], u.unitKey)
	if len(s.namespaces[u.namespace]) == 0 {
		delete(s.namespaces, u.namespace)
	}
}

// count adds n to the metric of each Reason.
func (f *Finder) count(reasons []api.Reason, n float64) {
	for _, reason := range reasons {
		f.found.WithLabelValues(string(reason)).Add(n)
	}
}

// next returns a unit of a namespace that is due, or when the next one is due; neither if none is.
func (f *Finder) next(namespace string) (*unit, time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var next *unit
	for _, u := range f.namespaces[namespace] {
		if !u.due.IsZero() && (next == nil || u.due.Before(next.due)) {
			next = u
		}
	}
	switch {
	case next == nil:
		return nil, time.Time{}
	case time.Now().Before(next.due):
		return nil, next.due
	}
	next.due = time.Time{}
	return next, time.Time{}
}

// subjectOf returns what to review of a unit: of several pods, one that was not injected if there is
// one.
func (f *Finder) subjectOf(u *unit) *subject {
	f.mu.Lock()
	defer f.mu.Unlock()
	if len(u.members) == 0 {
		return &subject{} // removed meanwhile; nothing is left to review
	}
	i := max(0, slices.IndexFunc(u.members, func(m member) bool { return !m.injected }))
	return &subject{
		unitKey: u.unitKey, member: u.members[i], namespace: u.namespace, controller: u.controller,
		templateHash: u.templateHash, covered: f.covers(u), changes: u.changes, reviewed: u.reviewed,
	}
}

// covers reports whether the workload that the pods of a unit belong to is a unit too. Its findings
// are then not repeated for the pods. mu must be locked.
func (f *Finder) covers(u *unit) bool {
	if u.controller.UID == "" {
		return false
	}
	for _, k := range workloads {
		if f.namespaces[u.namespace][unitKey{k, u.controller.UID}] != nil {
			return true
		}
	}
	k, name := workloadOf(u.controller, u.templateHash)
	return f.objects[objectKey{k, u.namespace, name}] != nil
}

// workloadOf returns the kind and name of the workload that the controller of a pod belongs to. It
// knows how the controllers of Deployments and CronJobs name the objects that they create. It returns
// nil for other controllers.
func workloadOf(controller metav1.OwnerReference, templateHash string) (k *kind, name string) {
	switch controller.APIVersion + " " + controller.Kind {
	case "apps/v1 ReplicaSet":
		if name, ok := strings.CutSuffix(controller.Name, "-"+templateHash); ok && templateHash != "" {
			return deployment, name
		}
		return replicaSet, controller.Name
	case "apps/v1 StatefulSet":
		return statefulSet, controller.Name
	case "apps/v1 DaemonSet":
		return daemonSet, controller.Name
	case "batch/v1 Job":
		if at := strings.LastIndexByte(controller.Name, '-'); at > 0 {
			return cronJob, controller.Name[:at]
		}
		return job, controller.Name
	}
	return nil, ""
}
