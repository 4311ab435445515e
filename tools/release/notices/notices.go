// Package notices collects the licences of what is linked into a Go program, and refuses those that it may not be shipped with. It knows
// nothing of the program.
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

// allowed are the licences under which a module may be linked, by SPDX identifier. All of them let the binary be passed on under
// Apache-2.0, as long as their texts go with it.
var allowed = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT", "MPL-2.0", "Unlicense"}

// recognized is how much of a licence's words must be those of known licences, in percent. The rest is names, and what surrounds
// the text proper.
const recognized = 75

// Module is a module of which packages are linked, or Go's standard library.
type Module struct {
	Path    string
	Version string // empty for the standard library: it is the toolchain's
	Files   []File
}

// File is a text that must go with the binary.
type File struct {
	Path string // below the module, with slashes
	Text string
}

// licence tells a licence from other texts, such as NOTICE, which have to be passed on as they are.
func (f File) licence() bool { return licenceName.MatchString(filepath.Base(f.Path)) }

var (
	licenceName = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)([._-].*)?$`)
	noticeName  = regexp.MustCompile(`(?i)^(notice|copyright|patents)s?([._-].*)?$`)
)

// listed is what Linked reads of `go list -json`.
type listed struct {
	ImportPath, Dir string
	Standard        bool
	Module          *struct {
		Path, Version, Dir string
		Main               bool
	}
}

// Linked is what the program in a folder is linked of on any of the platforms, such as linux/amd64, without the program's own module. The
// modules are in the order of their paths; texts are those of a package's folder and of all above it in its module.
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

// add puts the texts that hold for a package among those of its module.
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

// read adds a folder's texts, once.
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

// tidy makes texts equal that differ in nothing but how lines end.
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

// output is what a command prints, or an error with what it says on standard error.
func output(cmd *exec.Cmd) ([]byte, error) {
	out, err := cmd.Output()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(exit.Stderr))
	}
	return out, err
}

// Render is the text that goes with a binary: a table of modules and their licences, then each text once. It is an error if a module
// has no licence, or has one that is not recognized or not among those allowed; all such modules are named.
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
	return []byte("akv-injector is linked with the modules below, each under the licence beside it. The texts follow, each after the files that have it.\n\n" +
		table.String() + texts.String()), nil
}

// identify is the SPDX identifiers of a module's licences.
func identify(m Module) ([]string, error) {
	var ids []string
	for _, f := range m.Files {
		if !f.licence() {
			continue
		}
		coverage := licensecheck.Scan([]byte(f.Text))
		if coverage.Percent < recognized {
			return nil, fmt.Errorf("%s: is not recognized as a licence; look at it", f.Path)
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
