// Package corpus reads the archives in internal/corpus/testdata: golden files with one behaviour
// each. The tests of the core, the HTTP handler and the command line, and those on a real API
// server, run all of them:
//
//	archives, err := corpus.Load()
//	for _, a := range archives {
//		got, err := a.Review(ctx)
//		diff := cmp.Diff(a.Wanted, got)
//
// An archive is a txtar file. Its comment is a sentence about the behaviour. Its files:
//
//	input.yaml     the objects: the last one is the subject, a pod or a workload; the others are the
//	               objects of the cluster
//	old.yaml       the subject before an update; absent for a creation
//	outcome        the outcome of the subject's review
//	patch          the patch of the webhook, one operation a line, as on the wire
//	warnings       the warnings, one a line
//	errors         the errors that reject the subject, one a line
//	pod-outcome, pod-patch, pod-warnings, pod-errors
//	               for a workload: the same for a pod of its template; the patch is that of the template
//	class.yaml     the managed classes that the pod mounts
//	policy-outcome, policy-warnings, policy-errors, policy-audited
//	               the verdict of the namespace's policy about the patched pod or workload; absent
//	               if there is nothing to report
//
// The package is only for tests.
package corpus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"golang.org/x/tools/txtar"
	"gomodules.xyz/jsonpatch/v2"
	jsonpatchv4 "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// DefaultNamespace is the namespace of the objects of an archive that name none.
const DefaultNamespace = "default"

// Names of an archive's files.
const (
	input   = "input.yaml"
	old     = "old.yaml"
	outcome = "outcome"
	patch   = "patch"
	classes = "class.yaml"
)

// wanted are the files with the expected results, in their order.
var wanted = []string{
	outcome, patch, "warnings", "errors",
	"pod-outcome", "pod-patch", "pod-warnings", "pod-errors", classes,
	"policy-outcome", "policy-warnings", "policy-errors", "policy-audited",
}

// Archive is one archive.
type Archive struct {
	// Name is the name of the file without its extension, and Path is the path of the file.
	Name, Path string
	// Objects are the objects of the cluster.
	Objects []*unstructured.Unstructured
	// Subject is the pod or workload to review.
	Subject *unstructured.Unstructured
	// Old is the subject before an update; nil for a creation.
	Old *unstructured.Unstructured
	// Wanted are the files with the expected results, by name.
	Wanted map[string]string

	archive *txtar.Archive
}

// Load reads every archive of internal/corpus/testdata, sorted by name.
func Load() ([]*Archive, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok {
		return nil, errors.New("find the source of this package")
	}
	paths, err := filepath.Glob(filepath.Join(filepath.Dir(file), "testdata", "*.txtar"))
	if err != nil {
		return nil, fmt.Errorf("list archives: %w", err)
	}
	if len(paths) == 0 {
		return nil, errors.New("list archives: there are none")
	}
	archives := make([]*Archive, 0, len(paths))
	for _, path := range paths {
		a, err := read(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", filepath.Base(path), err)
		}
		archives = append(archives, a)
	}
	return archives, nil
}

func read(path string) (*Archive, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	a := &Archive{
		Name:    strings.TrimSuffix(filepath.Base(path), ".txtar"),
		Path:    path,
		Wanted:  map[string]string{},
		archive: txtar.Parse(text),
	}
	if len(bytes.TrimSpace(a.archive.Comment)) == 0 {
		return nil, errors.New("must start with a sentence about its behaviour")
	}
	for _, file := range a.archive.Files {
		switch {
		case file.Name == input:
			if a.Objects, err = Decode(file.Data); err != nil {
				return nil, fmt.Errorf("%s: %w", input, err)
			}
		case file.Name == old:
			before, err := Decode(file.Data)
			if err != nil || len(before) != 1 {
				return nil, fmt.Errorf("%s: must be one object: %w", old, err)
			}
			a.Old = before[0]
		case slices.Contains(wanted, file.Name):
			a.Wanted[file.Name] = string(file.Data)
		default:
			return nil, fmt.Errorf("must not have a file %s", file.Name)
		}
	}
	if len(a.Objects) == 0 {
		return nil, fmt.Errorf("must have objects in %s", input)
	}
	last := len(a.Objects) - 1
	a.Subject, a.Objects = a.Objects[last], a.Objects[:last]
	return a, nil
}

// Decode reads YAML documents.
func Decode(text []byte) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	decoder := utilyaml.NewYAMLOrJSONDecoder(bytes.NewReader(text), 4096)
	for {
		var object unstructured.Unstructured
		switch err := decoder.Decode(&object.Object); {
		case errors.Is(err, io.EOF):
			return objects, nil
		case err != nil:
			return nil, err
		case len(object.Object) > 0:
			objects = append(objects, &object)
		}
	}
}

// IsPod reports whether the subject is a pod rather than a workload.
func (a *Archive) IsPod() bool {
	return a.Subject.GetKind() == "Pod"
}

// Namespace returns the namespace of the subject.
func (a *Archive) Namespace() string {
	if namespace := a.Subject.GetNamespace(); namespace != "" {
		return namespace
	}
	return DefaultNamespace
}

// Facts returns a source with the objects of the archive.
func (a *Archive) Facts() (*facts.Objects, error) {
	var source facts.Objects
	for _, object := range a.Objects {
		if err := source.Add(object, a.Namespace()); err != nil {
			return nil, err
		}
	}
	return &source, nil
}

// JSON returns an object as the API server sends it.
func JSON(object *unstructured.Unstructured) []byte {
	text, err := object.MarshalJSON()
	if err != nil {
		panic(err) // an object that was parsed from YAML always has a JSON form
	}
	return bytes.TrimSpace(text)
}

// Review reviews the archive by the core, and returns the actual results in the form of Wanted.
func (a *Archive) Review(ctx context.Context) (map[string]string, error) {
	source, err := a.Facts()
	if err != nil {
		return nil, err
	}
	if a.IsPod() {
		var pod pods.Pod
		if err := pods.Decode(JSON(a.Subject), &pod); err != nil {
			return nil, fmt.Errorf("decode pod: %w", err)
		}
		files, err := a.reviewPod(ctx, source, pods.SubjectOf(&pod), "")
		if err != nil || files["errors"] != "" {
			return files, err
		}
		return files, a.checkPolicy(ctx, source, files)
	}
	var w pods.Workload
	if err := pods.Decode(JSON(a.Subject), &w); err != nil {
		return nil, fmt.Errorf("decode workload: %w", err)
	}
	var before *pods.Workload
	if a.Old != nil {
		before = &pods.Workload{}
		if err := pods.Decode(JSON(a.Old), before); err != nil {
			return nil, fmt.Errorf("decode old workload: %w", err)
		}
	}
	verdict, err := review.Reviewer{Source: source}.Workload(ctx, &w, before, a.Namespace())
	if err != nil {
		return nil, err
	}
	files := Files("", verdict)
	if w.Meta.Controller != nil || len(verdict.Errors) > 0 {
		return files, nil
	}
	patched := JSON(a.Subject)
	if patched, err = Apply(patched, verdict.Operations); err != nil {
		return nil, err
	}
	var handed pods.Workload
	if err := pods.Decode(patched, &handed); err != nil {
		return nil, fmt.Errorf("decode patched workload: %w", err)
	}
	held, err := review.Reviewer{Source: source}.WorkloadPolicy(ctx, &handed, a.Namespace())
	if err != nil {
		return nil, err
	}
	putPolicy(files, held)
	subject, ok := Template(&handed)
	if !ok {
		return files, nil
	}
	pod, err := a.reviewPod(ctx, source, subject, "pod-")
	if err != nil {
		return nil, err
	}
	maps.Copy(files, pod)
	return files, nil
}

// Template returns the pod template of a workload as a subject; false if the workload has none.
func Template(w *pods.Workload) (subject pods.Subject, ok bool) {
	switch {
	case w.JobTemplate != nil:
		subject = pods.SubjectOf(w.JobTemplate)
		subject.Root = pods.CronJobRoot
	case w.Template != nil:
		subject = pods.SubjectOf(w.Template)
		subject.Root = pods.TemplateRoot
	default:
		return subject, false
	}
	subject.ClaimTemplates = w.ClaimTemplates
	return subject, true
}

func (a *Archive) reviewPod(
	ctx context.Context, source facts.Source, subject pods.Subject, prefix string,
) (map[string]string, error) {
	result, err := review.Reviewer{Source: source}.Inject(ctx, subject, a.Namespace())
	if err != nil {
		return nil, err
	}
	files := Files(prefix, review.Verdict{
		Outcome:    result.Outcome,
		Operations: result.Change.Operations(&subject),
		Warnings:   result.Warnings,
		Errors:     result.AllErrors(),
	})
	var docs []string
	for _, spc := range result.Classes {
		text, err := yaml.Marshal(spc)
		if err != nil {
			return nil, fmt.Errorf("print class: %w", err)
		}
		docs = append(docs, string(text))
	}
	if result.Outcome == inject.Injected || result.Outcome == inject.Unchanged {
		put(files, classes, strings.Join(docs, "---\n"))
	}
	return files, nil
}

// checkPolicy applies the patch in files to the pod, and adds the verdict of the namespace's policy
// to files.
func (a *Archive) checkPolicy(ctx context.Context, source facts.Source, files map[string]string) error {
	patched := JSON(a.Subject)
	if text := files[patch]; text != "" {
		list := "[" + strings.ReplaceAll(strings.TrimSpace(text), "\n", ",") + "]"
		var err error
		if patched, err = ApplyText(patched, []byte(list)); err != nil {
			return err
		}
	}
	var pod pods.Pod
	if err := pods.Decode(patched, &pod); err != nil {
		return fmt.Errorf("decode patched pod: %w", err)
	}
	held, err := review.Reviewer{Source: source}.PodPolicy(ctx, pods.SubjectOf(&pod), nil, a.Namespace())
	if err == nil {
		putPolicy(files, held)
	}
	return err
}

// putPolicy adds the verdict of the policy to files, if there is anything to report.
func putPolicy(files map[string]string, v review.Verdict) {
	if len(v.Warnings)+len(v.Errors)+len(v.Audited) == 0 {
		return
	}
	files["policy-outcome"] = string(v.Outcome) + "\n"
	put(files, "policy-warnings", messages(v.Warnings))
	put(files, "policy-errors", messages(v.Errors))
	put(files, "policy-audited", messages(v.Audited))
}

// Files returns a verdict in the form of [Archive.Wanted].
func Files(prefix string, v review.Verdict) map[string]string {
	files := map[string]string{prefix + outcome: string(v.Outcome) + "\n"}
	put(files, prefix+patch, Operations(v.Operations))
	put(files, prefix+"warnings", messages(v.Warnings))
	put(files, prefix+"errors", messages(v.Errors))
	return files
}

func put(files map[string]string, name, text string) {
	if text != "" {
		files[name] = text
	}
}

// Operations prints a patch, one operation a line.
func Operations(operations []jsonpatch.Operation) string {
	var b strings.Builder
	for _, operation := range operations {
		text, err := json.Marshal(&operation, json.Deterministic(true))
		if err != nil {
			panic(err) // values of a patch come from JSON
		}
		b.Write(text)
		b.WriteByte('\n')
	}
	return b.String()
}

func messages(errs field.ErrorList) string {
	var b strings.Builder
	for _, err := range errs {
		b.WriteString(api.Message(err) + "\n")
	}
	return b.String()
}

// Apply patches an object with the library that the API server uses.
func Apply(object []byte, operations []jsonpatch.Operation) ([]byte, error) {
	if len(operations) == 0 {
		return object, nil
	}
	text, err := json.Marshal(operations)
	if err != nil {
		return nil, fmt.Errorf("print patch: %w", err)
	}
	return ApplyText(object, text)
}

// ApplyText is [Apply] for an encoded patch.
func ApplyText(object, operations []byte) ([]byte, error) {
	decoded, err := jsonpatchv4.DecodePatch(operations)
	if err != nil {
		return nil, fmt.Errorf("decode patch: %w", err)
	}
	patched, err := decoded.Apply(object)
	if err != nil {
		return nil, fmt.Errorf("apply patch: %w", err)
	}
	return patched, nil
}

// Update replaces the expected results of the archive. Its comment and its other files stay the
// same.
func (a *Archive) Update(files map[string]string) error {
	kept := slices.DeleteFunc(a.archive.Files, func(f txtar.File) bool { return slices.Contains(wanted, f.Name) })
	for _, name := range wanted {
		if text, ok := files[name]; ok {
			kept = append(kept, txtar.File{Name: name, Data: []byte(text)})
		}
	}
	a.archive.Files = kept
	return os.WriteFile(a.Path, txtar.Format(a.archive), 0o600)
}
