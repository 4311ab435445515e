package rotation

import (
	"fmt"
	"slices"
	"sync"
	"unique"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// text is a text that many objects share.
type text = unique.Handle[string]

// pod has what is kept of an injected pod. Its parts arrive in any order.
type pod struct {
	// isKnown is true if the pod itself has arrived.
	isKnown  bool
	workload workload
	// requests is true if an annotation of the pod requests restarts.
	requests bool
	// restartedFor is the annotation that the pod got from its template.
	restartedFor text
	statuses     []status
}

// table has the injected pods and the statuses of their classes.
type table struct {
	// changed is called with the workload of a pod that changes. It must return at once.
	changed func(workload)

	mu         sync.Mutex
	namespaces map[string]map[string]*pod // by name
}

// feeds returns the feeds that write to the table the pods of workloads of these kinds.
func (t *table) feeds(client rest.Interface, of kinds) []*feed.Feed {
	pods := feed.Stream{
		Client: client, Path: []string{"api", "v1", "pods"}, OnlyMetadata: true, Read: of.readPod,
		Labels: api.Injected + "=true",
		Fields: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
	}
	statuses := feed.Stream{
		Client: client, Path: []string{"apis", class.GroupVersion.Group, class.GroupVersion.Version, class.PodStatuses},
		Read: readStatus,
	}
	return []*feed.Feed{
		feed.New(feed.Kind{
			Plural: "Pods of rotation", ListWatch: pods.ListWatch(), Client: client, Example: &podObject{},
		}, &store[*podObject]{table: t, put: t.putPod, clear: func(p *pod) { p.isKnown = false }}),
		feed.New(feed.Kind{
			Plural: "SecretProviderClassPodStatuses", ListWatch: statuses.ListWatch(), Client: client, Example: &statusObject{},
		}, &store[*statusObject]{table: t, put: t.putStatus, clear: func(p *pod) { p.statuses = nil }}),
	}
}

// store is the store of one feed of a table.
type store[T interface {
	podName() (namespace, name string)
}] struct {
	table *table
	// put adds or updates an object, and remove removes it, in its pod. Clear removes all objects of
	// the kind from a pod.
	put   func(p *pod, object T, gone bool)
	clear func(*pod)
}

// Add implements [cache.ReflectorStore].
func (s *store[T]) Add(object any) error { return s.set(object, false) }

// Update implements [cache.ReflectorStore].
func (s *store[T]) Update(object any) error { return s.set(object, false) }

// Delete implements [cache.ReflectorStore].
func (s *store[T]) Delete(object any) error { return s.set(object, true) }

// Resync implements [cache.ReflectorStore]. It does nothing.
func (s *store[T]) Resync() error { return nil }

// Transformer implements [cache.TransformingStore]. The stream has reduced the objects already.
func (s *store[T]) Transformer() cache.TransformFunc { return nil }

// Replace implements [cache.ReflectorStore].
func (s *store[T]) Replace(objects []any, _ string) error {
	t := s.table
	t.mu.Lock()
	for namespace, pods := range t.namespaces {
		for name, p := range pods {
			s.clear(p)
			t.drop(namespace, name)
		}
	}
	t.mu.Unlock()
	for _, object := range objects {
		if err := s.set(object, false); err != nil {
			return err
		}
	}
	return nil
}

func (s *store[T]) set(object any, gone bool) error {
	o, ok := object.(T)
	if !ok {
		return fmt.Errorf("must be an object of the stream, is %T", object)
	}
	namespace, name := o.podName()
	t := s.table
	t.mu.Lock()
	if t.namespaces[namespace] == nil {
		t.namespaces[namespace] = map[string]*pod{}
	}
	p := t.namespaces[namespace][name]
	if p == nil {
		p = &pod{}
		t.namespaces[namespace][name] = p
	}
	s.put(p, o, gone)
	of := p.workload
	t.drop(namespace, name)
	t.mu.Unlock()
	if of.name != "" {
		t.changed(of)
	}
	return nil
}

// drop removes a pod without parts. mu must be locked.
func (t *table) drop(namespace, name string) {
	if p := t.namespaces[namespace][name]; p.isKnown || len(p.statuses) > 0 {
		return
	}
	delete(t.namespaces[namespace], name)
	if len(t.namespaces[namespace]) == 0 {
		delete(t.namespaces, namespace)
	}
}

func (t *table) putPod(p *pod, o *podObject, gone bool) {
	p.isKnown = !gone
	p.workload, p.requests, p.restartedFor = o.workload, o.requests, o.restartedFor
}

func (t *table) putStatus(p *pod, o *statusObject, gone bool) {
	p.statuses = slices.DeleteFunc(p.statuses, func(s status) bool { return s.class == o.status.class })
	if !gone && o.isMounted {
		p.statuses = append(p.statuses, o.status)
	}
}

// all returns the workloads with pods.
func (t *table) all() []workload {
	t.mu.Lock()
	defer t.mu.Unlock()
	known := map[workload]bool{}
	var list []workload
	for _, pods := range t.namespaces {
		for _, p := range pods {
			if p.workload.name != "" && !known[p.workload] {
				known[p.workload] = true
				list = append(list, p.workload)
			}
		}
	}
	return list
}

// requests reports whether an annotation of a pod of the workload requests restarts.
func (t *table) requests(w workload) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, p := range t.namespaces[w.namespace] {
		if p.workload == w && p.requests {
			return true
		}
	}
	return false
}

// of returns the names of the pods of a workload whose annotation is restartedFor, sorted, and their
// statuses. All has every status in the namespace.
func (t *table) of(w workload, restartedFor string) (names []string, own, all []status) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for other, p := range t.namespaces[w.namespace] {
		all = append(all, p.statuses...)
		if p.isKnown && p.workload == w && p.restartedFor.Value() == restartedFor && len(p.statuses) > 0 {
			names, own = append(names, other), append(own, p.statuses...)
		}
	}
	slices.Sort(names)
	return names, own, all
}
