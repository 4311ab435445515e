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

// Status is how a run ended; it is the process's exit status.
type Status int

// The statuses.
const (
	// Fine says that nothing is rejected. There may be warnings.
	Fine Status = 0
	// Rejected says that the injector would reject something.
	Rejected Status = 1
	// Unusable says that input can't be read, or that the command is not used as it should be.
	Unusable Status = 2
)

// Options say what to run over. The zero value has nothing to read.
type Options struct {
	// Files are files, directories, and - for Stdin. Of a directory the files named *.yaml, *.yml and *.json are read, in the order of
	// their names. A file that was read already is passed over.
	Files []string
	// Recursive reads the directories below those of Files too.
	Recursive bool
	// Namespace is where objects are that name no namespace; empty stands for default.
	Namespace string
	// Cluster answers what the files leave open; nil where they have to say everything.
	Cluster facts.Source
	// Defaults are what the server's flags would say.
	Defaults inject.Defaults
	// Level is what is enforced in namespaces that have no label of policy; [policy.Off] for nothing.
	Level policy.Level
	// SkipClasses leaves managed classes out of what is printed.
	SkipClasses bool
	// Stdin is what - reads.
	Stdin io.Reader
}

var errNoFiles = errors.New("name at least one file, directory or - with -f")

// Inject writes the manifests to stdout as they are after injection, in their order and with the managed classes that they need, each
// after the document that needs it first. With diff it writes what changes instead, as a unified diff that patch(1)
// understands, coloured where stdout is a terminal. Findings go to stderr as text.
//
// Where anything is rejected or can't be read, nothing is written to stdout: half of what belongs together is worse to apply than
// none. An error comes with [Unusable] and was not written anywhere.
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

// Lint writes what is wrong with the manifests to stdout, in that format, and nothing else. An error comes with [Unusable]
// and was not written anywhere.
func Lint(ctx context.Context, o Options, format Format, stdout io.Writer) (Status, error) {
	_, findings, err := o.run(ctx)
	if err != nil {
		return Unusable, err
	}
	findings = slices.DeleteFunc(findings, func(f Finding) bool { return f.ofPrint })
	text, err := findings.format(format)
	if err != nil {
		return Unusable, err
	}
	if _, err := io.WriteString(stdout, text); err != nil {
		return Unusable, fmt.Errorf("write findings: %w", err)
	}
	return findings.status(), nil
}

// run reads the files and works out what becomes of each document.
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
	if err := r.decide(ctx); err != nil {
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
