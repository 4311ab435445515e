package inject

import (
	"maps"

	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
)

// template returns a workload's pod template and its location; nil if the workload has none.
func template(w *pods.Workload) (*pods.Pod, pods.Root) {
	if w.JobTemplate != nil {
		return w.JobTemplate, pods.CronJobRoot
	}
	return w.Template, pods.TemplateRoot
}

// ownAnnotations returns the annotations of a workload itself. For a CronJob, those of its
// jobTemplate override them.
func ownAnnotations(w *pods.Workload) map[string]string {
	if len(w.JobAnnotations) == 0 {
		return w.Meta.Annotations
	}
	own := make(map[string]string, len(w.Meta.Annotations)+len(w.JobAnnotations))
	maps.Copy(own, w.Meta.Annotations)
	maps.Copy(own, w.JobAnnotations)
	return own
}

// ownPath returns where an annotation of a workload itself was written.
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

// Handover is what a pod template inherits from the annotations of its workload.
type Handover struct {
	// Subject is the template with the annotations that are effective for its pods.
	Subject pods.Subject
	// Inherited is the value that the template's annotation [api.Inherited] must have; empty if the
	// template must not have it.
	Inherited string
	// Warnings name the annotations that the workload and its template have with different values.
	Warnings field.ErrorList
	// Requested is true if the workload or its template requests anything.
	Requested bool

	workload *pods.Workload
}

// HandDown computes what the pods of w inherit from its annotations. The result does not depend on
// what the template inherited before. It returns false if w has no template, or if w has a
// controller: the controller wrote the template, and would revert any change.
func HandDown(w *pods.Workload) (Handover, bool) {
	template, root := template(w)
	if template == nil || w.Meta.Controller != nil {
		return Handover{}, false
	}
	own, theirs := ownAnnotations(w), annotationsOf(template)
	h := Handover{
		Subject:   pods.Subject{Pod: template, Root: root, ClaimTemplates: w.ClaimTemplates},
		Inherited: api.FormatInherited(own),
		workload:  w,
	}
	effective := make(map[string]string, len(own)+len(theirs))
	for key, value := range own {
		// An unknown key and one that belongs on the ServiceAccount stay, so that they are reported.
		if api.IsOurs(key) && key != api.Status && key != api.RestartedFor || key == api.WorkloadIdentityClientID {
			effective[key] = value
		}
	}
	for key, value := range theirs {
		if key != api.Inherited {
			effective[key] = value
		}
	}
	for i := range api.Keys {
		key := api.Keys[i].Name
		value, inherits := own[key]
		current, has := theirs[key]
		if api.IsRequestKey(key) && inherits && has && value != current {
			path := root.Child("metadata", "annotations").Key(key)
			detail := "is the template's own value and was kept; the " + kindOr(w.Kind) + " has another value: " +
				"write the annotation in only one of the two places"
			h.Warnings = append(h.Warnings, api.Because(api.TemplateDiffers, field.Invalid(path, api.Echo(current), detail)))
		}
	}
	h.Subject.Annotations = effective
	h.Subject.AnnotationPath = func(key string) *field.Path {
		_, inherits := own[key]
		if _, has := theirs[key]; inherits && !has || key == api.Inherited {
			return ownPath(w, key)
		}
		return nil
	}
	h.Requested = api.Asked(effective)
	return h, true
}

func kindOr(kind string) string {
	if kind == "" {
		return "workload"
	}
	return kind
}

// SameRequest reports whether an update changes no annotation of the request, in the workload and
// in its template. Annotations that the injector writes do not count.
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
	maps.DeleteFunc(requested, func(key, _ string) bool { return !api.IsOurs(key) || api.IsWritten(key) })
	return requested
}

// Operations renders a JSON Patch of the workload: its template inherits what the handover has, and
// the annotations [api.RestartedFor] are those that an update of old keeps. Old is nil for a new
// workload. Operations returns nil if nothing changes.
func (h *Handover) Operations(old *pods.Workload) []jsonpatch.Operation {
	return annotate(h.workload, old, h.Inherited)
}

// IsInherited reports whether the template already inherits what the handover has.
func (h *Handover) IsInherited() bool {
	return len(annotate(h.workload, h.workload, h.Inherited)) == 0
}

// Template returns a copy of the template with what it inherits.
func (h *Handover) Template() *pods.Pod {
	template, meta := *h.Subject.Pod, pods.Meta{}
	if template.Meta != nil {
		meta = *template.Meta
	}
	meta.Annotations = maps.Clone(meta.Annotations)
	delete(meta.Annotations, api.Inherited)
	if h.Inherited != "" {
		if meta.Annotations == nil {
			meta.Annotations = map[string]string{}
		}
		meta.Annotations[api.Inherited], meta.HasAnnotations = h.Inherited, true
	}
	template.Meta = &meta
	return &template
}

// Restore renders a JSON Patch that sets the template's annotation [api.Inherited] to that of old, if
// old has it, and the annotations [api.RestartedFor] as [Handover.Operations] does. Many clients send
// an update without these annotations, and the template of a Job is immutable.
func Restore(w, old *pods.Workload) []jsonpatch.Operation {
	now, _ := template(w)
	before, _ := template(old)
	if now == nil || before == nil {
		return nil
	}
	inherited := annotationsOf(before)[api.Inherited]
	if inherited == "" {
		inherited = annotationsOf(now)[api.Inherited]
	}
	return annotate(w, old, inherited)
}

// annotate renders a JSON Patch that sets the annotations that the injector writes.
func annotate(w, old *pods.Workload, inherited string) []jsonpatch.Operation {
	template, root := template(w)
	restarted, ofTemplate := restartedFor(w, old)
	writer := newPatchWriter(4)
	writer.annotations("/metadata", &w.Meta, Entry{api.RestartedFor, restarted})
	writer.annotations(root.Pointer+"/metadata", template.Meta,
		Entry{api.Inherited, inherited}, Entry{api.RestartedFor, ofTemplate})
	return writer.ops
}

// restartedFor returns the annotations [api.RestartedFor] that a workload and its template must have;
// empty for none. Only rotation changes them: it sets the workload's own, and at the same time that
// of the template or not. Any other update keeps those of old, since the new value of the template
// would restart the pods: the annotations that an update omits, and those of the revision to which
// kubectl rollout undo returns.
func restartedFor(w, old *pods.Workload) (own, ofTemplate string) {
	if old == nil {
		return "", ""
	}
	now, _ := template(w)
	before, _ := template(old)
	own, ofTemplate = w.Meta.Annotations[api.RestartedFor], annotationsOf(now)[api.RestartedFor]
	oldOwn, oldOfTemplate := old.Meta.Annotations[api.RestartedFor], ""
	if before != nil {
		oldOfTemplate = annotationsOf(before)[api.RestartedFor]
	}
	if own != "" && own != oldOwn && (ofTemplate == own || ofTemplate == oldOfTemplate) {
		return own, ofTemplate
	}
	return oldOwn, oldOfTemplate
}

// annotations sets annotations of an object at pointer, and removes those with an empty value. Meta is
// nil if the object has no metadata.
func (w *patchWriter) annotations(pointer string, meta *pods.Meta, wanted ...Entry) {
	var set []Entry
	for _, entry := range wanted {
		var current string
		var has bool
		if meta != nil {
			current, has = meta.Annotations[entry.Key]
		}
		switch {
		case entry.Value == "" && has:
			w.op("remove", pointer+"/annotations/"+escape(entry.Key), nil)
		case entry.Value != "" && current != entry.Value:
			set = append(set, entry)
		}
	}
	if len(set) == 0 {
		return
	}
	if meta == nil {
		w.op("add", pointer, object{})
		meta = &pods.Meta{}
	}
	w.entries(pointer+"/annotations", meta.HasAnnotations, meta.Annotations, set)
}
