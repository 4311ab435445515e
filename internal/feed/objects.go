package feed

import (
	"fmt"
	"maps"
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Objects is a store that keeps whole objects of type T by namespace and name. Use it for a kind,
// or a selection of a kind, with few objects. Only a [Feed] may write to it. It is safe for
// concurrent reads.
type Objects[T metav1.Object] struct {
	changed func()

	mu    sync.RWMutex
	known map[types.NamespacedName]T
}

// NewObjects returns an empty store. The feed calls changed after every write, from the goroutine
// of [Feed.Run].
func NewObjects[T metav1.Object](changed func()) *Objects[T] {
	return &Objects[T]{changed: changed, known: map[types.NamespacedName]T{}}
}

// All returns the objects, in no particular order. The caller must not change them.
func (s *Objects[T]) All() []T {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Collect(maps.Values(s.known))
}

// Find returns the object of that name, or false. The caller must not change it.
func (s *Objects[T]) Find(name types.NamespacedName) (object T, ok bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	object, ok = s.known[name]
	return object, ok
}

// Add implements [cache.ReflectorStore].
func (s *Objects[T]) Add(object any) error {
	return s.write(func() error { return s.put(object) })
}

// Update implements [cache.ReflectorStore].
func (s *Objects[T]) Update(object any) error {
	return s.Add(object)
}

// Delete implements [cache.ReflectorStore].
func (s *Objects[T]) Delete(object any) error {
	return s.write(func() error {
		o, err := as[T](object)
		if err == nil {
			delete(s.known, nameOf(o))
		}
		return err
	})
}

// Replace implements [cache.ReflectorStore].
func (s *Objects[T]) Replace(objects []any, _ string) error {
	return s.write(func() error {
		clear(s.known)
		for _, object := range objects {
			if err := s.put(object); err != nil {
				return err
			}
		}
		return nil
	})
}

// Resync implements [cache.ReflectorStore]. It does nothing: nothing is derived from the objects.
func (s *Objects[T]) Resync() error { return nil }

// Transformer implements [cache.TransformingStore]. It returns nil: the store keeps whole objects.
func (s *Objects[T]) Transformer() cache.TransformFunc { return nil }

// write calls changed without the lock, so that changed can read.
func (s *Objects[T]) write(change func() error) error {
	s.mu.Lock()
	err := change()
	s.mu.Unlock()
	if err == nil {
		s.changed()
	}
	return err
}

// put must be called with mu locked.
func (s *Objects[T]) put(object any) error {
	o, err := as[T](object)
	if err == nil {
		s.known[nameOf(o)] = o
	}
	return err
}

func as[T metav1.Object](object any) (T, error) {
	o, ok := object.(T)
	if !ok {
		return o, fmt.Errorf("must be a %T, is %T", o, object)
	}
	return o, nil
}

func nameOf(object metav1.Object) types.NamespacedName {
	return types.NamespacedName{Namespace: object.GetNamespace(), Name: object.GetName()}
}
