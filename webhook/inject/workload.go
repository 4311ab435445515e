package inject

import (
	"maps"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// Workload is the part of a Deployment, StatefulSet, DaemonSet, ReplicaSet, Job or CronJob that injection is about. One type stands for
// all six: a CronJob is told by its JobTemplate.
type Workload struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Template    *Template `json:"template"`
		JobTemplate *struct {
			Spec struct {
				Template *Template `json:"template"`
			} `json:"spec"`
		} `json:"jobTemplate"`
	} `json:"spec"`
}

// Template is a pod template. Meta is nil where it has none, which a Job's may well not.
type Template struct {
	Meta *metav1.ObjectMeta `json:"metadata"`
	Spec corev1.PodSpec     `json:"spec"`
}

// template is the workload's pod template and where it sits; nil where the workload has none.
func (w *Workload) template() (*Template, Root) {
	if w.Spec.JobTemplate != nil {
		return w.Spec.JobTemplate.Spec.Template, CronJobRoot
	}
	return w.Spec.Template, TemplateRoot
}

func (t *Template) annotations() map[string]string {
	if t.Meta == nil {
		return nil
	}
	return t.Meta.Annotations
}

// Handover is how the annotations of a workload become those of its pods.
type Handover struct {
	// Subject is the template as its pods will be, with the annotations that hold for them.
	Subject Subject
	// Warnings tell where the template keeps a value of its own.
	Warnings field.ErrorList
	// Inherited is false where nobody's annotations ask for anything.
	Inherited bool

	set    []Entry
	remove []string
}

// HandDown works out what the annotations of w ask of its template. Old is the workload before an update, nil on creation: a
// value that the template got from it follows its source, and goes away with it. It reports false where w has no template, or
// is a ReplicaSet with a controller: that one compares templates, and would replace for ever what was changed below it.
func HandDown(w, old *Workload) (Handover, bool) {
	template, root := w.template()
	if template == nil || (w.Kind == "ReplicaSet" && metav1.GetControllerOf(w) != nil) {
		return Handover{}, false
	}
	var before map[string]string
	if old != nil {
		before = old.Annotations
	}
	own, theirs := w.Annotations, template.annotations()
	h := Handover{Subject: Subject{Meta: template.Meta, Spec: &template.Spec, Root: root}}
	effective := make(map[string]string, len(theirs))
	maps.Copy(effective, theirs)
	inherited := make(map[string]bool)
	for i := range api.Keys {
		key := api.Keys[i].Name
		if !api.IsRequestKey(key) {
			continue
		}
		value, asked := own[key]
		current, there := theirs[key]
		was, wasAsked := before[key]
		copied := there && wasAsked && current == was
		switch {
		case asked && (!there || copied && current != value):
			effective[key] = value
			h.set = append(h.set, Entry{key, value})
			inherited[key] = true
		case asked && current == value:
			inherited[key] = true
		case asked:
			h.Warnings = append(h.Warnings, api.Because(api.TemplateDiffers, field.Invalid(root.path("metadata").Child("annotations").Key(key), api.Echo(current),
				"is the template's own and was kept; the "+kindOr(w.Kind)+"'s is another: write the annotation in one of the two places")))
		case copied:
			delete(effective, key)
			h.remove = append(h.remove, key)
		}
	}
	for key, value := range own {
		if isRequested(key) && !api.IsRequestKey(key) {
			effective[key] = value // nobody knows it: it is not handed down, and the parser refuses it where it was written
		}
	}
	h.Subject.Annotations = effective
	h.Subject.AnnotationPath = func(key string) *field.Path {
		if _, written := own[key]; inherited[key] || (written && theirs[key] == "") {
			return field.NewPath("metadata", "annotations").Key(key)
		}
		return root.path("metadata").Child("annotations").Key(key)
	}
	h.Inherited = api.Asked(effective) || api.Asked(own)
	return h, true
}

// isRequested reports whether a key asks for something, or looks as if it did.
func isRequested(key string) bool {
	return api.IsOurs(key) && key != api.Status
}

func kindOr(kind string) string {
	if kind == "" {
		return "workload"
	}
	return kind
}

// SameRequest reports whether an update leaves alone everything that a request is read from: both hold the same annotations of
// ours, on the workload and on its template.
func SameRequest(w, old *Workload) bool {
	template, _ := w.template()
	before, _ := old.template()
	if template == nil || before == nil {
		return template == before
	}
	return maps.Equal(requestOf(w.Annotations), requestOf(old.Annotations)) &&
		maps.Equal(requestOf(template.annotations()), requestOf(before.annotations()))
}

func requestOf(annotations map[string]string) map[string]string {
	requested := maps.Clone(annotations)
	maps.DeleteFunc(requested, func(key, _ string) bool { return !isRequested(key) })
	return requested
}

// Operations renders the handover as a JSON Patch of the workload. A handed-down value that its source takes back is the one
// thing that this product ever removes.
func (h *Handover) Operations() []jsonpatch.Operation {
	if len(h.set)+len(h.remove) == 0 {
		return nil
	}
	var w patchWriter
	metadata := h.Subject.Root.Pointer + "/metadata"
	var theirs map[string]string
	if h.Subject.Meta != nil {
		theirs = h.Subject.Meta.Annotations
	} else {
		w.op("add", metadata, struct{}{})
	}
	w.entries(metadata+"/annotations", theirs, h.set)
	for _, key := range h.remove {
		w.op("remove", metadata+"/annotations/"+escape(key), nil)
	}
	return w.ops
}
