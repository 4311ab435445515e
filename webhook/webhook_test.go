package webhook_test

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/webhook"
)

const uid = types.UID("705ab4f5-6393-11e8-b7cc-42010a800002")

// serve returns the webhook with a source.
func serve(source facts.Source) http.Handler {
	mux := http.NewServeMux()
	webhook.Register(mux.Handle, webhook.Options{
		Reviewer: review.Reviewer{Source: source}, Log: logr.Discard(), Metrics: webhook.NewMetrics(prometheus.NewRegistry()),
	})
	return mux
}

// post sends a body as the API server does.
func post(handler http.Handler, path string, body []byte) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodPost, path+"?timeout=5s", bytes.NewReader(body))
	r.Header.Set("Content-Type", "application/json")
	w := httptest.NewRecorder()
	handler.ServeHTTP(w, r)
	return w
}

// reviewOf returns the AdmissionReview of an archive's subject.
func reviewOf(tb testing.TB, a *corpus.Archive) []byte {
	tb.Helper()
	gvk := a.Subject.GroupVersionKind()
	request := &admissionv1.AdmissionRequest{
		UID: uid, Kind: metav1.GroupVersionKind(gvk), Namespace: a.Namespace(), Name: a.Subject.GetName(), Operation: admissionv1.Create,
		Object: runtime.RawExtension{Raw: corpus.JSON(a.Subject)},
	}
	if a.Old != nil {
		request.Operation = admissionv1.Update
		request.OldObject = runtime.RawExtension{Raw: corpus.JSON(a.Old)}
	}
	body, err := json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"}, Request: request,
	})
	if err != nil {
		tb.Fatal(err)
	}
	return body
}

func pathOf(a *corpus.Archive) string {
	if a.IsPod() {
		return webhook.MutatePods
	}
	return webhook.MutateWorkloads
}

// decode decodes a response, which must have status 200.
func decode(tb testing.TB, w *httptest.ResponseRecorder) *admissionv1.AdmissionResponse {
	tb.Helper()
	if w.Code != http.StatusOK {
		tb.Fatalf("HTTP status %d: %s", w.Code, w.Body)
	}
	var got admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &got, json.RejectUnknownMembers(true)); err != nil {
		tb.Fatalf("decode answer: %v\n%s", err, w.Body)
	}
	if got.APIVersion != "admission.k8s.io/v1" || got.Kind != "AdmissionReview" || got.Response == nil {
		tb.Fatalf("no AdmissionReview with a response: %s", w.Body)
	}
	return got.Response
}

// TestCorpus runs the archives over HTTP. The responses must have the results of the core.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			source, err := a.Facts()
			if err != nil {
				t.Fatal(err)
			}
			response := decode(t, post(serve(source), pathOf(a), reviewOf(t, a)))
			if response.UID != uid {
				t.Errorf("UID %q, want the request's", response.UID)
			}
			if got, want := response.AuditAnnotations["outcome"]+"\n", a.Wanted["outcome"]; got != want {
				t.Errorf("outcome %q, want %q", got, want)
			}
			if got, want := response.Allowed, a.Wanted["errors"] == ""; got != want {
				t.Errorf("allowed %t, want %t", got, want)
			}
			if diff := cmp.Diff(patchLines(t, a.Wanted["patch"]), wirePatch(t, response)); diff != "" {
				t.Errorf("patch (-want +got):\n%s", diff)
			}
			if want := firstLines(a.Wanted["errors"], 20); !response.Allowed && response.Result.Message != want {
				t.Errorf("message (-want +got):\n%s", cmp.Diff(want, response.Result.Message))
			}
			checkWarnings(t, response.Warnings, a.Wanted["warnings"])
		})
	}
}

// firstLines returns the first n lines of text, and a line with the number of the others.
func firstLines(text string, n int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if more := len(lines) - n; more > 0 {
		lines = append(lines[:n], fmt.Sprintf("and %d more; akv-injector lint shows them all", more))
	}
	return strings.Join(lines, "\n")
}

func patchLines(t *testing.T, lines string) []any {
	t.Helper()
	var operations []any
	for line := range strings.Lines(lines) {
		var operation any
		if err := json.Unmarshal([]byte(line), &operation); err != nil {
			t.Fatal(err)
		}
		operations = append(operations, operation)
	}
	return operations
}

func wirePatch(t *testing.T, response *admissionv1.AdmissionResponse) []any {
	t.Helper()
	if (len(response.Patch) == 0) != (response.PatchType == nil) {
		t.Fatalf("patch of %d bytes and patch type %v: the API server takes both or neither", len(response.Patch), response.PatchType)
	}
	var operations []any
	if len(response.Patch) > 0 {
		if err := json.Unmarshal(response.Patch, &operations); err != nil {
			t.Fatal(err)
		}
	}
	return operations
}

func checkWarnings(t *testing.T, got []string, wanted string) {
	t.Helper()
	total := 0
	want := strings.Split(strings.TrimSuffix(wanted, "\n"), "\n")
	if wanted == "" {
		want = nil
	}
	for i, warning := range got {
		total += len(warning)
		if len(warning) > 1024 || strings.ContainsAny(warning, "\r\n") {
			t.Errorf("warning %q would be cut or dropped by the API server", warning)
		}
		if i < len(want) && !strings.HasPrefix(want[i], strings.TrimSuffix(warning, "…")) && !strings.HasPrefix(warning, "and ") {
			t.Errorf("warning %d is %q, want %q", i, warning, want[i])
		}
	}
	if total > 4096 || (len(got) < len(want) && !strings.HasPrefix(got[len(got)-1], "and ")) {
		t.Errorf("%d warnings of %d characters, want %d", len(got), total, len(want))
	}
}

// TestUnknownFieldsSurvive shows that the patch keeps fields that are newer than the API types of
// the injector.
func TestUnknownFieldsSurvive(t *testing.T) {
	a := load(t, "origin-demo")
	for _, pointer := range [][]string{{"metadata"}, {"spec"}} {
		if err := unstructured.SetNestedField(a.Subject.Object, "kept", append(pointer, "newerThanUs")...); err != nil {
			t.Fatal(err)
		}
	}
	containers, _, err := unstructured.NestedSlice(a.Subject.Object, "spec", "containers")
	if err != nil {
		t.Fatal(err)
	}
	containers[0].(map[string]any)["newerThanUs"] = "kept" //nolint:forcetypeassert // a container is an object
	if err := unstructured.SetNestedSlice(a.Subject.Object, containers, "spec", "containers"); err != nil {
		t.Fatal(err)
	}
	source, err := a.Facts()
	if err != nil {
		t.Fatal(err)
	}
	response := decode(t, post(serve(source), webhook.MutatePods, reviewOf(t, a)))
	patched, err := corpus.ApplyText(corpus.JSON(a.Subject), response.Patch)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(patched), `"newerThanUs":"kept"`); got != 3 {
		t.Errorf("%d of 3 unknown fields survive: %s", got, patched)
	}
}

func load(tb testing.TB, name string) *corpus.Archive {
	tb.Helper()
	archives, err := corpus.Load()
	if err != nil {
		tb.Fatal(err)
	}
	for _, a := range archives {
		if a.Name == name {
			return a
		}
	}
	tb.Fatalf("no archive %s", name)
	return nil
}

// TestRefusesWhatIsNoReview has requests without a valid AdmissionReview.
func TestRefusesWhatIsNoReview(t *testing.T) {
	body := string(reviewOf(t, load(t, "origin-demo")))
	for name, test := range map[string]struct {
		method, contentType, body string
		code                      int
		says                      string
	}{
		"a GET":                        {http.MethodGet, "application/json", "", http.StatusMethodNotAllowed, "must be a POST"},
		"another content type":         {http.MethodPost, "text/plain", body, http.StatusUnsupportedMediaType, "Content-Type"},
		"no body":                      {http.MethodPost, "application/json", "", http.StatusBadRequest, "decode review"},
		"half a body":                  {http.MethodPost, "application/json", body[:len(body)/2], http.StatusBadRequest, "decode review"},
		"two reviews":                  {http.MethodPost, "application/json", body + body, http.StatusBadRequest, "decode review"},
		"another kind":                 {http.MethodPost, "application/json", strings.Replace(body, "AdmissionReview", "Pod", 1), http.StatusBadRequest, "must be an AdmissionReview"},
		"another version":              {http.MethodPost, "application/json", strings.Replace(body, "admission.k8s.io/v1", "admission.k8s.io/v1beta1", 1), http.StatusBadRequest, "admission.k8s.io/v1"},
		"no request":                   {http.MethodPost, "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}`, http.StatusBadRequest, "request: must be set"},
		"no UID":                       {http.MethodPost, "application/json", strings.Replace(body, string(uid), "", 1), http.StatusBadRequest, "request.uid"},
		"no object":                    {http.MethodPost, "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE"}}`, http.StatusBadRequest, "request.object"},
		"a pod whose spec is a string": {http.MethodPost, "application/json", `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","object":{"spec":""}}}`, http.StatusBadRequest, "spec"},
		"a body that is too large":     {http.MethodPost, "application/json", `{"request":{"uid":"` + strings.Repeat("x", 33<<20) + `"}}`, http.StatusRequestEntityTooLarge, "at most"},
	} {
		t.Run(name, func(t *testing.T) {
			r := httptest.NewRequest(test.method, webhook.MutatePods, strings.NewReader(test.body))
			r.Header.Set("Content-Type", test.contentType)
			w := httptest.NewRecorder()
			serve(&facts.Objects{}).ServeHTTP(w, r)
			if w.Code != test.code || !strings.Contains(w.Body.String(), test.says) {
				t.Errorf("HTTP status %d, %q; want %d with %q", w.Code, w.Body, test.code, test.says)
			}
		})
	}
}

// brokenSource is a source whose lookups fail or panic.
type brokenSource struct{ panics bool }

func (b brokenSource) Namespace(context.Context, string, bool) (facts.Namespace, error) {
	if b.panics {
		panic("a bug")
	}
	return facts.Namespace{}, context.DeadlineExceeded
}

func (b brokenSource) Facts(context.Context, string, facts.Needs, bool) (facts.Answer, error) {
	return facts.Answer{}, context.DeadlineExceeded
}

// TestOwnFaults shows that a failed review is neither allowed nor rejected: it has status 500, so
// that the failurePolicy of the webhook applies.
func TestOwnFaults(t *testing.T) {
	for name, source := range map[string]brokenSource{"a cluster out of reach": {}, "a panic": {panics: true}} {
		for path, body := range map[string][]byte{
			webhook.MutatePods:   reviewOf(t, load(t, "origin-demo")),
			webhook.ValidatePods: updateOf(t, podWith(nil, "", nil), podWith(nil, "", nil)),
		} {
			t.Run(name+", "+path, func(t *testing.T) {
				w := post(serve(source), path, body)
				text := w.Body.String()
				if w.Code != http.StatusInternalServerError || !strings.HasPrefix(text, "akv-injector could not review the request") || strings.Contains(text, "goroutine") {
					t.Errorf("HTTP status %d, %s; want 500 and a message without a stack", w.Code, text)
				}
			})
		}
	}
}

// waitingSource is a source whose lookups block until they are canceled.
type waitingSource struct {
	facts.Source

	asked chan struct{}
}

func (w waitingSource) Namespace(ctx context.Context, _ string, _ bool) (facts.Namespace, error) {
	close(w.asked)
	<-ctx.Done()
	return facts.Namespace{}, ctx.Err()
}

// TestReviewEndsWithItsCaller shows that a review ends when the caller closes the connection, and
// that it is not logged as an error.
func TestReviewEndsWithItsCaller(t *testing.T) {
	registry := prometheus.NewRegistry()
	source := waitingSource{asked: make(chan struct{})}
	mux, lines := http.NewServeMux(), make(chan string, 1)
	webhook.Register(mux.Handle, webhook.Options{
		Reviewer: review.Reviewer{Source: source}, Metrics: webhook.NewMetrics(registry), Log: funcr.New(func(_, line string) { lines <- line }, funcr.Options{}),
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	ctx, hangUp := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+webhook.MutatePods+"?timeout=30s", bytes.NewReader(reviewOf(t, load(t, "origin-demo"))))
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/json")
	go func() {
		<-source.asked
		hangUp()
	}()
	if response, err := server.Client().Do(r); err == nil {
		_ = response.Body.Close()
		t.Fatal("the request has a response")
	}
	if line := <-lines; !strings.Contains(line, `"outcome"="abandoned"`) || strings.Contains(line, `"error"`) {
		t.Errorf("logged %s", line)
	}
}

// TestTooLarge shows that a review that is too large gets a response with its UID, and that it
// cannot bypass a policy.
func TestTooLarge(t *testing.T) {
	sizes := map[string]string{
		"more than is read": `"args":["` + strings.Repeat(`\u003c`, 6<<20) + `"]`,
		"more than is kept": `"env":[` + strings.Repeat(`{},`, 100_000) + `{}]`,
	}
	for behaviour, test := range map[string]struct {
		labels, annotations map[string]string
		path, kind          string
		rejected            bool
	}{
		"a pod without a policy":              {path: webhook.MutatePods, kind: "Pod"},
		"a pod under a ceiling":               {path: webhook.MutatePods, kind: "Pod", annotations: map[string]string{api.AllowedNames: "team-*"}, rejected: true},
		"a pod under an enforced level":       {path: webhook.ValidatePods, kind: "Pod", labels: map[string]string{api.Enforce: "bound"}, rejected: true},
		"a pod under a level that only warns": {path: webhook.ValidatePods, kind: "Pod", labels: map[string]string{api.Warn: "bound"}},
		"a workload under an enforced level":  {path: webhook.MutateWorkloads, kind: "Deployment", labels: map[string]string{api.Enforce: "bound"}},
	} {
		for size, list := range sizes {
			t.Run(behaviour+", "+size, func(t *testing.T) {
				namespace := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Namespace"}}
				namespace.SetName("team-a")
				namespace.SetLabels(test.labels)
				namespace.SetAnnotations(test.annotations)
				var source facts.Objects
				if err := source.Add(namespace, ""); err != nil {
					t.Fatal(err)
				}
				spec := `{"containers":[{"name":"app",` + list + `}]}`
				if test.kind != "Pod" {
					spec = `{"template":{"spec":` + spec + `}}`
				}
				body := fmt.Sprintf(`{"kind":"AdmissionReview","apiVersion":"admission.k8s.io/v1","request":{"uid":%q,"kind":{"kind":%q},`+
					`"namespace":"team-a","operation":"CREATE","object":{"metadata":{"name":"large"},"spec":%s}}}`, uid, test.kind, spec)
				response := decode(t, post(serve(&source), test.path, []byte(body)))
				if response.UID != uid || response.Allowed == test.rejected {
					t.Fatalf("UID %q, allowed %t, result %+v", response.UID, response.Allowed, response.Result)
				}
				if test.rejected && (response.Result.Code != http.StatusForbidden || !strings.Contains(response.Result.Message, "[ReviewTooLarge] request.object")) {
					t.Errorf("result %+v", response.Result)
				}
				if !test.rejected && (len(response.Warnings) != 1 || !strings.HasPrefix(response.Warnings[0], "[ReviewTooLarge] request.object")) {
					t.Errorf("warnings %v", response.Warnings)
				}
			})
		}
	}
}

// TestRefusalNamesEachCause shows the causes of a rejection, which clients such as kubectl print.
func TestRefusalNamesEachCause(t *testing.T) {
	a := load(t, "origin-demo")
	annotations := a.Subject.GetAnnotations()
	annotations["keyvault.io/secret"] = "x"
	annotations["keyvault.io/env"] = "all"
	a.Subject.SetAnnotations(annotations)
	source, err := a.Facts()
	if err != nil {
		t.Fatal(err)
	}
	response := decode(t, post(serve(source), webhook.MutatePods, reviewOf(t, a)))
	want := &metav1.Status{
		Status: "Failure", Code: 422, Reason: "Invalid",
		Message: "[UnknownKey] metadata.annotations[keyvault.io/secret]: Forbidden: must be a key of akv-injector; did you mean keyvault.io/secrets?\n" +
			`[InvalidValue] metadata.annotations[keyvault.io/env]: Unsupported value: "all": supported values: "explicit", "auto"`,
		Details: &metav1.StatusDetails{Name: "csi-demo", Kind: "Pod", Causes: []metav1.StatusCause{
			{Type: "FieldValueForbidden", Field: "metadata.annotations[keyvault.io/secret]", Message: "[UnknownKey] Forbidden: must be a key of akv-injector; did you mean keyvault.io/secrets?"},
			{Type: "FieldValueNotSupported", Field: "metadata.annotations[keyvault.io/env]", Message: `[InvalidValue] Unsupported value: "all": supported values: "explicit", "auto"`},
		}},
	}
	if diff := cmp.Diff(want, response.Result); diff != "" {
		t.Errorf("status (-want +got):\n%s", diff)
	}
	if got := response.AuditAnnotations["reasons"]; got != "UnknownKey,InvalidValue" {
		t.Errorf("audit annotation reasons is %q", got)
	}
}

// FuzzServe shows that every body gets an AdmissionReview with its UID, or a 4xx status.
func FuzzServe(f *testing.F) {
	archives, err := corpus.Load()
	if err != nil {
		f.Fatal(err)
	}
	for _, a := range archives {
		f.Add(a.IsPod(), reviewOf(f, a))
	}
	f.Add(true, []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"CREATE","object":{}}}`))
	f.Add(true, []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"DELETE","object":null}}`))
	f.Add(false, []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u"}}`))
	f.Add(false, []byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","operation":"UPDATE","object":{"spec":{"template":null}}}}`))
	source, err := load(f, "origin-demo").Facts()
	if err != nil {
		f.Fatal(err)
	}
	handler := serve(source)
	f.Fuzz(func(t *testing.T, pod bool, body []byte) {
		path := webhook.MutateWorkloads
		if pod {
			path = webhook.MutatePods
		}
		w := post(handler, path, body)
		if w.Code >= 400 && w.Code < 500 {
			return
		}
		response := decode(t, w)
		if response.Result != nil && response.Result.Code == http.StatusInternalServerError {
			t.Fatalf("the review failed: %s", response.Result.Message)
		}
		var sent struct {
			Request struct {
				UID types.UID `json:"uid"`
			} `json:"request"`
		}
		err := json.Unmarshal(body, &sent, jsontext.AllowDuplicateNames(true))
		if response.UID == "" || err == nil && response.UID != sent.Request.UID { // skipped values may be invalid JSON
			t.Fatalf("UID %q, want %q", response.UID, sent.Request.UID)
		}
	})
}

// TestWarningsStayWithinTheirRoom shows that warnings that do not fit are replaced by their number.
func TestWarningsStayWithinTheirRoom(t *testing.T) {
	a := load(t, "origin-demo")
	var namespace *unstructured.Unstructured
	for _, object := range a.Objects {
		if object.GetKind() == "Namespace" {
			namespace = object
		}
	}
	annotations := map[string]string{}
	for i := range 40 {
		annotations["keyvault.io/unknown"+strings.Repeat("x", i)] = "x"
	}
	namespace.SetAnnotations(annotations)
	source, err := a.Facts()
	if err != nil {
		t.Fatal(err)
	}
	response := decode(t, post(serve(source), webhook.MutatePods, reviewOf(t, a)))
	total := 0
	for _, warning := range response.Warnings {
		total += len(warning)
	}
	if last := response.Warnings[len(response.Warnings)-1]; total > 4096 || !strings.HasPrefix(last, "and ") || !response.Allowed {
		t.Errorf("%d warnings of %d characters, the last %q", len(response.Warnings), total, last)
	}
}

// TestRefusalsStayWithinTheirRoom shows that errors that do not fit into a rejection are replaced
// by their number: the text is stored in conditions and events.
func TestRefusalsStayWithinTheirRoom(t *testing.T) {
	for name, test := range map[string]struct {
		mistakes int
		long     bool
		want     int // lines
	}{
		"the largest number":          {mistakes: 20, want: 20},
		"one more":                    {mistakes: 21, want: 21},
		"many":                        {mistakes: 100, want: 21},
		"long ones":                   {mistakes: 7, long: true, want: 7},
		"long ones, and one more":     {mistakes: 8, long: true, want: 8},
		"long ones, and several more": {mistakes: 10, long: true, want: 8},
	} {
		t.Run(name, func(t *testing.T) {
			a := load(t, "class-whose-objects-are-no-yaml")
			var items []string
			for i := range test.mistakes {
				items = append(items, fmt.Sprintf("- {objectName: db-%d, objectFormat: pem}\n", i))
			}
			annotations := map[string]string{"keyvault.io/class": "app-secrets", "keyvault.io/secrets": strings.Join(items, "")}
			if test.long {
				annotations = longMistakes(t, a, test.mistakes)
			}
			a.Subject.SetAnnotations(annotations)
			source, err := a.Facts()
			if err != nil {
				t.Fatal(err)
			}
			result := decode(t, post(serve(source), webhook.MutatePods, reviewOf(t, a))).Result
			lines, causes := strings.Split(result.Message, "\n"), result.Details.Causes
			if len(lines) != test.want || len(causes) != test.want || len(result.Message) > 8<<10 {
				t.Fatalf("%d lines of %d bytes and %d causes, want %d:\n%s", len(lines), len(result.Message), len(causes), test.want, result.Message)
			}
			for i, cause := range causes {
				if len(cause.Message) > 1<<10 || len(lines[i]) > 1<<10 {
					t.Errorf("error %d has %d bytes, its cause %d", i, len(lines[i]), len(cause.Message))
				}
			}
			if test.want < test.mistakes || test.long && test.want > 7 || test.want > 20 {
				want := fmt.Sprintf("and %d more; akv-injector lint shows them all", test.mistakes-test.want+1)
				if last := test.want - 1; lines[last] != want || causes[last].Message != want {
					t.Errorf("ends in %q and the cause %q, want %q", lines[last], causes[last].Message, want)
				}
			}
		})
	}
}

// longMistakes adds classes to the archive that cannot be parsed, for a long reason, and returns
// annotations that request them.
func longMistakes(t *testing.T, a *corpus.Archive, n int) map[string]string {
	t.Helper()
	var names, items []string
	for i := range n {
		spc := a.Objects[0].DeepCopy()
		spc.SetName(fmt.Sprintf("class-%d", i))
		if err := unstructured.SetNestedField(spc.Object, "array:\n- |\n"+strings.Repeat("  objectName: db\n", 100), "spec", "parameters", "objects"); err != nil {
			t.Fatal(err)
		}
		a.Objects = append(a.Objects, spc)
		names, items = append(names, spc.GetName()), append(items, spc.GetName()+"/db")
	}
	return map[string]string{"keyvault.io/class": strings.Join(names, ","), "keyvault.io/secrets": strings.Join(items, ",")}
}

// TestBodyThatNeverEnds shows that reading a body times out with the review, in both versions of
// HTTP.
func TestBodyThatNeverEnds(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := httptest.NewUnstartedServer(serve(&facts.Objects{}))
			server.EnableHTTP2 = http2
			server.StartTLS()
			t.Cleanup(server.Close)
			body, writer := io.Pipe()
			go func() { _, _ = io.WriteString(writer, `{"kind":`) }()
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			context.AfterFunc(ctx, func() { _ = writer.CloseWithError(ctx.Err()) }) // the client waits for its body even if ctx has ended
			r, err := http.NewRequestWithContext(ctx, http.MethodPost, server.URL+webhook.MutatePods+"?timeout=100ms", body)
			if err != nil {
				t.Fatal(err)
			}
			r.Header.Set("Content-Type", "application/json")
			response, err := server.Client().Do(r)
			if err != nil {
				t.Fatal(err)
			}
			_ = response.Body.Close() // the body is not read
			if response.StatusCode != http.StatusRequestTimeout {
				t.Errorf("HTTP status %d, want %d", response.StatusCode, http.StatusRequestTimeout)
			}
		})
	}
}

// TestLogsNoLineForWhatIsNoReview shows that malformed requests do not fill the log.
func TestLogsNoLineForWhatIsNoReview(t *testing.T) {
	registry := prometheus.NewRegistry()
	mux := http.NewServeMux()
	webhook.Register(mux.Handle, webhook.Options{
		Reviewer: review.Reviewer{Source: &facts.Objects{}}, Metrics: webhook.NewMetrics(registry),
		Log: funcr.New(func(_, line string) { t.Errorf("logged %s", line) }, funcr.Options{}),
	})
	post(mux, webhook.MutatePods, []byte("no review"))
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			if strings.Contains(metric.String(), `"malformed"`) {
				counted += metric.GetCounter().GetValue()
			}
		}
	}
	if counted != 1 {
		t.Errorf("counted %v, want 1", counted)
	}
}
