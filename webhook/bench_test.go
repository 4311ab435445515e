package webhook_test

import (
	"bytes"
	"context"
	stdjson "encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/webhook"
)

// BenchmarkHandler reviews the creation of a pod, from the HTTP request to the HTTP response, by
// the injector and by other handlers for comparison:
//
//	echo       finds the UID and allows the pod: the least possible work
//	decode     controller-runtime's admission.Webhook: decodes the pod and allows it
//	customary  decode, and it changes the typed pod as the injector does, marshals it and diffs the two:
//	           the usual way to write webhooks. The change is known before
//	ours       decides, patches, counts and logs
//	unlogged   ours without its log line, which the other handlers do not write either
func BenchmarkHandler(b *testing.B) {
	for _, recorded := range reviews.All() {
		handlers := []struct {
			name string
			http.Handler
		}{
			{"echo", http.HandlerFunc(reviews.Echo)},
			{"decode", controllerRuntime(nil)},
			{"customary", controllerRuntime(knownChange(b, recorded))},
			{"ours", ours(b, jsonLog())},
			{"unlogged", ours(b, logr.Discard())},
		}
		patched := patchedBy(b, recorded, handlers[2])
		for _, h := range handlers[3:] {
			if diff := cmp.Diff(patched, patchedBy(b, recorded, h)); diff != "" {
				b.Fatalf("%s: %s patches otherwise than customary (-customary +%s):\n%s", recorded.Size, h.name, h.name, diff)
			}
		}
		for _, h := range handlers {
			b.Run("review="+recorded.Size+"/handler="+h.name, func(b *testing.B) {
				w := &responseWriter{header: http.Header{}}
				body := &requestBody{}
				r := httptest.NewRequest(http.MethodPost, webhook.MutatePods+"?timeout=5s", nil)
				r.Header.Set("Content-Type", "application/json")
				r.Body = body
				b.SetBytes(int64(len(recorded.Body)))
				b.ReportAllocs()
				for b.Loop() {
					body.Reset(recorded.Body)
					w.body = w.body[:0]
					h.ServeHTTP(w, r)
				}
			})
		}
	}
}

// ours returns the injector's handler, with facts in memory.
func ours(b *testing.B, log logr.Logger) http.Handler {
	b.Helper()
	source, err := reviews.Facts()
	if err != nil {
		b.Fatal(err)
	}
	mux := http.NewServeMux()
	webhook.Register(mux.Handle, webhook.Options{Reviewer: review.Reviewer{Source: source}, Log: log, Metrics: webhook.NewMetrics(prometheus.NewRegistry())})
	return mux
}

// jsonLog returns a logger that encodes lines as the server does, and drops them.
func jsonLog() logr.Logger {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	return zapr.NewLogger(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(zapcore.AddSync(io.Discard)), zapcore.InfoLevel)))
}

// controllerRuntime returns controller-runtime's handler. It decodes the pod, and patches it if
// change is not nil.
func controllerRuntime(change func(*corev1.Pod)) http.Handler {
	decoder := admission.NewDecoder(scheme.Scheme)
	return &admission.Webhook{Handler: admission.HandlerFunc(func(_ context.Context, r admission.Request) admission.Response {
		var pod corev1.Pod
		if err := decoder.Decode(r, &pod); err != nil {
			return admission.Errored(http.StatusBadRequest, err)
		}
		if change == nil {
			return admission.Allowed("")
		}
		change(&pod)
		text, err := stdjson.Marshal(&pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		return admission.PatchResponseFromRaw(r.Object.Raw, text)
	})}
}

// knownChange returns a function that changes the pod of this review as the injector does.
func knownChange(b *testing.B, recorded reviews.Review) func(*corev1.Pod) {
	b.Helper()
	source, err := reviews.Facts()
	if err != nil {
		b.Fatal(err)
	}
	request, err := recorded.Request()
	if err != nil {
		b.Fatal(err)
	}
	result, err := review.Reviewer{Source: source}.Inject(b.Context(), pods.SubjectOf(&request.Pod), request.Namespace)
	if err != nil {
		b.Fatal(err)
	}
	if result.Outcome != inject.Injected {
		b.Fatalf("%s: outcome %s, want %s: %v", recorded.Size, result.Outcome, inject.Injected, result.AllErrors())
	}
	return func(pod *corev1.Pod) {
		changed := corpus.WholePod{Meta: &pod.ObjectMeta, Spec: pod.Spec}
		changed.Mutate(&result.Change)
		pod.Spec = changed.Spec
	}
}

// patchedBy returns the pod of a review after the patch of a handler.
func patchedBy(b *testing.B, recorded reviews.Review, handler http.Handler) *corev1.Pod {
	b.Helper()
	response := decode(b, post(handler, webhook.MutatePods, recorded.Body))
	var asked struct {
		Request struct {
			Object runtime.RawExtension `json:"object"`
		} `json:"request"`
	}
	if err := stdjson.Unmarshal(recorded.Body, &asked); err != nil {
		b.Fatal(err)
	}
	if !response.Allowed || response.PatchType == nil || *response.PatchType != admissionv1.PatchTypeJSONPatch {
		b.Fatalf("%s: no patch: %+v", recorded.Size, response)
	}
	patched, err := corpus.ApplyText(asked.Request.Object.Raw, response.Patch)
	if err != nil {
		b.Fatal(err)
	}
	var pod corev1.Pod
	if err := json.Unmarshal(patched, &pod); err != nil {
		b.Fatal(err)
	}
	return &pod
}

// responseWriter keeps the last response, and reuses its memory.
type responseWriter struct {
	header http.Header
	body   []byte
}

func (w *responseWriter) Header() http.Header { return w.header }

func (w *responseWriter) WriteHeader(int) {}

func (w *responseWriter) Write(p []byte) (int, error) {
	w.body = append(w.body, p...)
	return len(p), nil
}

// requestBody is a body that can be read again after Reset.
type requestBody struct{ bytes.Reader }

func (*requestBody) Close() error { return nil }
