package facts

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// Kinds of the objects that facts are read from.
var (
	classKind   = schema.GroupKind{Group: class.GroupVersion.Group, Kind: class.Kind}
	bindingKind = schema.GroupKind{Group: "aadpodidentity.k8s.io", Kind: "AzureIdentityBinding"}
)

// Objects is a Source of objects from manifests. Of two objects with the same name, the last counts. A namespace that is not among them counts as opted
// in. The zero value holds none.
type Objects struct {
	namespaces map[string]inject.Namespace
	held       map[string]*held
}

// held is what one namespace holds.
type held struct {
	classes         []*class.Class
	serviceAccounts []*inject.ServiceAccount
	bindings        []binding
	selectors       []string // of bindings
}

// binding is an AzureIdentityBinding.
type binding struct{ name, selector string }

// put adds an item to a list, or replaces the one of its name.
func put[T any](list []T, item T, name func(T) string) []T {
	if at := slices.IndexFunc(list, func(other T) bool { return name(other) == name(item) }); at >= 0 {
		list[at] = item
		return list
	}
	return append(list, item)
}

// Add takes an object into account if it is of a kind that facts are read from, and passes over any other. Namespace is where an object
// without one belongs.
func (o *Objects) Add(object *unstructured.Unstructured, namespace string) error {
	if object.GetNamespace() != "" {
		namespace = object.GetNamespace()
	}
	switch kind := object.GroupVersionKind().GroupKind(); kind {
	case schema.GroupKind{Kind: "Namespace"}:
		if o.namespaces == nil {
			o.namespaces = map[string]inject.Namespace{}
		}
		o.namespaces[object.GetName()] = inject.Namespace{Name: object.GetName(), Labels: object.GetLabels(), Annotations: object.GetAnnotations()}
	case schema.GroupKind{Kind: "ServiceAccount"}:
		in := o.in(namespace)
		in.serviceAccounts = put(in.serviceAccounts, serviceAccount(object), func(sa *inject.ServiceAccount) string { return sa.Name })
	case classKind:
		in := o.in(namespace)
		in.classes = put(in.classes, classOf(object), func(c *class.Class) string { return c.Name })
		_, err := readClass(object)
		return err
	case bindingKind:
		in := o.in(namespace)
		in.bindings = put(in.bindings, binding{object.GetName(), bindingSelector(object)}, func(b binding) string { return b.name })
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

// HasNamespace reports whether the Namespace of that name is among the objects.
func (o *Objects) HasNamespace(name string) bool {
	_, ok := o.namespaces[name]
	return ok
}

// Namespace implements [Source].
func (o *Objects) Namespace(_ context.Context, name string, _ bool) (inject.Namespace, error) {
	if namespace, ok := o.namespaces[name]; ok {
		return namespace, nil
	}
	return inject.Namespace{Name: name, Labels: map[string]string{api.Injection: api.InjectionEnabled}}, nil
}

// Facts implements [Source].
func (o *Objects) Facts(_ context.Context, namespace string, needs inject.Needs, _ bool) (inject.Facts, error) {
	in := o.held[namespace]
	if in == nil {
		return inject.Facts{}, nil
	}
	return in.facts(needs), nil
}

// facts picks what is needed and names the rest.
func (h *held) facts(needs inject.Needs) inject.Facts {
	facts := inject.Facts{Available: inject.Available{Selectors: h.selectors, Clients: clients(h.serviceAccounts)}}
	for _, c := range h.classes {
		facts.Available.Classes = append(facts.Available.Classes, c.Name)
		for _, name := range needs.Classes {
			if name == c.Name {
				facts.Classes = append(facts.Classes, c)
			}
		}
	}
	for _, sa := range h.serviceAccounts {
		facts.Available.ServiceAccounts = append(facts.Available.ServiceAccounts, sa.Name)
		switch sa.Name {
		case needs.ServiceAccount:
			facts.ServiceAccount = sa
		case needs.NamedServiceAccount:
			facts.NamedServiceAccount = sa
		}
	}
	facts.Bound = binds(h.selectors, needs.Selector)
	return facts
}

func readClass(object *unstructured.Unstructured) (*class.Class, error) {
	var spc class.SecretProviderClass
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &spc); err != nil {
		return nil, fmt.Errorf("read SecretProviderClass %s: %w", object.GetName(), err)
	}
	return class.Read(&spc), nil
}

func serviceAccount(object *unstructured.Unstructured) *inject.ServiceAccount {
	sa := &inject.ServiceAccount{Name: object.GetName(), TenantID: id(object.GetAnnotations()[api.WorkloadIdentityTenantID])}
	sa.ClientID, sa.InvalidClientID = clientID(object.GetAnnotations())
	secrets, _, err := unstructured.NestedSlice(object.Object, "imagePullSecrets")
	if err != nil {
		return sa // the API server accepts no other type
	}
	for _, secret := range secrets {
		if ref, ok := secret.(map[string]any); ok {
			name, _, _ := unstructured.NestedString(ref, "name")
			sa.PullSecrets = append(sa.PullSecrets, name)
		}
	}
	return sa
}

// clientID reads the client id of a ServiceAccount with these annotations, as [api.SplitGUID] does.
func clientID(annotations map[string]string) (valid, invalid string) {
	return api.SplitGUID(id(annotations[api.WorkloadIdentityClientID]))
}

// id is an id as an annotation has it. What is too long to be one is cut: a tenant may write a quarter of a megabyte there.
func id(text string) string {
	return api.Echo(text)
}

// clients are the names of those that have a client id.
func clients(all []*inject.ServiceAccount) []string {
	var names []string
	for _, sa := range all {
		if sa.ClientID != "" {
			names = append(names, sa.Name)
		}
	}
	return names
}

// bindingSelector is the label value that an AzureIdentityBinding selects, or "" where it has none that a label can have.
func bindingSelector(object *unstructured.Unstructured) string {
	selector, _, err := unstructured.NestedString(object.Object, "spec", "selector")
	if err != nil || len(selector) > validation.LabelValueMaxLength {
		return ""
	}
	return selector
}
