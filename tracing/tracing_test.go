package tracing_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	collectorpb "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonpb "go.opentelemetry.io/proto/otlp/common/v1"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/proto"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/tracing"
	"github.com/akv-injector/akv-injector/webhook"
)

// collector is the OTLP receiver for HTTP of an OpenTelemetry collector.
type collector struct {
	mu       sync.Mutex
	bodies   []byte
	resource []*commonpb.KeyValue
	spans    []*tracepb.Span
}

// startCollector starts a collector and sets the environment variable that selects it.
func startCollector(t *testing.T) *collector {
	t.Helper()
	c := &collector{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		var request collectorpb.ExportTraceServiceRequest
		if r.URL.Path != "/v1/traces" || err != nil || proto.Unmarshal(body, &request) != nil {
			http.Error(w, "must be spans", http.StatusBadRequest)
			return
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		c.bodies = append(c.bodies, body...)
		for _, rs := range request.GetResourceSpans() {
			c.resource = rs.GetResource().GetAttributes()
			for _, ss := range rs.GetScopeSpans() {
				c.spans = append(c.spans, ss.GetSpans()...)
			}
		}
		w.Header().Set("Content-Type", "application/x-protobuf")
	}))
	t.Cleanup(server.Close)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	return c
}

func start(t *testing.T, log logr.Logger) *tracing.Tracing {
	t.Helper()
	tracer, err := tracing.New(t.Context(), "akv-injector", "v0.0.0", log)
	if err != nil {
		t.Fatal(err)
	}
	return tracer
}

// canary is a text of an author, which spans must not contain.
const canary = "very-secret-canary"

// startAPIServer starts an API server with one empty namespace. It stores the header of the latest
// request for the namespace.
func startAPIServer(t *testing.T, latest *http.Header) *httptest.Server {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/api/v1/namespaces/shop" {
			*latest = r.Header.Clone()
			fmt.Fprint(w, `{"apiVersion":"meta.k8s.io/v1","kind":"PartialObjectMetadata","metadata":{"name":"shop","labels":{"keyvault.io/injection":"enabled"}}}`)
			return
		}
		w.WriteHeader(http.StatusNotFound)
		fmt.Fprint(w, `{"apiVersion":"v1","kind":"Status","status":"Failure","reason":"NotFound","code":404}`)
	}))
	t.Cleanup(server.Close)
	return server
}

const reviewOfPod = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"705ab4f5","kind":{"version":"v1","kind":"Pod"},"namespace":"shop","operation":"CREATE",` +
	`"object":{"metadata":{"name":"` + canary + `","namespace":"shop","annotations":{"keyvault.io/class":"` + canary + `"}},"spec":{"containers":[{"name":"` + canary + `","env":[{"name":"A","value":"` + canary + `"}]}]}}}}`

const (
	traceOfCaller = "0af7651916cd43dd8448eb211c80319c"
	spanOfCaller  = "b7ad6b7169203331"
)

// TestReview checks that the span of a review is a child of the caller's, and that the spans of its
// requests are children of the review's.
func TestReview(t *testing.T) {
	spans := startCollector(t)
	var latest http.Header
	apiserver := startAPIServer(t, &latest)
	tracer := start(t, logr.Discard())
	config := &rest.Config{Host: apiserver.URL}
	config.Wrap(tracer.Transport)
	live, err := cluster.NewLive(config)
	if err != nil {
		t.Fatal(err)
	}
	mux := http.NewServeMux()
	webhook.Register(func(path string, handler http.Handler) { mux.Handle(path, tracer.Handler(path, handler)) }, webhook.Options{
		Reviewer: review.Reviewer{Source: live}, Log: logr.Discard(), Metrics: webhook.NewMetrics(prometheus.NewRegistry()),
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	if _, err := live.Namespace(t.Context(), "shop", true); err != nil { // no review, so no span
		t.Fatal(err)
	}
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL+webhook.MutatePods+"?timeout=5s", strings.NewReader(reviewOfPod))
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Traceparent", "00-"+traceOfCaller+"-"+spanOfCaller+"-01")
	response, err := server.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := io.ReadAll(response.Body)
	_ = response.Body.Close()
	if err != nil || !bytes.Contains(answer, []byte("[ClassNotFound]")) {
		t.Fatalf("answer %s, error %v; want a class that is not found", answer, err)
	}
	tracer.Stop(t.Context())

	spans.mu.Lock()
	defer spans.mu.Unlock()
	index := slices.IndexFunc(spans.spans, func(s *tracepb.Span) bool { return s.GetKind() == tracepb.Span_SPAN_KIND_SERVER })
	if index < 0 {
		t.Fatalf("no span of the review in %v", spans.spans)
	}
	review := spans.spans[index]
	if got := hex.EncodeToString(review.GetParentSpanId()); got != spanOfCaller || hex.EncodeToString(review.GetTraceId()) != traceOfCaller {
		t.Errorf("parent of the review's span is %s of trace %x, want the caller's", got, review.GetTraceId())
	}
	want := map[string]string{
		"akv_injector.review.uid": "705ab4f5", "akv_injector.review.outcome": "invalid", "akv_injector.review.reason": "ClassNotFound",
		"http.request.method": "POST", "http.response.status_code": "200", "url.path": "/mutate/pods",
	}
	got := attributes(review.GetAttributes())
	for name, value := range want {
		if got[name] != value {
			t.Errorf("attribute %s is %q, want %q", name, got[name], value)
		}
	}
	var requests []string
	for _, s := range spans.spans {
		if s == review {
			continue
		}
		if !bytes.Equal(s.GetParentSpanId(), review.GetSpanId()) {
			t.Errorf("span %q is not a child of the review's", s.GetName())
		}
		requests = append(requests, s.GetName()+" "+attributes(s.GetAttributes())["http.response.status_code"])
	}
	slices.Sort(requests)
	if diff := cmp.Diff([]string{
		"GET /api/v1/namespaces/{} 200",
		"GET /api/v1/namespaces/{}/serviceaccounts 404",
		"GET /api/v1/namespaces/{}/serviceaccounts/{} 404",
		"GET /apis/aadpodidentity.k8s.io/v1/namespaces/{}/azureidentitybindings 404",
		"GET /apis/secrets-store.csi.x-k8s.io/v1/namespaces/{}/secretproviderclasses 404",
		"GET /apis/secrets-store.csi.x-k8s.io/v1/namespaces/{}/secretproviderclasses/{} 404",
	}, slices.Compact(requests)); diff != "" {
		t.Errorf("requests (-want +got):\n%s", diff)
	}
	if got := latest.Get("Traceparent"); !strings.HasPrefix(got, "00-"+traceOfCaller+"-") {
		t.Errorf("the API server got traceparent %q, want the caller's trace", got)
	}
	if bytes.Contains(spans.bodies, []byte(canary)) {
		t.Error("a span contains a text of an author")
	}
}

// TestDescribesItself checks that the environment overrides the program's attributes.
func TestDescribesItself(t *testing.T) {
	spans := startCollector(t)
	t.Setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test,service.version=mine")
	tracer := start(t, logr.Discard())
	tracer.Handler("/x", http.NotFoundHandler()).ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/x", nil))
	tracer.Stop(t.Context())
	spans.mu.Lock()
	defer spans.mu.Unlock()
	got := attributes(spans.resource)
	for name, want := range map[string]string{"service.name": "akv-injector", "service.version": "mine", "deployment.environment.name": "test"} {
		if got[name] != want {
			t.Errorf("resource %s is %q, want %q", name, got[name], want)
		}
	}
}

// TestSampling checks that the caller decides whether a review is traced, and the environment if
// the caller does not.
func TestSampling(t *testing.T) {
	spans := startCollector(t)
	t.Setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
	tracer := start(t, logr.Discard())
	handler := tracer.Handler("/x", http.NotFoundHandler())
	for _, parent := range []string{"", "00-" + traceOfCaller + "-" + spanOfCaller + "-00", "00-" + traceOfCaller + "-" + spanOfCaller + "-01"} {
		r := httptest.NewRequest(http.MethodPost, "/x", nil)
		r.Header.Set("Traceparent", parent)
		handler.ServeHTTP(httptest.NewRecorder(), r)
	}
	tracer.Stop(t.Context())
	spans.mu.Lock()
	defer spans.mu.Unlock()
	if len(spans.spans) != 1 {
		t.Errorf("%d spans, want one, for the caller that requests it", len(spans.spans))
	}
}

// TestCollectorThatNeverAnswers creates more spans than the queue holds. Requests do not wait for
// the collector, and one line is logged.
func TestCollectorThatNeverAnswers(t *testing.T) {
	released := make(chan struct{})
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-released }))
	defer server.Close()
	defer close(released)
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", server.URL)
	var mu sync.Mutex
	var lines []string
	tracer := start(t, funcr.New(func(_, line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}, funcr.Options{}))
	handler := tracer.Handler("/x", http.NotFoundHandler())
	begin := time.Now()
	for range 5000 {
		handler.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/x", nil))
	}
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("5000 requests took %s", took)
	}
	begin = time.Now()
	tracer.Stop(t.Context())
	if took := time.Since(begin); took > 5*time.Second {
		t.Errorf("Stop took %s", took)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(lines) != 1 || !strings.Contains(lines[0], "Spans are lost") {
		t.Errorf("log is %q, want one line", lines)
	}
}

func TestWrongEnvironment(t *testing.T) {
	tests := map[string]struct {
		env  map[string]string
		want string
	}{
		"another protocol":                 {map[string]string{"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, `OTEL_EXPORTER_OTLP_PROTOCOL: must be http/protobuf, is "grpc"`},
		"another protocol for traces":      {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "grpc"}, `OTEL_EXPORTER_OTLP_TRACES_PROTOCOL: must be http/protobuf, is "grpc"`},
		"another protocol, not for traces": {map[string]string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, ""},
		"malformed attributes":             {map[string]string{"OTEL_RESOURCE_ATTRIBUTES": "team"}, "OTEL_RESOURCE_ATTRIBUTES: "},
		"a collector that does not run":    {map[string]string{"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for variable, value := range tt.env {
				t.Setenv(variable, value)
			}
			tracer, err := tracing.New(t.Context(), "akv-injector", "v0.0.0", logr.Discard())
			if tracer != nil {
				defer tracer.Stop(t.Context())
			}
			if (err == nil) != (tt.want == "") || (err != nil && !strings.HasPrefix(err.Error(), tt.want)) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
}

// TestDeadlinesStay checks that a traced handler can still set the read deadline of a request.
func TestDeadlinesStay(t *testing.T) {
	startCollector(t)
	tracer := start(t, logr.Discard())
	defer tracer.Stop(t.Context())
	server := httptest.NewServer(tracer.Handler("/x", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
		}
	})))
	defer server.Close()
	response, err := server.Client().Post(server.URL+"/x", "", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if body, err := io.ReadAll(response.Body); response.StatusCode != http.StatusOK || err != nil {
		t.Errorf("status %d: %s %v", response.StatusCode, body, err)
	}
}

func attributes(list []*commonpb.KeyValue) map[string]string {
	values := map[string]string{}
	for _, a := range list {
		values[a.GetKey()] = a.GetValue().GetStringValue()
		if _, ok := a.GetValue().GetValue().(*commonpb.AnyValue_IntValue); ok {
			values[a.GetKey()] = strconv.FormatInt(a.GetValue().GetIntValue(), 10)
		}
	}
	return values
}
