package cluster

import "k8s.io/client-go/tools/cache"

// bell is the store of a feed that holds nothing, and rings whenever there is something.
type bell chan struct{}

func newBell() bell {
	return make(bell, 1)
}

func (b bell) ring() {
	select {
	case b <- struct{}{}:
	default: // it rings already
	}
}

// Add implements [cache.ReflectorStore].
func (b bell) Add(any) error {
	b.ring()
	return nil
}

// Update implements [cache.ReflectorStore].
func (b bell) Update(any) error {
	b.ring()
	return nil
}

// Delete implements [cache.ReflectorStore].
func (b bell) Delete(any) error {
	return nil
}

// Replace implements [cache.ReflectorStore].
func (b bell) Replace(objects []any, _ string) error {
	if len(objects) > 0 {
		b.ring()
	}
	return nil
}

// Resync implements [cache.ReflectorStore].
func (b bell) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore].
func (b bell) Transformer() cache.TransformFunc {
	return nil
}
