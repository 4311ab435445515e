package image_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/buildkit/frontend/dockerfile/instructions"
	"github.com/moby/buildkit/frontend/dockerfile/linter"
	"github.com/moby/buildkit/frontend/dockerfile/parser"
	"github.com/moby/buildkit/frontend/dockerfile/shell"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"golang.org/x/mod/modfile"
	"sigs.k8s.io/yaml"
)

// dockerfile is the Dockerfile as BuildKit parses it.
type dockerfile struct {
	arguments    []string // before the first stage, NAME or NAME=DEFAULT
	build, final instructions.Stage
	warnings     []string // of BuildKit's linter
}

func parse(t *testing.T) dockerfile {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	ast, err := parser.Parse(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var d dockerfile
	stages, arguments, err := instructions.Parse(ast.AST, linter.New(&linter.Config{Warn: func(rule, _, _, message string, _ []parser.Range) {
		d.warnings = append(d.warnings, rule+": "+message)
	}}))
	if err != nil {
		t.Fatal(err)
	}
	if len(stages) != 2 || stages[0].Name != "build" {
		t.Fatalf("the Dockerfile must have a stage build and a final one, has %d", len(stages))
	}
	d.build, d.final = stages[0], stages[1]
	for _, command := range arguments {
		for _, arg := range command.Args {
			name := arg.Key
			if arg.Value != nil {
				name += "=" + *arg.Value
			}
			d.arguments = append(d.arguments, name)
		}
	}
	return d
}

func TestTheDockerfileHasNothingThatBuildKitWarnsOf(t *testing.T) {
	if warnings := parse(t).warnings; len(warnings) > 0 {
		t.Error(strings.Join(warnings, "\n"))
	}
}

func TestBothImagesArePinnedByDigest(t *testing.T) {
	d := parse(t)
	if diff := cmp.Diff([]string{"DISTROLESS"}, d.arguments); diff != "" {
		t.Errorf("arguments for base images (-want +got):\n%s", diff)
	}
	pinned := regexp.MustCompile(`^[a-zA-Z0-9./_-]+(:[a-zA-Z0-9._-]+)?@sha256:[0-9a-f]{64}$`)
	lex := shell.NewLex('\\')
	for _, stage := range []instructions.Stage{d.build, d.final} {
		name, err := lex.ProcessWordWithMatches(stage.BaseName, shell.EnvsFromSlice([]string{"DISTROLESS=REGISTRY/distroless"}))
		if err != nil {
			t.Fatal(err)
		}
		if !pinned.MatchString(name.Result) {
			t.Errorf("%s: must be an image with a digest", name.Result)
		}
	}
	for _, without := range [][]string{nil, {"DISTROLESS="}} {
		if name, err := lex.ProcessWordWithMatches(d.final.BaseName, shell.EnvsFromSlice(without)); err == nil {
			t.Errorf("%q: builds on %s, must be rejected", without, name.Result)
		}
	}
}

func TestTheImageIsBuiltByTheGoThatTheModuleAsksFor(t *testing.T) {
	build := parse(t).build
	text, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	module, err := modfile.Parse("go.mod", text, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := regexp.MustCompile(`^golang:(\d+\.\d+)(\.\d+)@`).FindStringSubmatch(build.BaseName)
	if got == nil {
		t.Fatalf("%s: must have a complete version of Go", build.BaseName)
	}
	if !strings.HasPrefix(module.Go.Version+".", got[1]+".") {
		t.Errorf("the image is built by Go %s%s, go.mod says %s", got[1], got[2], module.Go.Version)
	}
	if module.Toolchain != nil && module.Toolchain.Name != "go"+got[1]+got[2] {
		t.Errorf("the image is built by Go %s%s, go.mod says %s", got[1], got[2], module.Toolchain.Name)
	}
}

// TestTheImageRunsTheBinaryAsNobody also checks that the image has no shell: the final stage runs
// no command, so nothing can be installed there.
func TestTheImageRunsTheBinaryAsNobody(t *testing.T) {
	final := parse(t).final
	var (
		user, from string
		entrypoint []string
		labels     = map[string]string{}
		copied     []string
	)
	for _, command := range final.Commands {
		switch c := command.(type) {
		case *instructions.ArgCommand:
		case *instructions.LabelCommand:
			for _, label := range c.Labels {
				labels[strings.Trim(label.Key, `"`)] = strings.Trim(label.Value, `"`)
			}
		case *instructions.CopyCommand:
			if c.From != "" {
				from = c.From + ":" + strings.Join(c.SourcePaths, " ") + " " + c.DestPath
			} else {
				copied = append(copied, c.SourcePaths...)
			}
		case *instructions.UserCommand:
			user = c.User
		case *instructions.EntrypointCommand:
			if c.PrependShell {
				t.Error("ENTRYPOINT: must be a JSON array; there is no shell to run it")
			}
			entrypoint = c.CmdLine
		default:
			t.Errorf("%s: must not be in the final stage", c.Name())
		}
	}
	if want := runAs(t); user != want {
		t.Errorf("USER: got %q; the Deployment runs it as %q", user, want)
	}
	if !regexp.MustCompile(`^[1-9]\d*:[1-9]\d*$`).MatchString(user) {
		t.Errorf("USER: must be numbers, so that the kubelet can check that it is not root, is %q", user)
	}
	if diff := cmp.Diff([]string{"/akv-injector"}, entrypoint); diff != "" {
		t.Errorf("ENTRYPOINT (-want +got):\n%s", diff)
	}
	if want := "build:/src/bin/ /"; from != want {
		t.Errorf("binary: got %s, want %s", from, want)
	}
	if diff := cmp.Diff([]string{"LICENSE", "THIRD_PARTY_NOTICES"}, copied); diff != "" {
		t.Errorf("licences (-want +got):\n%s", diff)
	}
	for _, name := range []string{"title", "description", "licenses", "version", "revision"} {
		if labels["org.opencontainers.image."+name] == "" {
			t.Errorf("label org.opencontainers.image.%s is missing", name)
		}
	}
}

// runAs returns USER:GROUP of the injector's Deployment.
func runAs(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "deploy", "kustomize", "deployment.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for document := range strings.SplitSeq(string(text), "\n---\n") {
		var deployment struct {
			Kind string
			Spec struct {
				Template struct {
					Spec struct {
						SecurityContext struct{ RunAsUser, RunAsGroup int64 }
					}
				}
			}
		}
		if err := yaml.Unmarshal([]byte(document), &deployment); err != nil {
			t.Fatal(err)
		}
		if deployment.Kind == "Deployment" {
			as := deployment.Spec.Template.Spec.SecurityContext
			return fmt.Sprintf("%d:%d", as.RunAsUser, as.RunAsGroup)
		}
	}
	t.Fatal("no Deployment")
	return ""
}

func TestTheContextIsWhatTheBinaryIsMadeOf(t *testing.T) {
	needed := map[string]bool{"LICENSE": true, "THIRD_PARTY_NOTICES": true, "go.mod": true, "go.sum": true}
	folders := map[string]bool{}
	for _, arch := range architectures {
		for _, p := range linkedPackages(t, arch) {
			folder := within(t, p.Dir)
			folders[folder] = true
			for _, name := range slices.Concat(p.GoFiles, p.EmbedFiles) {
				needed[path.Join(folder, name)] = true
			}
		}
	}
	files := given(t)
	for _, name := range slices.Sorted(maps.Keys(needed)) {
		if !slices.Contains(files, name) {
			t.Errorf("%s: is needed for the binary, and .dockerignore excludes it", name)
		}
	}
	for _, name := range files {
		source := folders[path.Dir(name)] && strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go")
		if !needed[name] && !source {
			t.Errorf("%s: is not needed for the image, and .dockerignore includes it", name)
		}
	}
}

// given returns the files of the build context, according to .dockerignore.
func given(t *testing.T) []string {
	t.Helper()
	f, err := os.Open(filepath.Join(root, ".dockerignore"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	patterns, err := ignorefile.ReadAll(f)
	if err != nil {
		t.Fatal(err)
	}
	ignored, err := patternmatcher.New(patterns)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	if err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // files of a concurrent build
		}
		if err != nil || d.IsDir() {
			return err
		}
		name := within(t, path)
		out, err := ignored.MatchesOrParentMatches(name)
		if err == nil && !out {
			files = append(files, name)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return files
}

// TestTheDockerfileBuildsWhatMakeBuilds checks that the Dockerfile and make use the same flags,
// that the copied files are sufficient, and that the build does not depend on its folder.
func TestTheDockerfileBuildsWhatMakeBuilds(t *testing.T) {
	build := parse(t).build
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			dir := t.TempDir()
			run(t, build, dir, map[string]string{"TARGETOS": "linux", "TARGETARCH": arch, "VERSION": version})
			for _, program := range programs {
				want, got := sum(t, named(program, arch)), sum(t, filepath.Join(dir, "src", "bin", program))
				if want != got {
					t.Errorf("the Dockerfile builds %s with checksum %s, make with %s", program, got, want)
				}
			}
		})
	}
}

// run executes a stage on this machine, with a folder as its file system. The stage's commands must
// only use their working folder.
func run(t *testing.T, stage instructions.Stage, dir string, args map[string]string) {
	t.Helper()
	files := given(t)
	workdir, env := dir, os.Environ()
	for _, command := range stage.Commands {
		switch c := command.(type) {
		case *instructions.WorkdirCommand:
			workdir = filepath.Join(dir, c.Path)
			if err := os.MkdirAll(workdir, 0o755); err != nil {
				t.Fatal(err)
			}
		case *instructions.ArgCommand:
			for _, arg := range c.Args {
				if value, ok := args[arg.Key]; ok {
					env = append(env, arg.Key+"="+value)
				} else if arg.Value != nil {
					env = append(env, arg.Key+"="+*arg.Value)
				}
			}
		case *instructions.CopyCommand:
			for _, name := range files {
				if slices.Contains(c.SourcePaths, ".") || slices.Contains(c.SourcePaths, name) {
					place(t, filepath.Join(root, name), filepath.Join(workdir, c.DestPath, name))
				}
			}
		case *instructions.RunCommand:
			cmd := exec.CommandContext(t.Context(), "sh", "-c", strings.Join(c.CmdLine, " "))
			cmd.Dir, cmd.Env = workdir, env
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", c, err, out)
			}
		default:
			t.Fatalf("%s: not supported by this test", c.Name())
		}
	}
}

// place copies a file.
func place(t *testing.T, from, to string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(to), 0o755)
	}
	if err == nil {
		err = os.WriteFile(to, content, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// sum returns a file's SHA-256.
func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}
