// Package adopt replaces the hand-written identity and Key Vault parts of a pod by annotations, and
// proves that the injector gives them back:
//
//	target := adopt.Target{Object: deployment, Pod: []string{"spec", "template"}, Inject: inject, Class: class, Secret: secret}
//	result, err := adopt.Adopt(target, false)
//	...
//	for _, left := range result.Left { // what stays as it is, and why
//
// It reads volumes of the Secrets Store CSI driver, their mounts, env vars from the Secrets that
// their classes sync, the labels of AAD pod identity and of Azure Workload Identity, and the env
// vars of akv2k8s. A part that annotations cannot express stays as it is. The package reads no
// files, and does not print: package cli does.
package adopt

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"gomodules.xyz/jsonpatch/v2"
	jsonpatchv4 "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Inject injects an object, and returns the JSON Patch of the object, the managed classes that its
// pods mount, and the reasons to reject it.
type Inject func(object map[string]any) (
	operations []jsonpatch.Operation, classes []*class.SecretProviderClass, errs field.ErrorList, err error,
)

// Target is an object with a pod: a pod, a workload or a pod template.
type Target struct {
	// Object is the object; it is not changed.
	Object map[string]any
	// Pod is the path of the pod in the object; empty for a pod or a pod template.
	Pod []string
	// Inject injects the object as the webhooks do.
	Inject Inject
	// Class returns a class of the object's namespace, and Secret an AzureKeyVaultSecret of
	// akv2k8s; nil for one that does not exist.
	Class  func(name string) *class.SecretProviderClass
	Secret func(name string) *unstructured.Unstructured
}

// Result is what becomes of an object.
type Result struct {
	// Operations are a JSON Patch of the object; empty if nothing can be adopted.
	Operations []jsonpatch.Operation
	// Annotations are the new annotations.
	Annotations map[string]string
	// Renamed are the names that differ after injection, each once.
	Renamed []Rename
	// Lost are the Secrets that the driver no longer syncs for the pods, since they mount another
	// class.
	Lost []string
	// Added is true if the containers also get a mount and the pod an identity, for env vars of
	// akv2k8s.
	Added bool
	// Left are the parts that stay as they are.
	Left []Left
}

// Rename is a name that is another one after injection.
type Rename struct {
	// Kind is volume, class or Secret.
	Kind, From, To string
}

// Left is a part that stays as it is.
type Left struct {
	// Path is the path of the part in the object, such as spec, template, spec, volumes, 0.
	Path []string
	// Why says for the user what stays, and the reason.
	Why string
}

// adoption adopts one target.
type adoption struct {
	Target

	pod    map[string]any
	pieces []*piece
	// managed replaces the existing classes by managed ones.
	managed bool
}

// Adopt replaces what it can by annotations. If managed, existing classes become managed ones where
// annotations can express all of the class.
func Adopt(target Target, managed bool) (Result, error) {
	a := adoption{Target: target}
	var err error
	if a.Object, err = apply(target.Object, nil); err != nil { // numbers have one type
		return Result{}, err
	}
	a.pod, _ = nested(a.Object, a.Pod)
	if a.pod == nil {
		return Result{}, nil
	}
	a.find()
	if len(a.pieces) == 0 {
		return Result{}, nil
	}
	if !isWhole(a.pod) {
		return a.leave("the object may be a patch, since a container has no image: adopt what kustomize builds"), nil
	}
	for _, annotations := range []map[string]any{annotationsOf(a.Object), annotationsOf(a.pod)} {
		for _, key := range slices.Sorted(maps.Keys(annotations)) {
			if api.IsRequestKey(key) {
				return a.leave("the object has annotation " + key + ": add to its annotations by hand"), nil
			}
		}
	}
	best, err := a.best(managed)
	if err != nil {
		return Result{}, err
	}
	result := Result{Left: a.left(best.pieces)}
	if len(best.pieces) > 0 {
		result.Operations, result.Annotations, result.Renamed = best.operations, best.annotations, best.renamed
		result.Lost, result.Added = best.lost, slices.ContainsFunc(best.pieces, func(p *piece) bool { return p.secret != "" })
	}
	return result, nil
}

// isWhole reports whether a pod has containers, each with an image. Patches of kustomize seldom
// have.
func isWhole(pod map[string]any) bool {
	all := containers(pod)
	return len(all) > 0 && !slices.ContainsFunc(all, func(c container) bool { return text(c.fields, "image") == "" })
}

// leave returns the result if all pieces stay for one reason.
func (a *adoption) leave(why string) Result {
	for _, p := range a.pieces {
		p.why = cmp.Or(p.why, why)
	}
	return Result{Left: a.left(nil)}
}

// attempt is a set of pieces that were replaced by annotations.
type attempt struct {
	pieces      []*piece
	annotations map[string]string
	operations  []jsonpatch.Operation
	renamed     []Rename
	lost        []string
}

// best returns the attempt with the most pieces, and with managed classes if they are wanted and
// possible.
func (a *adoption) best(managed bool) (attempt, error) {
	if managed { // annotations can express the mount paths of several vaults
		if best, why, err := a.tryManaged(a.wanted()); err != nil || why == "" && len(best.pieces) > 0 {
			return best, err
		}
	}
	existing, err := a.search()
	if err != nil || !managed || existing.annotations[api.Class] == "" {
		return existing, err
	}
	best, why, err := a.tryManaged(existing.pieces)
	switch {
	case err != nil:
		return attempt{}, err
	case why == "":
		return a.addSecrets(best)
	}
	for _, p := range existing.pieces {
		if p.kind == volumePiece {
			p.why = "class " + p.class + " stays, and " + api.Class + " names it: " + why
		}
	}
	return existing, nil
}

// wanted returns the pieces that no rule keeps.
func (a *adoption) wanted() (wanted []*piece) {
	for _, p := range a.pieces {
		if p.why == "" {
			wanted = append(wanted, p)
		}
	}
	return wanted
}

// search returns the largest set of pieces for which the injector gives back the pod: all that can
// be adopted or, if they cannot be adopted together, those that can be added one by one.
func (a *adoption) search() (attempt, error) {
	wanted := a.wanted()
	best, why, err := a.try(wanted)
	if err != nil || why == "" {
		return best, err
	}
	best = attempt{}
	for _, p := range wanted {
		if p.kind == envPiece && p.class != "" && !slices.ContainsFunc(best.pieces, func(other *piece) bool {
			return other.kind == volumePiece && other.class == p.class
		}) {
			p.why = "class " + p.class + " stays as it is"
			continue
		}
		next, why, err := a.try(append(slices.Clone(best.pieces), p))
		if err != nil {
			return best, err
		}
		if p.why = why; why == "" {
			best = next
		}
	}
	return best, nil
}

// addSecrets adds the env vars of akv2k8s to an attempt with managed classes.
func (a *adoption) addSecrets(best attempt) (attempt, error) {
	for _, p := range a.pieces {
		if p.secret == "" || slices.Contains(best.pieces, p) {
			continue
		}
		if _, why := a.objectOfSecret(p.secret, p.property); why != "" {
			continue
		}
		next, why, err := a.tryManaged(append(slices.Clone(best.pieces), p))
		if err != nil {
			return best, err
		}
		if p.why = why; why == "" {
			best = next
		}
	}
	return best, nil
}

// tryManaged is try with managed classes. The pod must not need the former classes.
func (a *adoption) tryManaged(pieces []*piece) (best attempt, why string, err error) {
	rest, err := apply(a.Object, a.operations(&attempt{pieces: pieces}))
	if err != nil {
		return attempt{}, "", err
	}
	pod, _ := nested(rest, a.Pod)
	if why := a.stillNeeds(pod, pieces); why != "" {
		return attempt{}, why, nil
	}
	a.managed = true
	defer func() { a.managed = false }()
	return a.try(pieces)
}

// stillNeeds returns why a pod needs the classes of adopted volumes by name; empty if it does not.
func (a *adoption) stillNeeds(pod map[string]any, adopted []*piece) string {
	for _, p := range adopted {
		if p.kind != volumePiece {
			continue
		}
		if p.keep {
			return "another mount needs the volume"
		}
		for _, secret := range a.Class(p.class).Spec.SecretObjects {
			switch {
			case slices.Contains(secretsOf(pod), secret.SecretName):
				return "the pod also uses Secret " + secret.SecretName + ", which the class syncs"
			case secret.Type != string(corev1.SecretTypeOpaque) && secret.Type != "":
				return "it syncs Secret " + secret.SecretName + " of type " + secret.Type + ", which other objects use by its name; " +
					"write " + api.SecretName + " by hand, and delete the class"
			}
		}
	}
	return ""
}

// secretsOf returns the names of the Secrets that a pod refers to.
func secretsOf(pod map[string]any) (names []string) {
	for _, c := range containers(pod) {
		for _, variable := range items(c.fields, "env") {
			names = append(names, text(variable, "valueFrom", "secretKeyRef", "name"))
		}
		for _, from := range items(c.fields, "envFrom") {
			names = append(names, text(from, "secretRef", "name"))
		}
	}
	for _, volume := range items(pod, "spec", "volumes") {
		names = append(names, text(volume, "secret", "secretName"))
		for _, source := range items(volume, "projected", "sources") {
			names = append(names, text(source, "secret", "name"))
		}
	}
	for _, secret := range items(pod, "spec", "imagePullSecrets") {
		names = append(names, text(secret, "name"))
	}
	return names
}

// left returns the pieces that stay as they are, and those that have a note.
func (a *adoption) left(adopted []*piece) (left []Left) {
	for _, p := range a.pieces {
		why := p.why
		switch isAdopted := slices.Contains(adopted, p); {
		case isAdopted && why == "":
			continue
		case !isAdopted:
			why = "stays as it is: " + why
		}
		left = append(left, Left{slices.Concat(a.Pod, p.path), why})
	}
	return left
}

// optional are the annotations that an attempt leaves out if the injector gives back the pod
// without.
var optional = []string{
	api.IdentityMode, api.IdentityClientID, api.IdentityTenantID, api.Cloud, api.Vault, api.MountPath, api.Containers,
}

// try replaces pieces by annotations and injects the object. It returns why the pod is not what it
// was; empty if it is.
func (a *adoption) try(pieces []*piece) (attempt, string, error) {
	if len(pieces) == 0 {
		return attempt{}, "", nil
	}
	annotations, why := a.request(pieces)
	if why != "" {
		return attempt{}, why, nil
	}
	best := attempt{pieces: pieces, annotations: annotations}
	why, err := a.prove(&best)
	if err != nil || why != "" {
		return best, why, err
	}
	for _, key := range optional {
		if _, has := best.annotations[key]; !has || len(best.annotations) == 1 {
			continue
		}
		without := attempt{pieces: pieces, annotations: maps.Clone(best.annotations)}
		delete(without.annotations, key)
		why, err := a.prove(&without)
		if err != nil {
			return best, "", err
		}
		if why == "" {
			best = without
		}
	}
	return best, "", nil
}

// prove sets the operations of an attempt. It applies them, injects the object, and compares its pod
// with the author's.
func (a *adoption) prove(t *attempt) (why string, err error) {
	t.operations = a.operations(t)
	adopted, err := apply(a.Object, t.operations)
	if err != nil {
		return "", err
	}
	operations, classes, errs, err := a.Inject(adopted)
	if err != nil {
		return "", err
	}
	if len(errs) > 0 {
		return errs[0].Error(), nil
	}
	injected, err := apply(adopted, operations)
	if err != nil {
		return "", err
	}
	pod, _ := nested(injected, a.Pod)
	skip := t.annotations[api.EnvSource] == "file"
	before := normal{adoption: a, pod: a.pod, skipFiles: skip}
	after := normal{adoption: a, pod: pod, managed: classes, skipFiles: skip}
	if slices.ContainsFunc(t.pieces, func(p *piece) bool { return p.secret != "" }) {
		after.without = &before
	}
	if why := difference(before.form(), after.form(), nil); why != "" {
		return "the injector would not give the same pod: " + why, nil
	}
	t.renamed, t.lost = renames(&before, &after), nil
	for _, p := range t.pieces {
		if p.kind != volumePiece || !a.managed {
			continue
		}
		for _, secret := range a.Class(p.class).Spec.SecretObjects {
			t.lost = append(t.lost, secret.SecretName)
		}
	}
	return "", nil
}

// renames returns the names of the volumes, classes and Secrets of before that are others in after.
func renames(before, after *normal) (renamed []Rename) {
	for _, kind := range []string{"volume", "class", "Secret"} {
		for _, id := range slices.Sorted(maps.Keys(before.names[kind])) {
			from, to := before.names[kind][id], after.names[kind][id]
			if to != "" && from != to {
				renamed = append(renamed, Rename{kind, from, to})
			}
		}
	}
	return renamed
}

// apply applies a JSON Patch to an object, with the library that the API server uses.
func apply(object map[string]any, operations []jsonpatch.Operation) (map[string]any, error) {
	text, err := json.Marshal(object)
	if err != nil {
		return nil, fmt.Errorf("print object: %w", err)
	}
	if len(operations) > 0 {
		operationsText, err := json.Marshal(operations)
		if err != nil {
			return nil, fmt.Errorf("print patch: %w", err)
		}
		patch, err := jsonpatchv4.DecodePatch(operationsText)
		if err != nil {
			return nil, fmt.Errorf("decode patch: %w", err)
		}
		if text, err = patch.Apply(text); err != nil {
			return nil, fmt.Errorf("apply patch: %w", err)
		}
	}
	var patched map[string]any
	if err := json.Unmarshal(text, &patched); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	return patched, nil
}

// nested returns the mapping at a path.
func nested(object map[string]any, path []string) (map[string]any, bool) {
	for _, token := range path {
		next, ok := object[token].(map[string]any)
		if !ok {
			return nil, false
		}
		object = next
	}
	return object, true
}

// annotationsOf returns the annotations of an object.
func annotationsOf(object map[string]any) map[string]any {
	annotations, _ := nested(object, []string{"metadata", "annotations"})
	return annotations
}
