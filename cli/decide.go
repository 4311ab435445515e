package cli

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"
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
	options  Options
	files    []*file
	findings findings

	manifests facts.Objects
	reviewer  review.Reviewer
	has       map[kindIn]bool
	// known are the objects that a finding about another object may be about: Namespaces,
	// ServiceAccounts, bindings and classes.
	known map[objectID]*object
	// reported has every finding, so that a mistake that many pods share is reported once.
	reported map[Finding]bool
	// classes are the classes that the output has.
	classes map[classIn]bool
}

type kindIn struct{ kind, namespace string }

// objectID identifies an object. The namespace of a Namespace is empty.
type objectID struct{ kind, namespace, name string }

// classIn is a class and the namespace that its manifest names; empty if the manifest names none.
type classIn struct{ name, namespace string }

// object is one object of a document: the whole document, or an item of a List.
type object struct {
	file     *file
	document *document
	// pointer and path are the location of the object in its document; empty if it is the whole
	// document.
	pointer, path string
	*unstructured.Unstructured
	// list is true for an item of a List that may have objects of any kind.
	list bool
}

var (
	podKind            = schema.GroupKind{Kind: "Pod"}
	namespaceKind      = schema.GroupKind{Kind: "Namespace"}
	serviceAccountKind = schema.GroupKind{Kind: "ServiceAccount"}
	classKind          = schema.GroupKind{Group: class.GroupVersion.Group, Kind: class.Kind}
	bindingKind        = schema.GroupKind{Group: "aadpodidentity.k8s.io", Kind: "AzureIdentityBinding"}
	workloadKinds      = map[schema.GroupKind]bool{
		{Group: "apps", Kind: "Deployment"}:  true,
		{Group: "apps", Kind: "StatefulSet"}: true,
		{Group: "apps", Kind: "DaemonSet"}:   true,
		{Group: "apps", Kind: "ReplicaSet"}:  true,
		{Group: "batch", Kind: "Job"}:        true,
		{Group: "batch", Kind: "CronJob"}:    true,
	}
)

// decide reviews all documents.
func (r *run) review(ctx context.Context) error {
	r.has, r.classes = map[kindIn]bool{}, map[classIn]bool{}
	r.known, r.reported = map[objectID]*object{}, map[Finding]bool{}
	r.reviewer = review.Reviewer{Source: &r.manifests, Defaults: r.options.Defaults}
	if r.options.Cluster != nil {
		r.reviewer.Source = facts.Overlay(&r.manifests, r.options.Cluster)
	}
	if r.options.Level != policy.Off {
		r.reviewer.Source = levelSource{r.reviewer.Source, r.options.Level}
	}
	var objects [][]object
	for _, f := range r.files {
		for _, d := range f.documents {
			in := r.objects(f, d)
			for i := range in {
				r.addFacts(&in[i])
			}
			objects = append(objects, in)
		}
	}
	for _, in := range objects {
		if len(in) == 0 {
			continue
		}
		if err := r.decideDocument(ctx, in); err != nil {
			return err
		}
	}
	for _, f := range r.files {
		for _, d := range f.documents {
			if d.Duplicate() == nil || d.affected {
				continue
			}
			severity := Warning
			if isList(d) && mentionsOurs(d.Text()) { // the key may hide items
				severity = Error
			}
			r.reportDuplicate(&object{file: f, document: d}, severity)
		}
	}
	return nil
}

// objects returns the objects of a document. It skips values that are not Kubernetes objects: a
// directory may have other files.
func (r *run) objects(f *file, d *document) []object {
	var value map[string]any
	if d.JSON() == nil || utiljson.Unmarshal(d.JSON(), &value) != nil {
		return nil
	}
	root := object{file: f, document: d, Unstructured: &unstructured.Unstructured{Object: value}}
	return root.expand(nil)
}

// expand appends the object, or the items of a List, to a list.
func (o object) expand(to []object) []object {
	items, isList := o.Object["items"].([]any)
	if !isList || !strings.HasSuffix(o.GetKind(), "List") {
		if o.GetKind() == "" {
			return to
		}
		return append(to, o)
	}
	for i, item := range items {
		value, ok := item.(map[string]any)
		if !ok {
			continue
		}
		child := object{
			file: o.file, document: o.document, list: o.takesAnyKind(),
			pointer: o.pointer + "/items/" + strconv.Itoa(i), path: o.path + "items[" + strconv.Itoa(i) + "].",
			Unstructured: &unstructured.Unstructured{Object: value},
		}
		if kind := strings.TrimSuffix(o.GetKind(), "List"); child.GetKind() == "" && !o.takesAnyKind() {
			child.SetKind(kind)
			child.SetAPIVersion(o.GetAPIVersion())
		}
		to = child.expand(to)
	}
	return to
}

// takesAnyKind reports whether the object is a list of objects of any kind: a List, or the
// ResourceList that kustomize and kpt pass to a function.
func (o object) takesAnyKind() bool {
	return o.GetKind() == "List" || o.GetKind() == "ResourceList"
}

// affectsVerdict reports whether a verdict may depend on the object.
func (o object) affectsVerdict() bool {
	switch kind := o.GroupVersionKind().GroupKind(); kind {
	case namespaceKind, serviceAccountKind, classKind, bindingKind:
		return true
	default:
		return (kind == podKind || workloadKinds[kind]) && mentionsOurs(o.document.Text()) // the text also has what a later duplicate key hides
	}
}

// mentionsOurs reports whether a text has one of our prefixes.
func mentionsOurs(text string) bool {
	return strings.Contains(text, api.KeyVaultPrefix) || strings.Contains(text, api.IdentityPrefix)
}

// isList reports whether a document is a list of objects.
func isList(d *document) bool {
	var root metav1.TypeMeta
	return d.JSON() != nil && json.Unmarshal(d.JSON(), &root, jsontext.AllowDuplicateNames(true)) == nil && strings.HasSuffix(root.Kind, "List")
}

// namespaceOf returns the namespace where the object would be created.
func (r *run) namespaceOf(o *object) string {
	if namespace := o.GetNamespace(); namespace != "" {
		return namespace
	}
	return r.options.Namespace
}

// addFacts adds an object to the facts of the manifests.
func (r *run) addFacts(o *object) {
	if err := r.manifests.Add(o.Unstructured, r.options.Namespace); err != nil {
		r.reportClass(o, err)
	}
	r.has[kindIn{o.GetKind(), r.namespaceOf(o)}] = true
	id := objectID{o.GetKind(), r.namespaceOf(o), o.GetName()}
	switch o.GroupVersionKind().GroupKind() {
	case namespaceKind:
		id.namespace = ""
	case serviceAccountKind, bindingKind:
	case classKind:
		r.classes[classIn{o.GetName(), o.GetNamespace()}] = true
	default:
		return
	}
	if first := r.known[id]; first != nil {
		r.find(o, Finding{Severity: Warning, Message: fmt.Sprintf(
			"is also defined in %s, document %d; this definition is used, since it is the last: remove one of the two, or check these files separately",
			first.file.name, first.document.number)})
	}
	r.known[id] = o
}

// reportClass reports the field of a class that has the wrong type.
func (r *run) reportClass(o *object, err error) {
	text, printErr := json.Marshal(o.Object)
	if printErr != nil {
		r.unreadable(o, "", err.Error())
		return
	}
	if decodeErr := json.Unmarshal(text, &class.SecretProviderClass{}); decodeErr != nil { // this error has the field
		err = decodeErr
	}
	r.undecodable(o, err)
}

// decideDocument reviews the objects of a document and patches the document.
func (r *run) decideDocument(ctx context.Context, objects []object) error {
	d := objects[0].document
	d.title = title(objects[0].Unstructured)
	if d.Duplicate() != nil && slices.ContainsFunc(objects, func(o object) bool { return o.affectsVerdict() }) {
		r.reportDuplicate(&objects[0], Error)
		return nil
	}
	var operations []jsonpatch.Operation
	var items []jsonpatch.Operation
	for i := range objects {
		o := &objects[i]
		if !r.checkVersion(o) || !r.checkNulls(o) {
			continue
		}
		r.checkKeys(o)
		kind := o.GroupVersionKind().GroupKind()
		if kind == namespaceKind {
			r.checkNamespace(o)
		}
		if kind != podKind && !workloadKinds[kind] {
			continue
		}
		ops, classes, err := r.decideObject(ctx, o)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", o.file.name, title(o.Unstructured), err)
		}
		if len(operations) == 0 && len(ops) > 0 {
			d.title = title(o.Unstructured)
		}
		operations = append(operations, ops...)
		if r.options.SkipClasses {
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
				items = append(items, jsonpatch.Operation{Operation: "add", Path: o.pointer[:strings.LastIndexByte(o.pointer, '/')] + "/-", Value: value})
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
	patched, dropped, err := d.Patch(append(operations, items...))
	if err != nil {
		r.unreadable(&objects[0], "", "cannot be patched: "+err.Error())
	} else {
		d.patched = patched
	}
	if dropped {
		r.find(&objects[0], Finding{Severity: Warning, Message: "comments were dropped to keep the document's meaning", aboutOutput: true})
	}
	return nil
}

// reportDuplicate reports a duplicate key of a document.
func (r *run) reportDuplicate(o *object, severity Severity) {
	p := o.document.Duplicate()
	o.document.affected = severity == Error
	r.findings = append(r.findings, Finding{
		File: o.file.name, Line: p.Line, Column: p.Column, Document: o.document.number, Severity: severity, Message: p.Detail, unreadable: severity == Error,
	})
}

// title returns the kind and the name of an object.
func title(o *unstructured.Unstructured) string {
	return strings.TrimSpace(o.GetKind() + " " + name(o))
}

// name returns the name of an object, or its generateName.
func name(o *unstructured.Unstructured) string {
	if o.GetName() == "" {
		return o.GetGenerateName()
	}
	return o.GetName()
}

// decideObject reviews a pod or a workload. It returns the patch of the document, and the managed
// classes that the pods mount. It returns nothing if the object is rejected.
func (r *run) decideObject(ctx context.Context, o *object) ([]jsonpatch.Operation, []*class.SecretProviderClass, error) {
	text, err := json.Marshal(o.Object)
	if err != nil {
		return nil, nil, fmt.Errorf("print object: %w", err)
	}
	var pod pods.Pod
	var w pods.Workload
	isPod := o.GetKind() == podKind.Kind
	if isPod {
		err = pods.Decode(text, &pod)
	} else {
		err = pods.Decode(text, &w)
	}
	if !errors.Is(err, jsonstream.ErrTooLarge) {
		if err := checkTypes(o.GetKind(), text); err != nil { // it checks more fields
			r.undecodable(o, err)
			return nil, nil, nil
		}
	}
	if err != nil {
		r.unreadable(o, "", err.Error())
		return nil, nil, nil
	}
	var subject pods.Subject
	var operations []jsonpatch.Operation
	var kept field.ErrorList
	var template *pods.Pod // the pod template of a workload, with what it inherits
	if isPod {
		subject = pods.SubjectOf(&pod)
		// A mirror pod from a cluster has a Node as its controller.
		subject.ByNode = pod.Meta != nil && pod.Meta.Controller != nil && pod.Meta.Controller.Kind == "Node"
	} else {
		handover, ok := inject.HandDown(&w)
		if !ok {
			r.warnControlled(o, &w)
			return nil, nil, nil
		}
		subject, operations, kept, template = handover.Subject, handover.Operations(), handover.Warnings, handover.Template()
	}
	result, err := r.reviewer.Inject(ctx, subject, r.namespaceOf(o))
	if err != nil {
		return nil, nil, err
	}
	if result.NotOptedIn {
		r.report(o, Warning, result.Warnings)
		if len(result.Warnings) == 0 && api.Asked(subject.Annotations) {
			if err := r.warnNotOptedIn(ctx, o); err != nil {
				return nil, nil, err
			}
		}
		_, err := r.policy(ctx, o, subject, &result)
		return nil, nil, err
	}
	r.report(o, Error, result.AllErrors())
	r.report(o, Warning, kept)
	r.report(o, Warning, result.Warnings)
	if len(result.AllErrors()) > 0 {
		return nil, nil, nil
	}
	if allowed, err := r.policy(ctx, o, subject, &result); err != nil || !allowed {
		return nil, nil, err
	}
	if template != nil {
		subject.Pod = template
	}
	if change := &result.Change; (len(change.Volumes) > 0 || change.ServiceAccountName != "") && !has(o.Object, subject.Root.Pointer+"/spec") {
		at := strings.ReplaceAll(strings.TrimPrefix(subject.Root.Pointer+"/spec", "/"), "/", ".")
		r.find(o, Finding{Severity: Error, Field: o.path + at, Message: at + ": Required value: must have containers"})
		return nil, nil, nil
	}
	return prefixed(append(operations, result.Change.Operations(&subject)...), o.pointer), result.Classes, nil
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
	r.report(o, Warning, field.ErrorList{api.Because(api.NoEffect, field.Forbidden(field.NewPath("metadata", "annotations"),
		fmt.Sprintf("has no effect on a %s that %s %s controls; set the annotations in the pod template of its controller",
			o.GetKind(), owner.Kind, api.Echo(owner.Name))))})
}

// policy checks an injected subject against the policy of its namespace, and returns whether the
// policy allows it.
func (r *run) policy(ctx context.Context, o *object, subject pods.Subject, result *inject.Result) (bool, error) {
	verdict, err := r.reviewer.Policy(ctx, subject, result, r.namespaceOf(o))
	if err != nil {
		return false, err
	}
	r.report(o, Error, verdict.Errors)
	r.report(o, Warning, verdict.Warnings)
	return len(verdict.Errors) == 0, nil
}

// checkTypes returns an error if a field of a pod or workload does not have its type in the
// Kubernetes API. It also covers fields that the injector does not read: an env var with a number
// as its value is a common mistake.
func checkTypes(kind string, text []byte) error {
	type template struct {
		Spec corev1.PodSpec `json:"spec"`
	}
	var w struct {
		metav1.ObjectMeta `json:"metadata"`

		Spec struct {
			Template    template `json:"template"`
			JobTemplate struct {
				Spec struct {
					Template template `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	if kind == podKind.Kind {
		return json.Unmarshal(text, &corev1.Pod{})
	}
	return json.Unmarshal(text, &w)
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
		own := *err
		if severity == Error {
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
func (r *run) warnNotOptedIn(ctx context.Context, o *object) error {
	namespace, err := r.reviewer.Source.Namespace(ctx, r.namespaceOf(o), false)
	if err != nil {
		return err
	}
	why := fmt.Sprintf("which lacks label %s; set it to %s", api.Injection, api.InjectionEnabled)
	if value, labelled := namespace.Labels[api.Injection]; labelled {
		why = fmt.Sprintf("which has label %s: %s", api.Injection, value)
	}
	path := o.path + "metadata.annotations"
	r.find(o, Finding{
		Severity: Warning, Reason: api.NoEffect, Field: path,
		Message: fmt.Sprintf("%s: Forbidden: has no effect in namespace %s, %s", path, r.namespaceOf(o), why),
	})
	return nil
}

// undecodable reports a field with the wrong type.
func (r *run) undecodable(o *object, err error) {
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		r.unreadable(o, "", err.Error())
		return
	}
	path := pathOf(semantic.JSONPointer)
	detail := err.Error()
	if semantic.GoType != nil && semantic.JSONKind != 0 {
		if semantic.Err != nil {
			detail = semantic.Err.Error()
		} else {
			detail = fmt.Sprintf("must be %s, not %s", wantedType(semantic.GoType), writtenType(semantic.JSONKind))
		}
		switch {
		case semantic.GoType.Kind() != reflect.String:
		case semantic.JSONKind == '{', semantic.JSONKind == '[':
			detail += "; write | after the colon to make it a string"
		default:
			detail += "; write it in quotes"
		}
	}
	r.unreadable(o, path, detail)
}

// pathOf returns a JSON Pointer as a field path.
func pathOf(pointer jsontext.Pointer) string {
	var path *field.Path
	for token := range pointer.Tokens() {
		index, err := strconv.Atoi(token)
		switch {
		case path == nil:
			path = field.NewPath(token)
		case err == nil:
			path = path.Index(index)
		case strings.ContainsAny(token, "./"):
			path = path.Key(token)
		default:
			path = path.Child(token)
		}
	}
	return path.String()
}

func wantedType(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	default:
		return "a number"
	}
}

func writtenType(kind jsontext.Kind) string {
	switch kind {
	case '{':
		return "a mapping"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// unreadable adds a finding about an object that cannot be read or patched.
func (r *run) unreadable(o *object, path, detail string) {
	if path != "" {
		path = o.path + path
		detail = path + ": " + detail
	}
	r.find(o, Finding{Severity: Error, Field: path, Message: detail, unreadable: true})
}

// find adds a finding about an object, with its position. It adds each finding only once.
func (r *run) find(o *object, f Finding) {
	f.File, f.Document = o.file.name, o.document.number
	f.Kind, f.Name = o.GetKind(), name(o.Unstructured)
	if o.GroupVersionKind().GroupKind() != namespaceKind {
		f.Namespace = r.namespaceOf(o)
	}
	path := f.Field
	if path == "" {
		path = strings.TrimSuffix(o.path, ".")
	}
	f.Line, f.Column = o.locate(path)
	if !r.reported[f] {
		r.reported[f] = true
		r.findings = append(r.findings, f)
	}
}
