// Package tracing sends a span of each review, and below it one of each question that the review puts to the API server, to an
// OpenTelemetry collector. The standard environment variables OTEL_EXPORTER_OTLP_* say where, OTEL_TRACES_SAMPLER how
// many, OTEL_RESOURCE_ATTRIBUTES from whom.
//
// It knows nothing of reviews: their handler notes in the span what came of them.
package tracing

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp"
	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	semconv "go.opentelemetry.io/otel/semconv/v1.41.0"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/time/rate"
)

// flushTime bounds how long the end of the program waits for a collector.
const flushTime = 3 * time.Second

// quiet is how long nothing is said of a collector that still takes no spans.
const quiet = time.Minute

// Tracing collects spans, and sends them from a goroutine of its own. A collector that takes none costs their loss and a line of the
// log a minute; nobody waits for it.
type Tracing struct {
	provider   *sdktrace.TracerProvider
	propagator propagation.TextMapPropagator
}

// New starts to send spans. It contacts nobody; its errors are those of a wrong environment. Whoever starts it must stop it.
func New(ctx context.Context, service, version string, log logr.Logger) (*Tracing, error) {
	// What is said of traces beats what is said of all signals.
	for _, variable := range []string{"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"} {
		protocol := os.Getenv(variable)
		if protocol != "" && protocol != "http/protobuf" {
			return nil, fmt.Errorf("%s: must be http/protobuf, is %q", variable, protocol)
		}
		if protocol != "" {
			break
		}
	}
	described, err := resource.New(ctx,
		resource.WithTelemetrySDK(),
		resource.WithAttributes(semconv.ServiceName(service), semconv.ServiceVersion(version)),
		resource.WithFromEnv())
	if err != nil {
		return nil, fmt.Errorf("OTEL_RESOURCE_ATTRIBUTES: %w", err)
	}
	exporter, err := otlptracehttp.New(ctx)
	if err != nil {
		return nil, fmt.Errorf("set up the exporter of spans: %w", err)
	}
	sometimes := rate.Sometimes{First: 1, Interval: quiet}
	otel.SetLogger(log)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		sometimes.Do(func() { log.Error(err, "Spans are lost") })
	}))
	return &Tracing{
		provider:   sdktrace.NewTracerProvider(sdktrace.WithResource(described), sdktrace.WithBatcher(exporter)),
		propagator: propagation.TraceContext{},
	}, nil
}

// Stop sends what is left until ctx ends, for three seconds at most.
func (t *Tracing) Stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTime)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// Handler makes a span of each request that is served at path, below that of its caller where that sends one.
func (t *Tracing) Handler(path string, handler http.Handler) http.Handler {
	return otelhttp.NewHandler(handler, http.MethodPost+" "+path,
		otelhttp.WithTracerProvider(t.provider),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithPropagators(t.propagator),
		otelhttp.WithSpanNameFormatter(func(operation string, _ *http.Request) string { return operation }),
	)
}

// Transport makes a span of each request to the API server that is made for one that is traced. The feeds' own are not: a watch lasts
// for minutes.
func (t *Tracing) Transport(next http.RoundTripper) http.RoundTripper {
	return &transport{next: next, tracer: t.provider.Tracer("github.com/akv-injector/akv-injector/tracing"), propagator: t.propagator}
}

// transport is OpenTelemetry's own but for the URL, which it always tells: an author's annotation may be in there, as a name.
type transport struct {
	next       http.RoundTripper
	tracer     trace.Tracer
	propagator propagation.TextMapPropagator
}

// RoundTrip implements [http.RoundTripper].
func (t *transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !trace.SpanFromContext(r.Context()).IsRecording() {
		return t.next.RoundTrip(r)
	}
	template := template(r.URL.Path)
	ctx, span := t.tracer.Start(r.Context(), r.Method+" "+template, trace.WithSpanKind(trace.SpanKindClient), trace.WithAttributes(
		semconv.HTTPRequestMethodKey.String(r.Method), semconv.URLTemplate(template), semconv.ServerAddress(r.URL.Hostname()),
	))
	defer span.End()
	r = r.Clone(ctx)
	t.propagator.Inject(ctx, propagation.HeaderCarrier(r.Header))
	response, err := t.next.RoundTrip(r)
	if err != nil {
		span.SetAttributes(semconv.ErrorType(err))
		span.SetStatus(codes.Error, "")
		return nil, err
	}
	span.SetAttributes(semconv.HTTPResponseStatusCode(response.StatusCode))
	if response.StatusCode >= http.StatusInternalServerError { // that there is no such object is an answer
		span.SetStatus(codes.Error, "")
	}
	return response, nil
}

// template is an API server's path without the names in it, such as "/api/v1/namespaces/{}/serviceaccounts/{}".
func template(path string) string {
	segments := strings.Split(path, "/")
	start := slices.IndexFunc(segments, func(s string) bool { return s == "api" || s == "apis" })
	if start < 0 {
		return "/"
	}
	segments = segments[start:]
	resource := 2 // api, VERSION, RESOURCE, NAME, RESOURCE, NAME
	if segments[0] == "apis" {
		resource = 3 // apis, GROUP, VERSION, RESOURCE, ...
	}
	for i := resource + 1; i < len(segments); i += 2 {
		segments[i] = "{}"
	}
	return "/" + strings.Join(segments, "/")
}
