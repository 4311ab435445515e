package preview

import (
	"context"
	"maps"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// leveled is a source whose namespaces enforce a level where they have no label of policy.
type leveled struct {
	facts.Source
	level policy.Level
}

// Namespace implements [facts.Source].
func (l leveled) Namespace(ctx context.Context, name string, fresh bool) (inject.Namespace, error) {
	namespace, err := l.Source.Namespace(ctx, name, fresh)
	if err != nil || policy.ModesOf(namespace.Labels) != (policy.Modes{}) {
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
