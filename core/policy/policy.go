// Package policy has every rule about what the pods of a namespace may use. [Rules] is the table of
// the rules, from which docs/policy.md is generated; ceilings.go has the comparisons that package
// inject makes before it injects anything.
//
//	needs := usage.Needs(namespace)                      // what to look up
//	violations := policy.Check(usage, namespace, &answer) // the rules that the pod breaks
//	errs, warnings, audited := policy.ByMode(namespace, usage.ServiceAccount, violations)
//
// The package looks nothing up and writes no response.
package policy

import (
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
)

// Usage is what a pod uses of the things that policy governs: identities and classes.
type Usage struct {
	// Root is where the pod is in the object that its author writes.
	Root pods.Root
	// Labels are the pod's.
	Labels map[string]string
	// LabelPaths has the path of each label that an annotation causes; other labels are at
	// metadata.labels.
	LabelPaths map[string]*field.Path
	// ServiceAccount is the one that the pod runs as; never empty.
	ServiceAccount string
	// Volumes are those of the Secrets Store CSI driver.
	Volumes []Volume
	// HasIdentityToken is true if a volume projects a token by which the ServiceAccount signs
	// in to Microsoft Entra.
	HasIdentityToken bool
	// NodeIdentityAllowed is true if the server lets pods read vaults as their node.
	NodeIdentityAllowed bool
	// IsBinding is true for a Binding, which has nothing but labels. The scheduler creates it
	// to give a pod its node, and its labels become the pod's.
	IsBinding bool
}

// Volume is a volume of the Secrets Store CSI driver.
type Volume struct {
	// Path is the path of the volume's field csi. If Injected, it is that of the annotation that
	// causes the volume.
	Path     *field.Path
	Injected bool
	// Attributes are the volumeAttributes.
	Attributes map[string]string
}

// UsageOf returns what a pod uses as it is.
func UsageOf(subject *pods.Subject) *Usage {
	u := &Usage{Root: subject.Root, ServiceAccount: subject.RunsAs()}
	if subject.Meta != nil {
		u.Labels = subject.Meta.Labels
	}
	for i := range subject.Spec.Volumes {
		v := &subject.Spec.Volumes[i]
		u.HasIdentityToken = u.HasIdentityToken || v.HasIdentityToken
		if csi := v.CSI; csi != nil && csi.Driver == class.Driver {
			u.Volumes = append(u.Volumes, VolumeOf(subject, i))
		}
	}
	return u
}

// VolumeOf returns a volume of the driver by its index in the pod.
func VolumeOf(subject *pods.Subject, index int) Volume {
	return Volume{
		Path:       subject.Root.Child("spec", "volumes").Index(index).Child("csi"),
		Attributes: subject.Spec.Volumes[index].CSI.Attributes,
	}
}

// binding returns the label of AAD pod identity; empty for none.
func (u *Usage) binding() string {
	return u.Labels[api.PodIdentityBinding]
}

// usesWorkloadIdentity reports whether the pod gets a token of its ServiceAccount for Microsoft
// Entra: from Azure's webhook, or from a projected volume.
func (u *Usage) usesWorkloadIdentity() bool {
	return u.Labels[api.WorkloadIdentityUse] == "true" || u.HasIdentityToken
}

func (u *Usage) labelPath(key string) *field.Path {
	if path, ok := u.LabelPaths[key]; ok {
		return path
	}
	return u.Root.Child("metadata", "labels").Key(key)
}

func (v *Volume) class() string {
	return v.Attributes[class.Attribute]
}

// Needs returns what to look up in the pod's namespace before [Check].
func (u *Usage) Needs(namespace facts.Namespace) facts.Needs {
	var n facts.Needs
	modes := ModesOf(namespace, u.ServiceAccount)
	if u.IsBinding {
		return n
	}
	_, ofSecrets := namespace.Annotations[api.AllowedSecretNames]
	if modes.atLeast(Bound) || Ceiling(namespace) != "" || ofSecrets {
		n.Classes = u.classes()
		n.Classes = n.Classes[:min(len(n.Classes), maxLookedUp)]
	}
	if modes.atLeast(Bound) {
		n.Selector = u.binding()
		if u.usesWorkloadIdentity() {
			n.ServiceAccount = u.ServiceAccount
		}
		// A ServiceAccount may lack its client id, and a class may need the label.
		n.Identities = u.usesWorkloadIdentity() || (n.Selector == "" && len(n.Classes) > 0)
	}
	n.Identities = n.Identities || (modes.atLeast(Required) && !u.hasIdentity())
	return n
}

// maxLookedUp is how many classes of a pod are looked up; each may be a read of the API server. A
// pod with more classes is rejected where a rule needs to know them.
const maxLookedUp = 100

// tooManyClasses rejects a pod with classes that are not looked up.
func (s *subject) tooManyClasses() field.ErrorList {
	all := s.classes()
	if len(all) <= maxLookedUp {
		return nil
	}
	err := field.TooMany(s.Root.Child("spec", "volumes"), len(all), maxLookedUp)
	err.Detail = fmt.Sprintf("must mount at most %d SecretProviderClasses, mounts %d", maxLookedUp, len(all))
	return field.ErrorList{api.Because(api.VolumeInvalid, err)}
}

// classes returns the names of the classes that the pod mounts, sorted, without duplicates.
func (u *Usage) classes() []string {
	var names []string
	for i := range u.Volumes {
		if name := u.Volumes[i].class(); name != "" {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Violation is a rule that a pod breaks.
type Violation struct {
	Rule *Rule
	// Err carries the rule's Reason.
	Err *field.Error
}

// Check returns the rules that the pod breaks, in the order of [Rules].
func Check(u *Usage, namespace facts.Namespace, answer *facts.Answer) []Violation {
	modes := ModesOf(namespace, u.ServiceAccount)
	var violations []Violation
	for i := range Rules {
		rule := &Rules[i]
		if rule.OfBindings != u.IsBinding || !modes.atLeast(rule.Level) {
			continue
		}
		for _, err := range rule.check(&subject{u, namespace, answer}) {
			if err.Origin == "" {
				err = api.Because(rule.Reason, err)
			}
			violations = append(violations, Violation{rule, err})
		}
	}
	return violations
}

// subject is the input of a rule.
type subject struct {
	*Usage
	namespace facts.Namespace
	answer    *facts.Answer
}

// ByMode sorts violations by what the namespace does about them: errors reject the pod, warnings go
// to its author, audited ones only to the audit log. One mistake that breaks several rules is
// reported once.
func ByMode(
	namespace facts.Namespace, serviceAccount string, violations []Violation,
) (errs, warnings, audited field.ErrorList) {
	modes := ModesOf(namespace, serviceAccount)
	for _, v := range violations {
		level := v.Rule.Level
		if level == Off {
			ceilingByMode(namespace, v.Err, &errs, &warnings, &audited)
			continue
		}
		if modes.Enforce.AtLeast(level) {
			add(&errs, requiredBy(v.Err, namespace, api.Enforce))
		} else if modes.Warn.AtLeast(level) {
			add(&warnings, requiredBy(v.Err, namespace, api.Warn))
		}
		if modes.Audit.AtLeast(level) {
			add(&audited, requiredBy(v.Err, namespace, api.Audit))
		}
	}
	return errs, warnings, audited
}

// ceilingByMode is [ByMode] for a ceiling. A ceiling holds in every mode that a label turns on, at
// any level, and for exempt pods too.
func ceilingByMode(namespace facts.Namespace, err *field.Error, errs, warnings, audited *field.ErrorList) {
	if Enforces(namespace) {
		add(errs, err)
		return
	}
	own := *err
	own.Detail += "; with namespace label " + api.Enforce + " the pod would be rejected"
	if _, set := namespace.Labels[api.Warn]; set {
		add(warnings, &own)
	}
	if _, set := namespace.Labels[api.Audit]; set {
		add(audited, &own)
	}
}

// add adds an error unless the list has one with the same reason at the same path.
func add(list *field.ErrorList, err *field.Error) {
	if !slices.ContainsFunc(*list, func(e *field.Error) bool { return e.Origin == err.Origin && e.Field == err.Field }) {
		*list = append(*list, err)
	}
}

// requiredBy returns the error with the label that requires what is missing.
func requiredBy(err *field.Error, namespace facts.Namespace, label string) *field.Error {
	own := *err
	own.Detail += "; required by namespace label " + label + "=" + api.Echo(namespace.Labels[label])
	return &own
}
