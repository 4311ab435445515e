// Package tracing sends spans to an OpenTelemetry collector: one for each review, and a child span
// for each request that the review causes at the API server. Standard environment variables
// configure it: OTEL_EXPORTER_OTLP_* the collector, OTEL_TRACES_SAMPLER the share of traced
// reviews, and OTEL_RESOURCE_ATTRIBUTES the attributes of this program.
//
//	t, err := tracing.New(ctx, "akv-injector", version, log)
//	defer t.Stop(ctx)
//	config.Wrap(t.Transport)
//	mux.Handle(path, t.Handler(path, handler))
//
// The package does not read reviews. The webhook's handler adds the outcome to the span.
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

// flushTimeout is how long Stop waits for the collector.
const flushTimeout = 3 * time.Second

// logInterval is the interval between log lines about a collector that does not accept spans.
const logInterval = time.Minute

// Tracing collects spans and sends them in the background. If the collector does not accept them,
// they are lost, and one line a minute is logged. Reviews never wait for the collector.
type Tracing struct {
	provider   *sdktrace.TracerProvider
	propagator propagation.TextMapPropagator
}

// New returns a Tracing that sends spans until Stop. Service and version are the OpenTelemetry
// attributes service.name and service.version of this program. New does not connect to the
// collector. It returns an error if an environment variable is invalid.
func New(ctx context.Context, service, version string, log logr.Logger) (*Tracing, error) {
	// The variable for traces overrides the variable for all signals.
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
	sometimes := rate.Sometimes{First: 1, Interval: logInterval}
	otel.SetLogger(log)
	otel.SetErrorHandler(otel.ErrorHandlerFunc(func(err error) {
		sometimes.Do(func() { log.Error(err, "Spans are lost") })
	}))
	return &Tracing{
		provider:   sdktrace.NewTracerProvider(sdktrace.WithResource(described), sdktrace.WithBatcher(exporter)),
		propagator: propagation.TraceContext{},
	}, nil
}

// Stop sends the remaining spans. It returns when ctx ends, or after three seconds.
func (t *Tracing) Stop(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, flushTimeout)
	defer cancel()
	if err := t.provider.Shutdown(ctx); err != nil {
		otel.Handle(err)
	}
}

// Handler returns a handler that creates a span for each request at path. If the caller sends a
// span's identity, that span is the parent.
func (t *Tracing) Handler(path string, handler http.Handler) http.Handler {
	return otelhttp.NewHandler(handler, http.MethodPost+" "+path,
		otelhttp.WithTracerProvider(t.provider),
		otelhttp.WithMeterProvider(noop.NewMeterProvider()),
		otelhttp.WithPropagators(t.propagator),
		otelhttp.WithSpanNameFormatter(func(operation string, _ *http.Request) string { return operation }),
	)
}

// Transport returns a transport that creates a span for each request to the API server during a
// traced review. Watches get no spans: they last for minutes, and belong to no review.
func (t *Tracing) Transport(next http.RoundTripper) http.RoundTripper {
	return &transport{
		next:       next,
		tracer:     t.provider.Tracer("github.com/akv-injector/akv-injector/tracing"),
		propagator: t.propagator,
	}
}

// transport does what OpenTelemetry's transport does, but does not send the URL, which may contain
// names from an author's annotations.
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
	attributes := trace.WithAttributes(
		semconv.HTTPRequestMethodKey.String(r.Method),
		semconv.URLTemplate(template),
		semconv.ServerAddress(r.URL.Hostname()),
	)
	ctx, span := t.tracer.Start(r.Context(), r.Method+" "+template, trace.WithSpanKind(trace.SpanKindClient), attributes)
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
	if response.StatusCode >= http.StatusInternalServerError { // 404 is an answer: the object does not exist
		span.SetStatus(codes.Error, "")
	}
	return response, nil
}

// template returns the path of a request to an API server with {} in place of names, such as
// "/api/v1/namespaces/{}/serviceaccounts/{}".
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
