// Command mutants weakens policy, one condition at a time, and requires that a unit test fails each
// time. Run it from test/:
//
//	go run ./suites/mutants
//
// It prints a line for each mutant, and fails if a mutant survives, does not compile, or does not
// match the code any more. It does not change the tree: `go test -overlay` replaces the changed
// file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"
)

// limit is the time limit of the whole run, with compilation.
const limit = 30 * time.Minute

// packages are the packages whose tests must fail, the most likely first.
var packages = []string{"./core/policy"}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeoutCause(ctx, limit, errors.New("the time limit is exceeded"))
	defer cancel()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "mutants:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..", "..")
	folder, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	defer os.RemoveAll(folder)

	if verdict, output := test(ctx, root, filepath.Join(folder, "none.json"), overlay{}); verdict != survived {
		return fmt.Errorf("the tests must pass before anything is changed:\n%s", output)
	}
	wrong := 0
	for i := range mutants {
		start := time.Now()
		verdict, output := try(ctx, root, folder, &mutants[i])
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		fmt.Printf("%-16s %s: %s (%.1f s)\n", verdict, mutants[i].file, mutants[i].says, time.Since(start).Seconds())
		if verdict != killed {
			fmt.Print(output)
			wrong++
		}
	}
	if wrong > 0 {
		return fmt.Errorf("%d of %d mutants were not killed", wrong, len(mutants))
	}
	return nil
}

// verdict is the result for a mutant.
type verdict string

const (
	killed    verdict = "killed"
	survived  verdict = "SURVIVED"
	stillborn verdict = "DOES NOT COMPILE"
	misfit    verdict = "DOES NOT FIT"
)

// overlay is the content of the file for the flag -overlay of the go command.
type overlay struct {
	Replace map[string]string
}

// try runs the tests with one mutant. The output explains every verdict except killed.
func try(ctx context.Context, root, folder string, m *mutant) (verdict, string) {
	path := filepath.Join(root, m.file)
	text, err := os.ReadFile(path)
	if err != nil {
		return misfit, err.Error() + "\n"
	}
	if n := strings.Count(string(text), m.old); n != 1 {
		return misfit, fmt.Sprintf("%q was found %d times, want once\n", m.old, n)
	}
	changed := filepath.Join(folder, filepath.Base(path))
	if err := os.WriteFile(changed, []byte(strings.Replace(string(text), m.old, m.new, 1)), 0o600); err != nil {
		return misfit, err.Error() + "\n"
	}
	return test(ctx, root, filepath.Join(folder, "overlay.json"), overlay{map[string]string{path: changed}})
}

// test runs the tests of each package until one fails.
func test(ctx context.Context, root, config string, files overlay) (verdict, string) {
	text, err := json.Marshal(files)
	if err == nil {
		err = os.WriteFile(config, text, 0o600)
	}
	if err != nil {
		return misfit, err.Error() + "\n"
	}
	for _, name := range packages {
		command := exec.CommandContext(ctx, "go", "test", "-overlay="+config, "-vet=off", "-failfast", "-timeout=2m", name)
		command.Dir = root
		command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
		command.WaitDelay = 10 * time.Second
		output, err := command.CombinedOutput()
		switch {
		case err == nil:
		case strings.Contains(string(output), "--- FAIL: ") || strings.Contains(string(output), "\npanic: "):
			return killed, string(output)
		default:
			return stillborn, string(output)
		}
	}
	return survived, ""
}
