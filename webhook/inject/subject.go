package inject

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// Root says where a pod sits in the object that its author writes.
type Root struct {
	// Pointer is the JSON Pointer (RFC 6901) of the pod; empty where the object is the pod.
	Pointer string
	// Path is the same as a field path; nil where the object is the pod.
	Path *field.Path
}

// The roots of the kinds that carry pods.
var (
	PodRoot      = Root{}
	TemplateRoot = Root{Pointer: "/spec/template", Path: field.NewPath("spec", "template")}
	CronJobRoot  = Root{Pointer: "/spec/jobTemplate/spec/template", Path: field.NewPath("spec", "jobTemplate", "spec", "template")}
)

func (r Root) path(name string) *field.Path {
	if r.Path == nil {
		return field.NewPath(name)
	}
	return r.Path.Child(name)
}

// Subject is a pod, or the template of one, as it was written.
type Subject struct {
	*pods.Pod

	// Root is where the pod sits in its object.
	Root Root
	// Annotations are the effective ones: the pod's own, and below them those that it inherits from its workload.
	Annotations map[string]string
	// Claims are names of volumes that the pod will have besides, by a StatefulSet's volumeClaimTemplates.
	Claims []string
	// ByNode is true where a node asks for the pod.
	ByNode bool
	// AnnotationPath says where an annotation was written. Nil, and a path that is nil, stand for the pod's metadata.annotations.
	AnnotationPath func(key string) *field.Path
}

// Pod is the subject that a pod by itself is. An annotation [api.Inherited] that can't be read is left among the annotations, and is an error there.
func Pod(pod *pods.Pod) Subject {
	s := Subject{Pod: pod}
	if pod.Meta == nil {
		return s
	}
	own := pod.Meta.Annotations
	s.Annotations = own
	text, ok := own[api.Inherited]
	if !ok {
		return s
	}
	inherited, err := api.ParseInherited(text)
	if err != nil {
		return s
	}
	s.Annotations = maps.Clone(inherited)
	maps.Copy(s.Annotations, own)
	delete(s.Annotations, api.Inherited)
	s.AnnotationPath = func(key string) *field.Path {
		_, inherits := inherited[key]
		if _, has := own[key]; !inherits || has {
			return nil
		}
		return field.NewPath("workload", "metadata", "annotations").Key(key)
	}
	return s
}

// IsMirror reports whether the pod is a mirror pod: the API server's image of a static pod, which must not be changed or rejected. Only a node creates
// one, and it can use no ServiceAccount and no Secret. Other users can write the annotation, too.
func (s *Subject) IsMirror() bool {
	if s.Meta == nil || !s.ByNode {
		return false
	}
	_, annotated := s.Meta.Annotations[api.MirrorPod]
	return annotated
}

// AnnotationPathOf is where an annotation was written, or should be.
func (s *Subject) AnnotationPathOf(key string) *field.Path {
	if s.AnnotationPath != nil {
		if path := s.AnnotationPath(key); path != nil {
			return path
		}
	}
	return s.Root.path("metadata").Child("annotations").Key(key)
}

// Label is the value of one of the pod's labels.
func (s *Subject) Label(key string) (value string, ok bool) {
	if s.Meta == nil {
		return "", false
	}
	value, ok = s.Meta.Labels[key]
	return value, ok
}

// ServiceAccount is the name of the ServiceAccount that the pod runs as, never empty.
func (s *Subject) ServiceAccount() string {
	switch {
	case s.Spec.ServiceAccountName != "":
		return s.Spec.ServiceAccountName
	case s.Spec.ServiceAccount != "":
		return s.Spec.ServiceAccount
	}
	return defaultServiceAccount
}

// defaultServiceAccount is whom a pod runs as that names nobody.
const defaultServiceAccount = "default"

// isWindows reports whether the pod says that it runs on Windows.
func (s *Subject) isWindows() bool {
	return s.Spec.OS == string(corev1.Windows) || s.Spec.NodeOS == string(corev1.Windows)
}

// Namespace is what a pod's namespace says of injection.
type Namespace struct {
	Name                string
	Labels, Annotations map[string]string
}

// OptedIn reports whether the namespace's label asks for injection at all.
func (n Namespace) OptedIn() bool {
	switch n.Labels[api.Injection] {
	case api.InjectionEnabled, api.InjectionAlways:
		return true
	}
	return false
}

// Enforces reports whether policy rejects pods of the namespace. Any value of the label does: an unknown level counts as the strictest.
func (n Namespace) Enforces() bool {
	_, ok := n.Labels[api.Enforce]
	return ok
}

// Warnings say what is wrong with the namespace itself, whichever its pods are.
func (n Namespace) Warnings() field.ErrorList {
	_, _, warnings := api.ParseRequest(api.Annotations{Namespace: n.Annotations, NamespaceName: n.Name})
	return slices.Concat(warnings, n.ceilingsNotEnforced(), policy.GlobMistakes(n.Name, n.Annotations))
}

// ceilingWarnings are about ceilings that do not hold as their author may think. A namespace with a label of policy gets those about globs there.
func (n Namespace) ceilingWarnings() field.ErrorList {
	warnings := n.ceilingsNotEnforced()
	for _, key := range []string{api.Enforce, api.Warn, api.Audit} {
		if _, set := n.Labels[key]; set {
			return warnings
		}
	}
	return append(warnings, policy.GlobMistakes(n.Name, n.Annotations)...)
}

// ceilingsNotEnforced warns of ceilings that do not hold for what is written by hand.
func (n Namespace) ceilingsNotEnforced() field.ErrorList {
	var ceilings []string
	for _, key := range []string{api.AllowedVaults, api.AllowedNames} {
		if _, set := n.Annotations[key]; set {
			ceilings = append(ceilings, key)
		}
	}
	if len(ceilings) == 0 || n.Enforces() {
		return nil
	}
	path := field.NewPath("namespaces").Key(n.Name).Child("metadata", "labels").Key(api.Enforce)
	return field.ErrorList{api.Because(api.CeilingNotEnforced, field.Required(path,
		"must be set for "+strings.Join(ceilings, " and ")+" to hold for labels and volumes that are written by hand; set it to bound"))}
}

// Defaults are what the server's flags say where nobody else does.
type Defaults struct {
	// Mode is the mode of identity; empty for [api.ModeAuto].
	Mode api.Mode
	// TenantID is the Microsoft Entra tenant of managed classes; empty for none.
	TenantID string
	// AllowVMIdentity lets a managed class read the vault as the node's own identity, where a pod asks for mode none.
	AllowVMIdentity bool
}
