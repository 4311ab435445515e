package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	core "github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// admissionPolicy and advicePolicy are the names of shipped ValidatingAdmissionPolicies.
const (
	admissionPolicy = "pods.akv-injector.io"
	advicePolicy    = "advice.akv-injector.io"
)

// TestAdmissionPolicy evaluates pods twice: with the core, and with an API server that has the
// shipped ValidatingAdmissionPolicy and no injector. For rules that need no lookup, both must give
// the same result.
func TestAdmissionPolicy(t *testing.T) {
	s := newSentry(t)
	t.Run("types", s.types)
	t.Run("corpus", s.corpus)
	t.Run("pods", s.pods)
	t.Run("globs", s.globs)
	t.Run("updates", s.updates)
	t.Run("sizes", s.sizes)
	t.Run("exempt namespaces", s.exemptNamespaces)
	t.Run("audit log", s.audits)
	t.Logf("%d pods were compared: %d rejected, %d with warnings, %d audited", s.compared, s.refused, s.warned, len(s.audited))
}

// settings are combinations of policy labels of a namespace. All pods are compared under the first
// of them, see firstSettings.
var settings = []map[string]string{
	{},
	{api.Enforce: "bound"},
	{api.Enforce: "strictest"},
	{api.Enforce: "bound", api.Warn: "required", api.Audit: "bound"},
	{api.Injection: "enabled"},
	{api.Enforce: "required"},
	{api.Enforce: ""},
	{api.Warn: "bound"},
	{api.Warn: "required"},
	{api.Audit: "required"},
	{api.Enforce: "required", api.Warn: "bound", api.Audit: "unheard-of"},
}

const firstSettings = 4

// TestAdviceTypes checks the types of the advice's expressions. test/suites/mistakes has its messages.
func TestAdviceTypes(t *testing.T) {
	t.Parallel()
	checkTypes(t, client, advicePolicy)
}

func (s *sentry) types(t *testing.T) {
	checkTypes(t, s.client, admissionPolicy)
}

// checkTypes waits until the API server has checked the types of the expressions of a policy.
func checkTypes(t *testing.T, client kubernetes.Interface, policy string) {
	t.Helper()
	waitFor(t, "the types to be checked", func(ctx context.Context) error {
		shipped, err := client.AdmissionregistrationV1().ValidatingAdmissionPolicies().Get(ctx, policy, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if shipped.Status.TypeChecking == nil || shipped.Status.ObservedGeneration != shipped.Generation {
			return errors.New("not checked yet")
		}
		if found := shipped.Status.TypeChecking.ExpressionWarnings; len(found) > 0 {
			t.Errorf("type errors: %+v", found)
		}
		return nil
	})
}

// corpus compares the injected pods of the corpus, in their own namespaces and with other levels.
func (s *sentry) corpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if !a.IsPod() {
			continue
		}
		var pod corev1.Pod
		if err := json.Unmarshal(corpus.JSON(patch(t, a.Subject, a.Wanted["patch"])), &pod); err != nil {
			t.Fatal(err)
		}
		var namespace unstructured.Unstructured
		for _, object := range a.Objects {
			if object.GetKind() == "Namespace" {
				namespace = *object
			}
		}
		for _, setting := range settings[:firstSettings] {
			labels := map[string]string{}
			maps.Copy(labels, namespace.GetLabels())
			maps.Copy(labels, setting)
			s.compare(t, a.Name, s.namespace(t, labels, namespace.GetAnnotations()), &pod)
		}
	}
}

// pods compares handwritten pods.
func (s *sentry) pods(t *testing.T) {
	volume := func(attributes map[string]string) corev1.Volume {
		return corev1.Volume{Name: "kv", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true), VolumeAttributes: attributes}}}
	}
	named := map[string]string{"secretProviderClass": "kv"}
	foreign := volume(nil)
	foreign.CSI.Driver = "file.csi.example"
	token := func(audience string) corev1.Volume {
		return corev1.Volume{Name: "token", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "c"}}},
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: audience, Path: "token"}},
		}}}}
	}
	for behaviour, pod := range map[string]*corev1.Pod{
		"a token for Microsoft Entra":             podWith(nil, token("api://AzureADTokenExchange")),
		"a token for the AKS token proxy":         podWith(nil, token("api://AKSIdentityBinding")),
		"a token for another audience":            podWith(nil, token("api://azureadtokenexchange")),
		"a token for the API server":              podWith(nil, token("")),
		"a token for Microsoft Entra, exempt":     runsAs("batch-1", podWith(nil, token("api://AzureADTokenExchange"))),
		"no identity and no class":                podWith(nil),
		"a binding label":                         podWith(map[string]string{api.PodIdentityBinding: "access-blob"}),
		"an empty binding label":                  podWith(map[string]string{api.PodIdentityBinding: ""}),
		"a binding label with capitals":           podWith(map[string]string{api.PodIdentityBinding: "Access-Blob"}),
		"workload identity":                       podWith(map[string]string{api.WorkloadIdentityUse: "true"}),
		"an empty workload identity label":        podWith(map[string]string{api.WorkloadIdentityUse: ""}),
		"a workload identity label with capitals": podWith(map[string]string{api.WorkloadIdentityUse: "True"}),
		"workload identity off":                   podWith(map[string]string{api.WorkloadIdentityUse: "false"}),
		"both identities":                         podWith(map[string]string{api.PodIdentityBinding: "access-blob", api.WorkloadIdentityUse: "true"}),
		"a class":                                 podWith(nil, volume(named)),
		"a volume without attributes":             podWith(nil, volume(nil)),
		"a volume with an empty class":            podWith(nil, volume(map[string]string{"secretProviderClass": ""})),
		"a volume with a blank class":             podWith(nil, volume(map[string]string{"secretProviderClass": " "})),
		"an attribute":                            podWith(nil, volume(map[string]string{"secretProviderClass": "kv", "keyvaultName": "other"})),
		"an empty attribute":                      podWith(nil, volume(map[string]string{"secretProviderClass": "kv", "usePodIdentity": ""})),
		"several attributes":                      podWith(nil, volume(map[string]string{"secretProviderClass": "kv", "tenantId": "t", "clientID": "c", "keyvaultName": "other"})),
		"an attribute without a class":            podWith(nil, volume(map[string]string{"keyvaultName": "other"})),
		"an attribute name that is too long":      podWith(nil, volume(map[string]string{"secretProviderClass": "kv", strings.Repeat("k", 65): ""})),
		"an attribute name of the maximum length": podWith(nil, volume(map[string]string{"secretProviderClass": "kv", strings.Repeat("k", 64): ""})),
		"an attribute with capitals":              podWith(nil, volume(map[string]string{"SecretProviderClass": "kv"})),
		"another driver's volume":                 podWith(nil, foreign),
		"another driver's volume, then a bad one": podWith(nil, func() corev1.Volume { v := foreign; v.Name = "first"; return v }(), volume(nil)),
		"two bad volumes": podWith(nil, volume(nil), func() corev1.Volume {
			v := volume(map[string]string{"keyvaultName": "other"})
			v.Name = "second"
			return v
		}()),
		"a volume without a driver":                  podWith(nil, corev1.Volume{Name: "kv"}),
		"exempt":                                     runsAs("batch-1", podWith(nil, volume(nil))),
		"exempt, with an identity":                   runsAs("batch-1", podWith(map[string]string{api.PodIdentityBinding: "other", api.WorkloadIdentityUse: "true"})),
		"a name that the exempt glob does not match": runsAs("a-batch-1", podWith(nil, volume(nil))),
		"opted out":                                  annotated(api.Inject, "false", podWith(nil, volume(nil))),
		"the exempt annotation on the pod":           annotated(api.Exempt, "*", podWith(nil, volume(nil))),
	} {
		for _, annotations := range []map[string]string{
			{},
			{api.Exempt: "batch-*"},
			{api.Exempt: "ci, batch-?", api.AllowedNames: "access-*,blob-sa"},
			{api.AllowedNames: ""},
			{api.AllowedNames: " default ,\n" + strings.Repeat("x", 300)},
		} {
			for _, setting := range settings {
				s.compare(t, behaviour, s.namespace(t, setting, annotations), pod)
			}
		}
	}
}

// globs matches globs of every form with names of identities and of ServiceAccounts.
func (s *sentry) globs(t *testing.T) {
	names := []string{"a", "b", "ab", "a-b", "a.b", "A", "abc", "c0"}
	for _, glob := range []string{
		"", " ", ",", "a", "A", "a,b", " a , b ", "a b", "a,", ",a,,", "\ta\n,\nb\n",
		"*", "**", "a*", "*b", "a*b", "*a*b*", "a*,c*", "?", "??", "a?b", "a?", "?*", "*?", "*??*",
		".", "a.b", "a.", ".*", "a+", "(a)", "a|b", "^a", "a$", "{a,b}", "a{1}", "é", "é*", "a/*", "*/*",
		"[a]", "[ab]", "[a-c]", "[a-c]*", "[^a]", "[^a]*", "[!a]", "[a-cA]", "[a-ac-c0-9]", "[a-c][a-c]", "a[-.]b", `a[\-.]b`, `a[.\-]b`, "a[.-]b", "a[+--]b", "a[,-.]b",
		"[b-a]", "[^b-a]", "[b-aa]", "[^", "[^]", "[]", "[]a]", "[^]a]", "[^^]", "[^^]*", "[a^]", "[[]", "[[a]", "[[:alpha:]]", "[[:alpha:]]*", "[*]", "[?]*", "a[*", "[a", "a]", "[a-]", "[-a]", "[a-b-c]", "[a\\]", "[\\]a]", "[^\\]a]*", "[\\a-\\c]", "[\\^a]", "[é-ö]", "[^é]", "[A-z]", "[A-z]*",
		`\a`, `\a\b`, `\*`, `\?`, `\[a]`, `a\`, `a\ `, `a\,b`, `\\`, `\d`, `\w*`, `[\d]`, `[\w]`, `a\.b`, `a\-b`, `\é`, `\Qa\E`, `*\`, `*[`, `*,[`, `[,a`, `a,[`, `\[^]`, "a[^]", "[^[^]", "[a,b]", "b],a",
		"x*, a-?, [c-d][0-9]", "(?i)a", "(?s).", "^", "$", "\x01", "[\x01]", "[^\x01]",
	} {
		allowing, exempting := s.namespace(t, map[string]string{api.Enforce: "bound"}, map[string]string{api.AllowedNames: glob}), s.namespace(t, map[string]string{api.Enforce: "required"}, map[string]string{api.Exempt: glob})
		for _, name := range names {
			s.compare(t, fmt.Sprintf("identity %s and glob %q", name, glob), allowing, podWith(map[string]string{api.PodIdentityBinding: name}))
		}
		for _, name := range []string{"a.b", "default"} {
			s.compare(t, fmt.Sprintf("ServiceAccount %s and allowing glob %q", name, glob), allowing, runsAs(name, podWith(map[string]string{api.WorkloadIdentityUse: "true"})))
			s.compare(t, fmt.Sprintf("ServiceAccount %s and exempting glob %q", name, glob), exempting, runsAs(name, podWith(nil)))
		}
	}
}

// updates changes the labels of pods that existed before their namespace had a policy.
func (s *sentry) updates(t *testing.T) {
	identities := []map[string]string{
		nil,
		{api.PodIdentityBinding: "access-blob"},
		{api.PodIdentityBinding: "other"},
		{api.PodIdentityBinding: "another"},
		{api.PodIdentityBinding: ""},
		{api.WorkloadIdentityUse: "true"},
		{api.WorkloadIdentityUse: "false"},
		{api.PodIdentityBinding: "other", api.WorkloadIdentityUse: "true"},
		{"app": "shop"},
	}
	unnamed := corev1.Volume{Name: "kv", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true)}}}
	for i, setting := range settings[:firstSettings] {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("updates-%d", i)}}
		s.makeNamespace(t, namespace)
		pods := s.client.CoreV1().Pods(namespace.Name)
		var olds []*corev1.Pod
		for j, labels := range identities {
			for _, volumes := range [][]corev1.Volume{nil, {unnamed}} {
				pod := podWith(labels, volumes...)
				pod.Name = fmt.Sprintf("old-%d-%d", j, len(volumes))
				stored, err := pods.Create(t.Context(), pod, metav1.CreateOptions{})
				if err != nil {
					t.Fatal(err)
				}
				olds = append(olds, stored)
			}
		}
		namespace.Labels, namespace.Annotations = maps.Clone(setting), map[string]string{api.AllowedNames: "access-*", api.Exempt: "ci"}
		if namespace.Labels == nil {
			namespace.Labels = map[string]string{}
		}
		probe := podWith(map[string]string{api.PodIdentityBinding: "forbidden"})
		probe.Name = probeName
		stored, err := s.client.CoreV1().Namespaces().Update(t.Context(), namespace, metav1.UpdateOptions{})
		if err != nil {
			t.Fatal(err)
		}
		if len(setting) > 0 {
			waitFor(t, "the namespace's policy to take effect", func(ctx context.Context) error {
				if _, err := pods.Create(ctx, probe, dryRun); !apierrors.IsForbidden(err) {
					return fmt.Errorf("a pod above the ceiling is admitted: %w", err)
				}
				return nil
			})
		}
		for _, old := range olds {
			for _, labels := range identities {
				relabelled := old.DeepCopy()
				relabelled.Labels = maps.Clone(labels)
				what := fmt.Sprintf("labels %v become %v in a namespace with %v", old.Labels, labels, setting)
				s.judge(t, what, stored, relabelled, old, func(ctx context.Context) error {
					_, err := pods.Update(ctx, relabelled, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
					return err
				})
				if len(old.Spec.Volumes) > len(olds[0].Spec.Volumes) {
					continue
				}
				s.judge(t, what+", in the status subresource", stored, relabelled, old, func(ctx context.Context) error {
					_, err := pods.UpdateStatus(ctx, relabelled, metav1.UpdateOptions{DryRun: []string{metav1.DryRunAll}})
					return err
				})
			}
		}
	}
}

// sizes compares the largest inputs that the API server accepts, since the cost of expressions is
// limited.
func (s *sentry) sizes(t *testing.T) {
	many := func(n int, attributes map[string]string) []corev1.Volume {
		var volumes []corev1.Volume
		for i := range n {
			volumes = append(volumes, corev1.Volume{Name: fmt.Sprintf("kv-%d", i), VolumeSource: corev1.VolumeSource{
				CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true), VolumeAttributes: attributes},
			}})
		}
		return volumes
	}
	named := map[string]string{"secretProviderClass": "key-vault-secret"}
	overriding := maps.Clone(named)
	for i := range 1000 {
		overriding[fmt.Sprintf("attribute-%d", i)] = "value"
	}
	lastUnnamed := many(1000, named)
	lastUnnamed[999].CSI.VolumeAttributes = nil
	all := map[string]string{api.Enforce: "bound", api.Warn: "required", api.Audit: "required"}
	for behaviour, volumes := range map[string][]corev1.Volume{
		"a thousand classes":                           many(1000, named),
		"a thousand volumes, the last without a class": lastUnnamed,
		"a thousand volumes without a class":           many(1000, nil),
		"five thousand volumes without a class":        many(5000, nil),
		"a thousand attributes":                        many(1, overriding),
		"ten thousand attributes":                      many(10, overriding),
	} {
		s.compare(t, behaviour, s.namespace(t, all, nil), podWith(nil, volumes...))
	}
	for behaviour, globs := range map[string]string{
		"two thousand names": strings.Repeat("access-blob-12345678,", 2000),
		"a thousand globs":   strings.Repeat(`a?[a-c]x*\d,`, 1000),
	} {
		namespace := s.namespace(t, map[string]string{api.Enforce: "bound"}, map[string]string{api.AllowedNames: globs, api.Exempt: globs})
		s.compare(t, behaviour, namespace, podWith(map[string]string{api.PodIdentityBinding: "access-blob"}))
		s.compare(t, behaviour+", one of which allows it", namespace, podWith(map[string]string{api.PodIdentityBinding: "aaaxd"}))
	}
}

// exemptNamespaces labels the namespaces whose pods the policy must not evaluate.
func (s *sentry) exemptNamespaces(t *testing.T) {
	for _, name := range []string{"kube-system", "kube-public", "kube-node-lease", injectorNamespace} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{api.Enforce: "required"}, Annotations: map[string]string{api.AllowedNames: ""}}}
		_, err := s.client.CoreV1().Namespaces().Update(t.Context(), namespace, metav1.UpdateOptions{})
		if apierrors.IsNotFound(err) {
			_, err = s.client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{})
		}
		if err != nil {
			t.Fatal(err)
		}
		s.makeServiceAccount(t, name, "default")
	}
	// When the policy applies to this namespace, it has seen all labels that were set before.
	last := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "labelled-last"}}
	s.makeNamespace(t, last)
	last.Labels = map[string]string{api.Enforce: "required"}
	if _, err := s.client.CoreV1().Namespaces().Update(t.Context(), last, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	pod := podWith(map[string]string{api.PodIdentityBinding: ""})
	pod.Name = probeName
	waitFor(t, "the labels to take effect", func(ctx context.Context) error {
		if _, err := s.client.CoreV1().Pods(last.Name).Create(ctx, pod, dryRun); !apierrors.IsForbidden(err) {
			return fmt.Errorf("a pod without an identity is admitted: %w", err)
		}
		return nil
	})
	for _, name := range []string{"kube-system", "kube-public", "kube-node-lease", injectorNamespace} {
		if _, err := s.client.CoreV1().Pods(name).Create(t.Context(), pod, dryRun); err != nil {
			t.Errorf("namespace %s: %v", name, err)
		}
	}
}

// audits compares the entries of the API server's audit log for all pods so far.
func (s *sentry) audits(t *testing.T) {
	var got map[string]string
	waitFor(t, "the audit log", func(context.Context) error {
		var err error
		if got, err = s.logged(); err != nil {
			return err
		}
		if len(got) < len(s.audited) {
			return fmt.Errorf("it has %d pods, want %d", len(got), len(s.audited))
		}
		return nil
	})
	if diff := cmp.Diff(s.audited, got); diff != "" {
		t.Errorf("audited messages by namespace and pod (-want +got):\n%s", diff)
	}
}

// logged returns the policy's failures in the audit log, by namespace and pod.
func (s *sentry) logged() (map[string]string, error) {
	text, err := os.ReadFile(s.auditLog)
	if err != nil {
		return nil, err
	}
	messages := map[string]string{}
	lines := bufio.NewScanner(bytes.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var event struct {
			ObjectRef   struct{ Namespace, Name string }
			Annotations map[string]string
		}
		if err := json.Unmarshal(lines.Bytes(), &event); err != nil {
			return nil, fmt.Errorf("decode event: %w", err)
		}
		failures := event.Annotations["validation.policy.admission.k8s.io/validation_failure"]
		if failures == "" || event.ObjectRef.Name == probeName {
			continue
		}
		var list []struct{ Message, Binding string }
		if err := json.Unmarshal([]byte(failures), &list); err != nil {
			return nil, fmt.Errorf("decode failures: %w", err)
		}
		for _, failure := range list {
			messages[event.ObjectRef.Namespace+"/"+event.ObjectRef.Name] += failure.Message
		}
	}
	return messages, lines.Err()
}

// probeName is the name of pods that only probe whether a change has taken effect. They are not
// compared.
const probeName = "probe"

var dryRun = metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}

// podWith returns a pod with labels and volumes.
func podWith(labels map[string]string, volumes ...corev1.Volume) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "registry.example/app:1"}}, Volumes: volumes},
	}
}

func runsAs(serviceAccount string, pod *corev1.Pod) *corev1.Pod {
	pod.Spec.ServiceAccountName = serviceAccount
	return pod
}

func annotated(key, value string, pod *corev1.Pod) *corev1.Pod {
	metav1.SetMetaDataAnnotation(&pod.ObjectMeta, key, value)
	return pod
}

// sentry is a control plane with the policy and without an injector.
type sentry struct {
	client   kubernetes.Interface
	heard    *warnings
	auditLog string

	namespaces      map[string]*corev1.Namespace // by labels and annotations
	serviceAccounts map[string]bool              // by namespace and name

	compared, refused, warned int
	audited                   map[string]string // the failures that the audit log must have, by namespace and pod
}

func newSentry(t *testing.T) *sentry {
	t.Helper()
	dir := t.TempDir()
	audit, err := auditTo(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &sentry{
		heard: &warnings{}, auditLog: filepath.Join(dir, "audit.log"),
		namespaces: map[string]*corev1.Namespace{}, serviceAccounts: map[string]bool{}, audited: map[string]string{},
	}
	plane, err := controlplane.Start(t.Context(), controlplane.Options{Binaries: plane.Binaries, APIServerArgs: audit})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	config := rest.CopyConfig(plane.Config)
	config.WarningHandlerWithContext = s.heard
	if s.client, err = kubernetes.NewForConfig(config); err != nil {
		t.Fatal(err)
	}
	objects, err := dynamic.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	for _, object := range overlay(t, plane) {
		kinds := []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"}
		if !slices.Contains(kinds, object.GetKind()) {
			continue
		}
		plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		if _, err := objects.Resource(plural).Apply(t.Context(), object.GetName(), object, metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
			t.Fatal(err)
		}
	}
	s.waitUntilBound(t)
	return s
}

// overlay returns what kustomize builds from an overlay that enables the policy.
func overlay(t *testing.T, plane *controlplane.ControlPlane) []*unstructured.Unstructured {
	t.Helper()
	dir := t.TempDir()
	shipped, err := filepath.Abs(filepath.Join("..", "..", "..", "deploy", "kustomize"))
	if err == nil {
		shipped, err = filepath.Rel(dir, shipped)
	}
	if err != nil {
		t.Fatal(err)
	}
	text := "{resources: [" + shipped + "], components: [" + shipped + "/validating-admission-policy]}"
	if err := os.WriteFile(filepath.Join(dir, "kustomization.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	built, err := plane.Kubectl(t.Context(), "kustomize", dir).Output()
	if err != nil {
		t.Fatal(err)
	}
	return documents(string(built))
}

// waitUntilBound waits until each binding of the policy takes effect.
func (s *sentry) waitUntilBound(t *testing.T) {
	t.Helper()
	namespace := s.namespace(t, map[string]string{api.Enforce: "bound", api.Warn: "required", api.Audit: "required"}, nil)
	pod := podWith(nil, corev1.Volume{Name: "kv", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{Driver: "secrets-store.csi.k8s.io", ReadOnly: new(true)}}})
	pod.Name = probeName
	waitFor(t, "the policy to be bound", func(ctx context.Context) error {
		s.heard.take()
		_, err := s.client.CoreV1().Pods(namespace.Name).Create(ctx, pod, dryRun)
		text, logErr := os.ReadFile(s.auditLog)
		switch {
		case !apierrors.IsForbidden(err):
			return fmt.Errorf("the pod is not rejected: %w", err)
		case len(s.heard.take()) == 0:
			return errors.New("no warning for the pod")
		case logErr != nil || !bytes.Contains(text, []byte("validation_failure")):
			return fmt.Errorf("no audit entry for the pod: %w", logErr)
		}
		return nil
	})
}

// namespace returns a namespace with these labels and annotations, and creates it if needed. It
// never changes them, since the API server would not see a change at once.
func (s *sentry) namespace(t *testing.T, labels, annotations map[string]string) *corev1.Namespace {
	t.Helper()
	key := fmt.Sprint(labels, annotations)
	if made, ok := s.namespaces[key]; ok {
		return made
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("namespace-%d", len(s.namespaces)), Labels: labels, Annotations: annotations}}
	s.makeNamespace(t, namespace)
	s.namespaces[key] = namespace
	return namespace
}

func (s *sentry) makeNamespace(t *testing.T, namespace *corev1.Namespace) {
	t.Helper()
	if _, err := s.client.CoreV1().Namespaces().Create(t.Context(), namespace, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s.makeServiceAccount(t, namespace.Name, "default")
}

// makeServiceAccount creates a ServiceAccount, without which the API server rejects the pod.
func (s *sentry) makeServiceAccount(t *testing.T, namespace, name string) {
	t.Helper()
	if s.serviceAccounts[namespace+"/"+name] {
		return
	}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if _, err := s.client.CoreV1().ServiceAccounts(namespace).Create(t.Context(), account, metav1.CreateOptions{}); err != nil && !apierrors.IsAlreadyExists(err) {
		t.Fatal(err)
	}
	s.serviceAccounts[namespace+"/"+name] = true
}

// compare evaluates the creation of a pod.
func (s *sentry) compare(t *testing.T, what string, namespace *corev1.Namespace, pod *corev1.Pod) {
	t.Helper()
	pod = pod.DeepCopy()
	pod.Name, pod.GenerateName, pod.Namespace = fmt.Sprintf("pod-%d", s.compared), "", namespace.Name
	if pod.Spec.ServiceAccountName != "" {
		s.makeServiceAccount(t, namespace.Name, pod.Spec.ServiceAccountName)
	}
	s.judge(t, what, namespace, pod, nil, func(ctx context.Context) error {
		_, err := s.client.CoreV1().Pods(namespace.Name).Create(ctx, pod, dryRun)
		return err
	})
}

// judge evaluates a pod with the core, and with the API server by calling send.
func (s *sentry) judge(t *testing.T, what string, namespace *corev1.Namespace, pod, old *corev1.Pod, send func(context.Context) error) {
	t.Helper()
	want := verdictAlone(t, namespace, pod, old)
	s.heard.take()
	err := send(t.Context())
	s.compared++
	var got judgement
	var status *apierrors.StatusError
	switch {
	case err == nil:
	case errors.As(err, &status) && status.ErrStatus.Code == http.StatusForbidden:
		_, text, ok := strings.Cut(status.ErrStatus.Message, "ValidatingAdmissionPolicy '"+admissionPolicy+"' with binding 'enforced."+admissionPolicy+"' denied request: ")
		if !ok {
			t.Fatalf("%s: %v", what, err)
		}
		got.Error = text
		s.refused++
	default:
		t.Fatalf("%s: %v", what, err)
	}
	for _, text := range s.heard.take() {
		if _, text, ok := strings.Cut(text, "Validation failed for ValidatingAdmissionPolicy '"+admissionPolicy+"' with binding 'warned."+admissionPolicy+"': "); ok {
			got.Warning += text
			s.warned++
		}
	}
	if want.audited != "" {
		s.audited[namespace.Name+"/"+pod.Name] += want.audited
	}
	want.audited = ""
	if want != got {
		t.Errorf("%s: the core gives %q, the API server %q", what, want, got)
	}
}

// judgement is the result for one pod.
type judgement struct{ Error, Warning, audited string }

// verdictAlone returns the core's result for a pod, without rules that need a lookup, in the
// wording of the policy.
func verdictAlone(t *testing.T, namespace *corev1.Namespace, pod, old *corev1.Pod) judgement {
	t.Helper()
	// Without one of these labels on the namespace, the core is not called.
	if !slices.ContainsFunc([]string{api.Enforce, api.Warn, api.Audit, api.Injection}, func(key string) bool { _, set := namespace.Labels[key]; return set }) {
		return judgement{}
	}
	if old != nil && old.Labels[api.PodIdentityBinding] == pod.Labels[api.PodIdentityBinding] && old.Labels[api.WorkloadIdentityUse] == pod.Labels[api.WorkloadIdentityUse] {
		return judgement{}
	}
	var source facts.Objects
	object := &unstructured.Unstructured{}
	object.SetAPIVersion("v1")
	object.SetKind("Namespace")
	object.SetName(namespace.Name)
	object.SetLabels(namespace.Labels)
	object.SetAnnotations(namespace.Annotations)
	if err := source.Add(object, ""); err != nil {
		t.Fatal(err)
	}
	var before *pods.Pod
	if old != nil {
		before = corpus.Read(old)
	}
	verdict, err := core.Reviewer{Source: &source}.PodPolicy(t.Context(), pods.SubjectOf(corpus.Read(pod)), before, namespace.Name)
	if err != nil {
		t.Fatal(err)
	}
	return judgement{alone(verdict.Errors), alone(verdict.Warnings), alone(verdict.Audited)}
}

// alone joins the messages of the rules that need no lookup. Of each volume rule it keeps the first
// message only, as the policy does.
func alone(errs field.ErrorList) string {
	var texts []string
	seen := map[api.Reason]bool{}
	for _, err := range errs {
		reason := api.ReasonOf(err)
		switch reason {
		case api.VolumeInvalid, api.AttributeNotAllowed:
			if seen[reason] {
				continue
			}
		case api.IdentityRequired:
			if !strings.HasPrefix(err.Field, "metadata.annotations") {
				continue // about a class
			}
		case api.IdentityNotAllowed:
			if strings.HasPrefix(err.Field, "spec.volumes") {
				continue // about a class
			}
		default:
			continue
		}
		seen[reason] = true
		const offered = "; there is none here: apply an AzureIdentityBinding, or a ServiceAccount with annotation " + api.WorkloadIdentityClientID
		texts = append(texts, strings.Replace(strings.ReplaceAll(api.Message(err), "\n", " "), offered, "", 1))
	}
	return strings.Join(texts, ", and ")
}
