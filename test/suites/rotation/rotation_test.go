package rotation_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// secrets is the request of all workloads: db is an env var, tls only a file.
const secrets = "DB=db, tls"

// workload is a manifest of a workload with three pods that restart on rotation. The name of its
// annotation is that of the kind.
func workload(kind, name, extra string) string {
	replicas := ", replicas: 3"
	if kind == "DaemonSet" {
		replicas = ""
	}
	return fmt.Sprintf(`
apiVersion: apps/v1
kind: %s
metadata:
  name: %[2]s
  annotations: {keyvault.io/secrets: %[3]q, keyvault.io/on-rotation: restart}
spec: {selector: {matchLabels: {app: %[2]s}}%[4]s, template: {metadata: {labels: {app: %[2]s}}, spec: {
  serviceAccountName: app, containers: [{name: app, image: app%[5]s}]}}}
`, kind, name, secrets, replicas, extra)
}

// inNamespace creates a namespace that opted in, with a ServiceAccount.
func inNamespace(t *testing.T, name string) {
	t.Helper()
	kubectl(t, fmt.Sprintf(`{apiVersion: v1, kind: Namespace, metadata: {name: %[1]s, labels: {keyvault.io/injection: enabled},
  annotations: {keyvault.io/vault: %[1]s-vault, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47}}}`, name), "apply", "--filename=-")
	kubectl(t, `{apiVersion: v1, kind: ServiceAccount, metadata: {name: app,
  annotations: {azure.workload.identity/client-id: 0f3cbb3a-5d5a-4b5d-9d0f-2a7f6a0c1f11}}}`, "apply", "--namespace="+name, "--filename=-")
	if err := plane.WaitForServiceAccount(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if err := injector.WaitUntilCalled(t.Context(), plane.Config, name); err != nil {
		t.Fatal(err)
	}
}

func kubectl(t *testing.T, manifest string, args ...string) {
	t.Helper()
	if err := plane.RunKubectl(t.Context(), manifest, args...); err != nil {
		t.Fatal(err)
	}
}

// state is a workload as the tests see it.
type state struct {
	own, template string // the annotations restarted-for
	generation    int64
	revisions     int // how many templates the workload has had
}

func stateOf(ctx context.Context, kind, namespace, name string) (s state, err error) {
	apps := client.AppsV1()
	var meta metav1.ObjectMeta
	var template map[string]string
	if k := extraKinds[kind]; k != nil {
		o, err := k.client(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return s, err
		}
		s.own, s.template, s.generation = o.GetAnnotations()[api.RestartedFor], k.restartedFor(o), o.GetGeneration()
		s.revisions = int(s.generation)
		return s, nil
	}
	switch kind {
	case "Deployment":
		o, err := apps.Deployments(namespace).Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return s, err
		}
		sets, err := apps.ReplicaSets(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return s, err
		}
		meta, template, s.revisions = o.ObjectMeta, o.Spec.Template.Annotations, len(sets.Items)
	default:
		revisions, err := apps.ControllerRevisions(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err != nil {
			return s, err
		}
		s.revisions = len(revisions.Items)
		if kind == "StatefulSet" {
			o, err := apps.StatefulSets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return s, err
			}
			meta, template = o.ObjectMeta, o.Spec.Template.Annotations
		} else {
			o, err := apps.DaemonSets(namespace).Get(ctx, name, metav1.GetOptions{})
			if err != nil {
				return s, err
			}
			meta, template = o.ObjectMeta, o.Spec.Template.Annotations
		}
	}
	s.own, s.template, s.generation = meta.Annotations[api.RestartedFor], template[api.RestartedFor], meta.Generation
	return s, nil
}

// expect waits until a workload has these versions of db, on itself and on its template, and so many
// templates.
func expect(t *testing.T, kind, namespace, name, own, template string, revisions int) {
	t.Helper()
	versions := func(version string) string {
		if version == "" {
			return ""
		}
		return namespace + "-vault/secret/db@" + version
	}
	waitFor(t, fmt.Sprintf("%s %s/%s at %s", kind, namespace, name, own), func(ctx context.Context) error {
		s, err := stateOf(ctx, kind, namespace, name)
		if err == nil && (s.own != versions(own) || s.template != versions(template) || s.revisions != revisions) {
			err = fmt.Errorf("has %+v, want %s, %s and %d templates", s, versions(own), versions(template), revisions)
		}
		return err
	})
}

// settle waits for longer than the replicas need to notice something.
func settle() { time.Sleep(8 * time.Second) }

// TestRestarts rotates objects of workloads of each kind.
func TestRestarts(t *testing.T) {
	t.Parallel()
	for _, kind := range []string{"Deployment", "StatefulSet", "DaemonSet"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			in := "rotate-" + strings.ToLower(kind)
			inNamespace(t, in)
			kubectl(t, workload(kind, "app", ""), "apply", "--namespace="+in, "--filename=-")
			expect(t, kind, in, "app", "v1", "", 1)
			settle()
			node.rotate(in, "secret/tls", "v2") // only a file
			settle()
			expect(t, kind, in, "app", "v1", "", 1)
			node.rotate(in, "secret/db", "v2")
			expect(t, kind, in, "app", "v2", "v2", 2)
			settle()
			node.rotate(in, "secret/db", "v1") // and back
			expect(t, kind, in, "app", "v1", "v1", 3)
			waitFor(t, "an event with both versions", func(ctx context.Context) error {
				return hasEvent(ctx, in, api.Restarted, fmt.Sprintf("secret/db of vault %s-vault has version v2 (before: v1)", in))
			})
			settle()
			expect(t, kind, in, "app", "v1", "v1", 3)
		})
	}
}

// hasEvent returns an error unless an event of a Reason contains a text.
func hasEvent(ctx context.Context, namespace string, reason api.Reason, text string) error {
	list, err := client.EventsV1().Events(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	var notes []string
	for i := range list.Items {
		if e := &list.Items[i]; e.Reason == string(reason) {
			if strings.Contains(e.Note, text) {
				return nil
			}
			notes = append(notes, e.Note)
		}
	}
	return fmt.Errorf("events %s: %q", reason, notes)
}

// TestUsersUpdates changes a workload after a restart in the ways in which clients lose annotations.
// None of them restarts it.
func TestUsersUpdates(t *testing.T) {
	t.Parallel()
	const in = "updates"
	inNamespace(t, in)
	manifest := workload("Deployment", "app", "")
	kubectl(t, manifest, "apply", "--namespace="+in, "--filename=-")
	expect(t, "Deployment", in, "app", "v1", "", 1)
	settle()
	node.rotate(in, "secret/db", "v2")
	expect(t, "Deployment", in, "app", "v2", "v2", 2)
	for name, args := range map[string][]string{
		"replace":              {"replace", "--filename=-"},
		"apply":                {"apply", "--filename=-"},
		"server-side apply":    {"apply", "--server-side", "--force-conflicts", "--filename=-"},
		"annotations: null":    {"patch", "deployment/app", "--type=merge", `--patch={"spec":{"template":{"metadata":{"annotations":null}}}}`},
		"another value":        {"patch", "deployment/app", "--type=merge", `--patch={"spec":{"template":{"metadata":{"annotations":{"keyvault.io/restarted-for":"x@y"}}}}}`},
		"undo":                 {"rollout", "undo", "deployment/app"},
		"the workload's value": {"annotate", "deployment/app", "keyvault.io/restarted-for-"},
	} {
		input := ""
		if args[len(args)-1] == "--filename=-" {
			input = manifest
		}
		waitFor(t, name, func(ctx context.Context) error { // a controller may write the status meanwhile
			return plane.RunKubectl(ctx, input, append(args, "--namespace="+in)...)
		})
		if s, err := stateOf(t.Context(), "Deployment", in, "app"); err != nil || s.own != in+"-vault/secret/db@v2" || s.template != s.own {
			t.Errorf("%s: %+v, %v", name, s, err)
		}
	}
	settle()
	expect(t, "Deployment", in, "app", "v2", "v2", 2)
	// A copy of the workload, such as from a backup, begins anew.
	const restart = "keyvault.io/on-rotation: restart"
	copied := strings.ReplaceAll(workload("Deployment", "copy", ""), restart, restart+`, keyvault.io/restarted-for: "x@v0"`)
	kubectl(t, copied, "create", "--namespace="+in, "--filename=-")
	expect(t, "Deployment", in, "copy", "v2", "", 1)
	settle()
	expect(t, "Deployment", in, "copy", "v2", "", 1)
}

// TestPace checks what delays a restart: a failed restart in the same namespace, and a window.
func TestPace(t *testing.T) {
	t.Parallel()
	const in, closed = "pace", "closed"
	inNamespace(t, in)
	inNamespace(t, closed)
	kubectl(t, "", "annotate", "namespace", closed, "keyvault.io/restart-window="+closedWindow())
	for _, name := range []string{"first", "second"} {
		kubectl(t, workload("Deployment", name, ""), "apply", "--namespace="+in, "--filename=-")
		expect(t, "Deployment", in, name, "v1", "", 1)
	}
	kubectl(t, workload("Deployment", "app", ""), "apply", "--namespace="+closed, "--filename=-")
	expect(t, "Deployment", closed, "app", "v1", "", 1)
	settle()
	for _, name := range []string{"first", "second"} {
		node.breakPods(in, name, true)
	}
	node.rotate(in, "secret/db", "v2")
	node.rotate(closed, "secret/db", "v2")
	restarted := func(ctx context.Context) (list []string, err error) {
		for _, name := range []string{"first", "second"} {
			s, err := stateOf(ctx, "Deployment", in, name)
			if err != nil {
				return nil, err
			}
			if s.template != "" {
				list = append(list, name)
			}
		}
		return list, nil
	}
	waitFor(t, "the first restart", func(ctx context.Context) error {
		list, err := restarted(ctx)
		if err == nil && len(list) == 0 {
			err = errors.New("nothing restarts")
		}
		return err
	})
	settle()
	if list, err := restarted(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("while a restart is not complete, %v restart: %v", list, err)
	}
	waitFor(t, "the failure of the first restart", func(ctx context.Context) error {
		return hasEvent(ctx, in, api.RestartFailed, "is not complete after "+timeout.String())
	})
	waitFor(t, "the second restart", func(ctx context.Context) error {
		list, err := restarted(ctx)
		if err == nil && len(list) < 2 {
			err = errors.New("the second workload does not restart")
		}
		return err
	})
	expect(t, "Deployment", closed, "app", "v1", "", 1)
	kubectl(t, "", "annotate", "namespace", closed, "keyvault.io/restart-window-")
	expect(t, "Deployment", closed, "app", "v2", "v2", 2)
}

// closedWindow returns a window that neither contains the present time nor the next hours.
func closedWindow() string {
	day := time.Now().UTC().Add(72 * time.Hour).Weekday().String()[:3]
	return day + " 02:00-04:00 UTC"
}

// TestRotationIsConfined checks what the injector's ServiceAccount can change in workloads.
func TestRotationIsConfined(t *testing.T) {
	t.Parallel()
	const in = "confined"
	inNamespace(t, in)
	kubectl(t, workload("Deployment", "app", ""), "apply", "--namespace="+in, "--filename=-")
	expect(t, "Deployment", in, "app", "v1", "", 1)
	replica, err := replicas[0].Client()
	if err != nil {
		t.Fatal(err)
	}
	for patch, allowed := range map[string]bool{
		`{"metadata":{"annotations":{"keyvault.io/restarted-for":"a@b"}}}`:                               true,
		`{"spec":{"template":{"metadata":{"annotations":{"keyvault.io/restarted-for":"a@b"}}}}}`:         true,
		`{"metadata":{"annotations":{"keyvault.io/secrets":"A=b"}}}`:                                     false,
		`{"metadata":{"annotations":null}}`:                                                              false,
		`{"metadata":{"labels":{"a":"b"}}}`:                                                              false,
		`{"metadata":{"finalizers":["a.b/c"]}}`:                                                          false,
		`{"spec":{"replicas":0}}`:                                                                        false,
		`{"spec":{"paused":true}}`:                                                                       false,
		`{"spec":{"template":{"metadata":{"annotations":{"kubectl.kubernetes.io/restartedAt":"now"}}}}}`: false,
		`{"spec":{"template":{"metadata":{"labels":{"a":"b"}}}}}`:                                        false,
		`{"spec":{"template":{"spec":{"serviceAccountName":"default"}}}}`:                                false,
		`{"spec":{"template":{"spec":{"containers":[{"name":"app","image":"attacker"}]}}}}`:              false,
	} {
		_, err := replica.AppsV1().Deployments(in).Patch(t.Context(), "app", types.StrategicMergePatchType, []byte(patch),
			metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if (err == nil) != allowed || err != nil && !apierrors.IsForbidden(err) {
			t.Errorf("%s: %v", patch, err)
		}
	}
	if _, err := replica.AppsV1().Deployments(in).Create(t.Context(), &appsv1.Deployment{}, metav1.CreateOptions{}); !apierrors.IsForbidden(err) {
		t.Errorf("creation: %v", err)
	}
}

// TestAnotherWebhook lets another admission policy change the update with which the injector restarts
// a workload. The injector reports that once, and does not try again and again.
func TestAnotherWebhook(t *testing.T) {
	t.Parallel()
	const in = "another"
	inNamespace(t, in)
	kubectl(t, workload("Deployment", "app", ""), "apply", "--namespace="+in, "--filename=-")
	expect(t, "Deployment", in, "app", "v1", "", 1)
	settle()
	policies := client.AdmissionregistrationV1()
	policy := &admissionregistrationv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: in},
		Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{
				NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": in}},
				ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Update},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{"apps"}, APIVersions: []string{"v1"}, Resources: []string{"deployments"}},
				}}},
			},
			ReinvocationPolicy: admissionregistrationv1.NeverReinvocationPolicy,
			Mutations: []admissionregistrationv1.Mutation{{
				PatchType: admissionregistrationv1.PatchTypeApplyConfiguration,
				ApplyConfiguration: &admissionregistrationv1.ApplyConfiguration{
					Expression: `Object{metadata: Object.metadata{labels: {"touched": "by-another-policy"}}}`,
				},
			}},
		},
	}
	if _, err := policies.MutatingAdmissionPolicies().Create(t.Context(), policy, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	binding := &admissionregistrationv1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: in}, Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{PolicyName: in},
	}
	if _, err := policies.MutatingAdmissionPolicyBindings().Create(t.Context(), binding, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the policy", func(ctx context.Context) error {
		d, err := client.AppsV1().Deployments(in).Patch(ctx, "app", types.MergePatchType, []byte(`{"metadata":{"labels":{"a":"b"}}}`),
			metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}})
		if err == nil && d.Labels["touched"] == "" {
			err = errors.New("the policy does nothing yet")
		}
		return err
	})
	node.rotate(in, "secret/db", "v2")
	waitFor(t, "the event", func(ctx context.Context) error {
		return hasEvent(ctx, in, api.RestartRejected, "must change only the annotation")
	})
	expect(t, "Deployment", in, "app", "v1", "", 1)
}

// TestReplicas ends the replica that restarts workloads at several moments, and starts another. Each
// version restarts the workload once.
func TestReplicas(t *testing.T) {
	const in = "replicas"
	inNamespace(t, in)
	kubectl(t, workload("Deployment", "app", ""), "apply", "--namespace="+in, "--filename=-")
	expect(t, "Deployment", in, "app", "v1", "", 1)
	settle()
	for n, wait := range []time.Duration{0, 3 * time.Second} {
		version := fmt.Sprint("v", n+2)
		node.rotate(in, "secret/db", version)
		time.Sleep(wait)
		for _, replica := range replicas {
			if err := replica.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		replicas = nil
		for range 2 {
			if err := startReplica(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		expect(t, "Deployment", in, "app", version, version, n+2)
		settle()
		expect(t, "Deployment", in, "app", version, version, n+2)
	}
	if err := plane.RunKubectl(t.Context(), "", "get", "lease", "akv-injector-rotation", "--namespace="+chart.Namespace); err != nil {
		t.Error(err)
	}
}
