package facts

import (
	"context"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Objects is a [Source] that holds objects from manifests. The last of several objects with the
// same name counts. A namespace that is not among them counts as opted in. The zero value is empty.
type Objects struct {
	namespaces map[string]Namespace
	held       map[string]*held
}

// held are the objects of one namespace.
type held struct {
	classes         []*class.Class
	serviceAccounts []*ServiceAccount
	bindings        []binding
	selectors       []string // of bindings
}

// binding has the fields of an AzureIdentityBinding.
type binding struct{ name, selector string }

// put adds an item to a list, or replaces the item of the same name.
func put[T any](list []T, item T, name func(T) string) []T {
	if at := slices.IndexFunc(list, func(other T) bool { return name(other) == name(item) }); at >= 0 {
		list[at] = item
		return list
	}
	return append(list, item)
}

// Add adds a Namespace, ServiceAccount, SecretProviderClass or AzureIdentityBinding, and ignores
// other kinds. The namespace is that of an object without one. A class that cannot be decoded is
// added as an invalid class, and is an error.
func (o *Objects) Add(object *unstructured.Unstructured, namespace string) error {
	if object.GetNamespace() != "" {
		namespace = object.GetNamespace()
	}
	switch kind := object.GroupVersionKind().GroupKind(); kind {
	case schema.GroupKind{Kind: "Namespace"}:
		if o.namespaces == nil {
			o.namespaces = map[string]Namespace{}
		}
		o.namespaces[object.GetName()] = Namespace{
			Name: object.GetName(), Labels: object.GetLabels(), Annotations: object.GetAnnotations(),
		}
	case schema.GroupKind{Kind: "ServiceAccount"}:
		in := o.in(namespace)
		sa := ReadServiceAccount(object)
		in.serviceAccounts = put(in.serviceAccounts, sa, func(sa *ServiceAccount) string { return sa.Name })
	case schema.GroupKind{Group: class.GroupVersion.Group, Kind: class.Kind}:
		c, err := ReadClass(object)
		in := o.in(namespace)
		in.classes = put(in.classes, c, func(c *class.Class) string { return c.Name })
		return err
	case schema.GroupKind{Group: BindingResource.Group, Kind: "AzureIdentityBinding"}:
		in := o.in(namespace)
		added := binding{object.GetName(), ReadSelector(object)}
		in.bindings = put(in.bindings, added, func(b binding) string { return b.name })
		in.selectors = in.selectors[:0]
		for _, b := range in.bindings {
			if b.selector != "" {
				in.selectors = append(in.selectors, b.selector)
			}
		}
	}
	return nil
}

func (o *Objects) in(namespace string) *held {
	if o.held == nil {
		o.held = map[string]*held{}
	}
	if o.held[namespace] == nil {
		o.held[namespace] = &held{}
	}
	return o.held[namespace]
}

// HasNamespace reports whether a Namespace of that name was added.
func (o *Objects) HasNamespace(name string) bool {
	_, ok := o.namespaces[name]
	return ok
}

// Namespace implements [Source].
func (o *Objects) Namespace(_ context.Context, name string, _ bool) (Namespace, error) {
	if namespace, ok := o.namespaces[name]; ok {
		return namespace, nil
	}
	return Namespace{Name: name, Labels: map[string]string{api.Injection: api.InjectionEnabled}}, nil
}

// Facts implements [Source].
func (o *Objects) Facts(_ context.Context, namespace string, needs Needs, _ bool) (Answer, error) {
	in := o.held[namespace]
	if in == nil {
		return Answer{}, nil
	}
	return in.answer(needs), nil
}

// answer returns what is needed, and the names of everything.
func (h *held) answer(needs Needs) Answer {
	answer := Answer{Available: Available{Selectors: h.selectors, Clients: ClientServiceAccounts(h.serviceAccounts)}}
	for _, c := range h.classes {
		answer.Available.Classes = append(answer.Available.Classes, c.Name)
		for _, name := range needs.Classes {
			if name == c.Name {
				answer.Classes = append(answer.Classes, c)
			}
		}
		// A manifest of a managed class does not tell whose it is.
		if of, syncs := c.Syncs(needs.Secret); syncs && !class.IsManagedName(c.Name) {
			answer.Syncing = append(answer.Syncing, Syncing{Class: c.Name, Type: of})
		}
	}
	for _, sa := range h.serviceAccounts {
		answer.Available.ServiceAccounts = append(answer.Available.ServiceAccounts, sa.Name)
		switch sa.Name {
		case needs.ServiceAccount:
			answer.ServiceAccount = sa
		case needs.NamedServiceAccount:
			answer.NamedServiceAccount = sa
		}
	}
	answer.Bound = Binds(h.selectors, needs.Selector)
	return answer
}
