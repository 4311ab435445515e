// Package e2e_test tests the injector with a real API server that calls it, controllers that create
// the pods, and the RBAC rights that are shipped. All tests share one control plane and one
// injector.
//
// Tests that disturb the shared injector are not parallel. All others are parallel, so they run
// after them.
package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// Names of the shipped objects.
const (
	configuration     = "akv-injector"
	injectorNamespace = "akv-injector-system"
	servingSecret     = "akv-injector-serving-cert"
)

// patience is the timeout of everything that a test waits for. It allows for a busy machine.
const patience = time.Minute

var update = flag.Bool("update", false, "rewrite the golden files")

// What all tests share.
var (
	plane   *controlplane.ControlPlane
	server  *injector.Injector // called by the API server
	binary  string             // path of the injector's program
	client  kubernetes.Interface
	objects dynamic.Interface
	// auditDir has the API server's audit log of pods, in audit.log.
	auditDir string
)

// auditTo returns the API server's arguments for an audit log of pod writes in dir/audit.log.
func auditTo(dir string) ([]string, error) {
	policy := filepath.Join(dir, "audit.yaml")
	err := os.WriteFile(policy, []byte(`apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
- {level: Metadata, verbs: [create, update], resources: [{group: "", resources: [pods, pods/status]}]}
- {level: None}
`), 0o600)
	return []string{"--audit-policy-file=" + policy, "--audit-log-path=" + filepath.Join(dir, "audit.log")}, err
}

func TestMain(m *testing.M) {
	flag.Parse()
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (code int, err error) {
	// Building the control plane takes minutes when it is not cached.
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	if auditDir, err = os.MkdirTemp("", "e2e-audit-"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(auditDir)) }()
	audit, err := auditTo(auditDir)
	if err != nil {
		return 0, err
	}
	if plane, err = controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs, APIServerArgs: audit}); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	quiet := rest.CopyConfig(plane.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	if client, err = kubernetes.NewForConfig(quiet); err != nil {
		return 0, err
	}
	if objects, err = dynamic.NewForConfig(quiet); err != nil {
		return 0, err
	}
	if binary, err = injector.Build(ctx); err != nil {
		return 0, err
	}
	if err := startServer(ctx); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, server.Stop(), checkLogs()) }()
	return m.Run(), nil
}

// startServer starts the injector that the API server calls, and waits until it is called.
func startServer(ctx context.Context) error {
	started, err := injector.Start(ctx, plane, injector.Options{Binary: binary, Args: []string{"--env-files=on"}})
	if err != nil {
		return err
	}
	server = started
	namespace := document(`{apiVersion: v1, kind: Namespace, metadata: {name: probe, labels: {keyvault.io/injection: enabled, identity.io/enforce: required}}}`)
	if err := errors.Join(apply(ctx, "", namespace), plane.WaitForServiceAccount(ctx, "probe")); err != nil {
		return err
	}
	if err := injector.WaitUntilCalled(ctx, plane.Config, "probe"); err != nil {
		return err
	}
	return waitUntilJudged(ctx, "probe")
}

// checkLogs reads the logs of all injectors. No request may have been denied: the shipped rights
// must be sufficient.
func checkLogs() error {
	files, err := filepath.Glob(filepath.Join(plane.Dir, "*", "akv-injector.log"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("find the injectors' logs: %w", err)
	}
	var errs []error
	for _, file := range files {
		text, err := os.ReadFile(file)
		errs = append(errs, err)
		for line := range strings.Lines(string(text)) {
			var entry struct{ Level, Ts, Msg string }
			if err := json.Unmarshal([]byte(line), &entry); err != nil || entry.Level == "" || entry.Ts == "" || entry.Msg == "" {
				errs = append(errs, fmt.Errorf("a line of the log is not JSON with level, ts and msg: %s", line))
			}
			if strings.Contains(line, "is forbidden: User ") { // a quota error has "is forbidden", too
				errs = append(errs, fmt.Errorf("the injector lacks a right: %s", line))
			}
		}
	}
	return errors.Join(errs...)
}

// replica is an injector in addition to the one that the API server calls.
type replica struct {
	*process.Process
	address, metrics, probes string // host and port each
}

// startReplica starts an injector that stops when the test ends. It does not wait until the
// injector is ready.
func startReplica(t *testing.T, args ...string) *replica {
	t.Helper()
	addresses, err := process.FreeAddresses(3)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(plane.Dir, "replica-"+strings.TrimPrefix(addresses[0], "127.0.0.1:"))
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	r := &replica{address: addresses[0], metrics: addresses[1], probes: addresses[2]}
	r.Process, err = process.Start(dir, binary, append([]string{
		"serve", "--certs=self-signed", "--drain-period=0", "--kubeconfig=" + filepath.Join(server.Dir, "kubeconfig"), "--namespace=" + injectorNamespace,
		"--webhook-bind-address=" + r.address, "--metrics-bind-address=" + r.metrics, "--health-probe-bind-address=" + r.probes,
	}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		select {
		case <-r.Done():
		default:
			if err := r.Stop(); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

func (r *replica) waitReady(t *testing.T) {
	t.Helper()
	if err := r.Await(t.Context(), func(ctx context.Context) error { return process.Healthy(ctx, "http://"+r.probes+"/readyz") }); err != nil {
		t.Fatal(err)
	}
}

// waitFor waits until done returns no error, for at most patience.
func waitFor(t *testing.T, what string, done func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := process.Until(ctx, done); err != nil {
		t.Fatalf("wait for %s: %v", what, err)
	}
}

// documents decodes YAML constants of the tests.
func documents(text string) []*unstructured.Unstructured {
	list, err := corpus.Decode([]byte(text))
	if err != nil {
		panic(err) // a mistake in the test itself
	}
	return list
}

func document(text string) *unstructured.Unstructured {
	return documents(text)[0]
}

// resource returns the client for an object's kind. namespace is used if the kind is namespaced.
func resource(in dynamic.Interface, object *unstructured.Unstructured, namespace string) dynamic.ResourceInterface {
	plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
	if clusterWide(object) {
		return in.Resource(plural)
	}
	return in.Resource(plural).Namespace(namespace)
}

func clusterWide(object *unstructured.Unstructured) bool {
	switch object.GetKind() {
	case "Namespace", "Node", "MutatingWebhookConfiguration":
		return true
	}
	return false
}

// in returns a copy of an object in a namespace.
func in(object *unstructured.Unstructured, namespace string) *unstructured.Unstructured {
	if object == nil {
		return nil
	}
	object = object.DeepCopy()
	if !clusterWide(object) {
		object.SetNamespace(namespace)
	}
	return object
}

// apply does what `kubectl apply --server-side` does.
func apply(ctx context.Context, namespace string, list ...*unstructured.Unstructured) error {
	for _, object := range list {
		options := metav1.ApplyOptions{FieldManager: "e2e", Force: true}
		object = in(object, namespace)
		if _, err := resource(objects, object, namespace).Apply(ctx, object.GetName(), object, options); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// newNamespace creates a namespace with the objects in it.
func newNamespace(t *testing.T, name, injection string, list ...*unstructured.Unstructured) {
	t.Helper()
	namespace := &unstructured.Unstructured{}
	namespace.SetAPIVersion("v1")
	namespace.SetKind("Namespace")
	namespace.SetName(name)
	if injection != "" {
		namespace.SetLabels(map[string]string{"keyvault.io/injection": injection})
	}
	if err := apply(t.Context(), name, append([]*unstructured.Unstructured{namespace}, list...)...); err != nil {
		t.Fatal(err)
	}
	if err := plane.WaitForServiceAccount(t.Context(), name); err != nil {
		t.Fatal(err)
	}
}

// logged returns the reviews of a namespace in the server's log.
func logged(t *testing.T, namespace string) []map[string]any {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(server.Dir, "akv-injector.log"))
	if err != nil {
		t.Fatal(err)
	}
	var reviews []map[string]any
	for scanner := bufio.NewScanner(bytes.NewReader(text)); scanner.Scan(); {
		var entry map[string]any
		if json.Unmarshal(scanner.Bytes(), &entry) == nil && entry["msg"] == "Reviewed" && entry["namespace"] == namespace {
			reviews = append(reviews, entry)
		}
	}
	return reviews
}

// listening returns a client that records the API server's warnings.
func listening(t *testing.T) (dynamic.Interface, *warnings) {
	t.Helper()
	heard := &warnings{}
	config := rest.CopyConfig(plane.Config)
	config.WarningHandlerWithContext = heard
	in, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return in, heard
}

// warnings are the warnings received since the last take.
type warnings struct{ texts []string }

// HandleWarningHeaderWithContext implements [rest.WarningHandlerWithContext].
func (w *warnings) HandleWarningHeaderWithContext(_ context.Context, _ int, _, text string) {
	w.texts = append(w.texts, text)
}

func (w *warnings) take() []string {
	texts := w.texts
	w.texts = nil
	return texts
}
