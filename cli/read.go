package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
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
	// affected is true if a duplicate key was reported as an error, since it may change a verdict.
	affected bool
	// patched is the text after injection.
	patched string
	// title is the object that a diff shows for the document.
	title string
	// more are the texts of documents to add after this one.
	more []string
}

// stdinName is the file name of standard input in findings.
const stdinName = "<stdin>"

// read reads all files. A file or document that cannot be read is a finding, and the others are
// still reviewed.
func (o Options) read() ([]*file, findings, error) {
	var files []*file
	var found findings
	unreadable := func(name string, err error) {
		if of, ok := errors.AsType[*fs.PathError](err); ok && of.Path == name {
			err = of.Err // the finding has the name of the file
		}
		found = append(found, Finding{File: name, Severity: Error, Message: err.Error(), unreadable: true})
	}
	if slices.Index(o.Files, "-") != lastIndex(o.Files, "-") {
		return nil, nil, errors.New("name - only once: standard input cannot be read twice")
	}
	seen := map[string]bool{}
	for _, path := range o.Files {
		if path == "-" {
			if o.Stdin == nil {
				return nil, nil, errors.New("read -: there is no standard input")
			}
			text, err := readAll(o.Stdin)
			if err != nil {
				unreadable(stdinName, fmt.Errorf("read standard input: %w", err))
				continue
			}
			files = append(files, newFile(stdinName, text))
			continue
		}
		names, err := o.list(path)
		if err != nil {
			unreadable(path, err)
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
			files = append(files, newFile(name, text))
		}
	}
	for _, f := range files {
		for _, d := range f.documents {
			if p := d.Problem(); p != nil {
				found = append(found, Finding{
					File: f.name, Line: p.Line, Column: p.Column, Document: d.number, Severity: Error, Message: p.Detail, unreadable: true,
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
	text, err := io.ReadAll(io.LimitReader(r, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("must have at most %d bytes; split it into several files", maxFile)
	}
	return string(text), err
}

func lastIndex(list []string, s string) int {
	for i, e := range slices.Backward(list) {
		if e == s {
			return i
		}
	}
	return -1
}

func newFile(name, text string) *file {
	f := &file{name: name, text: text}
	number := 0
	for _, d := range manifest.Split(text) {
		one := &document{Document: d, patched: d.Text()}
		if !d.IsBlank() {
			number++
			one.number = number
		}
		f.documents = append(f.documents, one)
	}
	return f
}

// list returns the file, or the manifests of a directory, sorted by name.
func (o Options) list(path string) ([]string, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return []string{path}, nil
	}
	var names []string
	err = filepath.WalkDir(path, func(name string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && name != path && !o.Recursive:
			return fs.SkipDir
		case !entry.IsDir() && isManifest(name):
			names = append(names, name)
		}
		return nil
	})
	if err == nil && len(names) == 0 {
		err = errors.New("must contain *.yaml, *.yml or *.json files; use --recursive to include subdirectories")
	}
	return names, err
}

func isManifest(name string) bool {
	switch strings.ToLower(filepath.Ext(name)) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
