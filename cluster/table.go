package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// table holds one value for each object of a kind, by namespace and name. It is the store of a
// [feed.Feed], and nothing else may write to it. It is safe for concurrent reads.
//
// A SharedIndexInformer keeps objects, a queue of changes and a map for each index. A table keeps
// only what reviews need; see docs/adr/0010-reflectors.md.
type table[T any] struct {
	// read returns the value of an object; false if the table must not keep the object.
	read func(metav1.Object) (T, bool)
	// changed are called for each added, updated or deleted object, and with an empty name after all
	// objects were replaced.
	changed []func(namespace, name string)

	mu      sync.RWMutex
	shelves map[string]shelf[T] // by namespace
	written chan struct{}       // closed by the next write; nil unless a reader waits for it
}

// shelf holds the values of one namespace, sorted by name. Readers share its slices, so they never
// change: a write creates a new shelf.
type shelf[T any] struct {
	names  []string
	values []T
}

// item is the value of an object. It has metadata because the reflector collects a streamed list as
// objects until it is complete.
type item[T any] struct {
	metav1.ObjectMeta // only namespace, name and resource version

	value T
	kept  bool
}

// in returns the shelf of a namespace. The caller must not change it.
func (t *table[T]) in(namespace string) shelf[T] {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.shelves[namespace]
}

// next returns a channel that the next write closes.
func (t *table[T]) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written == nil {
		t.written = make(chan struct{})
	}
	return t.written
}

// wake closes the channel of next. mu must be locked.
func (t *table[T]) wake() {
	if t.written != nil {
		close(t.written)
		t.written = nil
	}
}

// find returns the value of that name, or false.
func (s shelf[T]) find(name string) (value T, ok bool) {
	if i, found := slices.BinarySearch(s.names, name); found {
		return s.values[i], true
	}
	return value, false
}

// with returns a copy of the shelf with another value of that name.
func (s shelf[T]) with(name string, value T) shelf[T] {
	i, found := slices.BinarySearch(s.names, name)
	if found {
		values := slices.Clone(s.values)
		values[i] = value
		return shelf[T]{s.names, values}
	}
	return shelf[T]{
		slices.Concat(s.names[:i], []string{name}, s.names[i:]),
		slices.Concat(s.values[:i], []T{value}, s.values[i:]),
	}
}

// without returns a copy of the shelf without a value of that name.
func (s shelf[T]) without(name string) shelf[T] {
	i, found := slices.BinarySearch(s.names, name)
	if !found {
		return s
	}
	return shelf[T]{slices.Concat(s.names[:i], s.names[i+1:]), slices.Concat(s.values[:i], s.values[i+1:])}
}

// Add implements [cache.ReflectorStore].
func (t *table[T]) Add(object any) error {
	i, err := t.itemOf(object)
	if err != nil {
		return err
	}
	// No lock to read: the feed's goroutine is the only writer.
	if i.kept {
		t.put(i.Namespace, t.shelves[i.Namespace].with(i.Name, i.value))
	} else {
		t.put(i.Namespace, t.shelves[i.Namespace].without(i.Name))
	}
	t.notify(i.Namespace, i.Name)
	return nil
}

// Update implements [cache.ReflectorStore].
func (t *table[T]) Update(object any) error {
	return t.Add(object)
}

// Delete implements [cache.ReflectorStore].
func (t *table[T]) Delete(object any) error {
	o, ok := object.(metav1.Object)
	if !ok {
		return fmt.Errorf("must be an object, is %T", object)
	}
	t.put(o.GetNamespace(), t.shelves[o.GetNamespace()].without(o.GetName()))
	t.notify(o.GetNamespace(), o.GetName())
	return nil
}

func (t *table[T]) notify(namespace, name string) {
	for _, changed := range t.changed {
		changed(namespace, name)
	}
}

func (t *table[T]) put(namespace string, s shelf[T]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.wake()
	if len(s.names) == 0 {
		delete(t.shelves, namespace)
		return
	}
	if t.shelves == nil {
		t.shelves = map[string]shelf[T]{}
	}
	t.shelves[namespace] = s
}

// Replace implements [cache.ReflectorStore].
func (t *table[T]) Replace(objects []any, _ string) error {
	items := make([]*item[T], 0, len(objects))
	for _, object := range objects {
		i, err := t.itemOf(object)
		if err != nil {
			return err
		}
		if i.kept {
			items = append(items, i)
		}
	}
	slices.SortFunc(items, func(a, b *item[T]) int {
		return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
	})
	shelves := map[string]shelf[T]{}
	for len(items) > 0 {
		namespace := items[0].Namespace
		n := slices.IndexFunc(items, func(i *item[T]) bool { return i.Namespace != namespace })
		if n < 0 {
			n = len(items)
		}
		s := shelf[T]{make([]string, n), make([]T, n)}
		for i, in := range items[:n] {
			s.names[i], s.values[i] = in.Name, in.value
		}
		shelves[namespace] = s
		items = items[n:]
	}
	t.mu.Lock()
	t.shelves = shelves
	t.wake()
	t.mu.Unlock()
	t.notify("", "")
	return nil
}

// Resync implements [cache.ReflectorStore]. It does nothing.
func (t *table[T]) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore], so that a streamed list does not hold whole
// objects.
func (t *table[T]) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return t.itemOf(object) }
}

// itemOf returns the item of an object. The objects of a streamed list are items already.
func (t *table[T]) itemOf(object any) (*item[T], error) {
	switch o := object.(type) {
	case *item[T]:
		return o, nil
	case metav1.Object:
		value, kept := t.read(o)
		i := &item[T]{value: value, kept: kept}
		i.Namespace, i.Name, i.ResourceVersion = o.GetNamespace(), o.GetName(), o.GetResourceVersion()
		return i, nil
	}
	return nil, fmt.Errorf("must be an object, is %T", object)
}
