// Package mistakes_test writes manifests with mistakes that users make, and checks who reports them:
// lint, or kubectl with an API server that has the injector's webhooks and the chart's advice. All
// tests share one control plane without controllers, since a mistake must be reported when the
// manifest is applied.
package mistakes_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/tools/txtar"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

var update = flag.Bool("update", false, "rewrite the wanted messages, and the table in docs/mistakes.md")

// advice is the name of the chart's policy that warns.
const advice = "advice.akv-injector.io"

// What all tests share.
var (
	plane *controlplane.ControlPlane
	// mistakes is testdata/mistakes.txtar, and base is a file with its objects of the cluster.
	mistakes *txtar.Archive
	base     string
)

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "mistakes:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Building the control plane takes minutes when it is not cached.
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	defer cancel()
	if mistakes, err = txtar.ParseFile(filepath.Join("testdata", "mistakes.txtar")); err != nil {
		return 0, err
	}
	if plane, err = controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs, NoControllers: true}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	base = filepath.Join(plane.Dir, "base.yaml")
	if err := os.WriteFile(base, content("base.yaml"), 0o600); err != nil {
		return 0, err
	}
	if err := plane.RunKubectl(ctx, string(content("crds.yaml")), "apply", "--filename=-"); err != nil {
		return 0, err
	}
	if err := plane.RunKubectl(ctx, "", "wait", "--for=condition=Established", "crds", "--all"); err != nil {
		return 0, err
	}
	server, err := injector.Start(ctx, plane, injector.Options{})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	if err := plane.RunKubectl(ctx, "", "apply", "--filename="+base); err != nil {
		return 0, err
	}
	if err := injector.WaitUntilCalled(ctx, plane.Config, "shop"); err != nil {
		return 0, err
	}
	if err := waitForAdvice(ctx); err != nil {
		return 0, err
	}
	return m.Run(), nil
}

// content returns a file of testdata/mistakes.txtar.
func content(name string) []byte {
	for _, file := range mistakes.Files {
		if file.Name == name {
			return file.Data
		}
	}
	panic("testdata/mistakes.txtar has no " + name)
}

// waitForAdvice waits until the API server evaluates the policy that warns.
func waitForAdvice(ctx context.Context) error {
	const object = `{apiVersion: v1, kind: ConfigMap, metadata: {name: probe, namespace: default, annotations: {keyvault.io/secrets: a}}}`
	return process.Until(ctx, func(ctx context.Context) error {
		if got := apply(ctx, object, "--dry-run=server"); len(got.warnings) == 0 {
			return fmt.Errorf("no advice yet: %+v", got)
		}
		return nil
	})
}

// answer is what kubectl prints. The messages of akv-injector are errors and warnings; the others
// are of kubectl and of the API server.
type answer struct{ errors, warnings, others []string }

// first returns the message that a user reads first: the first error, or else the first warning.
func (a answer) first() string {
	for _, list := range [][]string{a.errors, a.warnings, a.others} {
		if len(list) > 0 {
			return list[0]
		}
	}
	return ""
}

// reporter returns who reports a mistake, as in the table.
func (a answer) reporter() string {
	switch {
	case len(a.errors) > 0:
		return "error"
	case len(a.warnings) > 0:
		return "warning"
	case len(a.others) > 0:
		return "kubectl"
	}
	return ""
}

var (
	reason = regexp.MustCompile(`\[[A-Z][A-Za-z]+\] `)
	// done matches what kubectl prints about an object that it applied.
	done = regexp.MustCompile(`^\S+/\S+ (created|configured|unchanged)( \(server dry run\))?$`)
)

// apply applies manifests with kubectl, as a user does.
func apply(ctx context.Context, manifests string, args ...string) answer {
	cmd := plane.Kubectl(ctx, append([]string{"apply", "--filename=-"}, args...)...)
	cmd.Stdin = strings.NewReader(manifests)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var a answer
	for line := range strings.Lines(out.String()) {
		line = strings.TrimSpace(line)
		warning, isWarning := strings.CutPrefix(line, "Warning: ")
		if _, text, found := strings.Cut(warning, "with binding '"+advice+"': "); found {
			warning = text
		}
		switch ours := reason.MatchString(line); {
		case line == "" || done.MatchString(line) || strings.HasSuffix(line, " is invalid:"):
		case strings.Contains(line, "last-applied-configuration annotation"): // the API server created the object
		case isWarning && ours:
			a.warnings = append(a.warnings, warning)
		case isWarning:
			a.others = append(a.others, warning)
		case ours:
			if _, text, found := strings.Cut(line, " is invalid: "); found {
				line = text
			}
			a.errors = append(a.errors, strings.TrimPrefix(line, "* "))
		default:
			a.others = append(a.others, line)
		}
	}
	if err != nil && len(a.errors)+len(a.others) == 0 {
		a.others = append(a.others, err.Error())
	}
	return a
}
