// Package facts answers what the core asks of a namespace: its labels and annotations, its SecretProviderClasses,
// ServiceAccounts and AzureIdentityBindings. They come from the manifests at hand or from a cluster.
//
// It knows nothing of reviews or patches and decides nothing.
package facts

import (
	"context"

	"github.com/akv-injector/akv-injector/webhook/inject"
)

// Source is where facts come from.
type Source interface {
	// Namespace is what the namespace of that name says of injection. With fresh it is asked of whoever knows best, however
	// long that takes. A namespace that does not exist has no name.
	Namespace(ctx context.Context, name string, fresh bool) (inject.Namespace, error)
	// Facts is what the namespace holds of what is needed. With fresh it is asked of whoever knows best, and names what else
	// there is.
	Facts(ctx context.Context, namespace string, needs inject.Needs, fresh bool) (inject.Facts, error)
}
