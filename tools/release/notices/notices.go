// Package notices collects the licences of the modules that are linked into a Go program, and
// rejects licences under which the program must not be distributed.
//
//	modules, err := notices.Linked(ctx, root, "linux/amd64", "linux/arm64")
//	text, err := notices.Render(modules)
//
// It does not know the program.
package notices

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// allowed are the SPDX identifiers of the licences under which a module may be linked. All of them
// allow distribution of the binary under Apache-2.0 together with their texts.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "Unlicense"}

// recognized is the minimum share of a file's words that must belong to known licences, in percent.
// The other words are names and text around the licence.
const recognized = 75

// Module is a module with linked packages, or Go's standard library.
type Module struct {
	Path    string
	Version string // empty for the standard library, which has the toolchain's version
	Files   []File
}

// File is a text that must be distributed with the binary.
type File struct {
	Path string // relative to the module, with slashes
	Text string
}

// licence reports whether the file is a licence. Other files, such as NOTICE, are distributed
// unchanged.
func (f File) licence() bool { return licenceName.MatchString(filepath.Base(f.Path)) }

var (
	licenceName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([._-].*)?$`)
	noticeName  = regexp.MustCompile(`(?i)^(notice|copyright|patents)s?([._-].*)?$`)
)

// listed has the fields of `go list -json` that Linked uses.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	Module          *struct {
		Path, Version, Dir string
		Main               bool
	}
}

// Linked returns the modules that are linked into the program in dir on at least one of the
// platforms, such as linux/amd64, sorted by path. It omits the program's own module. The texts of a
// package are those in its folder and in all parent folders within the module.
func Linked(ctx context.Context, dir string, platforms ...string) ([]Module, error) {
	modules := map[string]*Module{}
	for _, platform := range platforms {
		packages, err := list(ctx, dir, platform)
		if err != nil {
			return nil, fmt.Errorf("list packages for %s: %w", platform, err)
		}
		for _, p := range packages {
			if err := add(modules, p); err != nil {
				return nil, fmt.Errorf("package %s: %w", p.ImportPath, err)
			}
		}
	}
	standard, err := standardLibrary(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("the standard library: %w", err)
	}
	modules[standard.Path] = standard
	out := make([]Module, 0, len(modules))
	for _, path := range slices.Sorted(maps.Keys(modules)) {
		m := *modules[path]
		slices.SortFunc(m.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
		out = append(out, m)
	}
	return out, nil
}

func list(ctx context.Context, dir, platform string) ([]listed, error) {
	goos, goarch, _ := strings.Cut(platform, "/")
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=ImportPath,Dir,Standard,Module", ".")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "GOOS="+goos, "GOARCH="+goarch, "CGO_ENABLED=0")
	out, err := output(cmd)
	if err != nil {
		return nil, err
	}
	var packages []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return packages, nil
		} else if err != nil {
			return nil, err
		}
		packages = append(packages, p)
	}
}

// add adds the texts that apply to a package to its module.
func add(modules map[string]*Module, p listed) error {
	if p.Standard || p.Module == nil || p.Module.Main {
		return nil
	}
	m := modules[p.Module.Path]
	if m == nil {
		m = &Module{Path: p.Module.Path, Version: p.Module.Version}
		modules[m.Path] = m
	}
	for folder := p.Dir; ; folder = filepath.Dir(folder) {
		below, err := filepath.Rel(p.Module.Dir, folder)
		if err != nil {
			return err
		}
		if err := m.read(folder, below); err != nil {
			return err
		}
		if below == "." {
			return nil
		}
	}
}

// read adds the texts in a folder, unless they were added before.
func (m *Module) read(folder, below string) error {
	entries, err := os.ReadDir(folder)
	if err != nil {
		return err
	}
	for _, e := range entries {
		name := e.Name()
		if e.IsDir() || filepath.Ext(name) == ".go" || !licenceName.MatchString(name) && !noticeName.MatchString(name) {
			continue
		}
		path := filepath.ToSlash(filepath.Join(below, name))
		if slices.ContainsFunc(m.Files, func(f File) bool { return f.Path == path }) {
			continue
		}
		text, err := os.ReadFile(filepath.Join(folder, name))
		if err != nil {
			return err
		}
		m.Files = append(m.Files, File{Path: path, Text: tidy(string(text))})
	}
	return nil
}

// tidy normalizes line endings and trailing spaces, so that equal texts are equal strings.
func tidy(text string) string {
	lines := strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimRight(line, " \t\f")
	}
	return strings.Trim(strings.Join(lines, "\n"), "\n") + "\n"
}

func standardLibrary(ctx context.Context, dir string) (*Module, error) {
	cmd := exec.CommandContext(ctx, "go", "env", "GOROOT")
	cmd.Dir = dir
	out, err := output(cmd)
	if err != nil {
		return nil, err
	}
	m := &Module{Path: "Go standard library"}
	if err := m.read(strings.TrimSpace(string(out)), "."); err != nil {
		return nil, err
	}
	return m, nil
}

// output returns the standard output of a command. Errors contain its standard error.
func output(cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

// Render returns the text that is distributed with a binary: a list of modules and their licences,
// then each text once. It returns an error that names all modules without a licence, with an
// unrecognized licence, or with a licence that is not allowed.
func Render(modules []Module) ([]byte, error) {
	var (
		table, texts strings.Builder
		errs         []error
		holders      = map[string][]string{} // by text: which files have it
		order        []string
	)
	for _, m := range modules {
		name := strings.TrimSpace(m.Path + " " + m.Version)
		ids, err := identify(m)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		fmt.Fprintf(&table, "  %s: %s\n", name, strings.Join(ids, ", "))
		for _, f := range m.Files {
			if holders[f.Text] == nil {
				order = append(order, f.Text)
			}
			holders[f.Text] = append(holders[f.Text], name+", "+f.Path)
		}
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	for _, text := range order {
		fmt.Fprintf(&texts, "\n%s\n%s\n\n%s", strings.Repeat("=", 80), strings.Join(holders[text], "\n"), text)
	}
	return []byte("akv-injector is linked with the modules below. Each line names a module and its licences. " +
		"The texts follow, each after the files that contain it.\n\n" +
		table.String() + texts.String()), nil
}

// identify returns the SPDX identifiers of a module's licences.
func identify(m Module) ([]string, error) {
	var ids []string
	for _, f := range m.Files {
		if !f.licence() {
			continue
		}
		coverage := licensecheck.Scan([]byte(f.Text))
		if coverage.Percent < recognized {
			return nil, fmt.Errorf("%s: is not recognized as a licence; check it by hand", f.Path)
		}
		for _, match := range coverage.Match {
			if match.IsURL {
				continue
			}
			if !slices.Contains(allowed, match.ID) {
				return nil, fmt.Errorf("%s: must be one of %s, is %s", f.Path, strings.Join(allowed, ", "), match.ID)
			}
			if !slices.Contains(ids, match.ID) {
				ids = append(ids, match.ID)
			}
		}
	}
	if len(ids) == 0 {
		return nil, errors.New("has no licence")
	}
	return ids, nil
}
