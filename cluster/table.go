package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// table holds what was read from the objects of one kind, by namespace and name. It is the store of a reflector, which alone
// writes to it, one event at a time; anyone may read.
//
// A SharedIndexInformer would do too, but it keeps objects, a queue of changes to them and a map for each index, and wants whatever
// it is given instead to look like an object. A table keeps what reviews need and nothing else.
type table[T any] struct {
	// read takes from an object what is to be kept. False passes over the object.
	read func(metav1.Object) (T, bool)
	// changed hears of each object that came, changed or went, and, with no name, that any may have. It may be nil.
	changed func(namespace, name string)

	mu      sync.RWMutex
	shelves map[string]shelf[T] // by namespace
	written chan struct{}       // closed at the next write; nil unless somebody waits for that
}

// shelf is what one namespace holds, in the order of names. Its slices never change, so readers share them: a write makes another
// shelf.
type shelf[T any] struct {
	names  []string
	values []T
}

// item is what was read of an object. To the reflector, which holds a streamed list until it is complete, it still is an object.
type item[T any] struct {
	metav1.ObjectMeta // nothing but namespace, name and resource version

	value T
	kept  bool
}

// in is what the namespace holds. Whoever gets it must not change it.
func (t *table[T]) in(namespace string) shelf[T] {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.shelves[namespace]
}

// next is closed once the table is written to.
func (t *table[T]) next() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.written == nil {
		t.written = make(chan struct{})
	}
	return t.written
}

// wake ends the wait for a write; t.mu must be locked.
func (t *table[T]) wake() {
	if t.written != nil {
		close(t.written)
		t.written = nil
	}
}

// find is the value of that name, or false.
func (s shelf[T]) find(name string) (value T, ok bool) {
	if i, found := slices.BinarySearch(s.names, name); found {
		return s.values[i], true
	}
	return value, false
}

// with is the shelf with another value of that name.
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

// without is the shelf with no value of that name.
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
	// The reflector, the only writer, needs no lock to read.
	if i.kept {
		t.put(i.Namespace, t.shelves[i.Namespace].with(i.Name, i.value))
	} else {
		t.put(i.Namespace, t.shelves[i.Namespace].without(i.Name))
	}
	t.tell(i.Namespace, i.Name)
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
		return fmt.Errorf("delete %T: no object", object)
	}
	t.put(o.GetNamespace(), t.shelves[o.GetNamespace()].without(o.GetName()))
	t.tell(o.GetNamespace(), o.GetName())
	return nil
}

func (t *table[T]) tell(namespace, name string) {
	if t.changed != nil {
		t.changed(namespace, name)
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
	t.tell("", "")
	return nil
}

// Resync implements [cache.ReflectorStore]. Nothing here is derived from elsewhere.
func (t *table[T]) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore], so that a streamed list never holds whole objects.
func (t *table[T]) Transformer() cache.TransformFunc {
	return func(object any) (any, error) { return t.itemOf(object) }
}

// itemOf reads an object. A streamed list comes with what was read already.
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
	return nil, fmt.Errorf("read %T: no object", object)
}
