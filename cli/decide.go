package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"gomodules.xyz/jsonpatch/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
	"github.com/akv-injector/akv-injector/core/review"
)

// run is one review of all files.
type run struct {
	options Options
	// linting is true for [Lint], which prints no manifests.
	linting bool
	// rewrite rewrites an object, for [Adopt] and [Eject], which review nothing; nil for the others.
	rewrite func(ctx context.Context, t *rewritten) error
	// adopting is true for [Adopt].
	adopting bool
	// whole are the classes and AzureKeyVaultSecrets that [Adopt] reads; nil for one that does not
	// exist.
	whole    map[objectID]*unstructured.Unstructured
	files    []*file
	findings findings
	count    count

	manifests facts.Objects
	lookups   *lookups // nil without a cluster
	reviewer  review.Reviewer
	// has are the kinds of which the files have an object in a namespace, and covered are the
	// namespaces that the facts have.
	has     map[kindIn]bool
	covered map[string]bool
	// known are the Namespaces, ServiceAccounts, bindings and classes of the files, which findings
	// about other objects may be about.
	known map[objectID]*object
	// names are the namespaces of those objects, and of the ones of the facts, by kind and name. A
	// binding is under its selector, too.
	names map[named][]string
	// defined is where each object of those kinds, and each annotated pod or workload, is defined.
	defined map[objectID]definition
	// reported has every finding, so that a mistake that many pods share is reported once.
	reported map[Finding]bool
	// classes are the classes that the output has.
	classes map[classIn]bool
}

// review adds the facts, and reviews all documents. Documents are decoded twice, unless there is
// only one, so that only one of them is in memory at a time.
func (r *run) review(ctx context.Context, known []*file) error {
	r.has, r.covered, r.classes = map[kindIn]bool{}, map[string]bool{}, map[classIn]bool{}
	r.known, r.names, r.defined = map[objectID]*object{}, map[named][]string{}, map[objectID]definition{}
	r.reported = map[Finding]bool{}
	r.reviewer = review.Reviewer{Source: &r.manifests, Defaults: r.options.Defaults}
	if r.options.Cluster != nil {
		r.lookups = &lookups{cluster: r.options.Cluster}
		r.reviewer.Source = facts.Overlay(&r.manifests, r.lookups)
	}
	if r.adopting {
		r.reviewer.Source = optedIn{r.reviewer.Source}
		r.whole = map[objectID]*unstructured.Unstructured{}
	}
	if r.options.Level != policy.Off {
		r.reviewer.Source = levelSource{r.reviewer.Source, r.options.Level}
	}
	for _, f := range known {
		for _, d := range f.documents {
			for _, o := range r.objects(f, d) {
				r.addKnown(&o)
				r.addWhole(&o)
			}
			d.Release()
		}
	}
	var objects []object
	for _, f := range r.files {
		for _, d := range f.documents {
			objects = r.objects(f, d)
			for _, o := range objects {
				r.addFacts(&o)
				r.addWhole(&o)
			}
		}
	}
	isOnly := len(r.files) == 1 && len(r.files[0].documents) == 1
	for _, f := range r.files {
		for _, d := range f.documents {
			if !isOnly {
				objects = r.objects(f, d)
			}
			if len(objects) > 0 {
				if err := r.decideDocument(ctx, objects); err != nil {
					return err
				}
			}
			if d.Duplicate() != nil && !d.affected {
				severity := Warning
				if isList(d) && mentionsOurs(d.Text()) { // the key may hide items
					severity = Error
				}
				r.reportDuplicate(&object{file: f, document: d}, severity)
			}
			d.Release()
		}
	}
	return nil
}

// mentionsOurs reports whether a text has one of our prefixes.
func mentionsOurs(text string) bool {
	return strings.Contains(text, api.KeyVaultPrefix) || strings.Contains(text, api.IdentityPrefix)
}

// isList reports whether a document is a list of objects.
func isList(d *document) bool {
	var root metav1.TypeMeta
	return d.JSON() != nil &&
		json.Unmarshal(d.JSON(), &root, jsontext.AllowDuplicateNames(true)) == nil &&
		strings.HasSuffix(root.Kind, "List")
}

// decideDocument reviews the objects of a document and patches the document.
func (r *run) decideDocument(ctx context.Context, objects []object) error {
	d := objects[0].document
	d.title = title(objects[0].Unstructured)
	for i := range objects {
		if objects[i].GetKind() != "" {
			r.count.objects++
		}
	}
	if d.Duplicate() != nil && slices.ContainsFunc(objects, func(o object) bool { return o.affectsVerdict() }) {
		r.reportDuplicate(&objects[0], Error)
		return nil
	}
	var operations []jsonpatch.Operation
	var items []jsonpatch.Operation
	for i := range objects {
		o := &objects[i]
		if !r.checkVersion(o) || !r.checkNulls(o, o.Object) {
			continue
		}
		ops, classes, err := r.decideWhole(ctx, o)
		if err != nil {
			return err
		}
		if len(operations) == 0 && len(ops) > 0 {
			d.title = title(o.Unstructured)
		}
		operations = append(operations, ops...)
		if r.options.SkipClasses || r.linting {
			continue
		}
		for _, spc := range classes {
			key := classIn{spc.Name, o.GetNamespace()}
			if r.classes[key] {
				continue
			}
			r.classes[key] = true
			spc.Namespace = key.namespace
			value, err := runtime.DefaultUnstructuredConverter.ToUnstructured(spc)
			if err != nil {
				return fmt.Errorf("print class: %w", err)
			}
			if o.list {
				end := o.pointer[:strings.LastIndexByte(o.pointer, '/')] + "/-"
				items = append(items, jsonpatch.Operation{Operation: "add", Path: end, Value: value})
				continue
			}
			text, err := d.Print(value)
			if err != nil {
				return err
			}
			d.more = append(d.more, text)
		}
	}
	if len(operations) > 0 && d.Duplicate() != nil {
		r.reportDuplicate(&objects[0], Error)
		operations, items = nil, nil
	}
	if r.linting || len(operations)+len(items) == 0 {
		return nil
	}
	patched, dropped, err := d.Patch(append(operations, items...))
	if err != nil {
		r.unreadable(&objects[0], "", "cannot be patched: "+err.Error())
	} else {
		d.patched = patched
	}
	if dropped {
		r.find(&objects[0], Finding{Severity: Warning, Message: "comments were dropped to keep the document's meaning"})
	}
	return nil
}

// decideWhole reviews or rewrites an object with its pod templates. It returns the patch of the
// document, and the classes to add.
func (r *run) decideWhole(ctx context.Context, o *object) ([]jsonpatch.Operation, []*class.SecretProviderClass, error) {
	if r.rewrite != nil {
		var operations []jsonpatch.Operation
		var classes []*class.SecretProviderClass
		for _, t := range r.rewritable(o) {
			if !r.isReadable(&t) {
				continue
			}
			if err := r.rewrite(ctx, &t); err != nil {
				return nil, nil, err
			}
			operations, classes = append(operations, prefixed(t.operations, t.pointer)...), append(classes, t.classes...)
		}
		return operations, classes, nil
	}
	templates := r.walk(o)
	if o.kind() == namespaceKind {
		r.checkNamespace(o)
	}
	for _, t := range templates {
		if err := r.decideTemplate(ctx, &t); err != nil {
			return nil, nil, err
		}
	}
	if !o.isReviewed() {
		return nil, nil, nil
	}
	operations, classes, err := r.decideObject(ctx, o)
	if o.inside {
		return nil, nil, err
	}
	return operations, classes, err
}

// reportDuplicate reports a duplicate key of a document.
func (r *run) reportDuplicate(o *object, severity Severity) {
	p := o.document.Duplicate()
	o.document.affected = severity == Error
	r.findings = append(r.findings, Finding{
		File:       o.file.name,
		Source:     o.document.source,
		Line:       p.Line,
		Column:     p.Column,
		Document:   o.document.number,
		Severity:   severity,
		Message:    p.Detail,
		unreadable: severity == Error,
	})
}

// title returns the kind and the name of an object.
func title(o *unstructured.Unstructured) string {
	return strings.TrimSpace(o.GetKind() + " " + name(o))
}

// name returns the name of an object, or its generateName; empty for what is not an object.
func name(o *unstructured.Unstructured) string {
	switch {
	case o.GetKind() == "":
		return ""
	case o.GetName() == "":
		return o.GetGenerateName()
	}
	return o.GetName()
}

// decideObject reviews a pod or a workload. It returns the patch of the document, and the managed
// classes that the pods mount. It returns nothing if the object is rejected.
func (r *run) decideObject(
	ctx context.Context, o *object,
) ([]jsonpatch.Operation, []*class.SecretProviderClass, error) {
	if o.kind() == podKind {
		var pod pods.Pod
		if !r.decode(o, o.Object, &pod) {
			return nil, nil, nil
		}
		subject := pods.SubjectOf(&pod)
		// A mirror pod from a cluster has a Node as its controller.
		subject.ByNode = pod.Meta != nil && pod.Meta.Controller != nil && pod.Meta.Controller.Kind == "Node"
		change, classes, err := r.decide(ctx, o, subject, nil)
		return prefixed(change, o.pointer), classes, err
	}
	var w pods.Workload
	if !r.decode(o, o.Object, &w) {
		return nil, nil, nil
	}
	handover, ok := inject.HandDown(&w)
	if !ok {
		r.warnControlled(o, &w)
		return nil, nil, nil
	}
	change, classes, err := r.decide(ctx, o, handover.Subject, &handover)
	return prefixed(change, o.pointer), classes, err
}

// decideTemplate reviews a pod template of a kind that the injector does not review. The webhook
// reviews its pods.
func (r *run) decideTemplate(ctx context.Context, t *template) error {
	var pod pods.Pod
	if !r.checkNulls(&t.at, t.value) || !r.decode(&t.at, t.value, &pod) {
		return nil
	}
	_, _, err := r.decide(ctx, &t.at, pods.SubjectOf(&pod), nil)
	return err
}

// decode decodes a pod or a workload. It returns false, and reports why, if it cannot be decoded.
func (r *run) decode(o *object, value map[string]any, into interface{ Read(r *jsonstream.Reader) }) bool {
	text, err := json.Marshal(value)
	if err != nil {
		r.unreadable(o, "", err.Error())
		return false
	}
	err = pods.Decode(text, into)
	if !errors.Is(err, jsonstream.ErrTooLarge) {
		if err := checkTypes(o, text); err != nil { // it checks more fields
			r.undecodable(o, err)
			return false
		}
	}
	if err != nil {
		r.unreadable(o, "", err.Error())
		return false
	}
	return true
}

// decide reviews a pod, or the pods of a workload if handover is not nil. It returns the patch of
// the object and the managed classes; nothing if the object is rejected.
func (r *run) decide(
	ctx context.Context, o *object, subject pods.Subject, handover *inject.Handover,
) ([]jsonpatch.Operation, []*class.SecretProviderClass, error) {
	r.count.pods++
	asked := api.Asked(subject.Annotations)
	if asked {
		r.count.asking++
		r.warnExcluded(o, o.path+annotationsOf(&subject), r.namespaceOf(o))
	}
	if r.lookups != nil {
		r.lookups.denied = nil
	}
	result, err := r.reviewer.Inject(ctx, subject, r.namespaceOf(o))
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %s: %w", o.file.name, title(o.Unstructured), err)
	}
	errs, warnings := result.AllErrors(), result.Warnings
	if len(errs) == 0 { // otherwise there will be no pod
		verdict, err := r.reviewer.Policy(ctx, subject, &result, r.namespaceOf(o))
		if err != nil {
			return nil, nil, fmt.Errorf("%s: %s: %w", o.file.name, title(o.Unstructured), err)
		}
		errs, warnings = verdict.Errors, append(slices.Clip(warnings), verdict.Warnings...)
	}
	r.reportDenied(o, &subject)
	r.warnNoNamespace(o, errs)
	r.report(o, Error, errs)
	if handover != nil {
		r.report(o, Warning, handover.Warnings)
	}
	r.report(o, Warning, warnings)
	if result.NotOptedIn && len(result.Warnings) == 0 && asked {
		if err := r.warnNotOptedIn(ctx, o, &subject); err != nil {
			return nil, nil, err
		}
	}
	if len(errs) > 0 || result.NotOptedIn {
		return nil, nil, nil
	}
	var operations []jsonpatch.Operation
	if handover != nil {
		operations, subject.Pod = handover.Operations(nil), handover.Template()
	}
	if !r.hasSpec(o, o.Object, &subject, &result.Change) {
		return nil, nil, nil
	}
	return append(operations, result.Change.Operations(&subject)...), result.Classes, nil
}

// hasSpec reports whether the pod in an object has the spec that a change needs, and reports its lack.
func (r *run) hasSpec(o *object, value map[string]any, subject *pods.Subject, change *inject.Change) bool {
	if len(change.Volumes) == 0 && change.ServiceAccountName == "" || has(value, subject.Root.Pointer+"/spec") {
		return true
	}
	at := strings.ReplaceAll(strings.TrimPrefix(subject.Root.Pointer+"/spec", "/"), "/", ".")
	r.find(o, Finding{Severity: Error, Field: o.path + at, Message: at + ": Required value: must have containers"})
	return false
}

// annotationsOf returns the path of the annotations that the first key of ours is in.
func annotationsOf(subject *pods.Subject) string {
	first := ""
	for key := range subject.Annotations {
		if api.IsOurs(key) && (first == "" || key < first) {
			first = key
		}
	}
	return strings.TrimSuffix(subject.AnnotationPathOf(first).String(), "["+first+"]")
}

// has reports whether an object has a field, given by a JSON Pointer.
func has(object map[string]any, pointer string) bool {
	value, found, err := unstructured.NestedFieldNoCopy(object, strings.Split(pointer, "/")[1:]...)
	return err == nil && found && value != nil
}

// warnControlled warns of annotations of a workload that has a controller: its template is not
// changed. It does not warn of a ReplicaSet of a Deployment or a Job of a CronJob, which get their
// templates with the annotations.
func (r *run) warnControlled(o *object, w *pods.Workload) {
	owner := w.Meta.Controller
	if owner == nil || owner.Kind == "Deployment" || owner.Kind == "CronJob" || !api.Asked(w.Meta.Annotations) {
		return
	}
	detail := fmt.Sprintf("has no effect on a %s that %s %s controls; set the annotations in the pod template of its controller",
		o.GetKind(), owner.Kind, api.Echo(owner.Name))
	err := api.Because(api.NoEffect, field.Forbidden(field.NewPath("metadata", "annotations"), detail))
	r.report(o, Warning, field.ErrorList{err})
}

// prefixed adds the pointer of an object in its document to the paths of operations on the object.
func prefixed(operations []jsonpatch.Operation, pointer string) []jsonpatch.Operation {
	for i := range operations {
		operations[i].Path = pointer + operations[i].Path
	}
	return operations
}

// report adds errors of the core as findings.
func (r *run) report(o *object, severity Severity, errs field.ErrorList) {
	for _, err := range errs {
		reason := api.ReasonOf(err)
		if r.isUnknown(reason) {
			continue
		}
		own := *err
		if severity == Error || reason == api.IdentityNotBound {
			own.Detail += r.hint(reason, r.namespaceOf(o), own.BadValue)
		}
		about, path := r.resolve(o, own.Field)
		own.Field = path
		r.find(about, Finding{Severity: severity, Reason: reason, Field: path, Message: own.Error()})
	}
}

// resolve returns the object that a path of the core is about, and the path in its document. A path
// such as namespaces[NAME].metadata is about a Namespace in the manifests. If the manifests do not
// have it, resolve returns the reviewed object and the unchanged path.
func (r *run) resolve(o *object, path string) (*object, string) {
	resource, rest, _ := strings.Cut(path, "[")
	name, rest, _ := strings.Cut(rest, "].")
	var about *object
	switch resource {
	case "namespaces":
		about = r.known[objectID{namespaceKind.Kind, "", name}]
	case "serviceaccounts":
		about = r.known[objectID{serviceAccountKind.Kind, r.namespaceOf(o), name}]
	default:
		return o, o.path + path
	}
	if about == nil {
		return o, path
	}
	return about, about.path + rest
}

// warnNotOptedIn warns of annotations without effect, since the namespace did not opt in.
func (r *run) warnNotOptedIn(ctx context.Context, o *object, subject *pods.Subject) error {
	name := r.namespaceOf(o)
	namespace, err := r.reviewer.Source.Namespace(ctx, name, false)
	if err != nil {
		return err
	}
	labels := namespace.Labels
	about := r.known[objectID{namespaceKind.Kind, "", name}]
	if about != nil {
		labels = about.GetLabels() // all of them
		r.warnNoLabel(about)
	}
	why := fmt.Sprintf("which lacks label %s%s; run: %s", api.Injection, nearLabel(labels), labelCommand(name))
	if value, labelled := labels[api.Injection]; labelled {
		why = fmt.Sprintf("which has label %s: %s; set it to %s", api.Injection, api.Echo(value), api.InjectionEnabled)
	}
	path := o.path + annotationsOf(subject)
	r.warnNoNamespace(o, field.ErrorList{api.Because(api.VaultRequired, &field.Error{})})
	r.find(o, Finding{
		Severity: Warning, Reason: api.NoEffect, Field: path,
		Message: fmt.Sprintf("%s: Forbidden: has no effect in namespace %s, %s", path, name, why),
	})
	return nil
}

// find adds a finding about an object, with its position unless it has one. It adds each finding
// only once.
func (r *run) find(o *object, f Finding) {
	f.File, f.Source, f.Document = o.file.name, o.document.source, o.document.number
	f.Kind, f.Name = o.GetKind(), name(o.Unstructured)
	if f.Kind != "" && o.kind() != namespaceKind {
		f.Namespace = r.namespaceOf(o)
	}
	path := f.Field
	if path == "" {
		path = strings.TrimSuffix(o.path, ".")
	}
	if f.Line == 0 {
		f.Line, f.Column = o.locate(path)
	}
	if !r.reported[f] {
		r.reported[f] = true
		r.findings = append(r.findings, f)
	}
}
