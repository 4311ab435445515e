package e2e_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// TestCorpus sends each archive of the corpus to an API server that calls the injector. What the
// API server stores must equal what it stores in a namespace without injection for the subject with
// the archive's patch applied. For a workload, a pod of its patched template is then sent as well.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			t.Parallel()
			newDoor(t, a).check(t, a)
		})
	}
}

// door is a namespace with the objects of an archive, and a twin of it that did not opt in.
type door struct {
	namespace, twin string
	objects         []*unstructured.Unstructured // of namespace
	client          dynamic.Interface
	heard           *warnings
}

func newDoor(t *testing.T, a *corpus.Archive) *door {
	t.Helper()
	d := &door{namespace: "corpus-" + a.Name, twin: "twin-" + a.Name}
	d.client, d.heard = listening(t)
	namespace := document(`{apiVersion: v1, kind: Namespace, metadata: {labels: {keyvault.io/injection: enabled}}}`)
	for _, object := range a.Objects {
		object = object.DeepCopy()
		if object.GetKind() == "Namespace" {
			if object.GetName() != a.Namespace() {
				t.Fatalf("namespace %s is not the subject's", object.GetName())
			}
			namespace = object
			continue
		}
		object.SetNamespace("")
		d.objects = append(d.objects, object)
	}
	namespace.SetName(d.namespace)
	isDefault := func(object *unstructured.Unstructured) bool {
		return object.GetKind() == "ServiceAccount" && object.GetName() == "default"
	}
	if !slices.ContainsFunc(d.objects, isDefault) { // every namespace of a cluster has one
		d.objects = append(d.objects, document(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}`))
	}
	later := namespace
	if a.Old != nil { // the old object may be one that the injector would reject or change
		namespace = document(`{apiVersion: v1, kind: Namespace, metadata: {name: ` + d.namespace + `}}`)
	}
	twin := document(`{apiVersion: v1, kind: Namespace, metadata: {name: ` + d.twin + `}}`)
	for name, namespace := range map[string]*unstructured.Unstructured{d.namespace: namespace, d.twin: twin} {
		if err := apply(t.Context(), name, append([]*unstructured.Unstructured{namespace}, d.objects...)...); err != nil {
			t.Fatal(err)
		}
	}
	if a.Old != nil {
		for _, name := range []string{d.namespace, d.twin} {
			if err := apply(t.Context(), name, a.Old); err != nil {
				t.Fatalf("create the old object: %v", err)
			}
		}
		if err := apply(t.Context(), "", later); err != nil {
			t.Fatal(err)
		}
		if err := injector.WaitUntilCalled(t.Context(), plane.Config, d.namespace); err != nil {
			t.Fatal(err)
		}
	}
	d.objects = append(d.objects, later)
	d.heard.take()
	return d
}

// check sends an archive's subject to the API server and compares the result.
func (d *door) check(t *testing.T, a *corpus.Archive) {
	t.Helper()
	here := &corpus.Archive{Name: a.Name, Objects: d.objects, Subject: in(a.Subject, d.namespace), Old: in(a.Old, d.namespace)}
	want, err := here.Review(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Only the names of the namespace and of its default ServiceAccount may differ from the
	// archive.
	for _, file := range []string{"outcome", "patch", "policy-outcome"} {
		if diff := cmp.Diff(a.Wanted[file], want[file]); diff != "" && a.Wanted != nil {
			t.Fatalf("the archive's %s differs in this namespace (-want +got):\n%s", file, diff)
		}
	}
	stored, err := put(t.Context(), d.client, a.Subject, a.Old, d.namespace)
	if a.IsPod() && d.lacksServiceAccount(a.Subject) {
		if !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), "error looking up service account") {
			t.Errorf("the API server answers %v, want an error about the missing ServiceAccount", err)
		}
		return
	}
	if !sent(t, a) {
		want["warnings"] = ""
	}
	d.checkWarnings(t, want["warnings"]+want["policy-warnings"])
	if want["errors"] != "" {
		checkRefusal(t, err, want["outcome"], want["errors"])
		return
	}
	if want["policy-errors"] != "" {
		checkRefusal(t, err, want["policy-outcome"], called(a.Subject)+want["policy-errors"])
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	patched := patch(t, a.Subject, want["patch"])
	twin, err := put(t.Context(), d.client, patched, a.Old, d.twin)
	d.heard.take()
	if err != nil {
		t.Fatalf("store the patched subject without injection: %v", err)
	}
	if diff := cmp.Diff(d.normal(t, twin), d.normal(t, stored)); diff != "" {
		t.Errorf("stored object (-want +got):\n%s", diff)
	}
	if !a.IsPod() {
		d.check(t, &corpus.Archive{Name: a.Name, Objects: a.Objects, Subject: podOf(t, patched)})
	}
}

// sent reports whether the API server sends a workload to the injector. It does not send an update
// that changes no request.
func sent(t *testing.T, a *corpus.Archive) bool {
	t.Helper()
	if a.Old == nil {
		return true
	}
	var w, old pods.Workload
	if err := errors.Join(pods.Decode(corpus.JSON(a.Subject), &w), pods.Decode(corpus.JSON(a.Old), &old)); err != nil {
		t.Fatal(err)
	}
	handover, ok := inject.HandDown(&w)
	return ok && (!inject.SameRequest(&w, &old) || !handover.IsInherited())
}

// lacksServiceAccount reports whether a pod names a ServiceAccount that does not exist. The API
// server rejects such a pod before it calls any webhook.
func (d *door) lacksServiceAccount(pod *unstructured.Unstructured) bool {
	name, _, _ := unstructured.NestedString(pod.Object, "spec", "serviceAccountName")
	return name != "" && !slices.ContainsFunc(d.objects, func(o *unstructured.Unstructured) bool {
		return o.GetKind() == "ServiceAccount" && o.GetName() == name
	})
}

// called returns the prefix of a policy rejection, which names the pod's controller.
func called(pod *unstructured.Unstructured) string {
	owner := metav1.GetControllerOf(pod)
	if owner == nil {
		return ""
	}
	return pod.GetName() + " (" + owner.Kind + " " + owner.Name + "): "
}

// checkWarnings compares the injector's warnings. Warnings of the API server are skipped, except the
// advice of the chart's policy, which must not speak of an object that the webhooks warn of.
func (d *door) checkWarnings(t *testing.T, lines string) {
	t.Helper()
	var want []string
	for line := range strings.Lines(lines) {
		if text := api.Cut(strings.TrimSuffix(line, "\n"), 1024); !slices.Contains(want, text) {
			want = append(want, text)
		}
	}
	var got []string
	for _, text := range d.heard.take() {
		if strings.HasPrefix(text, "[") {
			got = append(got, text)
		} else if strings.HasPrefix(text, "and ") {
			want = want[:len(got)] // the API server drops the rest
		} else if strings.Contains(text, advicePolicy) && len(want) > 0 {
			t.Errorf("the advice and the webhooks warn: %s", text)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

var denied = regexp.MustCompile(`^admission webhook "([a-z-]+\.)?(pods|workloads)\.akv-injector\.io" denied the request: `)

// maxTold is the maximum number of errors that a rejection lists.
const maxTold = 20

// checkRefusal compares the error for a rejected object.
func checkRefusal(t *testing.T, err error, outcome, lines string) {
	t.Helper()
	var status *apierrors.StatusError
	if !errors.As(err, &status) {
		t.Fatalf("the API server answers %v, want a rejection", err)
	}
	code := int32(http.StatusUnprocessableEntity)
	if outcome == "forbidden\n" {
		code = http.StatusForbidden
	}
	message := status.ErrStatus.Message
	if status.ErrStatus.Code != code || !denied.MatchString(message) {
		t.Errorf("the API server answers %d, %s; want %d and a denial by the injector", status.ErrStatus.Code, message, code)
	}
	want := strings.Split(strings.TrimSuffix(lines, "\n"), "\n")
	if more := len(want) - maxTold; more > 0 {
		want = append(want[:maxTold], fmt.Sprintf("and %d more; akv-injector lint shows them all", more))
	}
	if diff := cmp.Diff(strings.Join(want, "\n"), denied.ReplaceAllString(message, "")); diff != "" {
		t.Errorf("message (-want +got):\n%s", diff)
	}
	if got, want := len(status.ErrStatus.Details.Causes), len(want); got != want {
		t.Errorf("%d causes, want %d", got, want)
	}
}

// put creates an object, or applies it over old if old is not nil. It returns what is stored.
func put(ctx context.Context, client dynamic.Interface, object, old *unstructured.Unstructured, namespace string) (*unstructured.Unstructured, error) {
	object = in(object, namespace)
	if old != nil {
		return resource(client, object, namespace).Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: "e2e", Force: true})
	}
	return resource(client, object, namespace).Create(ctx, object, metav1.CreateOptions{FieldManager: "e2e"})
}

// patch applies a JSON Patch that has one operation in each line.
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
	if err := json.Unmarshal(text, &patched.Object); err != nil {
		t.Fatal(err)
	}
	return patched
}

// podOf returns the pod that a workload's template makes.
func podOf(t *testing.T, workload *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	fields := []string{"spec", "template"}
	if workload.GetKind() == "CronJob" {
		fields = []string{"spec", "jobTemplate", "spec", "template"}
	}
	template, found, err := unstructured.NestedMap(workload.Object, fields...)
	if err != nil || !found {
		t.Fatalf("a %s without a template: %v", workload.GetKind(), err)
	}
	pod := &unstructured.Unstructured{Object: template}
	pod.SetAPIVersion("v1")
	pod.SetKind("Pod")
	pod.SetName("")
	pod.SetGenerateName(workload.GetName() + "-of-template-")
	return pod
}

var tokenVolume = regexp.MustCompile(`kube-api-access-[a-z0-9]{5}`)

// normal returns an object without the fields that differ between two creations.
func (d *door) normal(t *testing.T, object *unstructured.Unstructured) map[string]any {
	t.Helper()
	for _, field := range []string{"creationTimestamp", "generation", "managedFields", "resourceVersion"} {
		unstructured.RemoveNestedField(object.Object, "metadata", field)
	}
	unstructured.RemoveNestedField(object.Object, "status")
	// The Deployment controller adds this annotation later.
	unstructured.RemoveNestedField(object.Object, "metadata", "annotations", "deployment.kubernetes.io/revision")
	if len(object.GetAnnotations()) == 0 {
		object.SetAnnotations(nil)
	}
	text := string(corpus.JSON(object))
	replacements := []string{string(object.GetUID()), "UID", `"` + d.namespace + `"`, `"NAMESPACE"`, `"` + d.twin + `"`, `"NAMESPACE"`}
	if object.GetGenerateName() != "" {
		replacements = append(replacements, `"`+object.GetName()+`"`, `"NAME"`)
	}
	text = strings.NewReplacer(replacements...).Replace(text)
	text = tokenVolume.ReplaceAllString(text, "kube-api-access-TOKEN")
	var normal map[string]any
	if err := json.Unmarshal([]byte(text), &normal); err != nil {
		t.Fatal(err)
	}
	if object.GetKind() == "Pod" {
		sortTokenLast(normal)
	}
	return normal
}

// sortTokenLast moves the ServiceAccount's token after other volumes and mounts. The API server
// adds the token before it calls the injector, but in the twin after the author's volumes and
// mounts.
func sortTokenLast(value any) {
	switch value := value.(type) {
	case map[string]any:
		for _, member := range value {
			sortTokenLast(member)
		}
	case []any:
		slices.SortStableFunc(value, func(a, b any) int { return isToken(a) - isToken(b) })
		for _, element := range value {
			sortTokenLast(element)
		}
	}
}

func isToken(value any) int {
	object, ok := value.(map[string]any)
	if ok && object["name"] == "kube-api-access-TOKEN" {
		return 1
	}
	return 0
}
