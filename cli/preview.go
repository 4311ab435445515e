package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/policy"
)

// Status is the result of a run. It is the exit status of the process.
type Status int

// The statuses.
const (
	// Fine means that nothing is rejected. There may be warnings.
	Fine Status = 0
	// Rejected means that the injector would reject an object, or that there is a warning and
	// Options.FailOn is [Warning].
	Rejected Status = 1
	// Unusable means that an input cannot be read, or that the options are wrong.
	Unusable Status = 2
)

// Options are the options of [Inject], [Lint], [Adopt] and [Eject]. Files is required.
type Options struct {
	// Files are files, directories, and - for Stdin. In a directory, the files *.yaml, *.yml and
	// *.json are read, sorted by name. A file is read only once.
	Files []string
	// Recursive also reads the subdirectories of directories.
	Recursive bool
	// Exclude are patterns of [path.Match] for the files and folders below the directories of
	// Files that are not read. A pattern without a slash matches a name at any depth, another one
	// the path from the directory.
	Exclude []string
	// Facts are files, directories, and - for Stdin, with Namespaces, ServiceAccounts,
	// SecretProviderClasses and AzureIdentityBindings of a cluster. Only lookups use them: they are
	// neither reviewed nor printed. Objects in Files replace them.
	Facts []string
	// Namespace is the namespace of objects that name none; empty for the namespace default.
	Namespace string
	// Cluster is used for objects that neither Files nor Facts have; nil for none.
	Cluster facts.Source
	// Object returns an object of the cluster with all its fields, for [Adopt]; nil for one that does not
	// exist. Object itself is nil without a cluster.
	Object func(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error)
	// Defaults are the values of the server's flags.
	Defaults inject.Defaults
	// Level is enforced in namespaces without a policy label; [policy.Off] for none.
	Level policy.Level
	// SkipClasses omits managed classes from the output of [Inject].
	SkipClasses bool
	// FailOn is the least severity for which [Lint] returns [Rejected]; empty for [Error].
	FailOn Severity
	// Stdin is read for the file -.
	Stdin io.Reader
}

// defaultNamespace is where kubectl creates an object if neither the object nor the kubeconfig names
// a namespace.
const defaultNamespace = "default"

// check returns what is wrong with the options.
func (o Options) check() error {
	if len(o.Files) == 0 {
		return errors.New("name at least one file, directory or - with -f")
	}
	fromStdin := 0
	for _, name := range slices.Concat(o.Files, o.Facts) {
		if name == "-" {
			fromStdin++
		}
	}
	if fromStdin > 1 {
		return errors.New("name - only once: standard input cannot be read twice")
	}
	for _, pattern := range o.Exclude {
		if _, err := path.Match(pattern, ""); err != nil {
			return fmt.Errorf("--exclude: must be a pattern such as *.tmpl.yaml or charts/*, is %q", pattern)
		}
	}
	return nil
}

// Inject writes the manifests after injection to stdout, in their order. Managed classes are added
// after the first document that needs them. If diff is true, Inject writes a unified diff for
// patch(1) instead, in colour if stdout is a terminal. It writes the findings to stderr as text.
//
// If an object is rejected or a file cannot be read, Inject writes nothing to stdout, so that no
// part of the manifests is applied without the rest. If the error is not nil, the status is
// [Unusable], and the caller must print the error.
func Inject(ctx context.Context, o Options, diff bool, stdout, stderr io.Writer) (Status, error) {
	output := Print
	if diff {
		output = Diff
	}
	return o.write(ctx, func(*run) {}, output, stdout, stderr)
}

// Lint writes the findings about the manifests to stdout. In the format [Text], it then writes one
// line to stderr that says how much was judged. If the error is not nil, the status is [Unusable],
// and the caller must print the error.
func Lint(ctx context.Context, o Options, format Format, stdout, stderr io.Writer) (Status, error) {
	r, err := o.run(ctx, func(r *run) { r.linting = true })
	if err != nil {
		return Unusable, err
	}
	text, err := r.findings.format(format)
	if err != nil {
		return Unusable, err
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return Unusable, fmt.Errorf("write findings: %w", err)
	}
	if format == Text || format == "" {
		if _, err := io.WriteString(stderr, r.summary()); err != nil {
			return Unusable, fmt.Errorf("write summary: %w", err)
		}
	}
	return r.findings.status(o.FailOn), nil
}

// run reads the files and reviews their documents, after it has called set. The findings are sorted by
// file and document.
func (o Options) run(ctx context.Context, set func(*run)) (*run, error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	o.Namespace = cmp.Or(o.Namespace, defaultNamespace)
	known, found, err := o.read(o.Facts)
	if err != nil {
		return nil, err
	}
	files, more, err := o.read(o.Files)
	if err != nil {
		return nil, err
	}
	r := run{options: o, files: files, findings: append(found, more...)}
	set(&r)
	if err := r.review(ctx, known); err != nil {
		return nil, err
	}
	position := make(map[string]int, len(files))
	for i, f := range files {
		position[f.name] = i
	}
	slices.SortStableFunc(r.findings, func(a, b Finding) int {
		return cmp.Or(position[a.File]-position[b.File], a.Document-b.Document)
	})
	return &r, nil
}
