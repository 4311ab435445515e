// Package policy decides what pods of a namespace may use: it holds pods against what their namespace's labels demand and what its
// annotations allow.
//
// It is pure: it knows nothing of clusters, neither looks anything up nor says who is to be told. [Rules] has all that it checks.
package policy

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// Pod is what policy looks at in a pod, or in the template of one as its pods will be.
type Pod struct {
	// Root is where the pod sits in the object that its author writes; nil for a pod by itself.
	Root *field.Path
	// Labels are the pod's.
	Labels map[string]string
	// ServiceAccount is whom it runs as, never empty.
	ServiceAccount string
	// Volumes are those of the Secrets Store CSI driver.
	Volumes []Volume
	// HasIdentityToken is true where a volume projects a token by which the ServiceAccount signs in to Microsoft Entra.
	HasIdentityToken bool
	// NodeIdentityAllowed is true where the server lets pods read vaults as their node.
	NodeIdentityAllowed bool
	// LabelPaths says where labels that annotations bring about were written; nil for labels that are there.
	LabelPaths map[string]*field.Path
}

// Volume is a volume of the Secrets Store CSI driver.
type Volume struct {
	// Path is where the volume was written; Injected is true where annotations, written there, bring it about.
	Path     *field.Path
	Injected bool
	// Attributes are the driver's attributes of the volume.
	Attributes map[string]string
}

// VolumesOf picks the driver's volumes, which are written in a pod's spec at root.
func VolumesOf(volumes []pods.Volume, root *field.Path) []Volume {
	var list []Volume
	for i := range volumes {
		if csi := volumes[i].CSI; csi != nil && csi.Driver == class.Driver {
			list = append(list, Volume{Path: child(root, "spec").Child("volumes").Index(i).Child("csi"), Attributes: csi.Attributes})
		}
	}
	return list
}

func child(root *field.Path, name string, more ...string) *field.Path {
	if root == nil {
		return field.NewPath(name, more...)
	}
	return root.Child(name, more...)
}

// binding is AAD pod identity's label; empty for none.
func (p *Pod) binding() string {
	return p.Labels[api.PodIdentityBinding]
}

// usesWorkloadIdentity reports whether the pod gets a token of its ServiceAccount for Microsoft Entra: from Azure's webhook, or from a projected volume.
func (p *Pod) usesWorkloadIdentity() bool {
	return p.Labels[api.WorkloadIdentityUse] == "true" || p.HasIdentityToken
}

func (p *Pod) labelPath(key string) *field.Path {
	if path, ok := p.LabelPaths[key]; ok {
		return path
	}
	return child(p.Root, "metadata", "labels").Key(key)
}

func (v *Volume) class() string {
	return v.Attributes[class.Attribute]
}

// Namespace is what a namespace says of its pods.
type Namespace struct {
	Name                string
	Labels, Annotations map[string]string
}

// Needs is what has to be looked up in the pod's namespace before [Check]. Empty fields ask for nothing.
type Needs struct {
	// Classes are names of SecretProviderClasses.
	Classes []string
	// ServiceAccount is whom the pod runs as.
	ServiceAccount string
	// Selector is the spec.selector of an AzureIdentityBinding.
	Selector string
	// Identities asks for the names of all identities, which messages offer; no verdict rests on them.
	Identities bool
}

// IsEmpty reports whether there is nothing to look up.
func (n Needs) IsEmpty() bool {
	return len(n.Classes) == 0 && n.ServiceAccount == "" && n.Selector == "" && !n.Identities
}

// Needs says what judging the pod takes.
func (p *Pod) Needs(namespace Namespace) Needs {
	var n Needs
	modes := ModesOf(namespace.Labels)
	if modes.atLeast(Bound) || Ceiling(namespace.Annotations) != "" {
		n.Classes = p.classes()
		n.Classes = n.Classes[:min(len(n.Classes), maxLookedUp)]
	}
	if modes.atLeast(Bound) {
		n.Selector = p.binding()
		if p.usesWorkloadIdentity() {
			n.ServiceAccount = p.ServiceAccount
		}
		// A ServiceAccount may lack its client id, a class may need the label.
		n.Identities = p.usesWorkloadIdentity() || (n.Selector == "" && len(n.Classes) > 0)
	}
	n.Identities = n.Identities || (modes.atLeast(Required) && !p.hasIdentity())
	return n
}

// maxLookedUp is how many classes of a pod are looked up, far beyond what an honest one mounts: each may be a read of the API server. A pod with
// more is rejected wherever it matters what a class says.
const maxLookedUp = 100

// tooManyClasses rejects a pod of which not every class is looked up.
func (s *subject) tooManyClasses() field.ErrorList {
	all := s.classes()
	if len(all) <= maxLookedUp {
		return nil
	}
	err := field.TooMany(child(s.Root, "spec", "volumes"), len(all), maxLookedUp)
	err.Detail = fmt.Sprintf("must mount at most %d SecretProviderClasses, mounts %d", maxLookedUp, len(all))
	return field.ErrorList{api.Because(api.VolumeInvalid, err)}
}

// classes are the names of those that the pod mounts, each once.
func (p *Pod) classes() []string {
	var names []string
	for i := range p.Volumes {
		if name := p.Volumes[i].class(); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Facts is what a namespace holds of what was needed.
type Facts struct {
	// Classes are those of the needed classes that exist, and the managed ones that the pod's own annotations bring about.
	Classes []*class.Class
	// ServiceAccount is nil where it does not exist.
	ServiceAccount *ServiceAccount
	// Bound is true where an AzureIdentityBinding has the needed selector.
	Bound bool
	// Available names what there is besides, for messages to offer.
	Available Available
}

// ServiceAccount is what a ServiceAccount says of workload identity.
type ServiceAccount struct {
	Name string
	// ClientID is a GUID, or empty; InvalidClientID is what the annotation has if that is no GUID.
	ClientID, InvalidClientID string
}

// Available lists names of a namespace: its classes, ServiceAccounts, those of them that have a client id, and the selectors of its
// AzureIdentityBindings.
type Available struct {
	Classes, ServiceAccounts, Clients, Selectors []string
	// NoDriver is true where the cluster doesn't know the kind of the classes.
	NoDriver bool
}

func (f *Facts) class(name string) *class.Class {
	for _, c := range f.Classes {
		if c.Name == name {
			return c
		}
	}
	return nil
}

// Violation is a rule that a pod breaks.
type Violation struct {
	Rule *Rule
	// Err says where and how, and what would be right. It carries the rule's Reason.
	Err *field.Error
}

// Check holds a pod against every rule of its namespace, in the order of [Rules].
func Check(p *Pod, namespace Namespace, facts *Facts) []Violation {
	modes := ModesOf(namespace.Labels)
	var violations []Violation
	for i := range Rules {
		rule := &Rules[i]
		if !modes.atLeast(rule.Level) {
			continue
		}
		for _, err := range rule.check(&subject{p, namespace, facts}) {
			if err.Origin == "" {
				err = api.Because(rule.Reason, err)
			}
			violations = append(violations, Violation{rule, err})
		}
	}
	return violations
}

// subject is what a rule sees.
type subject struct {
	*Pod
	namespace Namespace
	facts     *Facts
}
