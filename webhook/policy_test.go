package webhook_test

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	authenticationv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/webhook"
)

// TestPolicyOfTheCorpus sends the patched subject of each archive to the validating webhooks, as
// the API server does.
func TestPolicyOfTheCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if a.Wanted["errors"] != "" {
			continue // there is nothing to validate
		}
		t.Run(a.Name, func(t *testing.T) {
			source, err := a.Facts()
			if err != nil {
				t.Fatal(err)
			}
			patched := *a
			patched.Subject = patch(t, a.Subject, a.Wanted["patch"])
			path := webhook.ValidateWorkloads
			if a.IsPod() {
				path = webhook.ValidatePods
			}
			response := decode(t, post(serve(source), path, reviewOf(t, &patched)))
			if response.UID != uid || len(response.Patch) > 0 {
				t.Errorf("UID %q, patch %s; want the request's UID, and no patch", response.UID, response.Patch)
			}
			outcome := response.AuditAnnotations["outcome"] + "\n"
			if want := a.Wanted["policy-outcome"]; outcome != want && (want != "" || outcome != "allowed\n" && outcome != "not-requested\n") {
				t.Errorf("outcome %q, want %q", outcome, want)
			}
			if got, want := response.Allowed, a.Wanted["policy-errors"] == ""; got != want {
				t.Errorf("allowed %t, want %t", got, want)
			}
			if !response.Allowed {
				checkForbidden(t, response, a)
			}
			checkWarnings(t, response.Warnings, a.Wanted["policy-warnings"])
			if diff := cmp.Diff(strings.TrimSuffix(a.Wanted["policy-audited"], "\n"), response.AuditAnnotations["violations"]); diff != "" {
				t.Errorf("audit annotation violations (-want +got):\n%s", diff)
			}
		})
	}
}

// checkForbidden compares a rejection with the expected results of the archive.
func checkForbidden(t *testing.T, response *admissionv1.AdmissionResponse, a *corpus.Archive) {
	t.Helper()
	lines := strings.Split(strings.TrimSuffix(a.Wanted["policy-errors"], "\n"), "\n")
	want := &metav1.Status{
		Status: "Failure", Code: http.StatusForbidden, Reason: metav1.StatusReasonForbidden, Message: strings.Join(lines, "\n"),
		Details: &metav1.StatusDetails{Name: a.Subject.GetName(), Kind: "Pod"},
	}
	if owner := metav1.GetControllerOf(a.Subject); owner != nil {
		want.Message = a.Subject.GetName() + " (" + owner.Kind + " " + owner.Name + "): " + want.Message
	}
	var wantReasons []string
	for _, line := range lines {
		// "[Reason] path: Type: …"; a cause has the path in a separate field.
		reason, rest, _ := strings.Cut(line, " ")
		path, body, _ := strings.Cut(rest, ": ")
		want.Details.Causes = append(want.Details.Causes, metav1.StatusCause{Field: path, Message: reason + " " + body})
		if reason = strings.Trim(reason, "[]"); !slices.Contains(wantReasons, reason) {
			wantReasons = append(wantReasons, reason)
		}
	}
	got := response.Result.DeepCopy()
	for i := range got.Details.Causes {
		if got.Details.Causes[i].Type == "" {
			t.Errorf("cause %d has no type", i)
		}
		got.Details.Causes[i].Type = ""
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if got, want := response.AuditAnnotations["reasons"], strings.Join(wantReasons, ","); got != want {
		t.Errorf("audit annotation reasons is %q, want %q", got, want)
	}
}

// patch applies a patch of an archive, one operation a line.
func patch(t *testing.T, object *unstructured.Unstructured, lines string) *unstructured.Unstructured {
	t.Helper()
	if lines == "" {
		return object
	}
	text, err := corpus.ApplyText(corpus.JSON(object), []byte("["+strings.ReplaceAll(strings.TrimSpace(lines), "\n", ",")+"]"))
	if err != nil {
		t.Fatal(err)
	}
	patched := &unstructured.Unstructured{}
	if err := patched.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	return patched
}

// team is a namespace with a level in modes enforce and audit, a ceiling, several identities, and a
// ServiceAccount without a client id.
const team = `
apiVersion: v1
kind: Namespace
metadata:
  name: team-a
  labels: {identity.io/enforce: required, identity.io/audit: required}
  annotations: {identity.io/allowed-names: "access-*,runner", identity.io/exempt: runner}
---
{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {name: one}, spec: {azureIdentity: one, selector: access-blob}}
---
{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {name: two}, spec: {azureIdentity: two, selector: access-queue}}
---
{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {name: three}, spec: {azureIdentity: three, selector: admin}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: access-sa, annotations: {azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90}}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: access-nobody}}
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: runner}}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: app-secrets}
spec: {provider: azure, parameters: {usePodIdentity: "true", keyvaultName: team-kv, objects: "array: []"}}
`

// TestRelabelling updates the labels of a running pod. The update is rejected only for rules that
// it breaks, and not for those that the pod broke before.
func TestRelabelling(t *testing.T) {
	const (
		binding  = "aadpodidbinding"
		use      = "azure.workload.identity/use"
		enforced = "; required by namespace label identity.io/enforce=required"
	)
	blob := map[string]string{binding: "access-blob"}
	for behaviour, test := range map[string]struct {
		before, after  map[string]string
		serviceAccount string
		classes        []string
		want           string // the rejection; empty for none
	}{
		"from one identity to another":                 {before: blob, after: map[string]string{binding: "access-queue"}},
		"from pod identity to workload identity":       {before: blob, after: map[string]string{use: "true"}, serviceAccount: "access-sa"},
		"to an identity that does not exist":           {before: blob, after: map[string]string{binding: "access-table"}, want: `[IdentityNotBound] metadata.labels[aadpodidbinding]: Not found: "access-table": must be the spec.selector of an AzureIdentityBinding in namespace team-a; available here: access-blob, access-queue, admin` + enforced},
		"from one that does not exist to another":      {before: map[string]string{binding: "access-chair"}, after: map[string]string{binding: "access-table"}, want: `[IdentityNotBound] metadata.labels[aadpodidbinding]: Not found: "access-table": must be the spec.selector of an AzureIdentityBinding in namespace team-a; available here: access-blob, access-queue, admin` + enforced},
		"to an identity that is not allowed":           {before: blob, after: map[string]string{binding: "admin"}, want: `[IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity admin; namespace annotation identity.io/allowed-names allows access-*,runner`},
		"to none":                                      {before: blob, want: `[IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: access-blob (AzureIdentityBinding), access-queue (AzureIdentityBinding), admin (AzureIdentityBinding), access-sa (ServiceAccount)` + enforced},
		"to an empty label":                            {before: blob, after: map[string]string{binding: ""}, want: `[IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: access-blob (AzureIdentityBinding), access-queue (AzureIdentityBinding), admin (AzureIdentityBinding), access-sa (ServiceAccount)` + enforced},
		"to workload identity without a client id":     {before: blob, after: map[string]string{binding: "access-blob", use: "true"}, serviceAccount: "access-nobody", want: `[IdentityNotBound] spec.serviceAccountName: Invalid value: "access-nobody": must be a ServiceAccount with annotation azure.workload.identity/client-id; add the annotation; available here: access-sa` + enforced},
		"to workload identity without an account":      {before: blob, after: map[string]string{binding: "access-blob", use: "true"}, serviceAccount: "access-gone", want: `[ServiceAccountNotFound] spec.serviceAccountName: Not found: "access-gone": must be a ServiceAccount in namespace team-a; available here: access-nobody, access-sa, runner` + enforced},
		"away from the label that a class needs":       {before: blob, after: map[string]string{use: "true"}, serviceAccount: "access-sa", classes: []string{"app-secrets"}, want: `[IdentityRequired] metadata.labels[aadpodidbinding]: Required value: must be set, since class app-secrets has usePodIdentity: "true"; add annotation identity.io/name, or this label, to the pod template; available here: access-blob, access-queue, admin` + enforced},
		"with a volume that was wrong before":          {before: blob, after: map[string]string{binding: "access-queue"}, classes: []string{"gone", ""}},
		"with a volume that was wrong, and a new one":  {before: blob, after: map[string]string{binding: "admin"}, classes: []string{"", "app-secrets"}, want: `[IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity admin; namespace annotation identity.io/allowed-names allows access-*,runner`},
		"of a pod that had no identity, to none again": {after: map[string]string{use: "false"}},
		"of an exempt account, to one that is unbound": {before: blob, after: map[string]string{binding: "access-table"}, serviceAccount: "runner"},
		"of an exempt account, to one not allowed":     {before: blob, after: map[string]string{binding: "admin"}, serviceAccount: "runner", want: `[IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity admin; namespace annotation identity.io/allowed-names allows access-*,runner`},
		"to an identity that exists":                   {before: map[string]string{binding: "access-table"}, after: blob},
	} {
		t.Run(behaviour, func(t *testing.T) {
			running := func(labels map[string]string) *unstructured.Unstructured {
				return podWith(labels, test.serviceAccount, test.classes)
			}
			response := decode(t, post(serve(sourceOf(t, team)), webhook.ValidatePods, updateOf(t, running(test.after), running(test.before))))
			got := ""
			if !response.Allowed {
				got = response.Result.Message
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("rejection (-want +got):\n%s", diff)
			}
			audited := strings.Contains(test.want, enforced)
			if got := response.AuditAnnotations["violations"]; (got != "") != audited {
				t.Errorf("audited %q", got)
			}
		})
	}
}

// TestRelabellingByBinding shows that a Binding, whose labels become those of its pod, cannot set a
// label of an identity in a namespace with a ceiling or an enforced level.
func TestRelabellingByBinding(t *testing.T) {
	const refused = `[IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not be set by a Binding; set it on the pod`
	const asked = "; required by namespace label identity.io/%s=required"
	for behaviour, test := range map[string]struct {
		label, namespace           string
		errors, warnings, violates string
	}{
		"a level that is enforced":     {"aadpodidbinding", `labels: {identity.io/enforce: required}`, refused + fmt.Sprintf(asked, "enforce"), "", ""},
		"a ceiling":                    {"aadpodidbinding", `labels: {identity.io/enforce: bound}, annotations: {identity.io/allowed-names: "*"}`, refused, "", ""},
		"a ceiling without a level":    {"aadpodidbinding", `labels: {keyvault.io/injection: enabled}, annotations: {identity.io/allowed-names: "*"}`, "", "", ""},
		"a ceiling and a level":        {"aadpodidbinding", `labels: {identity.io/warn: bound}, annotations: {identity.io/allowed-names: "*"}`, "", refused + "; with namespace label identity.io/enforce the pod would be rejected", ""},
		"a ceiling without any label":  {"aadpodidbinding", `annotations: {identity.io/allowed-names: "*"}`, "", "", ""},
		"a ceiling on vaults":          {"aadpodidbinding", `labels: {keyvault.io/injection: enabled}, annotations: {keyvault.io/allowed-vaults: "*"}`, "", "", ""},
		"an exemption of all accounts": {"aadpodidbinding", `labels: {identity.io/enforce: required}, annotations: {identity.io/exempt: "*"}`, refused + fmt.Sprintf(asked, "enforce"), "", ""},
		"a level in mode warn":         {"aadpodidbinding", `labels: {identity.io/warn: required}`, "", refused + fmt.Sprintf(asked, "warn"), ""},
		"a level in mode audit":        {"aadpodidbinding", `labels: {identity.io/audit: required}`, "", "", refused + fmt.Sprintf(asked, "audit")},
		"workload identity":            {"azure.workload.identity/use", `labels: {identity.io/enforce: required}`, strings.Replace(refused, "aadpodidbinding", "azure.workload.identity/use", 1) + fmt.Sprintf(asked, "enforce"), "", ""},
		"another label":                {"topology.kubernetes.io/zone", `labels: {identity.io/enforce: required, identity.io/warn: required}`, "", "", ""},
	} {
		t.Run(behaviour, func(t *testing.T) {
			binding := documents(t, `{apiVersion: v1, kind: Binding, metadata: {name: app, labels: {`+test.label+`: "true"}}, target: {kind: Node, name: node-1}}`)[0]
			source := sourceOf(t, `{apiVersion: v1, kind: Namespace, metadata: {name: team-a, `+test.namespace+`}}`)
			response := decode(t, post(serve(source), webhook.ValidatePods, requestOf(t, admissionv1.Create, binding, nil)))
			got := [3]string{1: strings.Join(response.Warnings, "\n"), 2: response.AuditAnnotations["violations"]}
			if !response.Allowed {
				got[0] = response.Result.Message
			}
			if diff := cmp.Diff([3]string{test.errors, test.warnings, test.violates}, got); diff != "" {
				t.Errorf("rejection, warnings and audit annotation (-want +got):\n%s", diff)
			}
		})
	}
}

// TestPolicyPassesOver shows which reviews policy does not check.
func TestPolicyPassesOver(t *testing.T) {
	bad := podWith(map[string]string{"aadpodidbinding": "gone"}, "", nil)
	mirror := bad.DeepCopy()
	mirror.SetAnnotations(map[string]string{api.MirrorPod: "d6d5d2a5e7f64e54a7a9f1a7d9b6d5a1"})
	deployment := documents(t, `{apiVersion: apps/v1, kind: Deployment, metadata: {name: app, namespace: team-a}, spec: {template: {spec: {containers: [{name: app}]}}}}`)[0]
	deleted := deployment.DeepCopy()
	deleted.SetDeletionTimestamp(new(metav1.Now()))
	unmarked := strings.Replace(team, "labels: {identity.io/enforce: required, identity.io/audit: required}", "labels: {}", 1)
	for behaviour, test := range map[string]struct {
		operation admissionv1.Operation
		object    *unstructured.Unstructured
		cluster   string
		by        authenticationv1.UserInfo
		want      string
	}{
		"a pod that is deleted":                     {operation: admissionv1.Delete, cluster: team, want: "not-requested"},
		"a connection to a pod":                     {operation: admissionv1.Connect, object: bad, cluster: team, want: "not-requested"},
		"a mirror pod, by its node":                 {operation: admissionv1.Create, object: mirror, cluster: team, by: authenticationv1.UserInfo{Username: "system:node:n", Groups: []string{"system:nodes"}}, want: "not-requested"},
		"a mirror pod, by a user named like a node": {operation: admissionv1.Create, object: mirror, cluster: team, by: authenticationv1.UserInfo{Username: "system:node:n"}, want: "forbidden"},
		"a mirror pod, by a user in the group":      {operation: admissionv1.Create, object: mirror, cluster: team, by: authenticationv1.UserInfo{Username: "n", Groups: []string{"a", "system:nodes"}}, want: "forbidden"},
		"a pod of a namespace without any label":    {operation: admissionv1.Create, object: bad, cluster: unmarked, want: "allowed"},
		"a workload that is being deleted":          {operation: admissionv1.Update, object: deleted, cluster: team, want: "not-requested"},
		"a workload whose pods would be rejected":   {operation: admissionv1.Create, object: deployment, cluster: team, want: "allowed"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			path, object := webhook.ValidatePods, test.object
			if object != nil && object.GetKind() == "Deployment" {
				path = webhook.ValidateWorkloads
			}
			source := sourceOf(t, test.cluster)
			response := decode(t, post(serve(source), path, requestBy(t, test.by, test.operation, object, nil)))
			if response.Allowed == (test.want == "forbidden") || response.AuditAnnotations["outcome"] != test.want {
				t.Errorf("allowed %t, audit annotations %v; want %s", response.Allowed, response.AuditAnnotations, test.want)
			}
		})
	}
}

// TestRefusalOfAGeneratedName shows that the rejections of a controller's retries have the same
// text, so that they are one event.
func TestRefusalOfAGeneratedName(t *testing.T) {
	for behaviour, test := range map[string]struct{ name, generateName, want string }{
		"a generated name":                    {"app-6d8f9-x2x9q", "app-6d8f9-", "app-6d8f9-*"},
		"one that is not generated yet":       {"", "app-6d8f9-", "app-6d8f9-*"},
		"an explicit name":                    {"app", "", "app"},
		"an explicit name and a generateName": {"app", "app-6d8f9-", "app"},
		"a longer explicit name":              {"app-6d8f9-x2x9q-1", "app-6d8f9-", "app-6d8f9-x2x9q-1"},
		"an explicit name of the same length": {"web-6d8f9-x2x9q", "app-6d8f9-", "web-6d8f9-x2x9q"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := podWith(nil, "", nil)
			pod.SetName(test.name)
			pod.SetGenerateName(test.generateName)
			pod.SetOwnerReferences([]metav1.OwnerReference{{Kind: "ReplicaSet", Name: "app-6d8f9", Controller: new(true)}})
			body := strings.Replace(string(requestOf(t, admissionv1.Create, pod, nil)), `"name":"app","namespace":"team-a","operation"`, `"namespace":"team-a","operation"`, 1)
			result := decode(t, post(serve(sourceOf(t, team)), webhook.ValidatePods, []byte(body))).Result
			if want := test.want + " (ReplicaSet app-6d8f9): "; result == nil || !strings.HasPrefix(result.Message, want) || result.Details.Name != test.want {
				t.Errorf("result %+v, want a message that starts with %q", result, want)
			}
		})
	}
}

// podWith returns a pod with labels that mounts classes. An empty class is a volume without a
// class.
func podWith(labels map[string]string, serviceAccount string, classes []string) *unstructured.Unstructured {
	pod := &unstructured.Unstructured{Object: map[string]any{"spec": map[string]any{"serviceAccountName": serviceAccount}}}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetName("app")
	pod.SetNamespace("team-a")
	pod.SetLabels(labels)
	var volumes []any
	for _, class := range classes {
		csi := map[string]any{"driver": "secrets-store.csi.k8s.io"}
		if class != "" {
			csi["volumeAttributes"] = map[string]any{"secretProviderClass": class}
		}
		volumes = append(volumes, map[string]any{"name": "v", "csi": csi})
	}
	pod.Object["spec"].(map[string]any)["volumes"] = volumes //nolint:forcetypeassert // the spec is a map
	return pod
}

func documents(t *testing.T, text string) []*unstructured.Unstructured {
	t.Helper()
	objects, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

func sourceOf(t *testing.T, text string) *facts.Objects {
	t.Helper()
	var source facts.Objects
	for _, object := range documents(t, text) {
		if err := source.Add(object, "team-a"); err != nil {
			t.Fatal(err)
		}
	}
	return &source
}

func updateOf(t *testing.T, object, old *unstructured.Unstructured) []byte {
	t.Helper()
	return requestOf(t, admissionv1.Update, object, old)
}

// requestOf returns the AdmissionReview of an operation on objects of namespace team-a.
func requestOf(t *testing.T, operation admissionv1.Operation, object, old *unstructured.Unstructured) []byte {
	t.Helper()
	return requestBy(t, authenticationv1.UserInfo{}, operation, object, old)
}

// requestBy returns the AdmissionReview of an operation by a user.
func requestBy(t *testing.T, user authenticationv1.UserInfo, operation admissionv1.Operation, object, old *unstructured.Unstructured) []byte {
	t.Helper()
	request := &admissionv1.AdmissionRequest{UserInfo: user, UID: uid, Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Namespace: "team-a", Name: "app", Operation: operation}
	if object != nil {
		request.Kind = metav1.GroupVersionKind(object.GroupVersionKind())
		request.Object = runtime.RawExtension{Raw: corpus.JSON(object)}
	}
	if old != nil {
		request.OldObject = runtime.RawExtension{Raw: corpus.JSON(old)}
	}
	body, err := json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request,
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}
