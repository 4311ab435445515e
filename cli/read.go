package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/cli/manifest"
)

// file is one input.
type file struct {
	name, text string
	documents  []*document
}

// document is one document of a file and its injection.
type document struct {
	*manifest.Document
	// number is the number of the document in its file, from 1, not counting blank documents; 0 for
	// a blank document.
	number int
	// source is the template of a Helm chart that the document was rendered from; empty if no
	// comment names it.
	source string
	// affected is true if a duplicate key was reported as an error, since it may change a verdict.
	affected bool
	// patched is the text after injection; empty if it does not change.
	patched string
	// title is the object that a diff shows for the document.
	title string
	// more are the texts of documents to add after this one.
	more []string
}

// stdinName is the file name of standard input in findings.
const stdinName = "<stdin>"

// read reads files and directories. A file or document that cannot be read is a finding, and the
// others are still reviewed.
func (o Options) read(names []string) ([]*file, findings, error) {
	var files []*file
	var found findings
	unreadable := func(name string, err error) {
		if of, ok := errors.AsType[*fs.PathError](err); ok && of.Path == name {
			err = of.Err // the finding has the name of the file
		}
		found = append(found, Finding{File: name, Severity: Error, Message: err.Error(), unreadable: true})
	}
	add := func(f *file) {
		files = append(files, f)
		if len(files) > 1 { // manifest.Split keeps the nodes of a single document
			for _, d := range slices.Concat(files[0].documents, f.documents) {
				d.Release()
			}
		}
	}
	seen := map[string]bool{}
	for _, named := range names {
		if named == "-" {
			if o.Stdin == nil {
				return nil, nil, errors.New("read -: there is no standard input")
			}
			text, err := readAll(o.Stdin)
			if err != nil {
				unreadable(stdinName, fmt.Errorf("read standard input: %w", err))
				continue
			}
			add(newFile(stdinName, text))
			continue
		}
		names, err := o.list(named)
		if err != nil {
			unreadable(named, err)
		}
		for _, name := range names {
			if seen[filepath.Clean(name)] {
				continue
			}
			seen[filepath.Clean(name)] = true
			text, err := readFile(name)
			if err != nil {
				unreadable(name, err)
				continue
			}
			add(newFile(name, text))
		}
	}
	for _, f := range files {
		for _, d := range f.documents {
			if p := d.Problem(); p != nil {
				found = append(found, Finding{
					File:       f.name,
					Source:     d.source,
					Line:       p.Line,
					Column:     p.Column,
					Document:   d.number,
					Severity:   Error,
					Message:    p.Detail,
					unreadable: true,
				})
			}
		}
	}
	return files, found, nil
}

// maxFile is the size of the largest file, in bytes.
const maxFile = 100 << 20

func readFile(name string) (string, error) {
	f, err := os.Open(name)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return readAll(f)
}

func readAll(r io.Reader) (string, error) {
	var text strings.Builder
	if f, ok := r.(*os.File); ok {
		if info, err := f.Stat(); err == nil && info.Mode().IsRegular() {
			text.Grow(int(min(info.Size(), maxFile)))
		}
	}
	n, err := io.Copy(&text, io.LimitReader(r, maxFile+1))
	if err == nil && n > maxFile {
		err = fmt.Errorf("must have at most %d bytes; split it into several files", maxFile)
	}
	return text.String(), err
}

// helmSource matches the comment with which helm template starts each document
// (pkg/action/action.go, renderResources).
var helmSource = regexp.MustCompile(`^(?:---[ \t]*\r?\n)?(?:[ \t]*\r?\n)*# Source: (\S[^\r\n]*)`)

func newFile(name, text string) *file {
	f := &file{name: name, text: text}
	number := 0
	for _, d := range manifest.Split(text) {
		one := &document{Document: d}
		if m := helmSource.FindStringSubmatch(d.Text()); m != nil {
			one.source = strings.TrimSpace(m[1])
		}
		if !d.IsBlank() {
			number++
			one.number = number
		}
		f.documents = append(f.documents, one)
	}
	return f
}

// list returns the file, or the manifests of a directory, sorted by name.
func (o Options) list(root string) ([]string, error) {
	info, err := os.Stat(root)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{root}, nil
	}
	var names []string
	excluded := 0
	err = filepath.WalkDir(root, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != root && o.excludes(root, name):
			if excluded++; entry.IsDir() {
				return fs.SkipDir
			}
		case entry.IsDir() && name != root && !o.Recursive:
			return fs.SkipDir
		case !entry.IsDir() && isManifest(name):
			names = append(names, name)
		}
		return nil
	})
	switch {
	case err != nil || len(names) > 0:
	case excluded > 0:
		err = errors.New("must contain *.yaml, *.yml or *.json files that --exclude does not match")
	default:
		err = errors.New("must contain *.yaml, *.yml or *.json files; use --recursive to include subdirectories")
	}
	return names, err
}

// excludes reports whether a pattern of Exclude matches a file or folder below a directory. A bad
// pattern matches nothing; [Options.check] reports it.
func (o Options) excludes(directory, name string) bool {
	below, err := filepath.Rel(directory, name)
	if err != nil {
		return false
	}
	below = filepath.ToSlash(below)
	return slices.ContainsFunc(o.Exclude, func(pattern string) bool {
		what := below
		if pattern = strings.TrimSuffix(pattern, "/"); !strings.Contains(pattern, "/") {
			what = below[strings.LastIndexByte(below, '/')+1:]
		}
		matched, err := path.Match(pattern, what)
		return err == nil && matched
	})
}

func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
