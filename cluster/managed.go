package cluster

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/akv-injector/akv-injector/core/class"
)

// ManagedClass is how the cluster has a class that has the name of a managed one.
type ManagedClass struct {
	ResourceVersion string
	Owners          []metav1.OwnerReference
	// Ours is true where the injector wrote it, or somebody who said so: it has the label, or was last written by our field manager.
	Ours bool
	// Intact is true where nobody edited it since: the name is the hash of all of its spec, and if it is ours, it has the label.
	Intact bool
}

// existingClass is what is kept of each class.
type existingClass struct {
	*class.Class
	managed *ManagedClass // nil where its name is none of a managed class
}

// ManagedClass is the class of that name as far as it is known; nil where there is none. Whoever gets it must not change it.
func (c *Cache) ManagedClass(namespace, name string) *ManagedClass {
	found, _ := c.classes.in(namespace).find(name)
	return found.managed
}

// OnClass lets changed hear of each class that came, changed or went, and, with an empty name, that any may have: after a list, or since
// the cluster came to know or forgot the kind. It must be called before Start, and changed must return at once.
func (c *Cache) OnClass(changed func(namespace, name string)) {
	c.classes.changed = changed
}

// OnNamespace calls changed for every added, updated or deleted namespace, and with an empty name when any may have changed. It must be called
// before Start, and changed must return at once.
func (c *Cache) OnNamespace(changed func(name string)) {
	c.namespaces.changed = func(_, name string) { changed(name) }
}

// AwaitFilled returns when all is known, or with the error of ctx when that ends first.
func (c *Cache) AwaitFilled(ctx context.Context) error {
	for _, f := range c.feeds {
		select {
		case <-f.Filled():
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// ManagedClass asks for the class of that name; nil where there is none.
func (l *Live) ManagedClass(ctx context.Context, namespace, name string) (*ManagedClass, error) {
	object, err := l.classObject(ctx, namespace, name)
	if err != nil || object == nil {
		return nil, err
	}
	return managedClassOf(object), nil
}

// managedClassOf is nil for a class whose name is none of a managed one.
func managedClassOf(object *unstructured.Unstructured) *ManagedClass {
	if !class.IsManagedName(object.GetName()) {
		return nil
	}
	labelled := object.GetLabels()[class.ManagedByLabel] == class.ManagedBy
	written := slices.ContainsFunc(object.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool { return f.Manager == class.ManagedBy })
	return &ManagedClass{
		ResourceVersion: object.GetResourceVersion(),
		Owners:          object.GetOwnerReferences(),
		Ours:            labelled || written,
		Intact:          IsIntact(object) && labelled == (labelled || written),
	}
}

// IsIntact is [class.IsIntact] for an object that may hold fields unknown to us.
func IsIntact(object *unstructured.Unstructured) bool {
	spc := class.SecretProviderClass{ObjectMeta: metav1.ObjectMeta{Name: object.GetName()}}
	spec, ok := object.Object["spec"].(map[string]any)
	return ok && runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(spec, &spc.Spec, true) == nil && class.IsIntact(&spc)
}
