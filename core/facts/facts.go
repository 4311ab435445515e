// Package facts defines the questions about a pod's namespace that a decision about the pod depends
// on, and the types of the answers. A [Source] answers them; package cluster has the sources that
// read an API server, and [Objects] is one that holds objects from manifests:
//
//	namespace, err := source.Namespace(ctx, "shop", false)
//	answer, err := source.Facts(ctx, "shop", facts.Needs{Classes: []string{"key-vault-secret"}}, false)
//	if c := answer.Class("key-vault-secret"); c == nil { … } // does not exist
//
// The package makes no decision and opens no connection.
package facts

import (
	"context"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Source answers questions about namespaces. Callers must not modify what it returns.
type Source interface {
	// Namespace returns the labels and annotations of a namespace. If fresh, it reads the API
	// server, not a cache. A namespace that does not exist has an empty name.
	Namespace(ctx context.Context, name string, fresh bool) (Namespace, error)
	// Facts returns the objects in needs that exist in the namespace. If fresh, it reads the
	// API server, not a cache, and Available has the names that a message may offer for what is
	// missing, and all identities if needs.Identities.
	Facts(ctx context.Context, namespace string, needs Needs, fresh bool) (Answer, error)
}

// Namespace is a namespace with its labels and annotations. A Source may leave out keys without the
// prefix keyvault.io/ or identity.io/.
type Namespace struct {
	Name                string
	Labels, Annotations map[string]string
}

// OptedIn reports whether a label of the namespace turns on injection.
func (n Namespace) OptedIn() bool {
	switch n.Labels[api.Injection] {
	case api.InjectionEnabled, api.InjectionAlways:
		return true
	}
	return false
}

// Needs are the objects to look up in a namespace. Empty fields need nothing.
type Needs struct {
	// Classes are names of SecretProviderClasses.
	Classes []string
	// ServiceAccount is the name of the ServiceAccount that the pod runs as;
	// NamedServiceAccount is the one that the identity's name may mean.
	ServiceAccount, NamedServiceAccount string
	// Selector is the spec.selector of an AzureIdentityBinding.
	Selector string
	// Secret is the name of a Secret; the classes that sync it are needed.
	Secret string
	// EnvFiles needs whether the cluster supports env vars from files.
	EnvFiles bool
	// Identities needs the names of all identities. Messages offer them; no decision depends on
	// them.
	Identities bool
}

// IsEmpty reports whether there is nothing to look up.
func (n Needs) IsEmpty() bool {
	return len(n.Classes) == 0 && n.ServiceAccount == "" && n.NamedServiceAccount == "" &&
		n.Selector == "" && n.Secret == "" && !n.EnvFiles && !n.Identities
}

// Answer has those of the needed objects that exist.
type Answer struct {
	// Classes are in any order.
	Classes []*class.Class
	// ServiceAccount and NamedServiceAccount are nil if they do not exist.
	ServiceAccount, NamedServiceAccount *ServiceAccount
	// Bound is true if an AzureIdentityBinding has the needed selector.
	Bound bool
	// Syncing are the classes that sync the needed Secret.
	Syncing []Syncing
	// EnvFilesUnsupported is why the cluster does not support env vars from files, with the fix; empty
	// if it does.
	EnvFilesUnsupported string
	// Available has the names that messages may offer; see [Source]. It may be empty if the
	// answer is not fresh, or if nothing is missing.
	Available Available
}

// Syncing is a class that syncs a Secret.
type Syncing struct {
	// Class is the name of the class, and Type the type of the Secret.
	Class, Type string
	// Workloads are the owners of the class, as [WorkloadOf] names them.
	Workloads []string
}

// WorkloadOf returns the name of the workload behind a controller of pods, or an owner of their managed
// class: ReplicaSets, ControllerRevisions and the Jobs of a CronJob are named after it, with a suffix.
func WorkloadOf(kind, name string) string {
	switch at := strings.LastIndexByte(name, '-'); kind {
	case "ReplicaSet", "ControllerRevision", "Job":
		if at > 0 {
			return name[:at]
		}
	}
	return name
}

// Class returns the class of that name, or nil.
func (a *Answer) Class(name string) *class.Class {
	for _, c := range a.Classes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// ServiceAccount has the fields of a ServiceAccount that decisions depend on.
type ServiceAccount struct {
	Name string
	// ClientID is the client id in its annotation if that is a GUID; InvalidClientID if it is not.
	ClientID, InvalidClientID string
	// TenantID is the tenant id in its annotation, valid or not.
	TenantID string
	// PullSecrets are the names in its imagePullSecrets.
	PullSecrets []string
}

// Available lists names of objects in a namespace.
type Available struct {
	Classes, ServiceAccounts []string
	// Clients are the ServiceAccounts with a client id.
	Clients []string
	// Selectors are those of the AzureIdentityBindings. An answer has them, fresh or not, if
	// needs has a Selector or Identities: mode auto depends on whether there are any.
	Selectors []string
	// NoDriver is true if the cluster does not have the kind SecretProviderClass.
	NoDriver bool
}
