package cli

import (
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/cli/manifest"
	"github.com/akv-injector/akv-injector/core/api"
)

// place says what may read the keys of a mapping as labels or annotations.
type place uint8

const (
	// nowhere is a place that is neither read nor copied.
	nowhere place = iota
	// anywhere is a place from which another tool may copy the mapping to any object: the values of
	// a chart, a Kustomization, a custom resource.
	anywhere
)

// walker looks through an object for pod templates, and for keys of the injector that have no effect
// where they are, or are wrong wherever a tool may copy them to. The API server sends most of these
// objects to no webhook, so only the command line can report them.
type walker struct {
	*run

	object *object
	// reviewed is true if the injector reviews the object's kind. Then podTemplate is the path of its
	// pod template; nil for a Pod.
	reviewed    bool
	podTemplate []string
	// tokens are the path from the object to the current value.
	tokens []string
	// home is where the annotations are read that the current value may be meant to have; empty if
	// there is no such place in the object.
	home string
	// templates are the pod templates of a kind that the injector does not review.
	templates []template
	// text is the document inside a string that the walker is in; nil if it is in none.
	text *textInside
	// pair is the path of the text that has tokens as a path; nil if tokens are a path of the
	// object.
	pair []string
}

// template is a pod template.
type template struct {
	at    object
	value map[string]any
}

// textInside is a document inside a string of an object.
type textInside struct {
	*manifest.Document
	// path is that of the string, and line the line of the file, from 1, that its text starts on; 0
	// if the lines of the text are not lines of the file.
	path string
	line int
}

// walk looks through an object. It returns the pod templates of a kind that the injector does not
// review.
func (r *run) walk(o *object) []template {
	w := walker{run: r, object: o, reviewed: o.isReviewed()}
	if o.GetKind() == "" {
		w.visit(o.Object, anywhere)
		return w.templates
	}
	at, meta := anywhere, ofOther
	switch {
	case o.kind() == namespaceKind:
		at, meta, w.home = nowhere, ofNamespace, "metadata.annotations"
	case w.reviewed:
		at, meta, w.home = nowhere, ofPod, "metadata.annotations"
		switch o.kind() {
		case podKind:
		case cronJobKind:
			w.podTemplate = cronPodTemplate
		default:
			w.podTemplate = podTemplate
		}
	}
	_, hasMetadata := o.Object["metadata"]
	isSecret := o.kind() == schema.GroupKind{Kind: "Secret"}
	for key, value := range sorted(o.Object) {
		switch {
		case key == "metadata", key == "status", isSecret: // values of Secrets are not read
		case hasMetadata && (key == "annotations" || key == "labels"): // no object has them here
			w.below(key, value, nowhere)
		default:
			w.below(key, value, at)
		}
	}
	w.checkKeys(o.Object, nowhere)
	if len(w.templates) > 0 && w.home == "" {
		w.home = strings.TrimPrefix(w.templates[0].at.path, o.path) + "metadata.annotations"
	}
	w.visitMetadata(o.Object["metadata"], meta)
	return w.templates
}

// sorted returns the members of a mapping in the order of their keys.
func sorted(mapping map[string]any) iter.Seq2[string, any] {
	return func(yield func(string, any) bool) {
		if len(mapping) == 0 {
			return // there may be very many
		}
		for _, key := range slices.Sorted(maps.Keys(mapping)) {
			if !yield(key, mapping[key]) {
				return
			}
		}
	}
}

// below visits a member or an element of the current value.
func (w *walker) below(token string, value any, at place) {
	w.tokens = append(w.tokens, token)
	w.visit(value, at)
	w.tokens = w.tokens[:len(w.tokens)-1]
}

func (w *walker) visit(value any, at place) {
	switch value := value.(type) {
	case map[string]any:
		switch {
		case w.text == nil && len(w.tokens) > 0 && isObject(value): // it is visited as an object of its own
		case w.isTemplate(value, at):
			w.visitTemplate(value)
		default:
			w.checkKeys(value, at)
			for key, member := range sorted(value) {
				switch {
				case value["kind"] == "Secret" && (key == "data" || key == "stringData"): // values of Secrets are not read
				case key == "metadata" && slices.Equal(w.tokens, jobTemplate) && w.object.kind() == cronJobKind:
					w.visitMetadata(member, ofPod)
				default:
					w.below(key, member, at)
				}
			}
		}
	case []any:
		for i, element := range value {
			w.below(strconv.Itoa(i), element, at)
		}
	case string:
		if at == anywhere {
			w.visitText(value)
		}
	}
}

// Paths in the kinds that the injector reviews.
var (
	jobTemplate     = []string{"spec", "jobTemplate"}
	podTemplate     = []string{"spec", "template"}
	cronPodTemplate = []string{"spec", "jobTemplate", "spec", "template"}
)

// isTemplate reports whether a mapping is a pod template: that of a kind that the injector reviews,
// by its path; any other, by the fields of a pod.
func (w *walker) isTemplate(value map[string]any, at place) bool {
	if w.reviewed {
		return slices.Equal(w.tokens, w.podTemplate)
	}
	if at == nowhere || w.text != nil || w.object.GetKind() == "" || len(w.tokens) == 0 {
		return false
	}
	spec, _ := value["spec"].(map[string]any)
	containers, _ := spec["containers"].([]any)
	_, hasMetadata := value["metadata"].(map[string]any)
	return len(containers) > 0 && (hasMetadata || isNamed(w.tokens, "template")) &&
		!slices.ContainsFunc(containers, func(container any) bool {
			fields, _ := container.(map[string]any)
			name, _ := fields["name"].(string)
			image, _ := fields["image"].(string)
			return name+image == ""
		})
}

// isNamed reports whether the name of a value, or of the list that it is in, ends with a word.
func isNamed(tokens []string, word string) bool {
	return strings.HasSuffix(strings.TrimSuffix(strings.ToLower(nameOf(tokens)), "s"), word)
}

// nameOf returns the last token that is no index.
func nameOf(tokens []string) string {
	for _, token := range slices.Backward(tokens) {
		if _, err := strconv.Atoi(token); err != nil {
			return token
		}
	}
	return ""
}

func (w *walker) visitTemplate(value map[string]any) {
	if !w.reviewed {
		w.templates = append(w.templates, template{w.object.at(w.tokens), value})
	}
	home := w.home
	w.home = fieldPath(w.tokens) + ".metadata.annotations"
	w.checkKeys(value, nowhere)
	for key, member := range sorted(value) {
		if key != "metadata" {
			w.below(key, member, nowhere)
		}
	}
	w.visitMetadata(value["metadata"], ofPod)
	w.home = home
}

// visitMetadata visits the metadata of the object, or of a pod template.
func (w *walker) visitMetadata(value any, of owner) {
	meta, ok := value.(map[string]any)
	if !ok {
		return
	}
	w.tokens = append(w.tokens, "metadata")
	w.checkKeys(meta, nowhere)
	for key, member := range sorted(meta) {
		switch entries, _ := member.(map[string]any); key {
		case "annotations":
			w.checkEntries(key, entries, of, w.annotation)
		case "labels":
			w.checkEntries(key, entries, of, w.label)
		case "managedFields", "ownerReferences":
		default:
			w.below(key, member, nowhere)
		}
	}
	w.tokens = w.tokens[:len(w.tokens)-1]
}

// visitText visits the documents in a string: a patch of a Kustomization, values of a chart in a
// ConfigMap.
func (w *walker) visitText(text string) {
	if w.text != nil || !strings.ContainsAny(text, "\n{") || !mentions(text) {
		return
	}
	path := w.object.path + fieldPath(w.tokens)
	_, line := w.object.document.Block(path)
	for _, d := range manifest.Split(text) {
		var value any
		if d.JSON() == nil || utiljson.Unmarshal(d.JSON(), &value) != nil {
			continue
		}
		inner := walker{run: w.run, object: w.object, text: &textInside{d, path, line}}
		inner.visit(value, anywhere)
	}
}

// mentions reports whether a text may have a key of the injector, or one that is near.
func mentions(text string) bool {
	lower := strings.ToLower(text)
	return strings.Contains(lower, "vault") || strings.Contains(lower, "ident") || strings.Contains(lower, "akv")
}

// report reports a key, or another member, of the current value.
func (w *walker) report(reason api.Reason, key, detail string) {
	w.reportError(api.Because(reason, field.Forbidden(w.pathOf(key), detail)))
}

// reportError reports an error at a path from the object, or from the document in a text, as a
// warning.
func (w *walker) reportError(err *field.Error) {
	path, message := err.Field, err.Error()
	if w.pair != nil {
		path = fieldPath(w.pair)
		message = path + ": " + message
	}
	f := Finding{Severity: Warning, Reason: api.ReasonOf(err), Field: w.object.path + path, Message: w.object.path + message}
	if w.text != nil {
		f.Field, f.Message = w.text.path, w.text.path+": "+message
		f.Line, f.Column = w.text.locate(path, w.object.document.Document)
	}
	w.find(w.object, f)
}

// locate returns the line and column of a path in the file; 0 if they are not known. The string is in
// the outer document.
func (t *textInside) locate(path string, outer *manifest.Document) (line, column int) {
	if t.line == 0 {
		return 0, 0
	}
	inner, column := t.Locate(path)
	line = t.line + inner - 1
	indentation := len(outer.Line(line)) - len(t.Line(inner))
	return line, column + indentation
}
