package cli_test

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/core/policy"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

var update = flag.Bool("update", false, "rewrite what the archives of testdata want")

// TestArchives runs inject and lint on the files of each archive, in their order. The files under
// want/ are the expected results: stdout, stderr and status of inject, diff of inject --diff, and
// lint, lint.json and lint.github with the summary that lint writes to stderr. If there is no diff,
// stdout is compared. The file level has the value of --level; the file skip-classes sets
// --skip-classes; the files below facts/ are those of --facts.
func TestArchives(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(paths) == 0 {
		t.Fatalf("list archives: %v, %d found", err, len(paths))
	}
	for _, path := range paths {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(path)
			if err != nil {
				t.Fatal(err)
			}
			path, err := filepath.Abs(path)
			if err != nil {
				t.Fatal(err)
			}
			t.Chdir(t.TempDir())
			var options cli.Options
			want := map[string]string{}
			inputs := slices.DeleteFunc(slices.Clone(archive.Files), func(f txtar.File) bool { return strings.HasPrefix(f.Name, "want/") })
			for _, f := range inputs {
				switch f.Name {
				case "level":
					options.Level = policy.Level(strings.TrimSpace(string(f.Data)))
					continue
				case "skip-classes":
					options.SkipClasses = true
					continue
				}
				write(t, f.Name, string(f.Data))
				if strings.HasPrefix(f.Name, "facts/") {
					options.Facts = append(options.Facts, f.Name)
				} else {
					options.Files = append(options.Files, f.Name)
				}
			}
			for _, f := range archive.Files[len(inputs):] {
				want[f.Name] = string(f.Data)
			}
			got := outcomes(t, options)
			if *update {
				archive.Files = inputs
				for _, name := range []string{"want/status", "want/stdout", "want/stderr", "want/diff", "want/lint", "want/summary", "want/lint.json", "want/lint.github"} {
					if text := got[name]; text != "" {
						archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(text)})
					}
				}
				if err := os.WriteFile(path, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got); go test -update rewrites the archive:\n%s", diff)
			}
			if !options.SkipClasses {
				checkInjectedAgain(t, got["want/stdout"], "")
			}
		})
	}
}

// checkInjectedAgain checks that kubectl can parse the output, and that injecting it again changes
// nothing.
func checkInjectedAgain(t *testing.T, text, namespace string) {
	t.Helper()
	if text == "" {
		return
	}
	if _, err := corpus.Decode([]byte(text)); err != nil {
		t.Errorf("kubectl cannot parse the output: %v", err)
	}
	var stdout, stderr bytes.Buffer
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(text), Namespace: namespace}
	if status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr); status != cli.Fine || err != nil {
		t.Fatalf("injecting again: status %d, error %v\n%s", status, err, &stderr)
	}
	if diff := cmp.Diff(text, stdout.String()); diff != "" {
		t.Errorf("injecting again changes the output (-once +twice):\n%s", diff)
	}
}

// outcomes returns the results of all commands by the names in an archive, without empty results.
func outcomes(t *testing.T, options cli.Options) map[string]string {
	t.Helper()
	got := map[string]string{}
	put := func(name, text string) {
		if text != "" {
			got[name] = text
		}
	}
	var stdout, stderr, diff, ignored bytes.Buffer
	status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr)
	if err != nil {
		t.Fatal(err)
	}
	put("want/status", strconv.Itoa(int(status))+"\n")
	put("want/stdout", stdout.String())
	put("want/stderr", stderr.String())
	if diffStatus, err := cli.Inject(t.Context(), options, true, &diff, &ignored); err != nil || diffStatus != status {
		t.Errorf("with --diff: status %d, error %v", diffStatus, err)
	}
	put("want/diff", diff.String())
	for format, name := range map[cli.Format]string{cli.Text: "want/lint", cli.JSON: "want/lint.json", cli.GitHub: "want/lint.github"} {
		var out, summary bytes.Buffer
		if lintStatus, err := cli.Lint(t.Context(), options, format, &out, &summary); err != nil || lintStatus != status {
			t.Errorf("lint: status %d, error %v", lintStatus, err)
		}
		put(name, out.String())
		if format == cli.Text {
			put("want/summary", summary.String())
		} else if summary.Len() > 0 {
			t.Errorf("lint -o %s wrote to stderr: %s", format, &summary)
		}
	}
	return got
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
