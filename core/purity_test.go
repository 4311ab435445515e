package core_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/akv-injector/akv-injector/"

// core are the packages below core/, in the order in which they may import each other.
var core = []string{"core/jsonstream", "core/envfile", "core/api", "core/pods", "core/class", "core/facts", "core/policy", "core/inject", "core/review"}

// sourceCallers are the packages that call a facts.Source, which takes a context.
var sourceCallers = []string{"core/facts", "core/review"}

// TestDependencies checks that the core does not depend on clients, servers or loggers. The
// Kubernetes API types import net/http and klog themselves; TestImports checks that no file of the
// core imports them.
func TestDependencies(t *testing.T) {
	args := []string{"list", "-deps", "-f", "{{if not .Standard}}{{.ImportPath}}{{end}}"}
	for _, pkg := range core {
		args = append(args, module+pkg)
	}
	list, err := exec.CommandContext(t.Context(), "go", args...).Output()
	if err != nil {
		t.Fatal(err)
	}
	dependencies := strings.Fields(string(list))
	if !slices.Contains(dependencies, "k8s.io/api/core/v1") {
		t.Fatalf("the list of dependencies is wrong: %s", list)
	}
	for _, dependency := range dependencies {
		for _, denied := range []string{
			"k8s.io/client-go", "k8s.io/apiserver", "k8s.io/component-base", "k8s.io/pod-security-admission", "sigs.k8s.io/controller-runtime",
			"github.com/cert-manager", "github.com/go-logr/zapr", "github.com/prometheus", "github.com/spf13", "go.uber.org", "google.golang.org",
		} {
			if strings.HasPrefix(dependency, denied) {
				t.Errorf("the core depends on %s", dependency)
			}
		}
		if ours, ok := strings.CutPrefix(dependency, module); ok && !slices.Contains(core, ours) {
			t.Errorf("the core depends on %s", dependency)
		}
	}
}

// TestImports checks that the core uses no clock, random numbers, environment, files, network or
// logs, and that its packages import each other in one direction.
func TestImports(t *testing.T) {
	denied := []string{
		"context", "log", "math/rand", "net", "net/http", "os", "runtime", "sync", "syscall", "testing", "time", "unsafe",
		"github.com/go-logr/logr", "k8s.io/klog/v2", "k8s.io/apimachinery/pkg/util/wait", "k8s.io/apimachinery/pkg/util/rand",
	}
	for at, pkg := range core {
		files, err := filepath.Glob(filepath.Join(filepath.Base(pkg), "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s has no files: %v", pkg, err)
		}
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			for _, spec := range parsed.Imports {
				path, err := strconv.Unquote(spec.Path.Value)
				if err != nil {
					t.Fatal(err)
				}
				if path == "context" && slices.Contains(sourceCallers, pkg) {
					continue
				}
				if slices.ContainsFunc(denied, func(d string) bool { return path == d || strings.HasPrefix(path, d+"/") }) {
					t.Errorf("%s imports %s", file, path)
				}
				if ours, ok := strings.CutPrefix(path, module); ok && !slices.Contains(core[:at], ours) {
					t.Errorf("%s imports %s, which comes after it", file, ours)
				}
			}
			noClock(t, file, parsed)
		}
	}
}

// noClock checks that a file does not read the clock through an API type.
func noClock(t *testing.T, file string, parsed *ast.File) {
	t.Helper()
	ast.Inspect(parsed, func(n ast.Node) bool {
		if s, ok := n.(*ast.SelectorExpr); ok && slices.Contains([]string{"Now", "NowMicro", "Since"}, s.Sel.Name) {
			t.Errorf("%s reads the clock: %s", file, s.Sel.Name)
		}
		return true
	})
}
