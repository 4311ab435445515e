// Package docs_test checks the Markdown pages of the repository: links, YAML examples and shell blocks.
package docs_test

import (
	"bytes"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/yuin/goldmark"
	"github.com/yuin/goldmark/ast"
	"github.com/yuin/goldmark/extension"
	"github.com/yuin/goldmark/text"

	"github.com/akv-injector/akv-injector/cli"
)

const root = ".."

// page is a parsed Markdown file.
type page struct {
	links   []string
	anchors []string
	blocks  []block
}

// block is a fenced code block.
type block struct{ language, code string }

var (
	notInAnchors = regexp.MustCompile(`[^\p{L}\p{N}\s_-]`)
	htmlAnchor   = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
)

// load parses every page, by path from the root.
func load(t *testing.T) map[string]*page {
	t.Helper()
	pages := map[string]*page{}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if entry.IsDir() && (entry.Name() == ".git" || entry.Name() == "bin" || entry.Name() == "testdata") {
			return filepath.SkipDir
		}
		if entry.IsDir() || filepath.Ext(path) != ".md" {
			return nil
		}
		source, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		pages[name] = parse(source)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(pages) < 10 {
		t.Fatalf("found %d pages", len(pages))
	}
	return pages
}

func parse(source []byte) *page {
	p := &page{}
	for _, match := range htmlAnchor.FindAllSubmatch(source, -1) {
		p.anchors = append(p.anchors, string(match[1]))
	}
	document := goldmark.New(goldmark.WithExtensions(extension.GFM)).Parser().Parse(text.NewReader(source))
	err := ast.Walk(document, func(node ast.Node, entering bool) (ast.WalkStatus, error) {
		if !entering {
			return ast.WalkContinue, nil
		}
		switch n := node.(type) {
		case *ast.Link:
			p.links = append(p.links, string(n.Destination))
		case *ast.Heading:
			p.anchors = append(p.anchors, anchor(n, source))
		case *ast.FencedCodeBlock:
			p.blocks = append(p.blocks, block{string(n.Language(source)), string(n.Lines().Value(source))})
		}
		return ast.WalkContinue, nil
	})
	if err != nil {
		panic(err) // the function returns none
	}
	return p
}

// anchor returns the anchor that GitHub gives a heading.
func anchor(heading *ast.Heading, source []byte) string {
	var title bytes.Buffer
	_ = ast.Walk(heading, func(node ast.Node, entering bool) (ast.WalkStatus, error) {
		if text, ok := node.(*ast.Text); ok && entering {
			title.Write(text.Value(source))
		}
		return ast.WalkContinue, nil
	})
	return strings.ReplaceAll(notInAnchors.ReplaceAllString(strings.ToLower(title.String()), ""), " ", "-")
}

func TestLinks(t *testing.T) {
	pages := load(t)
	for name, p := range pages {
		for _, link := range p.links {
			if strings.Contains(link, "://") || strings.HasPrefix(link, "mailto:") {
				continue
			}
			target, fragment, _ := strings.Cut(link, "#")
			file := name
			if target != "" {
				file = filepath.Join(filepath.Dir(name), target)
			}
			if _, err := os.Stat(filepath.Join(root, file)); err != nil {
				t.Errorf("%s: link to %s: %v", name, link, err)
				continue
			}
			if to := pages[file]; fragment != "" && to != nil && !slices.Contains(to.anchors, fragment) {
				t.Errorf("%s: link to %s: %s has no such heading", name, link, file)
			}
		}
	}
}

// around reports whether a YAML block has only objects that pods refer to.
func around(code string) bool {
	return !regexp.MustCompile(`(?m)^kind: (Pod|Deployment|StatefulSet|DaemonSet|ReplicaSet|Job|CronJob)$`).MatchString(code)
}

// TestYAML feeds every YAML block to lint, together with the Namespaces, ServiceAccounts, classes
// and bindings of its page. Warnings are allowed: some pages show them. A block after <!-- rejected
// --> shows an error.
func TestYAML(t *testing.T) {
	n := 0
	for name, p := range load(t) {
		var context []string
		for _, b := range p.blocks {
			if b.language == "yaml" && around(b.code) {
				context = append(context, b.code)
			}
		}
		for _, b := range p.blocks {
			if b.language != "yaml" {
				continue
			}
			n++
			files := context
			if !around(b.code) {
				files = append(slices.Clip(context), b.code)
			}
			var out strings.Builder
			status, err := cli.Lint(t.Context(), cli.Options{
				Files: []string{"-"}, Stdin: strings.NewReader(strings.Join(files, "\n---\n")),
			}, cli.Text, &out, io.Discard)
			if err != nil || status != cli.Fine {
				t.Errorf("%s: lint ends with status %d, error %v for\n%s\n%s", name, status, err, b.code, out.String())
			}
		}
	}
	if n == 0 {
		t.Error("there is no YAML block")
	}
}

// TestShell checks the syntax of every shell block, and runs those that need nothing but this
// repository.
func TestShell(t *testing.T) {
	ran := 0
	for name, p := range load(t) {
		for _, b := range p.blocks {
			if b.language != "sh" {
				continue
			}
			if out, err := exec.CommandContext(t.Context(), "bash", "-n", "-c", b.code).CombinedOutput(); err != nil {
				t.Errorf("%s: %v in\n%s\n%s", name, err, b.code, out)
			}
			if !strings.HasPrefix(b.code, "make build\n") {
				continue
			}
			ran++
			cmd := exec.CommandContext(t.Context(), "bash", "-euo", "pipefail", "-c", b.code)
			cmd.Dir = root
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Errorf("%s: %v in\n%s\n%s", name, err, b.code, out)
			}
		}
	}
	if ran == 0 {
		t.Error("no block was run")
	}
}
