package mistakes_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/test/harness/build"
)

// mistake is a file of testdata/mistakes.txtar.
type mistake struct {
	name, manifest string
	// about describes the mistake, or the manifest if it is right.
	about   string
	isRight bool
	// wanted are what the first message must have: the field, the cause and the fix.
	wanted [3]*regexp.Regexp
}

// Limits of the mistakes that are not reported, and of the mean score.
const (
	maxNotByLint    = 2 // what only Azure knows
	maxNotByKubectl = 3 // also a key that is written twice: kubectl sends only the second
	minScore        = 2.7
)

// TestMistakes applies each manifest and lints it. docs/mistakes.md has the results.
func TestMistakes(t *testing.T) {
	rows := "| manifest | lint | kubectl | score | the first message |\n|---|---|---|--:|---|\n"
	var right string
	count, byLint, byKubectl, score := 0, 0, 0, 0
	for _, m := range all(t) {
		t.Run(m.name, func(t *testing.T) {
			linted, applied := lint(t, m), apply(t.Context(), m.manifest)
			if m.isRight {
				if got := linted.first() + applied.first(); got != "" {
					t.Errorf("a manifest that is right gets a message: %s", got)
				}
				right += fmt.Sprintf("- %s\n", m.about)
				return
			}
			points := max(m.score(linted), m.score(applied))
			if applied.reporter() == "" {
				points = max(points-1, 0)
			}
			count++
			score += points
			if linted.reporter() != "" {
				byLint++
			}
			if applied.reporter() != "" {
				byKubectl++
			}
			message := applied.first()
			if message == "" {
				message = linted.first()
			}
			rows += fmt.Sprintf("| %s | %s | %s | %d | %s |\n", m.about, linted.reporter(), applied.reporter(), points, cell(message))
			t.Logf("score %d\nlint:    %q\nkubectl: %q", points, linted, applied)
		})
	}
	mean := float64(score) / float64(count)
	if count-byLint > maxNotByLint || count-byKubectl > maxNotByKubectl || mean < minScore {
		t.Errorf("of %d mistakes, lint reports %d and kubectl %d, with a mean score of %.2f; want at least %d, %d and %.1f",
			count, byLint, byKubectl, mean, count-maxNotByLint, count-maxNotByKubectl, minScore)
	}
	text := fmt.Sprintf("Of %d mistakes, lint reports %d, and kubectl %d. The mean score is %.2f.\n\n%s\nNo message is printed about these manifests, which are right:\n\n%s",
		count, byLint, byKubectl, mean, rows, right)
	compare(t, text)
}

// all reads the mistakes.
func all(t *testing.T) []mistake {
	t.Helper()
	var list []mistake
	for _, file := range mistakes.Files {
		if file.Name == "base.yaml" || file.Name == "crds.yaml" {
			continue
		}
		m := mistake{name: strings.TrimSuffix(file.Name, ".yaml"), manifest: string(file.Data)}
		for line := range bytes.Lines(file.Data) {
			key, value, found := strings.Cut(strings.TrimSpace(string(line)), ": ")
			if !found || !strings.HasPrefix(key, "# ") {
				break
			}
			switch key {
			case "# mistake":
				m.about = value
			case "# right":
				m.about, m.isRight = value, true
			case "# field":
				m.wanted[0] = regexp.MustCompile(value)
			case "# cause":
				m.wanted[1] = regexp.MustCompile(value)
			case "# fix":
				m.wanted[2] = regexp.MustCompile(value)
			default:
				t.Fatalf("%s: unknown comment %q", file.Name, line)
			}
		}
		if m.about == "" || !m.isRight && (m.wanted[0] == nil || m.wanted[1] == nil || m.wanted[2] == nil) {
			t.Fatalf("%s must start with the comments mistake, field, cause and fix, or with right", file.Name)
		}
		list = append(list, m)
	}
	return list
}

// score returns how much of field, cause and fix the first message has. A first message without any
// of them is misleading, so it scores as much as silence.
func (m *mistake) score(a answer) int {
	points := 0
	for _, wanted := range m.wanted {
		if first := a.first(); first != "" && wanted.MatchString(first) {
			points++
		}
	}
	return points
}

// lint lints a mistake with the objects of the cluster.
func lint(t *testing.T, m mistake) answer {
	t.Helper()
	file := filepath.Join(t.TempDir(), m.name+".yaml")
	if err := os.WriteFile(file, []byte(m.manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	if _, err := cli.Lint(t.Context(), cli.Options{Files: []string{file}, Facts: []string{base}}, cli.JSON, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	var findings []cli.Finding
	if err := json.Unmarshal(stdout.Bytes(), &findings); err != nil {
		t.Fatalf("%v\n%s", err, &stdout)
	}
	var a answer
	for i := range findings {
		if findings[i].Severity == cli.Error {
			a.errors = append(a.errors, findings[i].Message)
		} else {
			a.warnings = append(a.warnings, findings[i].Message)
		}
	}
	return a
}

// cell returns a message as a cell of a table in Markdown.
func cell(message string) string {
	if message == "" {
		return ""
	}
	return "`` " + strings.ReplaceAll(strings.ReplaceAll(message, "|", `\|`), "\u00a0", " ") + " ``"
}

// The marks of the generated part of docs/mistakes.md.
const (
	begin = "<!-- generated: mistakes -->\n"
	end   = "<!-- end -->\n"
)

// compare compares the table with docs/mistakes.md, or rewrites it there.
func compare(t *testing.T, text string) {
	t.Helper()
	root, err := build.ModuleFolder(t.Context(), build.Module)
	if err != nil {
		t.Fatal(err)
	}
	page := filepath.Join(root, "docs", "mistakes.md")
	old, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, _ := strings.Cut(string(old), begin)
	table, after, found := strings.Cut(rest, end)
	if !found {
		t.Fatalf("%s must have %q and %q", page, begin, end)
	}
	if *update {
		if err := os.WriteFile(page, []byte(before+begin+text+end+after), 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	if diff := cmp.Diff(table, text); diff != "" {
		t.Errorf("docs/mistakes.md is out of date; run go test ./suites/mistakes -update (-want +got):\n%s", diff)
	}
}
