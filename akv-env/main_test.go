package main_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/envfile"
)

// program is the command, built once for all tests.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "akv-env")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		if err := os.Chmod(dir, 0o755); err != nil { // another user may run the program
			panic(err)
		}
		program = filepath.Join(dir, "akv-env")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w -X main.version=v1.2.3", "-o", program, ".")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			panic(err.Error() + "\n" + string(out))
		}
		return m.Run()
	}())
}

// run returns the exit status and what the program prints.
func run(t *testing.T, args ...string) (status int, stdout, stderr string) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if os.Getuid() == 0 { // root can read every file
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65532, Gid: 65532}}
	}
	var exit *exec.ExitError
	if err := cmd.Run(); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

// folder returns a folder with files, which every user can write to.
func folder(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	for _, open := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(open, 0o777); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// content returns the files of a folder.
func content(t *testing.T, dir string) map[string]string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			t.Fatal(err)
		}
		files[entry.Name()] = string(data)
	}
	return files
}

func TestArguments(t *testing.T) {
	in, out := folder(t, map[string]string{"0/a": "1"}), folder(t, nil)
	const spec = `[[{"env":"A","file":"0/a","object":"secret a"}]]`
	tests := map[string]struct {
		args   []string
		status int
		// stdout and stderr begin with these texts; empty ones are empty.
		stdout, stderr string
	}{
		"a SPEC":                        {[]string{"--in", in, "--out", out, spec}, 0, "", ""},
		"help":                          {[]string{"--help"}, 0, "Usage: akv-env --in DIR --out DIR SPEC\n", ""},
		"the version":                   {[]string{"--version"}, 0, "akv-env v1.2.3\n", ""},
		"no argument":                   {nil, 2, "", "error: must have --in, --out and one SPEC\nrun akv-env --help\n"},
		"no --out":                      {[]string{"--in", in, spec}, 2, "", "error: must have --in, --out and one SPEC\n"},
		"two SPECs":                     {[]string{"--in", in, "--out", out, spec, spec}, 2, "", "error: must have --in, --out and one SPEC\n"},
		"a flag that does not exist":    {[]string{"--inn", in}, 2, "", "error: flag provided but not defined: -inn\n"},
		"a SPEC that is none":           {[]string{"--in", in, "--out", out, "A=0/a"}, 2, "", "error: SPEC: invalid character 'A'"},
		"a field that is newer":         {[]string{"--in", in, "--out", out, `[[{"new":1}]]`}, 2, "", "error: SPEC: json: unknown field \"new\"\n"},
		"a folder that does not exist":  {[]string{"--in", in, "--out", out + "/x", spec}, 1, "", "write the env files: open " + out + "/x/.env.tmp: no such file"},
		"volumes that are not mounted":  {[]string{"--in", in + "/x", "--out", out, spec}, 1, "", "A: secret a: the mounted volume has no file \"0/a\"; "},
		"a file outside of the volumes": {[]string{"--in", in + "/0", "--out", out, strings.Replace(spec, "0/a", "../0/a", 1)}, 1, "", "A: secret a: open ../0/a: invalid argument\n"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			status, stdout, stderr := run(t, test.args...)
			begins := func(got, want string) bool { return strings.HasPrefix(got, want) && (want != "" || got == "") }
			if status != test.status || !begins(stdout, test.stdout) || !begins(stderr, test.stderr) {
				t.Errorf("got %d, %q and %q", status, stdout, stderr)
			}
		})
	}
}

func TestWrites(t *testing.T) {
	in := folder(t, map[string]string{"..1/db": "a\nb\n", "1/ca.pem": `{"x":"c"}`})
	if err := errors.Join(os.Symlink("../..1/db", filepath.Join(in, "1/db")), os.Chmod(filepath.Join(in, "..1"), 0o755)); err != nil {
		t.Fatal(err)
	}
	// A run that was killed, and one before it, have left files.
	out := folder(t, map[string]string{"env": "OLD", ".env-1.tmp": "HALF"})
	spec := envfile.Spec{
		{{Env: "A", File: "1/db"}, {Env: "B", File: "1/ca.pem", Property: "x"}},
		{{Env: "A", File: "1/db"}},
	}
	want := map[string]string{"env": "A='a\nb\n'\nB='c'\n", "env-1": "A='a\nb\n'\n"}
	for range 2 {
		if status, _, stderr := run(t, "--in", in, "--out", out, spec.String()); status != 0 {
			t.Fatalf("got %d: %s", status, stderr)
		}
		if diff := cmp.Diff(want, content(t, out)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	}
	if info, err := os.Stat(filepath.Join(out, "env")); err != nil || info.Mode() != 0o400 {
		t.Errorf("got %v, %v", info.Mode(), err)
	}
	// A folder with the name of a file makes the program fail after it has written the contents.
	out = folder(t, map[string]string{"env/x": ""})
	status, _, stderr := run(t, "--in", in, "--out", out, spec.String())
	entries, err := os.ReadDir(out)
	if status != 1 || !strings.HasPrefix(stderr, "write the env files: rename ") || err != nil || len(entries) != 1 {
		t.Errorf("got %d, %s, %v, %v", status, stderr, entries, err)
	}
}

func TestProblems(t *testing.T) {
	in := folder(t, map[string]string{
		"ok": "1", "strict": "hunter2", "quote": "hunter'2", "big": strings.Repeat("hunter2 ", 1<<17) + "x", "json": `{"hunter2"`, "dir/x": "",
	})
	if err := os.Chmod(filepath.Join(in, "strict"), 0o200); err != nil {
		t.Fatal(err)
	}
	out := folder(t, map[string]string{"env": "OLD"})
	group := envfile.Group{{Env: "OK", File: "ok"}}
	for _, file := range []string{"strict", "quote", "big", "dir", "json"} {
		group = append(group, envfile.Var{Env: strings.ToUpper(file), File: file, Object: "secret " + file + " of vault kv"})
	}
	group[5].Property = "a.b"
	status, stdout, stderr := run(t, "--in", in, "--out", out, envfile.Spec{group[:1], group, group}.String())
	uid := os.Getuid()
	if uid == 0 {
		uid = 65532
	}
	want := fmt.Sprintf(`STRICT: secret strict of vault kv: the file's permission is too strict for the user of the init container, %d; `+
		`set filePermission: "0444" for the object in keyvault.io/secrets, or in the class of keyvault.io/class
QUOTE: secret quote of vault kv: must not have a single quote: an env file has no escape for it; use keyvault.io/env-source: secret, or read the mounted file
BIG: secret big of vault kv: must be at most 1 MiB
DIR: secret dir of vault kv: read %s/dir: is a directory
JSON: secret json of vault kv, property a.b: must be one JSON object, is not valid JSON
`, uid, in)
	if diff := cmp.Diff(want, stderr); status != 1 || stdout != "" || diff != "" {
		t.Errorf("got %d, %q (-want +got):\n%s", status, stdout, diff)
	}
	if diff := cmp.Diff(map[string]string{"env": "OLD"}, content(t, out)); diff != "" {
		t.Errorf("nothing should be written (-want +got):\n%s", diff)
	}
}

// TestMessageFits checks the bounds of FallbackToLogsOnError.
func TestMessageFits(t *testing.T) {
	in := folder(t, nil)
	for name, test := range map[string]struct {
		vars   int
		object string
		// last is the last line; it counts the problems that do not fit.
		last string
	}{
		"short lines":             {100, "", "and 39 more\n"},
		"long lines":              {100, strings.Repeat("x", 600), "and 97 more\n"},
		"one line that is long":   {1, strings.Repeat("€", 3000), "€\n"},
		"a long and a short line": {2, strings.Repeat("€", 3000), "€\nand 1 more\n"},
	} {
		t.Run(name, func(t *testing.T) {
			group := envfile.Group{}
			for i := range test.vars {
				group = append(group, envfile.Var{Env: fmt.Sprintf("V%d", i), File: "..", Object: test.object})
			}
			_, _, stderr := run(t, "--in", in, "--out", in, envfile.Spec{group}.String())
			if len(stderr) > 2048 || strings.Count(stderr, "\n") > 80 || !strings.HasPrefix(stderr, "V0: ") || !strings.HasSuffix(stderr, test.last) {
				t.Errorf("%d bytes: %s", len(stderr), stderr)
			}
		})
	}
}

// TestDependencies checks that the program has the standard library and the core only, and cannot
// reach a network.
func TestDependencies(t *testing.T) {
	if _, err := os.ReadFile("main.go"); err != nil { // go test caches results by the files that tests read
		t.Fatal(err)
	}
	list, err := exec.CommandContext(t.Context(), "go", "list", "-deps", "-f", "{{.ImportPath}} {{.Standard}}", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	const module = "github.com/akv-injector/akv-injector/"
	own := []string{}
	for l := range strings.Lines(string(list)) {
		path, standard, _ := strings.Cut(strings.TrimSpace(l), " ")
		if standard != "true" {
			own = append(own, path)
		}
		root, _, _ := strings.Cut(path, "/")
		if slices.Contains([]string{"net", "crypto", "plugin", "log", "C"}, root) || path == "os/user" || path == "os/exec" {
			t.Errorf("the program depends on %s", path)
		}
	}
	if diff := cmp.Diff([]string{module + "core/envfile", module + "akv-env"}, own); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
