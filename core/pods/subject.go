package pods

import (
	"maps"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
)

// Root is the location of a pod in the object that its author writes, in both notations.
type Root struct {
	// Pointer is a JSON Pointer (RFC 6901); empty if the object is the pod.
	Pointer string
	// Path is a field path; nil if the object is the pod.
	Path *field.Path
}

// The roots: PodRoot of a Pod, CronJobRoot of the template of a CronJob, and TemplateRoot of the
// template of every other workload.
var (
	PodRoot      = Root{}
	TemplateRoot = Root{Pointer: "/spec/template", Path: field.NewPath("spec", "template")}
	CronJobRoot  = Root{
		Pointer: "/spec/jobTemplate/spec/template",
		Path:    field.NewPath("spec", "jobTemplate", "spec", "template"),
	}
)

// Child returns the path of a field of the pod, such as metadata or spec.
func (r Root) Child(name string, more ...string) *field.Path {
	if r.Path == nil {
		return field.NewPath(name, more...)
	}
	return r.Path.Child(name, more...)
}

// Subject is a pod or a pod template under review.
type Subject struct {
	*Pod

	// Root is where the pod is in its object.
	Root Root
	// Annotations are the effective ones: the pod's own, then those that it inherits from its
	// workload.
	Annotations map[string]string
	// ClaimTemplates are the names of the volumes that a StatefulSet adds to its pods, from its
	// volumeClaimTemplates.
	ClaimTemplates []string
	// ByNode is true if a node creates the pod.
	ByNode bool
	// AnnotationPath returns where an annotation was written. If it is nil or returns nil, that
	// is the pod's metadata.annotations.
	AnnotationPath func(key string) *field.Path
}

// SubjectOf returns the subject for a pod that is an object of its own. An annotation
// [api.Inherited] that cannot be parsed stays among the annotations, where it is an error.
func SubjectOf(pod *Pod) Subject {
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

// IsMirror reports whether the pod is a mirror pod: the API server's copy of a static pod, which
// must not be changed or rejected. Only nodes create mirror pods, and these can use no
// ServiceAccount and no Secret; any user can write the annotation.
func (s *Subject) IsMirror() bool {
	if s.Meta == nil || !s.ByNode {
		return false
	}
	_, annotated := s.Meta.Annotations[api.MirrorPod]
	return annotated
}

// AnnotationPathOf returns where an annotation was written, or where to write it.
func (s *Subject) AnnotationPathOf(key string) *field.Path {
	if s.AnnotationPath != nil {
		if path := s.AnnotationPath(key); path != nil {
			return path
		}
	}
	return s.Root.Child("metadata", "annotations").Key(key)
}

// LabelPath returns where a label is, or where to write it.
func (s *Subject) LabelPath(key string) *field.Path {
	return s.Root.Child("metadata", "labels").Key(key)
}

// Label returns the value of a label of the pod.
func (s *Subject) Label(key string) (value string, ok bool) {
	if s.Meta == nil {
		return "", false
	}
	value, ok = s.Meta.Labels[key]
	return value, ok
}

// DefaultServiceAccount is the ServiceAccount of a pod that names none.
const DefaultServiceAccount = "default"

// RunsAs returns the name of the ServiceAccount that the pod runs as; never empty.
func (s *Subject) RunsAs() string {
	switch {
	case s.Spec.ServiceAccountName != "":
		return s.Spec.ServiceAccountName
	case s.Spec.ServiceAccount != "":
		return s.Spec.ServiceAccount
	}
	return DefaultServiceAccount
}

// IsWindows reports whether the pod states that it runs on Windows.
func (s *Subject) IsWindows() bool {
	return s.Spec.OS == string(corev1.Windows) || s.Spec.NodeOS == string(corev1.Windows)
}
