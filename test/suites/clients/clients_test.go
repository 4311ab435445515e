package clients_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// apply applies a manifest to a namespace, and returns the client's output.
type apply func(ctx context.Context, t *testing.T, namespace, manifest string) (string, error)

// clients are the clients under test, each with its defaults.
var clients = map[string]apply{
	"kubectl":             kubectl("apply"),
	"kubectl server-side": kubectl("apply", "--server-side", "--force-conflicts"),
	"kubectl replace":     replace,
	"Helm 3":              helm(&helm3),
	"Helm 4":              helm(&helm4, "--force-conflicts"),
	"Argo CD":             engine(&argocd),
	"Argo CD server-side": engine(&argocd, "--server-side"),
	"Flux":                engine(&flux),
}

func kubectl(args ...string) apply {
	return func(ctx context.Context, t *testing.T, namespace, manifest string) (string, error) {
		t.Helper()
		return output(plane.Kubectl(ctx, append(args, "--namespace="+namespace, "--filename="+file(t, manifest))...))
	}
}

// replace runs `kubectl replace`, or `kubectl create` if the object does not exist.
func replace(ctx context.Context, t *testing.T, namespace, manifest string) (string, error) {
	t.Helper()
	if out, err := kubectl("get")(ctx, t, namespace, manifest); err != nil && strings.Contains(out, "NotFound") {
		return kubectl("create")(ctx, t, namespace, manifest)
	}
	return kubectl("replace")(ctx, t, namespace, manifest)
}

// helm installs or upgrades a release whose chart is the manifest.
func helm(program *string, args ...string) apply {
	return func(ctx context.Context, t *testing.T, namespace, manifest string) (string, error) {
		t.Helper()
		dir := t.TempDir()
		write(t, filepath.Join(dir, "Chart.yaml"), "apiVersion: v2\nname: app\nversion: 1.0.0\n")
		write(t, filepath.Join(dir, "templates", "app.yaml"), manifest)
		return output(exec.CommandContext(ctx, *program, append([]string{
			"upgrade", "--install", "app", dir, "--namespace=" + namespace, "--kubeconfig=" + plane.Kubeconfig,
		}, args...)...))
	}
}

// engine runs the program of test/parts/argocd or test/parts/flux.
func engine(program *string, args ...string) apply {
	return func(ctx context.Context, t *testing.T, namespace, manifest string) (string, error) {
		t.Helper()
		return output(exec.CommandContext(ctx, *program, append(args, plane.Kubeconfig, namespace, file(t, manifest))...))
	}
}

// output returns a program's output. The error has it, too.
func output(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, &out)
	}
	return out.String(), nil
}

func file(t *testing.T, manifest string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "app.yaml")
	write(t, path, manifest)
	return path
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
