package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"gomodules.xyz/jsonpatch/v2"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/cli/adopt"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
)

// Output is what a command does with the manifests.
type Output string

// The outputs.
const (
	// Print writes the manifests to standard output. It is the default.
	Print Output = ""
	// Diff writes a unified diff for patch(1) instead.
	Diff Output = "diff"
	// Write changes the files, and prints nothing.
	Write Output = "write"
)

// Adopt replaces hand-written labels, volumes, mounts and env vars by annotations, in pods,
// workloads and the pod templates of every kind. If managed, existing classes become managed ones
// where annotations can express all of the class. It changes a part of a pod only if the injector
// gives it back (package adopt). On stderr, it writes what became of each object, and the reason
// for what stays.
//
// If the error is not nil, the status is [Unusable], and the caller must print the error.
func Adopt(ctx context.Context, o Options, managed bool, output Output, stdout, stderr io.Writer) (Status, error) {
	set := func(r *run) {
		r.adopting = true
		r.rewrite = func(ctx context.Context, t *rewritten) error { return r.adopt(ctx, t, managed) }
	}
	return o.write(ctx, set, output, stdout, stderr)
}

// Eject replaces annotations by what the injector makes of them: labels, volumes, mounts, env vars
// and classes, without the injector's marks, so that the manifests need no injector. Managed
// classes get the name of their workload. If an object is rejected, Eject writes nothing.
//
// If the error is not nil, the status is [Unusable], and the caller must print the error.
func Eject(ctx context.Context, o Options, output Output, stdout, stderr io.Writer) (Status, error) {
	return o.write(ctx, func(r *run) { r.rewrite = r.eject }, output, stdout, stderr)
}

// write reviews or rewrites the objects of the files, and writes the manifests. If not everything
// can be injected, it writes only the findings.
func (o Options) write(ctx context.Context, set func(*run), output Output, stdout, stderr io.Writer) (Status, error) {
	if output == Write && slices.Contains(o.Files, "-") {
		return Unusable, errors.New("--write: must not come with -f -: standard input cannot be changed")
	}
	r, err := o.run(ctx, set)
	if err != nil {
		return Unusable, err
	}
	status, text := r.findings.status(Error), r.findings.text()
	if status != Fine {
		text += "nothing was printed, since not everything can be injected\n"
	}
	if _, err := io.WriteString(stderr, text); err != nil {
		return Unusable, fmt.Errorf("write findings: %w", err)
	}
	if status != Fine {
		return status, nil
	}
	switch output {
	case Write:
		return Fine, writeFiles(r.files)
	case Diff:
		text = unifiedDiff(r.files, report.IsColored(stdout))
	default:
		text = joined(r.files)
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return Unusable, fmt.Errorf("write manifests: %w", err)
	}
	return Fine, nil
}

// writeFiles replaces the files that change. It writes all texts before it replaces the first file.
func writeFiles(files []*file) error {
	replacements := map[string]string{} // temporary files by the file that they replace
	defer func() {
		for _, temporary := range replacements {
			_ = os.Remove(temporary) // it has another name if it replaced the file
		}
	}()
	for _, f := range files {
		text := f.after(!allJSON([]*file{f}))
		if text == f.text {
			continue
		}
		name, err := filepath.EvalSymlinks(f.name)
		if err == nil {
			replacements[name], err = writeBeside(name, text)
		}
		if err != nil {
			return fmt.Errorf("write %s: %w; no file was changed", f.name, err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(replacements)) {
		if err := os.Rename(replacements[name], name); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return nil
}

// writeBeside writes a temporary file in the folder of a file, with its mode.
func writeBeside(name, text string) (temporary string, err error) {
	info, err := os.Stat(name)
	if err != nil {
		return "", err
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return "", err
	}
	_, err = f.WriteString(text)
	return f.Name(), errors.Join(err, f.Chmod(info.Mode().Perm()), f.Close())
}

// rewritten is an object with a pod, and what it becomes.
type rewritten struct {
	*object

	// value is the object, or the pod template of a kind that the injector does not review. In it,
	// pod is the path of the pod; empty if it is one.
	value map[string]any
	pod   []string
	// operations are a JSON Patch of value, and classes are the classes to add.
	operations []jsonpatch.Operation
	classes    []*class.SecretProviderClass
}

// rewritable returns the objects and pod templates of a document's object that can be rewritten.
func (r *run) rewritable(o *object) []rewritten {
	if o.inside {
		return nil
	}
	if o.isReviewed() {
		t := rewritten{object: o, value: o.Object}
		switch o.kind() {
		case podKind:
		case cronJobKind:
			t.pod = cronPodTemplate
		default:
			t.pod = podTemplate
		}
		return []rewritten{t}
	}
	findings, reported := r.findings, maps.Clone(r.reported)
	templates := r.walk(o)
	r.findings, r.reported = findings, reported // they are lint's
	var all []rewritten
	for i := range templates {
		all = append(all, rewritten{object: &templates[i].at, value: templates[i].value})
	}
	return all
}

// isReadable reports whether an object can be decoded, and reports why it cannot.
func (r *run) isReadable(t *rewritten) bool {
	if len(t.pod) == 0 {
		return r.decode(t.object, t.value, &pods.Pod{})
	}
	return r.decode(t.object, t.value, &pods.Workload{})
}

// injected returns what the injector makes of an object. Handover is nil for a pod and for a
// workload with a controller, whose subject has no pod.
func (r *run) injected(ctx context.Context, t *rewritten, value map[string]any) (
	result inject.Result, subject pods.Subject, handover *inject.Handover, err error,
) {
	text, err := json.Marshal(value)
	if err != nil {
		return result, subject, nil, err
	}
	if len(t.pod) == 0 {
		var pod pods.Pod
		if err := pods.Decode(text, &pod); err != nil {
			return result, subject, nil, err
		}
		subject = pods.SubjectOf(&pod)
	} else {
		var w pods.Workload
		if err := pods.Decode(text, &w); err != nil {
			return result, subject, nil, err
		}
		h, ok := inject.HandDown(&w)
		if !ok {
			return result, subject, nil, nil
		}
		handover, subject = &h, h.Subject
	}
	result, err = r.reviewer.Inject(ctx, subject, r.namespaceOf(t.object))
	return result, subject, handover, err
}

// adopt replaces hand-written parts by annotations.
func (r *run) adopt(ctx context.Context, t *rewritten, managed bool) error {
	if owner := controllerOf(t.value); owner != "" {
		return nil // its controller writes it
	}
	namespace := r.namespaceOf(t.object)
	var lookupErr error
	// whole returns an object of the files or of the cluster.
	whole := func(kind schema.GroupKind, resource schema.GroupVersionResource, name string) *unstructured.Unstructured {
		id := objectID{kind.Kind, namespace, name}
		object, known := r.whole[id]
		if !known && r.options.Object != nil && lookupErr == nil {
			object, lookupErr = r.options.Object(ctx, resource, namespace, name)
			r.whole[id] = object
		}
		return object
	}
	result, err := adopt.Adopt(adopt.Target{
		Object: t.value,
		Pod:    t.pod,
		Class: func(name string) *class.SecretProviderClass {
			object := whole(classKind, class.Resource, name)
			var spc class.SecretProviderClass
			if object == nil || runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &spc) != nil {
				return nil
			}
			return &spc
		},
		Secret: func(name string) *unstructured.Unstructured { return whole(akvSecretKind, akvSecretResource, name) },
		Inject: func(value map[string]any) ([]jsonpatch.Operation, []*class.SecretProviderClass, field.ErrorList, error) {
			result, subject, handover, err := r.injected(ctx, t, value)
			if err != nil || len(result.AllErrors()) > 0 {
				return nil, nil, result.AllErrors(), err
			}
			var operations []jsonpatch.Operation
			if handover != nil {
				operations, subject.Pod = handover.Operations(nil), handover.Template()
			}
			return append(operations, result.Change.Operations(&subject)...), result.Classes, nil, nil
		},
	}, managed)
	if err = cmp.Or(lookupErr, err); err != nil {
		return fmt.Errorf("%s: %s: %w", t.file.name, title(t.Unstructured), err)
	}
	t.operations = result.Operations
	if len(result.Annotations) > 0 {
		parts := []string{
			"annotations replace what was written by hand: " + strings.Join(slices.Sorted(maps.Keys(result.Annotations)), ", "),
		}
		for _, name := range result.Renamed {
			parts = append(parts, fmt.Sprintf("%s %s becomes %s", name.Kind, name.From, name.To))
		}
		if len(result.Lost) > 0 {
			parts = append(parts, "its pods no longer sync Secret "+strings.Join(result.Lost, ", "))
		}
		if result.Added {
			parts = append(parts, "containers also get a mount of the objects, and the pod an identity")
		}
		message := strings.Join(parts, "; ")
		r.find(t.object, Finding{Severity: note, Field: strings.TrimSuffix(t.path, "."), Message: message})
		r.noteOptIn(t.object)
	}
	for _, left := range result.Left {
		path := t.path + fieldPath(left.Path)
		r.find(t.object, Finding{Severity: Warning, Field: path, Message: path + ": " + left.Why})
	}
	return nil
}

// note is the severity of what is neither wrong nor to be checked.
const note Severity = "note"

// noteOptIn names the command that lets the injector inject the pods of a namespace.
func (r *run) noteOptIn(o *object) {
	name := r.namespaceOf(o)
	about := r.known[objectID{namespaceKind.Kind, "", name}]
	if about == nil || about.GetLabels()[api.Injection] != "" {
		return
	}
	r.find(about, Finding{
		Severity: Warning, Field: about.path + "metadata.labels",
		Message: "metadata.labels: the namespace must have label " + api.Injection + "; add it here, or run: " + labelCommand(name),
	})
}

// optedIn is a Source in which every namespace opts in.
type optedIn struct{ facts.Source }

// Namespace implements [facts.Source].
func (s optedIn) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	namespace, err := s.Source.Namespace(ctx, name, fresh)
	if err == nil && !namespace.OptedIn() {
		namespace.Labels = maps.Clone(namespace.Labels)
		if namespace.Labels == nil {
			namespace.Labels = map[string]string{}
		}
		namespace.Labels[api.Injection] = api.InjectionEnabled
	}
	return namespace, err
}

// controllerOf returns the name of the controller of an object; empty for none.
func controllerOf(value map[string]any) string {
	if owner := (&unstructured.Unstructured{Object: value}); owner.Object["metadata"] != nil {
		for _, reference := range owner.GetOwnerReferences() {
			if reference.Controller != nil && *reference.Controller {
				return reference.Name
			}
		}
	}
	return ""
}

// eject replaces annotations by what the injector makes of them.
func (r *run) eject(ctx context.Context, t *rewritten) error {
	result, subject, _, err := r.injected(ctx, t, t.value)
	if err != nil {
		return fmt.Errorf("%s: %s: %w", t.file.name, title(t.Unstructured), err)
	}
	errs := result.AllErrors()
	r.report(t.object, Error, errs)
	if len(errs) > 0 || subject.Pod == nil {
		return nil
	}
	if result.NotOptedIn {
		if api.Asked(subject.Annotations) {
			return r.warnNotOptedIn(ctx, t.object, &subject)
		}
		return nil
	}
	change := result.Change
	if !r.hasSpec(t.object, t.value, &subject, &change) {
		return nil
	}
	isMark := func(e inject.Entry) bool { return api.IsOurs(e.Key) }
	change.Labels = slices.DeleteFunc(slices.Clone(change.Labels), isMark)
	change.Annotations = slices.DeleteFunc(slices.Clone(change.Annotations), isMark)
	names := map[string]string{}
	for i := range change.Volumes {
		v := &change.Volumes[i]
		if spc := result.Class(v.Class); spc != nil {
			plain := r.plainClass(t.object, spc, i)
			names[v.Class], v.Class = plain.Name, plain.Name
			t.classes = append(t.classes, plain)
		}
	}
	rename := func(e *inject.EnvVar) {
		if name, ok := names[e.Secret]; ok {
			e.Secret = name
		}
	}
	for i := range change.Containers {
		c := &change.Containers[i]
		for j := range c.Env {
			rename(&c.Env[j])
		}
		for j := range c.Replace {
			rename(&c.Replace[j].Var)
		}
	}
	t.operations, err = adopt.Strip(t.value, t.pod, change.Operations(&subject))
	return err
}

// plainClass returns a managed class as one that its user owns. Its name is that of the workload: a
// managed class is deleted with the last of its pods, even if someone else applies it, too.
func (r *run) plainClass(o *object, spc *class.SecretProviderClass, index int) *class.SecretProviderClass {
	plain := *spc
	base := strings.TrimSuffix(name(o.Unstructured), "-") + "-keyvault"
	if index > 0 {
		base += "-" + strconv.Itoa(index+1)
	}
	plain.Name = base
	for n := 2; r.classes[classIn{plain.Name, o.GetNamespace()}]; n++ {
		plain.Name = fmt.Sprintf("%s-%d", base, n)
	}
	plain.Labels = nil
	plain.Spec.SecretObjects = slices.Clone(spc.Spec.SecretObjects)
	for i := range plain.Spec.SecretObjects {
		if s := &plain.Spec.SecretObjects[i]; s.SecretName == spc.Name {
			s.SecretName = plain.Name
		}
	}
	return &plain
}

// akvSecretKind is the kind of akv2k8s for an object of a Key Vault, and akvSecretResource its
// resource.
var (
	akvSecretKind     = schema.GroupKind{Group: "spv.no", Kind: "AzureKeyVaultSecret"}
	akvSecretResource = schema.GroupVersionResource{Group: "spv.no", Version: "v2beta1", Resource: "azurekeyvaultsecrets"}
)

// addWhole keeps an object that [Adopt] reads with all its fields.
func (r *run) addWhole(o *object) {
	if kind := o.kind(); r.adopting && (kind == classKind || kind == akvSecretKind) {
		r.whole[objectID{kind.Kind, r.namespaceOf(o), o.GetName()}] = o.Unstructured
	}
}
