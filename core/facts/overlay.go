package facts

import (
	"context"
	"slices"
)

// overlay is the Source of objects that are about to be applied to a cluster.
type overlay struct {
	objects *Objects
	cluster Source
}

// Overlay returns a Source that looks at objects first and asks cluster for the rest. A namespace
// that is in neither counts as opted in.
func Overlay(objects *Objects, cluster Source) Source {
	return &overlay{objects, cluster}
}

// Namespace implements [Source].
func (o *overlay) Namespace(ctx context.Context, name string, fresh bool) (Namespace, error) {
	if !o.objects.HasNamespace(name) {
		if namespace, err := o.cluster.Namespace(ctx, name, fresh); err != nil || namespace.Name != "" {
			return namespace, err
		}
	}
	return o.objects.Namespace(ctx, name, fresh)
}

// Facts implements [Source].
func (o *overlay) Facts(ctx context.Context, namespace string, needs Needs, fresh bool) (Answer, error) {
	answer, err := o.objects.Facts(ctx, namespace, needs, fresh)
	if err != nil {
		return Answer{}, err
	}
	needs = unmet(needs, &answer)
	if needs.IsEmpty() {
		return answer, nil
	}
	rest, err := o.cluster.Facts(ctx, namespace, needs, fresh)
	if err != nil {
		return Answer{}, err
	}
	answer.Classes = append(answer.Classes, rest.Classes...)
	if needs.ServiceAccount != "" {
		answer.ServiceAccount = rest.ServiceAccount
	}
	if needs.NamedServiceAccount != "" {
		answer.NamedServiceAccount = rest.NamedServiceAccount
	}
	answer.Bound = answer.Bound || rest.Bound
	answer.Syncing = append(answer.Syncing, rest.Syncing...)
	answer.EnvFilesUnsupported = rest.EnvFilesUnsupported
	answer.Available = Available{
		Classes:         union(answer.Available.Classes, rest.Available.Classes),
		ServiceAccounts: union(answer.Available.ServiceAccounts, rest.Available.ServiceAccounts),
		Clients:         union(answer.Available.Clients, rest.Available.Clients),
		Selectors:       union(answer.Available.Selectors, rest.Available.Selectors),
		NoDriver:        rest.Available.NoDriver,
	}
	return answer, nil
}

// unmet returns the needs that answer leaves open.
func unmet(needs Needs, answer *Answer) Needs {
	var rest Needs
	for _, name := range needs.Classes {
		if answer.Class(name) == nil {
			rest.Classes = append(rest.Classes, name)
		}
	}
	if answer.ServiceAccount == nil {
		rest.ServiceAccount = needs.ServiceAccount
	}
	if answer.NamedServiceAccount == nil {
		rest.NamedServiceAccount = needs.NamedServiceAccount
	}
	if !answer.Bound {
		rest.Selector = needs.Selector
	}
	rest.Secret, rest.EnvFiles, rest.Identities = needs.Secret, needs.EnvFiles, needs.Identities
	return rest
}

// union returns a, followed by the elements of b that a lacks.
func union(a, b []string) []string {
	all := slices.Clip(a)
	for _, name := range b {
		if !slices.Contains(all, name) {
			all = append(all, name)
		}
	}
	return all
}
