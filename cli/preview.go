package cli

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

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
	// Rejected means that the injector would reject an object.
	Rejected Status = 1
	// Unusable means that an input cannot be read, or that the options are wrong.
	Unusable Status = 2
)

// Options are the options of [Inject] and [Lint]. Files is required.
type Options struct {
	// Files are files, directories, and - for Stdin. In a directory, the files *.yaml, *.yml and
	// *.json are read, sorted by name. A file is read only once.
	Files []string
	// Recursive also reads the subdirectories of directories.
	Recursive bool
	// Namespace is the namespace of objects that name none; empty for the namespace default.
	Namespace string
	// Cluster is used for objects that the files do not have; nil for none.
	Cluster facts.Source
	// Defaults are the values of the server's flags.
	Defaults inject.Defaults
	// Level is enforced in namespaces without a policy label; [policy.Off] for none.
	Level policy.Level
	// SkipClasses omits managed classes from the output.
	SkipClasses bool
	// Stdin is read for the file -.
	Stdin io.Reader
}

var errNoFiles = errors.New("name at least one file, directory or - with -f")

// Inject writes the manifests after injection to stdout, in their order. Managed classes are added
// after the first document that needs them. If diff is true, Inject writes a unified diff for
// patch(1) instead, in colour if stdout is a terminal. It writes the findings to stderr as text.
//
// If an object is rejected or a file cannot be read, Inject writes nothing to stdout, so that no
// part of the manifests is applied without the rest. If the error is not nil, the status is
// [Unusable], and the caller must print the error.
func Inject(ctx context.Context, o Options, diff bool, stdout, stderr io.Writer) (Status, error) {
	files, findings, err := o.run(ctx)
	if err != nil {
		return Unusable, err
	}
	status, text := findings.status(), findings.text()
	if status != Fine {
		text += "nothing was printed, since not everything can be injected\n"
	}
	if _, err := io.WriteString(stderr, text); err != nil {
		return Unusable, fmt.Errorf("write findings: %w", err)
	}
	if status != Fine {
		return status, nil
	}
	if diff {
		text = unifiedDiff(files, isColored(stdout))
	} else {
		text = joined(files)
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return Unusable, fmt.Errorf("write manifests: %w", err)
	}
	return Fine, nil
}

// Lint writes the findings about the manifests to stdout. If the error is not nil, the status is
// [Unusable], and the caller must print the error.
func Lint(ctx context.Context, o Options, format Format, stdout io.Writer) (Status, error) {
	_, findings, err := o.run(ctx)
	if err != nil {
		return Unusable, err
	}
	findings = slices.DeleteFunc(findings, func(f Finding) bool { return f.aboutOutput })
	text, err := findings.format(format)
	if err != nil {
		return Unusable, err
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return Unusable, fmt.Errorf("write findings: %w", err)
	}
	return findings.status(), nil
}

// run reads the files and reviews their documents. The findings are sorted by file and document.
func (o Options) run(ctx context.Context) ([]*file, findings, error) {
	if len(o.Files) == 0 {
		return nil, nil, errNoFiles
	}
	if o.Namespace == "" {
		o.Namespace = "default"
	}
	files, findings, err := o.read()
	if err != nil {
		return nil, nil, err
	}
	r := run{options: o, files: files, findings: findings}
	if err := r.review(ctx); err != nil {
		return nil, nil, err
	}
	position := make(map[string]int, len(files))
	for i, f := range files {
		position[f.name] = i
	}
	slices.SortStableFunc(r.findings, func(a, b Finding) int {
		return cmp.Or(position[a.File]-position[b.File], a.Document-b.Document)
	})
	return r.files, r.findings, nil
}
