package cli

import (
	"context"
	"maps"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

// levelSource is a source whose namespaces enforce a level if they have no policy label.
type levelSource struct {
	facts.Source
	level policy.Level
}

// Namespace implements [facts.Source].
func (l levelSource) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	namespace, err := l.Source.Namespace(ctx, name, fresh)
	if err != nil || policy.ModesOf(namespace, "") != (policy.Modes{}) {
		return namespace, err
	}
	labels := maps.Clone(namespace.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[api.Enforce] = string(l.level)
	namespace.Labels = labels
	return namespace, nil
}
