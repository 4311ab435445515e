// Package image_test checks the Dockerfile and the binaries, SBOMs and notices of a release,
// without a container engine. BuildKit's parser reads the Dockerfile, and the commands of its build
// stage run on this machine, with only the files of the build context. It does not test what the
// injector does.
package image_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// version is the version in the binaries under test.
const version = "v0.0.0-image-check"

// architectures are the Linux architectures of a release.
var architectures = []string{"amd64", "arm64"}

// root is the repository. release is the folder where `make sbom` writes binaries and SBOMs for all
// tests.
var root, release string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		var err error
		if root, err = filepath.Abs(filepath.Join("..", "..", "..")); err != nil {
			panic(err)
		}
		if release, err = os.MkdirTemp("", "akv-injector-release"); err != nil {
			panic(err)
		}
		defer os.RemoveAll(release)
		ctx, cancel := context.WithTimeout(context.Background(), 9*time.Minute)
		defer cancel()
		build := exec.CommandContext(ctx, "make", "sbom", "RELEASE="+release, "VERSION="+version)
		build.Dir = root
		if out, err := build.CombinedOutput(); err != nil {
			panic(err.Error() + "\n" + string(out))
		}
		return m.Run()
	}())
}

// binary returns the path of the injector in a release, and named that of a program.
func binary(arch string) string         { return named("akv-injector", arch) }
func named(program, arch string) string { return filepath.Join(release, program+"-linux-"+arch) }

// programs are those of the image.
var programs = []string{"akv-injector", "akv-env"}

// linked is a package of the root module that is part of the binary. File names are relative to
// Dir.
type linked struct {
	ImportPath, Dir     string
	GoFiles, EmbedFiles []string
	Module              *struct{ Main bool }
}

// linkedPackages returns the packages of the root module in the binaries for an architecture.
func linkedPackages(t *testing.T, arch string) []linked {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", "-json=ImportPath,Dir,GoFiles,EmbedFiles,Module", ".", "./akv-env")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "GOOS=linux", "GOARCH="+arch, "CGO_ENABLED=0")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatal("go list:", err)
	}
	var own []linked
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p linked
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			return own
		} else if err != nil {
			t.Fatal("go list:", err)
		}
		if p.Module != nil && p.Module.Main {
			own = append(own, p)
		}
	}
}

// within returns a path relative to the repository, with slashes.
func within(t *testing.T, path string) string {
	t.Helper()
	below, err := filepath.Rel(root, path)
	if err != nil {
		t.Fatal(err)
	}
	return filepath.ToSlash(below)
}

// goEnv returns a variable of `go env`.
func goEnv(t *testing.T, key string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "env", key)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(fmt.Errorf("go env %s: %w", key, err))
	}
	return string(bytes.TrimSpace(out))
}
