package main_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// program is the command, built once for all tests.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "akv-injector")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "akv-injector")
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "go", "build", "-o", program, ".").CombinedOutput(); err != nil {
			panic(err.Error() + "\n" + string(out))
		}
		return m.Run()
	}())
}

func TestUsage(t *testing.T) {
	dir := t.TempDir()
	tests := map[string]struct {
		args []string
		// status is the exit status, and stdout and stderr hold these texts; empty ones
		// hold anything.
		status         int
		stdout, stderr string
	}{
		"a file without a flag":                 {[]string{"inject", "foo.yaml"}, 2, "", "error: takes no arguments; name files with -f: akv-injector inject -f foo.yaml\n"},
		"the same of lint":                      {[]string{"lint", "foo.yaml"}, 2, "", "error: takes no arguments; name files with -f: akv-injector lint -f foo.yaml\n"},
		"a file that is not there":              {[]string{"lint", "-f", "nofile.yaml"}, 2, "nofile.yaml: error: no such file or directory\n", ""},
		"a severity that does not exist":        {[]string{"lint", "-f", "-", "--fail-on", "note"}, 2, "", `error: --fail-on: must be one of error, warning, is "note"` + "\n"},
		"a pattern that is none":                {[]string{"lint", "-f", "-", "--exclude", "["}, 2, "", `error: --exclude: must be a pattern such as *.tmpl.yaml or charts/*, is "["` + "\n"},
		"facts of no namespace":                 {[]string{"facts"}, 2, "", "error: set either --namespace or --all-namespaces\n"},
		"facts of some and all namespaces":      {[]string{"facts", "-n", "a", "-A"}, 2, "", "error: set either --namespace or --all-namespaces\n"},
		"facts that are not there":              {[]string{"lint", "-f", "-", "--facts", "nofile.yaml"}, 2, "nofile.yaml: error: no such file or directory\n", "no pod or pod template was judged"},
		"a kubeconfig for no cluster":           {[]string{"lint", "-f", "-", "--kubeconfig", "x"}, 2, "", "error: --kubeconfig: must come with --cluster\n"},
		"a namespace that can't be":             {[]string{"lint", "-f", "-", "-n", "No_Name"}, 2, "", `error: --namespace: must be 1 to 63 lower case letters, digits and dashes, is "No_Name"` + "\n"},
		"a cluster that is not configured":      {[]string{"lint", "-f", "-", "--cluster"}, 2, "", "error: find the cluster: there is no kubeconfig; set --kubeconfig, or leave out --cluster\n"},
		"a kubeconfig that is not there":        {[]string{"lint", "-f", "-", "--cluster", "--kubeconfig", "nofile"}, 2, "", "error: --kubeconfig: stat nofile: no such file or directory\n"},
		"serving in no cluster":                 {[]string{"serve"}, 2, "", "error: find the cluster: there is no kubeconfig; set --kubeconfig, or run in a pod\n"},
		"a wrong flag before no cluster":        {[]string{"serve", "--certs", "x"}, 2, "", `error: --certs: must be cert-manager, self-signed or files, is "x"` + "\n"},
		"no time for API servers to learn":      {[]string{"serve", "--propagation-delay", "0s"}, 2, "", "error: --propagation-delay: must be above 0, is 0s\n"},
		"adopt with two outputs":                {[]string{"adopt", "-f", "x", "--diff", "--write"}, 2, "", "error: set either --diff or --write\n"},
		"adopt that writes standard input":      {[]string{"adopt", "-f", "-", "--write"}, 2, "", "error: --write: must not come with -f -: standard input cannot be changed\n"},
		"a check before and after at once":      {[]string{"check", "--pre", "-A"}, 2, "", "error: --pre: must come without --all-namespaces, --in and --dry-run-in\n"},
		"a check of one and all namespaces":     {[]string{"check", "-A", "--in", "shop"}, 2, "", "error: --in: must come without --all-namespaces\n"},
		"a check of a wrong namespace":          {[]string{"check", "--in", "a,B"}, 2, "", `error: --in: must be 1 to 63 lower case letters, digits and dashes, is "B"` + "\n"},
		"a check in a wrong format":             {[]string{"check", "-o", "xml"}, 2, "", `error: --output: must be one of text, json, yaml, is "xml"` + "\n"},
		"a check of no cluster":                 {[]string{"check"}, 2, "", "error: find the cluster: there is no kubeconfig; set --kubeconfig, or run in a pod\n"},
		"a list of one and all namespaces":      {[]string{"list", "-A", "-n", "shop"}, 2, "", "error: --namespace: must come without --all-namespaces\n"},
		"a list of a wrong namespace":           {[]string{"list", "-n", "A"}, 2, "", `error: --namespace: must be 1 to 63 lower case letters, digits and dashes, is "A"` + "\n"},
		"a list in a wrong format":              {[]string{"list", "-o", "yaml"}, 2, "", `error: --output: must be one of text, wide, json, csv, is "yaml"` + "\n"},
		"a list of a wrong object":              {[]string{"list", "--object", "db-password"}, 2, "", `error: --object: must be VAULT/NAME or VAULT/TYPE:NAME, is "db-password"` + "\n"},
		"the version as a flag":                 {[]string{"--version"}, 0, "akv-injector ", ""},
		"the version as a command":              {[]string{"version"}, 0, "akv-injector ", ""},
		"a canary at every moment":              {[]string{"serve", "--canary-interval", "1s"}, 2, "", "error: --canary-interval: must be from 10s to 5m, is 1s\n"},
		"a kind of workloads without a version": {[]string{"serve", "--extra-workload", "Rollout=rollouts.argoproj.io"}, 2, "", "error: --extra-workload: must be KIND=RESOURCE.VERSION.GROUP[:PATH] with a PATH below spec, such as Rollout=rollouts.v1alpha1.argoproj.io:spec.template, is \"Rollout=rollouts.argoproj.io\"\n"},
		"help of serve that has an example":     {[]string{"serve", "--help"}, 0, "\nExamples:\n", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			cmd := exec.CommandContext(ctx, program, tt.args...)
			cmd.Dir, cmd.Env = dir, []string{"HOME=" + dir}
			var stdout, stderr bytes.Buffer
			cmd.Stdout, cmd.Stderr = &stdout, &stderr
			err := cmd.Run()
			if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && !ok || ok && exit.ExitCode() != tt.status || err == nil && tt.status != 0 {
				t.Errorf("it ended with %v, want status %d", err, tt.status)
			}
			if !strings.Contains(stdout.String(), tt.stdout) || !strings.Contains(stderr.String(), tt.stderr) {
				t.Errorf("standard output\n%s\nwant %q, standard error\n%s\nwant %q", &stdout, tt.stdout, &stderr, tt.stderr)
			}
		})
	}
}
