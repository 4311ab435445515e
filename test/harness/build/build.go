// Package build builds programs with the go command: the control plane's and the injector. An interrupt leaves nothing of a
// build behind but what the go command keeps in its cache.
//
// It knows nothing of which programs there are.
package build

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"
)

// Program builds a static program into the file target, which had better be absolute. The go command runs in dir, empty for the
// current folder; args are flags of go build, then the package. A target that is up to date stays as it is.
func Program(ctx context.Context, dir, target string, args ...string) error {
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return fmt.Errorf("build %s: %w", filepath.Base(target), err)
	}
	// The go command renames what it has built here, so that nobody sees half a program. It doesn't tidy up when interrupted.
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

// Announced builds something, with a line before and after where it is slow: name is what it builds, takes how long that is.
func Announced(progress io.Writer, name, takes string, build func() error) error {
	begin := time.Now()
	slow := time.AfterFunc(5*time.Second, func() { fmt.Fprintf(progress, "building %s (%s on 2 cores) ...\n", name, takes) })
	err := build()
	if !slow.Stop() && err == nil {
		fmt.Fprintf(progress, "done in %s\n", time.Since(begin).Round(time.Second))
	}
	return err
}
