package inject

import (
	"slices"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
)

// Needs is what a plan has to know of the pod's namespace before it can decide. Empty fields ask for nothing.
type Needs struct {
	// Classes are names of SecretProviderClasses.
	Classes []string
	// ServiceAccount is whom the pod runs as, NamedServiceAccount whom the identity's name may mean.
	ServiceAccount, NamedServiceAccount string
	// Selector is the spec.selector of an AzureIdentityBinding.
	Selector string
	// Identities asks for the names of all identities.
	Identities bool
}

// Facts is what a namespace holds of what was needed.
type Facts struct {
	// Classes are those of the needed classes that exist, in any order.
	Classes []*class.Class
	// ServiceAccount and NamedServiceAccount are nil where they don't exist.
	ServiceAccount, NamedServiceAccount *ServiceAccount
	// Bound is true where an AzureIdentityBinding has the needed selector.
	Bound bool
	// Available names what there is besides, for errors to offer. It may be left empty where nothing is missing.
	Available Available
}

// ServiceAccount is what a ServiceAccount says of workload identity.
type ServiceAccount struct {
	Name string
	// ClientID is the annotation of that name if it is a GUID, InvalidClientID if it is not.
	ClientID, InvalidClientID string
	// TenantID is the annotation of that name, whatever it is.
	TenantID string
	// PullSecrets are the names in its imagePullSecrets.
	PullSecrets []string
}

// Available lists names of a namespace. Clients are the ServiceAccounts with a client id, which are sure to be listed where all identities
// were needed, or something was looked up afresh and is missing.
type Available struct {
	Classes, ServiceAccounts, Clients, Selectors []string
	// NoDriver is true where the cluster doesn't know the kind of the classes.
	NoDriver bool
}

// class is the fact about the class of that name, or nil.
func (f *Facts) class(name string) *class.Class {
	for _, c := range f.Classes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// needs says what deciding about request takes.
func needs(s *Subject, r *api.Request, mode api.Mode) Needs {
	n := Needs{Classes: r.Classes}
	if !asksIdentity(r) || mode == api.ModeNone {
		return n
	}
	n.ServiceAccount = s.ServiceAccount()
	if r.Identity != "" && mode != api.ModePodIdentity && r.Identity != n.ServiceAccount {
		n.NamedServiceAccount = r.Identity
	}
	if mode == api.ModePodIdentity || mode == api.ModeAuto {
		n.Selector = r.Identity
	}
	return n
}

// IsEmpty reports whether there is nothing to look up.
func (n Needs) IsEmpty() bool {
	return len(n.Classes) == 0 && n.ServiceAccount == "" && n.NamedServiceAccount == "" && n.Selector == "" && !n.Identities
}

// identities are the names that an identity could have had.
func (a *Available) identities() []string {
	return slices.Concat(a.Selectors, a.Clients)
}
