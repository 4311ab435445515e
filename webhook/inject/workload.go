package inject

import (
	"maps"

	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// template is a workload's pod template and where it sits; nil where the workload has none.
func template(w *pods.Workload) (*pods.Pod, Root) {
	if w.JobTemplate != nil {
		return w.JobTemplate, CronJobRoot
	}
	return w.Template, TemplateRoot
}

// ownAnnotations are those of a workload itself; of a CronJob also those of its Jobs, which win.
func ownAnnotations(w *pods.Workload) map[string]string {
	if len(w.JobAnnotations) == 0 {
		return w.Meta.Annotations
	}
	own := make(map[string]string, len(w.Meta.Annotations)+len(w.JobAnnotations))
	maps.Copy(own, w.Meta.Annotations)
	maps.Copy(own, w.JobAnnotations)
	return own
}

// ownPath is where an annotation of a workload itself was written.
func ownPath(w *pods.Workload, key string) *field.Path {
	if _, ofJobs := w.JobAnnotations[key]; ofJobs {
		return field.NewPath("spec", "jobTemplate", "metadata", "annotations").Key(key)
	}
	return field.NewPath("metadata", "annotations").Key(key)
}

func annotationsOf(template *pods.Pod) map[string]string {
	if template.Meta == nil {
		return nil
	}
	return template.Meta.Annotations
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
func HandDown(w, old *pods.Workload) (Handover, bool) {
	template, root := template(w)
	if template == nil || (w.Kind == "ReplicaSet" && w.Meta.Controller != nil) {
		return Handover{}, false
	}
	var before map[string]string
	if old != nil {
		before = ownAnnotations(old)
	}
	own, theirs := ownAnnotations(w), annotationsOf(template)
	h := Handover{Subject: Subject{Pod: template, Root: root, Claims: w.Claims}}
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
			return ownPath(w, key)
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
func SameRequest(w, old *pods.Workload) bool {
	now, _ := template(w)
	before, _ := template(old)
	if now == nil || before == nil {
		return now == before
	}
	return maps.Equal(requestOf(ownAnnotations(w)), requestOf(ownAnnotations(old))) &&
		maps.Equal(requestOf(annotationsOf(now)), requestOf(annotationsOf(before)))
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
	w := newPatchWriter(1 + len(h.set) + len(h.remove))
	metadata := h.Subject.Root.Pointer + "/metadata"
	meta := h.Subject.Meta
	if meta == nil {
		meta = &pods.Meta{}
		w.op("add", metadata, object{})
	}
	w.entries(metadata+"/annotations", meta.HasAnnotations, meta.Annotations, h.set)
	for _, key := range h.remove {
		w.op("remove", metadata+"/annotations/"+escape(key), nil)
	}
	return w.ops
}
