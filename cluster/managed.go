package cluster

import (
	"context"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// ManagedClass is the state of a class that has the name of a managed class.
type ManagedClass struct {
	ResourceVersion string
	Owners          []metav1.OwnerReference
	// Ours is true if the injector or a manifest from `akv-injector inject` created the class: it
	// has the label app.kubernetes.io/managed-by=akv-injector, or fields that the field manager
	// akv-injector owns.
	Ours bool
	// Intact is true if the class is unedited: its name is the hash of its whole spec, and if it is
	// ours, it has the label.
	Intact bool
}

// workloads returns the workloads of the pods that mount the class; none for nil.
func (c *ManagedClass) workloads() []string {
	if c == nil {
		return nil
	}
	var names []string
	for _, owner := range c.Owners {
		if name := facts.WorkloadOf(owner.Kind, owner.Name); !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	return names
}

// existingClass is what the Cache keeps of each class.
type existingClass struct {
	*class.Class
	managed *ManagedClass // nil if its name is not that of a managed class
}

// ManagedClass returns the class of that name from memory; nil if it does not exist. The caller
// must not change it.
func (c *Cache) ManagedClass(namespace, name string) *ManagedClass {
	found, _ := c.classes.in(namespace).find(name)
	return found.managed
}

// OnClass calls changed for every added, updated or deleted class, and with an empty name when any
// may have changed: after a list, and when the CustomResourceDefinition was created or deleted. It
// must be called before Start, and changed must return at once.
func (c *Cache) OnClass(changed func(namespace, name string)) {
	c.classes.changed = append(c.classes.changed, changed)
}

// OnNamespace calls changed for every added, updated or deleted namespace, and with an empty name
// when any may have changed. It must be called before Start, and changed must return at once.
func (c *Cache) OnNamespace(changed func(name string)) {
	c.namespaces.changed = append(c.namespaces.changed, func(_, name string) { changed(name) })
}

// OnFacts calls changed with the name of a namespace when the namespace, or an object in it, was
// added, updated or deleted, and with an empty name when any may have changed. It does not call it
// for managed classes, which no verdict depends on. It must be called before Start, and changed
// must return at once.
func (c *Cache) OnFacts(changed func(namespace string)) {
	c.OnNamespace(changed)
	c.OnClass(func(namespace, name string) {
		if !class.IsManagedName(name) {
			changed(namespace)
		}
	})
	in := func(namespace, _ string) { changed(namespace) }
	c.serviceAccounts.changed = append(c.serviceAccounts.changed, in)
	c.selectors.changed = append(c.selectors.changed, in)
}

// AwaitFilled waits until all objects have been listed. If ctx ends first, it returns the error of
// ctx.
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

// ManagedClass reads the class of that name from the API server; nil if it does not exist.
func (l *Live) ManagedClass(ctx context.Context, namespace, name string) (*ManagedClass, error) {
	object, err := l.classObject(ctx, namespace, name)
	if err != nil || object == nil {
		return nil, err
	}
	return managedClassOf(object), nil
}

// managedClassOf returns nil for a class whose name is not that of a managed class.
func managedClassOf(object *unstructured.Unstructured) *ManagedClass {
	if !class.IsManagedName(object.GetName()) {
		return nil
	}
	labelled := object.GetLabels()[class.ManagedByLabel] == class.ManagedBy
	written := slices.ContainsFunc(object.GetManagedFields(), func(f metav1.ManagedFieldsEntry) bool {
		return f.Manager == class.ManagedBy
	})
	return &ManagedClass{
		ResourceVersion: object.GetResourceVersion(),
		Owners:          object.GetOwnerReferences(),
		Ours:            labelled || written,
		Intact:          IsIntact(object) && labelled == (labelled || written),
	}
}

// IsIntact is [class.IsIntact] for an object. A class with unknown fields is not intact.
func IsIntact(object *unstructured.Unstructured) bool {
	spc := class.SecretProviderClass{ObjectMeta: metav1.ObjectMeta{Name: object.GetName()}}
	spec, ok := object.Object["spec"].(map[string]any)
	return ok &&
		runtime.DefaultUnstructuredConverter.FromUnstructuredWithValidation(spec, &spc.Spec, true) == nil &&
		class.IsIntact(&spc)
}
