package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utiljson "k8s.io/apimachinery/pkg/util/json"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// object is one object of a document: the whole document, an item of a List, or an object inside
// another one. A document without a kind, such as the values of a Helm chart, is an object without
// one.
type object struct {
	file     *file
	document *document
	// pointer and path are the location of the object in its document; empty if it is the whole
	// document.
	pointer, path string
	*unstructured.Unstructured
	// root is the path of the object, if path is that of one of its pod templates.
	root string
	// list is true for an item of a List that may have objects of any kind.
	list bool
	// inside is true for an object inside another one. It is not injected: what reads the outer
	// object may not expect it.
	inside bool
}

var (
	podKind            = schema.GroupKind{Kind: "Pod"}
	cronJobKind        = schema.GroupKind{Group: "batch", Kind: "CronJob"}
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
		cronJobKind:                          true,
	}
)

// kind returns the group and kind.
func (o *object) kind() schema.GroupKind {
	return o.GroupVersionKind().GroupKind()
}

// isReviewed reports whether the injector reviews objects of this kind.
func (o *object) isReviewed() bool {
	kind := o.kind()
	return kind == podKind || workloadKinds[kind]
}

// objects returns the objects of a document. A list without a kind, such as a JSON Patch, counts as
// a mapping of its elements by their index.
func (r *run) objects(f *file, d *document) []object {
	if d.JSON() == nil {
		return nil
	}
	root := object{file: f, document: d}
	var value map[string]any
	if utiljson.Unmarshal(d.JSON(), &value) == nil && value != nil {
		root.Unstructured = &unstructured.Unstructured{Object: value}
		return root.expand(nil)
	}
	var list []any
	if utiljson.Unmarshal(d.JSON(), &list) != nil {
		return nil
	}
	root.Unstructured = &unstructured.Unstructured{Object: indexed(list)}
	return root.expand(nil)
}

// indexed returns a list as a mapping, with the index as the key.
func indexed(list []any) map[string]any {
	mapping := make(map[string]any, len(list))
	for i, value := range list {
		mapping[strconv.Itoa(i)] = value
	}
	return mapping
}

// expand appends the object, or the items of a List, to a list, and then the objects inside it.
func (o object) expand(to []object) []object {
	items, isList := o.Object["items"].([]any)
	if !isList || !strings.HasSuffix(o.GetKind(), "List") {
		return o.expandInside(append(to, o), o.Object, nil)
	}
	for i, item := range items {
		value, ok := item.(map[string]any)
		if !ok {
			continue
		}
		child := o.at([]string{"items", strconv.Itoa(i)})
		child.Unstructured, child.list, child.root = &unstructured.Unstructured{Object: value}, o.takesAnyKind(), child.path
		if kind := strings.TrimSuffix(o.GetKind(), "List"); child.GetKind() == "" && !o.takesAnyKind() {
			child.SetKind(kind)
			child.SetAPIVersion(o.GetAPIVersion())
		}
		to = child.expand(to)
	}
	return to
}

// expandInside appends the objects inside a value of the object.
func (o object) expandInside(to []object, value any, tokens []string) []object {
	switch value := value.(type) {
	case map[string]any:
		if len(tokens) > 0 && isObject(value) {
			child := o.at(tokens)
			child.Unstructured, child.inside, child.root = &unstructured.Unstructured{Object: value}, true, child.path
			return child.expand(to)
		}
		for key, member := range sorted(value) {
			if isNested(member) && (len(tokens) > 0 || key != "metadata" && key != "status") {
				to = o.expandInside(to, member, append(tokens, key))
			}
		}
	case []any:
		for i, element := range value {
			if isNested(element) {
				to = o.expandInside(to, element, append(tokens, strconv.Itoa(i)))
			}
		}
	}
	return to
}

// isNested reports whether a value has other values.
func isNested(value any) bool {
	switch value.(type) {
	case map[string]any, []any:
		return true
	}
	return false
}

// isObject reports whether a mapping is a Kubernetes object, and not only a reference to one.
func isObject(value map[string]any) bool {
	kind, _ := value["kind"].(string)
	version, _ := value["apiVersion"].(string)
	_, hasMetadata := value["metadata"].(map[string]any)
	return kind != "" && version != "" && hasMetadata
}

// at returns the place at tokens below the object, as an object of the same kind and name.
func (o object) at(tokens []string) object {
	for _, token := range tokens {
		o.pointer += "/" + pointerEscaper.Replace(token)
	}
	o.path += fieldPath(tokens) + "."
	return o
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

// takesAnyKind reports whether the object is a list of objects of any kind: a List, or the
// ResourceList that kustomize and kpt pass to a function.
func (o object) takesAnyKind() bool {
	return o.GetKind() == "List" || o.GetKind() == "ResourceList"
}

// namespaceOf returns the namespace where the object would be created.
func (r *run) namespaceOf(o *object) string {
	if namespace := o.GetNamespace(); namespace != "" {
		return namespace
	}
	return r.options.Namespace
}

// kindIn is a kind in a namespace.
type kindIn struct{ kind, namespace string }

// objectID identifies an object. The namespace of a Namespace is empty.
type objectID struct{ kind, namespace, name string }

// named is a kind and the name of an object.
type named struct{ kind, name string }

// classIn is a class and the namespace that its manifest names; empty if the manifest names none.
type classIn struct{ name, namespace string }

// definition is where an object is defined.
type definition struct {
	file     string
	document int
}

// idOf identifies an object.
func (r *run) idOf(o *object) objectID {
	if o.kind() == namespaceKind {
		return objectID{o.GetKind(), "", o.GetName()}
	}
	return objectID{o.GetKind(), r.namespaceOf(o), o.GetName()}
}

// isFact reports whether lookups read objects of this kind.
func (o *object) isFact() bool {
	switch o.kind() {
	case namespaceKind, serviceAccountKind, classKind, bindingKind:
		return true
	}
	return false
}

// addKnown adds an object of the facts.
func (r *run) addKnown(o *object) {
	if !o.isFact() {
		return
	}
	if err := r.manifests.Add(o.Unstructured, r.options.Namespace); err != nil {
		r.reportClass(o, err)
	}
	r.addName(o)
	if o.kind() == namespaceKind {
		r.covered[o.GetName()] = true
	}
}

// selector is the kind of the name of a binding's selector.
const selector = "selector"

// addName adds the name of an object that lookups read.
func (r *run) addName(o *object) {
	add := func(kind, name string) {
		key := named{kind, name}
		r.names[key] = append(r.names[key], r.namespaceOf(o))
	}
	add(o.GetKind(), o.GetName())
	if o.kind() == bindingKind {
		add(selector, facts.ReadSelector(o.Unstructured))
	}
}

// addFacts adds an object of the files to the facts.
func (r *run) addFacts(o *object) {
	id, effect := r.idOf(o), "the definition that is applied last counts"
	switch {
	case o.isFact():
		if err := r.manifests.Add(o.Unstructured, r.options.Namespace); err != nil {
			r.reportClass(o, err)
		}
		r.addName(o)
		r.known[id], r.has[kindIn{id.kind, id.namespace}] = o, true
		if o.kind() == classKind {
			r.classes[classIn{o.GetName(), o.GetNamespace()}] = true
		}
		effect = "this definition is used, since it is the last"
	case !o.isReviewed() || o.GetName() == "" || annotated(o.Object) == nil || !isWhole(o.Object):
		return
	}
	if first, ok := r.defined[id]; ok {
		message := fmt.Sprintf("is also defined in %s, document %d; %s: remove one of the two, or check these files separately",
			first.file, first.document, effect)
		r.find(o, Finding{Severity: Warning, Message: message})
	}
	r.defined[id] = definition{o.file.name, o.document.number}
}

// isWhole reports whether a pod or workload has containers. A patch of kustomize, which has the name
// of the object that it changes, seldom does.
func isWhole(value map[string]any) bool {
	return slices.ContainsFunc(templates, func(path []string) bool {
		containers, _, _ := unstructured.NestedFieldNoCopy(value, slices.Concat(path, []string{"spec", "containers"})...)
		return containers != nil
	})
}

// affectsVerdict reports whether a verdict may depend on the object.
func (o *object) affectsVerdict() bool {
	// The text also has what a later duplicate key hides.
	return o.isFact() || o.isReviewed() && mentionsOurs(o.document.Text())
}
