package cli

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/review"
)

// checkNamespace reports the mistakes in a Namespace, even if it has no pod.
func (r *run) checkNamespace(o *object) {
	namespace := facts.Namespace{Name: o.GetName(), Labels: o.GetLabels(), Annotations: o.GetAnnotations()}
	r.report(o, Warning, review.NamespaceMistakes(namespace))
	if namespace.OptedIn() {
		r.warnExcluded(o, o.path+"metadata.labels["+api.Injection+"]", namespace.Name)
		return
	}
	for key := range namespace.Annotations {
		if api.IsRequestKey(key) {
			r.warnNoLabel(o)
			break
		}
	}
}

// warnNoLabel warns of a Namespace without the label that opts in, which has defaults for pods or
// pods that request something.
func (r *run) warnNoLabel(o *object) {
	labels := o.GetLabels()
	if _, labelled := labels[api.Injection]; labelled {
		return // its value is reported
	}
	path := o.path + "metadata.labels[" + api.Injection + "]"
	r.find(o, Finding{
		Severity: Warning, Reason: api.NoEffect, Field: path,
		Message: fmt.Sprintf("%s: Required value: must be %s or %s, or no pod of the namespace is injected%s; run: %s",
			path, api.InjectionEnabled, api.InjectionAlways, nearLabel(labels), labelCommand(o.GetName())),
	})
}

// nearLabel returns the part of a message about a missing label [api.Injection] that names a label
// that is near; empty if there is none.
func nearLabel(labels map[string]string) string {
	for _, key := range slices.Sorted(maps.Keys(labels)) {
		if slices.Contains(api.Near(key), api.Injection) || api.IsOurs(key) && slices.Contains(api.Nearest(key, api.NamespaceLabels[:]), api.Injection) {
			return " (label " + api.Echo(key) + " is another one)"
		}
	}
	return ""
}

// labelCommand returns the command that opts a namespace in.
func labelCommand(namespace string) string {
	return "kubectl label namespace " + namespace + " " + api.Injection + "=" + api.InjectionEnabled
}

// excluded are the namespaces whose objects the API server does not send to the injector: kube-system
// and, unless a value of the chart says otherwise, two more that are a cluster's own.
var excluded = []string{"kube-system", "kube-public", "kube-node-lease"}

// warnExcluded warns of a request in a namespace that is excluded.
func (r *run) warnExcluded(o *object, path, namespace string) {
	if r.linting && slices.Contains(excluded, namespace) {
		r.find(o, Finding{
			Severity: Warning, Reason: api.NoEffect, Field: path,
			Message: fmt.Sprintf("%s: Forbidden: has no effect in namespace %s, which the API server does not send to the injector; "+
				"use another namespace", path, namespace),
		})
	}
}

// versions are the API versions of the kinds that the injector reads.
var versions = map[string]string{
	"Pod": "v1", "Namespace": "v1", "ServiceAccount": "v1",
	"Deployment": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "ReplicaSet": "apps/v1",
	"Job": "batch/v1", "CronJob": "batch/v1",
	class.Kind: class.GroupVersion.String(), bindingKind.Kind: facts.BindingResource.GroupVersion().String(),
}

// checkVersion reports an object whose kind or API version no API server serves, if it has one of
// our annotations, or is of a kind that only the injector's requests use. It returns false for such
// an object.
func (r *run) checkVersion(o *object) bool {
	fine := true
	report := func(name, detail string) {
		fine = false
		r.find(o, Finding{Severity: Error, Field: o.path + name, Message: o.path + name + ": " + detail})
	}
	for kind, version := range versions {
		if !strings.EqualFold(o.GetKind(), kind) || o.GetKind() == kind && o.GetAPIVersion() == version {
			continue
		}
		group, _, _ := strings.Cut(o.GetAPIVersion(), "/")
		isRead := kind == class.Kind || kind == bindingKind.Kind
		switch {
		case !isRead && annotated(o.Object) == nil:
		case o.GetAPIVersion() == "":
			report("apiVersion", fmt.Sprintf("Required value: must be %s for a %s", version, kind))
		case o.GetKind() != kind && o.GetAPIVersion() == version:
			report("kind", fmt.Sprintf("Invalid value: %q: must be %s, with these capitals", api.Echo(o.GetKind()), kind))
		case kind == class.Kind && o.GetAPIVersion() == oldClass:
			r.find(o, Finding{
				Severity: Warning, Field: o.path + "apiVersion",
				Message: fmt.Sprintf("%sapiVersion: Invalid value: %q: is deprecated; write %s", o.path, oldClass, version),
			})
		case group == "extensions" || group == "v1" || strings.HasPrefix(version, group+"/") || isRead && isNearGroup(group):
			report("apiVersion", fmt.Sprintf("Invalid value: %q: must be %s for a %s: no API server serves this version",
				api.Echo(o.GetAPIVersion()), version, kind))
		}
	}
	return fine
}

// isNearGroup reports whether an API group is near that of the driver, or that of AAD pod identity.
func isNearGroup(group string) bool {
	return strings.HasPrefix(group, "secrets-store.") || strings.HasPrefix(group, "aadpodidentity.")
}

// oldClass is the API version of SecretProviderClasses that the driver still serves, and deprecates
// (its apis/v1alpha1).
var oldClass = class.GroupVersion.Group + "/v1alpha1"

// templates are the paths of the metadata of an object and its templates.
var templates = [][]string{
	{},
	{"spec", "jobTemplate"},
	{"spec", "template"},
	{"spec", "jobTemplate", "spec", "template"},
}

// annotated returns the annotations of an object and its templates by their path. It returns none
// unless one of them has one of our prefixes.
func annotated(object map[string]any) map[string]map[string]any {
	found, ours := map[string]map[string]any{}, false
	for _, template := range templates {
		path := slices.Concat(template, []string{"metadata", "annotations"})
		value, _, err := unstructured.NestedFieldNoCopy(object, path...)
		annotations, ok := value.(map[string]any)
		if err != nil || !ok {
			continue
		}
		found[strings.Join(path, ".")] = annotations
		for key := range annotations {
			ours = ours || api.IsOurs(key)
		}
	}
	if !ours {
		return nil
	}
	return found
}

// checkNulls reports annotations with a null in an object, or in a pod template: kubectl apply then
// drops all annotations. It returns false if there is one.
func (r *run) checkNulls(o *object, value map[string]any) bool {
	fine := true
	found := annotated(value)
	for _, path := range slices.Sorted(maps.Keys(found)) {
		for _, key := range slices.Sorted(maps.Keys(found[path])) {
			if found[path][key] != nil {
				continue
			}
			fine = false
			err := api.Because(api.InvalidValue, field.Required(field.NewPath(path).Key(key),
				"must not be null: kubectl apply would drop all annotations of the object; "+
					"write a value or \"\", or remove the line"))
			r.report(o, Error, field.ErrorList{err})
		}
	}
	return fine
}

// owner is the object that has labels and annotations.
type owner uint8

const (
	ofOther owner = iota
	ofNamespace
	ofPod // or of a workload, or of a pod template
)

// checkEntries reports keys of the labels or annotations of an object that are wrong there. The
// check returns what is wrong with a key of ours, or "".
func (w *walker) checkEntries(name string, entries map[string]any, of owner, check func(key string, of owner) string) {
	w.tokens = append(w.tokens, name)
	for key := range sorted(entries) {
		if meant := api.Near(key); meant != nil {
			w.report(api.UnknownKey, key, notRead(meant))
			continue
		}
		if detail := check(key, of); detail != "" {
			w.report(api.NoEffect, key, detail)
		}
	}
	w.tokens = w.tokens[:len(w.tokens)-1]
}

// notRead returns the message about a key that is near.
func notRead(meant []string) string {
	return "is not a key of akv-injector, which ignores it; write " + strings.Join(meant, " or ")
}

const notALabel = "must be an annotation, not a label"

// label returns what is wrong with a label, or "".
func (w *walker) label(key string, of owner) string {
	switch {
	case !api.IsOurs(key), key == api.Injected && of != ofNamespace:
		return ""
	case of == ofNamespace:
		return namespaceLabel(key)
	case slices.Contains(api.NamespaceLabels[:], key):
		return "must be a label of the Namespace"
	case of == ofPod:
		return notALabel
	}
	return "has no effect as a label of " + w.aKind() + "; write it as an annotation of the pod, its workload or its Namespace"
}

// namespaceLabel returns what is wrong with a label of ours on a Namespace, or "".
func namespaceLabel(key string) string {
	switch {
	case slices.Contains(api.NamespaceLabels[:], key):
		return ""
	// A label api.Inject is more likely a misspelt api.Injection.
	case slices.Contains(api.NamespaceAnnotations[:], key), api.IsRequestKey(key) && key != api.Inject:
		return notALabel
	}
	names := api.Nearest(key, api.NamespaceLabels[:])
	if len(names) == 0 {
		return "must be a label of akv-injector; known: " + strings.Join(api.NamespaceLabels[:], ", ")
	}
	return "must be a label of akv-injector; did you mean " + strings.Join(names, " or ") + "?"
}

// annotation returns what is wrong with an annotation of ours, if the core does not report it, or "".
func (w *walker) annotation(key string, of owner) string {
	if of != ofOther || !api.IsOurs(key) {
		return ""
	}
	return w.foreign(key)
}

// aKind returns the kind of the object after an article.
func (w *walker) aKind() string {
	kind := w.object.GetKind()
	if strings.ContainsAny(kind[:1], "AEIOaeio") {
		return "an " + kind
	}
	return "a " + kind
}

// foreign returns what is wrong with an annotation of ours on an object that is not a pod, a
// workload or a Namespace.
func (w *walker) foreign(key string) string {
	detail := "has no effect on " + w.aKind()
	isAccount := w.object.kind() == serviceAccountKind
	switch {
	case slices.Contains(api.NamespaceLabels[:], key):
		return detail + "; write it as a label of the Namespace"
	case slices.Contains(api.NamespaceAnnotations[:], key):
		return detail + "; write it on the Namespace"
	case isAccount && key == api.IdentityClientID:
		return detail + "; write " + api.WorkloadIdentityClientID
	case isAccount && key == api.IdentityTenantID:
		return detail + "; write " + api.WorkloadIdentityTenantID
	case w.home != "":
		return detail + "; write " + correctly(key) + " in " + w.home
	}
	return detail + "; write " + correctly(key) + " on the pod, its workload or its Namespace"
}

// correctly returns "it" for a key that exists, else the nearest keys.
func correctly(key string) string {
	if api.IsRequestKey(key) || api.IsWritten(key) {
		return "it"
	}
	if nearest := api.NearestKeys(key); len(nearest) > 0 {
		return strings.Join(nearest, " or ")
	}
	return "another key, since this one does not exist,"
}

// checkKeys reports the keys of a mapping that is not the labels or annotations of an object: those
// that are near, and those of ours that have no effect there, or are wrong wherever a tool copies
// them to.
func (w *walker) checkKeys(mapping map[string]any, at place) {
	var near, ours []string
	for key := range mapping {
		switch {
		case api.Near(key) != nil:
			near = append(near, key)
		case api.IsOurs(key) && !api.IsWritten(key) && key != api.Injected && !strings.ContainsAny(key, placeholders):
			ours = append(ours, key)
		}
	}
	slices.Sort(near)
	slices.Sort(ours)
	for _, key := range near {
		w.report(api.UnknownKey, key, notRead(api.Near(key)))
	}
	switch {
	case len(ours) == 0:
		if at == anywhere {
			w.checkPair(mapping)
		}
	case at == nowhere:
		for _, key := range ours {
			w.report(api.NoEffect, key, w.outOfPlace(key))
		}
	case isNamed(w.tokens, "label") || nameOf(w.tokens) == "pairs": // pairs is kustomize's
		for _, key := range ours {
			if detail := namespaceLabel(key); detail != "" {
				w.report(api.NoEffect, key, detail)
			}
		}
	default:
		w.checkCopied(mapping, ours)
	}
}

// placeholders are characters that no key has, but that a template or a pattern may have.
const placeholders = "{}$*?()<>%"

// outOfPlace returns what is wrong with a key in a place that is not read.
func (w *walker) outOfPlace(key string) string {
	switch {
	case slices.Contains(api.NamespaceLabels[:], key) && w.object.kind() == namespaceKind:
		return "has no effect here; write it in metadata.labels"
	case slices.Contains(api.NamespaceLabels[:], key):
		return "has no effect here; write it as a label of the Namespace"
	case slices.Contains(api.NamespaceAnnotations[:], key):
		return "has no effect here; write it in metadata.annotations of the Namespace"
	case w.home != "":
		return "has no effect here; write " + correctly(key) + " in " + w.home
	}
	return "has no effect here; write " + correctly(key) + " in the annotations of the pod, its workload or its Namespace"
}

// computed matches values that a template computes, or that are a pattern.
var computed = regexp.MustCompile(`\{\{|\$[{(]|<%|[*?]`)

// checkCopied reports keys and values that are wrong on every object that a tool may copy the
// mapping to.
func (w *walker) checkCopied(mapping map[string]any, ours []string) {
	request, complete := map[string]string{}, true
	for _, key := range ours {
		isLabel := slices.Contains(api.NamespaceLabels[:], key)
		switch value := mapping[key].(type) {
		case map[string]any, []any:
			w.report(api.InvalidValue, key, "must be a string, not a mapping or a list"+inBlock)
		case string:
			if !api.IsRequestKey(key) {
				break
			}
			if computed.MatchString(value) && key != api.Containers {
				complete = false
			} else {
				request[key] = value
			}
		}
		switch {
		case isLabel && isNamed(w.tokens, "annotation"):
			w.report(api.NoEffect, key, "must be a label of the Namespace, not an annotation")
		case !isLabel && !api.IsRequestKey(key) && !slices.Contains(api.NamespaceAnnotations[:], key):
			w.report(api.UnknownKey, key, unknown(key))
		}
	}
	for _, err := range w.mistakes(request, complete) {
		w.reportError(err)
	}
}

// unknown returns the message about a key that does not exist.
func unknown(key string) string {
	const detail = "must be a key of akv-injector; "
	if nearest := api.NearestKeys(key); len(nearest) > 0 {
		return detail + "did you mean " + strings.Join(nearest, " or ") + "?"
	}
	var known []string
	for i := range api.Keys {
		if name := api.Keys[i].Name; api.IsRequestKey(name) {
			known = append(known, name)
		}
	}
	return detail + "known: " + strings.Join(known, ", ")
}

// mistakes returns what is wrong with the values of request, whatever other annotations the object
// has. If it is not complete, other values may decide which form items have.
func (w *walker) mistakes(request map[string]string, complete bool) (errs field.ErrorList) {
	parse := func(request map[string]string) (values, items field.ErrorList) {
		_, errs, _ := api.ParseRequest(api.Annotations{Pod: request, Path: w.pathOf})
		for _, err := range errs {
			switch api.ReasonOf(err) {
			case api.InvalidValue:
				values = append(values, err)
			case api.InvalidItem:
				items = append(items, err)
			default: // another annotation may correct it
			}
		}
		return values, items
	}
	values, items := parse(request)
	if len(items) == 0 || !complete {
		return values
	}
	if request[api.Class] == "" {
		withClass := maps.Clone(request)
		withClass[api.Class] = "class"
		_, others := parse(withClass)
		if !slices.ContainsFunc(others, func(err *field.Error) bool { return !strings.HasSuffix(err.Field, ".vault") }) {
			return values // what looks like a vault may be the class
		}
	}
	return append(values, items...)
}

// pathOf returns the path of a member of the current value.
func (w *walker) pathOf(key string) *field.Path {
	if len(w.tokens) == 0 {
		return (*field.Path)(nil).Key(key)
	}
	return field.NewPath(fieldPath(w.tokens)).Key(key)
}

// checkPair reports a key in a mapping that has a path to a key and its value: an operation of a
// JSON Patch, or a parameter of a Helm chart in an Application of Argo CD.
func (w *walker) checkPair(mapping map[string]any) {
	var tokens []string
	member := "path"
	if path, _ := mapping["path"].(string); mapping["op"] != nil && strings.HasPrefix(path, "/") {
		for token := range strings.SplitSeq(path[1:], "/") {
			tokens = append(tokens, pointerUnescaper.Replace(token))
		}
	} else if name, _ := mapping["name"].(string); mapping["value"] != nil && strings.Contains(name, `\.`) {
		member = "name"
		const dot = "\x00"
		for token := range strings.SplitSeq(strings.ReplaceAll(name, `\.`, dot), ".") {
			tokens = append(tokens, strings.ReplaceAll(token, dot, "."))
		}
	}
	if len(tokens) == 0 || mapping["op"] == "remove" || mapping["op"] == "test" {
		return
	}
	last := len(tokens) - 1
	inner := walker{run: w.run, object: w.object, text: w.text, tokens: tokens[:last], pair: append(slices.Clip(w.tokens), member)}
	inner.checkKeys(map[string]any{tokens[last]: mapping["value"]}, anywhere)
}

var pointerUnescaper = strings.NewReplacer("~1", "/", "~0", "~")
