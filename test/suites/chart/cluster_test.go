package chart_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// TestCluster applies the rendered chart to an API server with cert-manager's CRDs. Its subtests
// run one after the other, since a cluster has one release.
func TestCluster(t *testing.T) {
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	helms, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{Binaries: binaries, NoControllers: true, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(
		controlplane.InstallCRDs(ctx, plane.Config), certmanager.InstallCRDs(ctx, plane), installMonitoring(ctx, plane),
	); err != nil {
		t.Fatal(err)
	}
	folder, err := chart.Folder(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := plane.Kubectl(ctx, "apply", "-k", filepath.Join(folder, "..", "kustomize", "namespace")).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{plane: plane, client: client}

	t.Run("kubectl apply -k", c.kustomize)
	t.Run("every value", c.everyValue)
	for mode := range modes {
		t.Run("certificates of "+mode, func(t *testing.T) { c.mode(t, mode) })
	}
	for _, helm := range helms {
		t.Run(filepath.Base(helm), func(t *testing.T) { c.release(t, helm) })
	}
}

type cluster struct {
	plane  *controlplane.ControlPlane
	client *kubernetes.Clientset
}

// installMonitoring installs CRDs for the Prometheus operator's kinds without schemas, since the
// module with the schemas is not available. TestTyped checks the fields.
func installMonitoring(ctx context.Context, plane *controlplane.ControlPlane) error {
	var crds strings.Builder
	for plural, kind := range map[string]string{"servicemonitors": "ServiceMonitor", "prometheusrules": "PrometheusRule"} {
		fmt.Fprintf(&crds, `---
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: %[1]s.monitoring.coreos.com}
spec:
  group: monitoring.coreos.com
  scope: Namespaced
  names: {plural: %[1]s, kind: %[2]s}
  versions:
  - {name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}
`, plural, kind)
	}
	for _, args := range [][]string{{"apply", "--filename=-"}, {"wait", "--for=condition=Established", "--timeout=1m", "--filename=-"}} {
		cmd := plane.Kubectl(ctx, args...)
		cmd.Stdin = strings.NewReader(crds.String())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("kubectl %s: %w\n%s", args[0], err, out)
		}
	}
	return nil
}

// kustomize applies the folders and the namespace twice. The second time must change nothing.
func (c *cluster) kustomize(t *testing.T) {
	shipped, err := chart.Folder(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kubectl := func(args ...string) string {
		t.Helper()
		out, err := c.plane.Kubectl(t.Context(), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl %s: %v\n%s", args[0], err, out)
		}
		return string(out)
	}
	for folder, mode := range map[string]string{".": "cert-manager", "self-signed": "self-signed"} {
		folder = filepath.Join(shipped, "..", "kustomize", folder)
		versions := []string{"get", "-k", folder, `--output=jsonpath={range .items[*]}{.kind}/{.metadata.name} {.metadata.resourceVersion}{"\n"}{end}`}
		kubectl("apply", "-k", folder)
		before := kubectl(versions...)
		kubectl("apply", "-k", folder)
		if diff := cmp.Diff(before, kubectl(versions...)); diff != "" {
			t.Errorf("%s changes when it is applied again:\n%s", filepath.Base(folder), diff)
		}
		c.remove(t, render(t, modes[mode]))
	}
}

// everyValue applies, as a dry run, the objects that each row of TestValues changes, and those that
// no row changes. Namespaces exist: a dry run finds no object that it did not store.
func (c *cluster) everyValue(t *testing.T) {
	apply := func(name string, objects []*unstructured.Unstructured) {
		for _, object := range objects {
			if object.GetKind() != "Namespace" {
				continue
			}
			if _, err := chart.Apply(t.Context(), c.plane.Config, []*unstructured.Unstructured{object}, metav1.PatchOptions{}); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := chart.Apply(t.Context(), c.plane.Config, objects, metav1.PatchOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	defaults := render(t, nil)
	apply("no value", defaults)
	unchanged := byName(defaults)
	for name, row := range rows(t, read(t)) {
		objects := byName(render(t, row.values))
		maps.DeleteFunc(objects, func(name string, object *unstructured.Unstructured) bool { return cmp.Equal(object, unchanged[name]) })
		apply(name, slices.Collect(maps.Values(objects)))
	}
}

// mode applies the rendered objects of a mode with everything enabled, twice: the second time must
// change nothing. Then it checks the injector's rights and that its pods are admitted.
func (c *cluster) mode(t *testing.T, mode string) {
	t.Helper()
	ctx := t.Context()
	objects := render(t, with(modes[mode], everything))
	first, err := chart.Apply(ctx, c.plane.Config, objects, metav1.PatchOptions{Force: new(true)})
	if err != nil {
		t.Fatal(err)
	}
	again, err := chart.Apply(ctx, c.plane.Config, objects, metav1.PatchOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range first {
		if diff := cmp.Diff(first[i].GetResourceVersion(), again[i].GetResourceVersion()); diff != "" {
			t.Errorf("%s %s changes when it is applied again", first[i].GetKind(), first[i].GetName())
		}
	}
	c.letsIn(t, objects)
	t.Run("rights", func(t *testing.T) { c.rights(t, mode) })
	c.remove(t, objects)
}

// remove deletes objects, so that another mode can apply them without a conflict. It keeps
// namespaces, which no controller would empty.
func (c *cluster) remove(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	for _, object := range objects {
		if object.GetKind() == "Namespace" {
			continue
		}
		out, err := c.plane.Kubectl(t.Context(), "delete", object.GetKind(), object.GetName(), "--namespace="+object.GetNamespace()).CombinedOutput()
		if err != nil {
			t.Fatalf("kubectl delete: %v\n%s", err, out)
		}
	}
}

// letsIn creates a pod of the Deployment, as a dry run, in the namespace that enforces Pod Security
// level restricted.
func (c *cluster) letsIn(t *testing.T, objects []*unstructured.Unstructured) {
	t.Helper()
	template := find[appsv1.Deployment](t, objects, "Deployment").Spec.Template
	pod := &corev1.Pod{ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	pod.GenerateName = chart.Name + "-"
	namespace, err := c.client.CoreV1().Namespaces().Get(t.Context(), chart.Namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got := namespace.Labels["pod-security.kubernetes.io/enforce"]; got != "restricted" {
		t.Errorf("the namespace enforces level %q, want restricted", got)
	}
	if _, err := c.client.CoreV1().Pods(chart.Namespace).Create(t.Context(), pod, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
		t.Error(err)
	}
}

// rights reads from the API server what the injector's ServiceAccount may do. Rights that are not
// listed for a mode must be denied.
func (c *cluster) rights(t *testing.T, mode string) {
	t.Helper()
	const own = chart.Namespace
	all := []string{"cert-manager", "self-signed", "files"}
	tests := map[string]struct {
		verbs, group, resource, namespace, name string
		modes                                   []string // modes with this right
	}{
		"read namespaces":                        {"get list watch", "", "namespaces", "", "", all},
		"change namespaces":                      {"create update patch delete", "", "namespaces", "", "team", nil},
		"read ServiceAccounts":                   {"get list watch", "", "serviceaccounts", "team", "", all},
		"change ServiceAccounts":                 {"create update patch delete", "", "serviceaccounts", "team", "", nil},
		"impersonate another ServiceAccount":     {"impersonate", "", "serviceaccounts", "team", "app", nil},
		"read pods":                              {"list watch", "", "pods", "team", "", all},
		"change pods":                            {"create update patch delete", "", "pods", "team", "", nil},
		"read workloads":                         {"get list watch", "apps", "deployments", "team", "", all},
		"read Jobs":                              {"get list watch", "batch", "jobs", "team", "", all},
		"change workloads":                       {"create update patch delete", "apps", "deployments", "team", "", nil},
		"create the canary's pod":                {"create", "", "pods", own + "-canary", "", all},
		"change pods in the canary's namespace":  {"update patch delete", "", "pods", own + "-canary", "", nil},
		"create and change classes":              {"get list watch create update patch", "secrets-store.csi.x-k8s.io", "secretproviderclasses", "team", "", all},
		"delete classes":                         {"delete deletecollection", "secrets-store.csi.x-k8s.io", "secretproviderclasses", "team", "", nil},
		"read bindings":                          {"get list watch", "aadpodidentity.k8s.io", "azureidentitybindings", "team", "", all},
		"change bindings":                        {"create update patch delete", "aadpodidentity.k8s.io", "azureidentitybindings", "team", "", nil},
		"write events":                           {"create patch", "events.k8s.io", "events", "team", "", all},
		"read the CRD of classes":                {"get list watch", "apiextensions.k8s.io", "customresourcedefinitions", "", "secretproviderclasses.secrets-store.csi.x-k8s.io", all},
		"read other CRDs":                        {"get list watch", "apiextensions.k8s.io", "customresourcedefinitions", "", "certificates.cert-manager.io", nil},
		"read its mutating configuration":        {"get list watch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "akv-injector", all},
		"read its validating configuration":      {"get list watch", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", "akv-injector", all},
		"write the mutating CA bundle":           {"patch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "akv-injector", []string{"self-signed"}},
		"write the validating CA bundle":         {"patch", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", "akv-injector", []string{"self-signed"}},
		"create or delete its configuration":     {"create update delete", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "akv-injector", nil},
		"read other mutating configurations":     {"list watch", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "", all},
		"change other mutating configurations":   {"update patch delete", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "azure-wi", nil},
		"change other validating configurations": {"update patch delete", "admissionregistration.k8s.io", "validatingwebhookconfigurations", "", "gatekeeper", nil},
		"read the Secret of self-signed":         {"get list watch update", "", "secrets", own, "akv-injector-serving-cert", []string{"self-signed"}},
		"create a Secret in its namespace":       {"create", "", "secrets", own, "", []string{"self-signed"}},
		"read the Secret of cert-manager":        {"get list watch", "", "secrets", own, "akv-injector-tls", []string{"cert-manager"}},
		"write the Secret of cert-manager":       {"update patch delete", "", "secrets", own, "akv-injector-tls", nil},
		"read the key of its CA":                 {"get list watch", "", "secrets", own, "akv-injector-ca", nil},
		"read all Secrets in its namespace":      {"get list watch", "", "secrets", own, "", nil},
		"read a Secret elsewhere":                {"get list watch create update patch delete", "", "secrets", "team", "key-vault-secret", nil},
		"read a Secret of that name elsewhere":   {"get list watch", "", "secrets", "team", "akv-injector-tls", nil},
		"read its Certificate":                   {"get", "cert-manager.io", "certificates", own, "akv-injector", []string{"cert-manager"}},
		"read other Certificates":                {"get list watch", "cert-manager.io", "certificates", own, "akv-injector-ca", nil},
		"read an Issuer in its namespace":        {"get", "cert-manager.io", "issuers", own, "company", []string{"cert-manager"}},
		"read an Issuer elsewhere":               {"get list watch", "cert-manager.io", "issuers", "team", "company", nil},
		"read a ClusterIssuer":                   {"get", "cert-manager.io", "clusterissuers", "", "company", []string{"cert-manager"}},
		"read requests":                          {"list", "cert-manager.io", "certificaterequests", own, "", []string{"cert-manager"}},
		"approve requests":                       {"create update patch delete approve", "cert-manager.io", "certificaterequests", own, "", nil},
		"grant rights":                           {"create update patch bind escalate", "rbac.authorization.k8s.io", "clusterroles", "", "akv-injector", nil},
	}
	for name, tt := range tests {
		for verb := range strings.FieldsSeq(tt.verbs) {
			review, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(t.Context(), &authorizationv1.SubjectAccessReview{
				Spec: authorizationv1.SubjectAccessReviewSpec{
					User: "system:serviceaccount:" + own + ":" + chart.Name,
					ResourceAttributes: &authorizationv1.ResourceAttributes{
						Verb: verb, Group: tt.group, Resource: tt.resource, Namespace: tt.namespace, Name: tt.name,
					},
				},
			}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if want := slices.Contains(tt.modes, mode); review.Status.Allowed != want {
				t.Errorf("%s: may %s: %t, want %t", name, verb, review.Status.Allowed, want)
			}
		}
	}
}

// release installs, upgrades and uninstalls the chart with Helm.
func (c *cluster) release(t *testing.T, helm string) {
	t.Helper()
	ctx := t.Context()
	folder, err := chart.Folder(ctx)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	run := func(args ...string) (string, error) {
		cmd := exec.CommandContext(ctx, helm, append(args, "--kubeconfig="+c.plane.Kubeconfig)...)
		cmd.Env = append(os.Environ(), "HELM_CACHE_HOME="+home, "HELM_CONFIG_HOME="+home, "HELM_DATA_HOME="+home)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	must := func(args ...string) string {
		t.Helper()
		out, err := run(args...)
		if err != nil {
			t.Fatalf("%s %s: %v\n%s", filepath.Base(helm), args[0], err, out)
		}
		return out
	}
	configurations := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	get := func() *admissionregistrationv1.MutatingWebhookConfiguration {
		t.Helper()
		configuration, err := configurations.Get(ctx, chart.Name, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return configuration
	}

	notes := must("install", chart.Name, folder, "--namespace=secrets", "--create-namespace", "--set=certs.mode=self-signed")
	for _, want := range []string{"kubectl --namespace secrets rollout status deployment/akv-injector", "keyvault.io/injection=enabled"} {
		if !strings.Contains(notes, want) {
			t.Errorf("the notes don't say %q:\n%s", want, notes)
		}
	}

	// The injector writes the CA bundle, and an upgrade must keep it.
	ca := base64.StdEncoding.EncodeToString(c.plane.Config.CAData)
	bundle := []byte(`[{"op": "add", "path": "/webhooks/0/clientConfig/caBundle", "value": "` + ca + `"}]`)
	if _, err := configurations.Patch(ctx, chart.Name, types.JSONPatchType, bundle, metav1.PatchOptions{FieldManager: chart.Name}); err != nil {
		t.Fatal(err)
	}
	before := get()
	must("upgrade", chart.Name, folder, "--namespace=secrets", "--reuse-values")
	if diff := cmp.Diff(before.Webhooks, get().Webhooks); diff != "" {
		t.Errorf("an upgrade to the same chart changes the webhooks:\n%s", diff)
	}

	// When a user removes the annotation that keeps AKS from adding to the selectors, AKS adds to
	// them with its own field manager.
	changed := get()
	for i := range changed.Webhooks {
		changed.Webhooks[i].NamespaceSelector.MatchExpressions = append(changed.Webhooks[i].NamespaceSelector.MatchExpressions,
			metav1.LabelSelectorRequirement{Key: "control-plane", Operator: metav1.LabelSelectorOpDoesNotExist})
	}
	if _, err := configurations.Update(ctx, changed, metav1.UpdateOptions{FieldManager: "admissionsenforcer"}); err != nil {
		t.Fatal(err)
	}
	upgrade := []string{"upgrade", chart.Name, folder, "--namespace=secrets", "--reuse-values", "--set=webhook.timeoutSeconds=7"}
	if strings.HasPrefix(filepath.Base(helm), "helm-v4") {
		upgrade = append(upgrade, "--force-conflicts")
	}
	must(upgrade...)
	if got := *get().Webhooks[0].TimeoutSeconds; got != 7 {
		t.Errorf("after an upgrade timeoutSeconds is %d, want 7", got)
	}
	must("rollback", chart.Name, "2", "--namespace=secrets")

	out, err := run("install", "second", folder, "--namespace=others", "--create-namespace")
	if err == nil {
		t.Error("a second release was installed")
	}
	for _, want := range []string{"akv-injector", "invalid ownership metadata", "meta.helm.sh/release-name"} {
		if !strings.Contains(out, want) {
			t.Errorf("a second release is rejected without saying %q:\n%s", want, out)
		}
	}
	if got := get().Webhooks[0].ClientConfig.Service.Namespace; got != "secrets" {
		t.Errorf("a second release took the webhooks over: they call namespace %s", got)
	}

	must("uninstall", chart.Name, "--namespace=secrets")
	err = process.Until(ctx, func(ctx context.Context) error {
		_, err := configurations.Get(ctx, chart.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return fmt.Errorf("the configuration is still there: %w", err)
	})
	if err != nil {
		t.Error(err)
	}
}
