// Package build builds programs with the go command, such as the control plane and the injector:
//
//	err := build.Program(ctx, root, filepath.Join(root, "bin", "test", "akv-injector"), "-trimpath", ".")
//
// An interrupted build leaves nothing behind except entries in the go command's cache. The package
// does not know which programs exist.
package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Program builds a static program into the file target, which should be absolute. The go command
// runs in dir; empty means the current folder. args are flags of go build, followed by the package.
// Program does not write a target that is up to date.
func Program(ctx context.Context, dir, target string, args ...string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(target), err)
	}
	// The go command builds here and then renames the result, so that target is always a complete
	// program. The go command does not remove its temporary files when it is interrupted.
	work, err := os.MkdirTemp(filepath.Dir(target), ".build-")
	if err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(target), err)
	}
	defer os.RemoveAll(work)
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-buildvcs=false", "-o", target}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOTMPDIR="+work)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 10 * time.Second
	endWithChildren(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return fmt.Errorf("build %s: %w\n%s", filepath.Base(target), err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

// The modules of this repository that the harness builds from.
const (
	Module     = "github.com/akv-injector/akv-injector"
	TestModule = Module + "/test"
)

// ModuleFolder returns the folder of a module's source. The current folder must be inside a module
// that requires it, or be inside it.
func ModuleFolder(ctx context.Context, module string) (string, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("find the source of %s: %w", module, err)
	}
	dir := strings.TrimSpace(string(out))
	if dir == "" {
		return "", fmt.Errorf("find the source of %s: the current folder must be inside a module that requires it", module)
	}
	return dir, nil
}

// Announced calls build. If build takes longer than five seconds, Announced prints a line when that
// time has passed and a line at the end. name is what is built; takes says how long that usually
// takes.
func Announced(progress io.Writer, name, takes string, build func() error) error {
	begin := time.Now()
	slow := time.AfterFunc(5*time.Second, func() { fmt.Fprintf(progress, "building %s (%s on 2 cores) ...\n", name, takes) })
	err := build()
	if !slow.Stop() && err == nil {
		fmt.Fprintf(progress, "done in %s\n", time.Since(begin).Round(time.Second))
	}
	return err
}
