package facts

import (
	"context"
	"slices"

	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// overlay is the Source of objects at hand that are about to be applied to a cluster.
type overlay struct {
	objects *Objects
	cluster Source
}

// Overlay answers from objects what it finds there, and asks the cluster for the rest. A namespace that is in neither counts as
// opted in.
func Overlay(objects *Objects, cluster Source) Source {
	return &overlay{objects, cluster}
}

// Namespace implements [Source].
func (o *overlay) Namespace(ctx context.Context, name string, fresh bool) (inject.Namespace, error) {
	if !o.objects.HasNamespace(name) {
		if namespace, err := o.cluster.Namespace(ctx, name, fresh); err != nil || namespace.Name != "" {
			return namespace, err
		}
	}
	return o.objects.Namespace(ctx, name, fresh)
}

// Facts implements [Source].
func (o *overlay) Facts(ctx context.Context, namespace string, needs inject.Needs, fresh bool) (inject.Facts, error) {
	facts, err := o.objects.Facts(ctx, namespace, needs, fresh)
	if err != nil {
		return inject.Facts{}, err
	}
	needs = unmet(needs, &facts)
	if needs.IsEmpty() {
		return facts, nil
	}
	rest, err := o.cluster.Facts(ctx, namespace, needs, fresh)
	if err != nil {
		return inject.Facts{}, err
	}
	facts.Classes = append(facts.Classes, rest.Classes...)
	if needs.ServiceAccount != "" {
		facts.ServiceAccount = rest.ServiceAccount
	}
	if needs.NamedServiceAccount != "" {
		facts.NamedServiceAccount = rest.NamedServiceAccount
	}
	facts.Bound = facts.Bound || rest.Bound
	facts.Available = inject.Available{
		Classes:         union(facts.Available.Classes, rest.Available.Classes),
		ServiceAccounts: union(facts.Available.ServiceAccounts, rest.Available.ServiceAccounts),
		Clients:         union(facts.Available.Clients, rest.Available.Clients),
		Selectors:       union(facts.Available.Selectors, rest.Available.Selectors),
		NoDriver:        rest.Available.NoDriver,
	}
	return facts, nil
}

// unmet is what is still needed beside facts.
func unmet(needs inject.Needs, facts *inject.Facts) inject.Needs {
	var rest inject.Needs
	for _, name := range needs.Classes {
		if !slices.ContainsFunc(facts.Classes, func(c *class.Class) bool { return c.Name == name }) {
			rest.Classes = append(rest.Classes, name)
		}
	}
	if facts.ServiceAccount == nil {
		rest.ServiceAccount = needs.ServiceAccount
	}
	if facts.NamedServiceAccount == nil {
		rest.NamedServiceAccount = needs.NamedServiceAccount
	}
	if !facts.Bound {
		rest.Selector = needs.Selector
	}
	rest.Identities = needs.Identities
	return rest
}

// union is a and what b has besides.
func union(a, b []string) []string {
	all := slices.Clip(a)
	for _, name := range b {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
