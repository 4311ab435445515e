//go:build unix

package build_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/build"
)

func TestProgram(t *testing.T) {
	source := t.TempDir()
	write(t, filepath.Join(source, "go.mod"), "module greet\n")
	write(t, filepath.Join(source, "main.go"), "package main\n\nfunc main() { print(\"hello\") }\n")

	t.Run("builds a program and leaves nothing else", func(t *testing.T) {
		target := filepath.Join(t.TempDir(), "folder", "greet")
		if err := build.Program(t.Context(), source, target, "."); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command(target).CombinedOutput(); err != nil || string(out) != "hello" {
			t.Errorf("the program prints %q, error %v", out, err)
		}
		wantFiles(t, filepath.Dir(target), 1)
	})
	t.Run("an interrupted build ends its compilers and leaves nothing", func(t *testing.T) {
		// The compiler only holds a pipe open.
		dir, pipe := t.TempDir(), filepath.Join(t.TempDir(), "pipe")
		if err := syscall.Mkfifo(pipe, 0o600); err != nil {
			t.Fatal(err)
		}
		compiler := filepath.Join(t.TempDir(), "compiler")
		write(t, compiler, fmt.Sprintf("#!/bin/sh\nexec sleep 60 >%q\n", pipe))
		ctx, interrupt := context.WithCancel(t.Context())
		defer interrupt()
		ended := make(chan error, 1)
		go func() {
			running, err := os.Open(pipe)
			interrupt()
			if err == nil {
				_, err = io.ReadAll(running)
			}
			ended <- err
		}()
		if err := build.Program(ctx, source, filepath.Join(dir, "greet"), "-toolexec="+compiler, "."); !errors.Is(err, context.Canceled) {
			t.Errorf("got error %v, want %v", err, context.Canceled)
		}
		select {
		case err := <-ended:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(10 * time.Second):
			t.Error("the compiler still runs")
		}
		wantFiles(t, dir, 0)
	})
}

func write(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(text), 0o700); err != nil {
		t.Fatal(err)
	}
}

func wantFiles(t *testing.T, dir string, want int) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil || len(files) != want {
		t.Errorf("%s has %v, error %v, want %d files", dir, files, err, want)
	}
}
