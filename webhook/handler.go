package webhook

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"sync"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/trace"
	"gomodules.xyz/jsonpatch/v2"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/review"
)

// maxTime is the timeout of a review if the API server does not send its own timeout.
const maxTime = 10 * time.Second

// timeMargin is how much earlier than the API server a review times out, so that the API server
// gets the reason.
const timeMargin = 200 * time.Millisecond

// handler handles the reviews of one path.
type handler[T any, P reader[T]] struct {
	path    string
	log     logr.Logger
	metrics *pathMetrics
	callers *callerLimits
	verdict func(context.Context, *request[T]) (review.Verdict, error)
}

// ServeHTTP implements [http.Handler].
func (h *handler[T, P]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	deadline := start.Add(timeout(r))
	// A body that never ends must not keep its memory for longer than a review may take.
	err := http.NewResponseController(w).SetReadDeadline(deadline)
	if err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.log.V(1).Info("Cannot set the read deadline", "path", h.path, "error", err.Error())
	}
	req, code, err := readRequest[T, P](w, r)
	if err != nil {
		// Any client in the cluster can cause this, so it is not logged by default; the metric
		// counts it.
		h.log.V(1).Info("Rejected a malformed review", "path", h.path, "code", code, "error", err.Error())
		h.metrics.observe(inject.Malformed, "", start)
		http.Error(w, err.Error(), code)
		return
	}
	ctx, cancel := context.WithDeadline(h.callers.limited(r.Context(), r), deadline)
	defer cancel()
	verdict, err := h.recoverVerdict(ctx, req)
	outcome, reason := verdict.Outcome, firstReason(&verdict)
	switch {
	case r.Context().Err() != nil:
		outcome, reason, err = inject.Abandoned, "", nil
	case err != nil:
		outcome, reason = inject.Failed, ""
		http.Error(w, failure(err), http.StatusInternalServerError)
	default:
		h.respond(w, answer(req.UID, lastingName[T, P](req), req.Kind, &verdict), verdict.Operations)
	}
	h.metrics.observe(outcome, reason, start)
	addToSpan(ctx, req.UID, outcome, reason)
	h.logReview(req, outcome, reason, len(verdict.Warnings), time.Since(start), err)
}

// addToSpan adds the result of a review to its span, if there is one. A span has no text of the
// object; its UID is also in the log line.
func addToSpan(ctx context.Context, uid types.UID, outcome inject.Outcome, reason api.Reason) {
	span := trace.SpanFromContext(ctx)
	if !span.IsRecording() {
		return
	}
	span.SetAttributes(
		attribute.String("akv_injector.review.uid", string(uid)),
		attribute.String("akv_injector.review.outcome", string(outcome)),
		attribute.String("akv_injector.review.reason", string(reason)),
	)
}

func (h *handler[T, P]) logReview(
	req *request[T], outcome inject.Outcome, reason api.Reason, warnings int, took time.Duration, err error,
) {
	fields := []any{
		"path", h.path, "uid", req.UID, "kind", req.Kind.Kind,
		"namespace", req.Namespace, "name", objectName[T, P](req), "operation", req.Operation,
		"dryRun", req.DryRun, "outcome", outcome, "reason", reason, "warnings", warnings, "seconds", took.Seconds(),
	}
	if err != nil {
		h.log.Error(err, "Reviewed", fields...)
		return
	}
	h.log.Info("Reviewed", fields...)
}

// recoverVerdict returns the verdict. It turns a panic into an error, so that the API server gets a
// response.
func (h *handler[T, P]) recoverVerdict(ctx context.Context, req *request[T]) (verdict review.Verdict, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	return h.verdict(ctx, req)
}

// timeout returns how long a review may take: the API server's timeout, which it sends in the
// query, minus a margin.
func timeout(r *http.Request) time.Duration {
	wait, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || wait <= 0 || wait > maxTime {
		return maxTime
	}
	return max(wait-timeMargin, wait/2)
}

// respond writes the response, with operations as its patch.
func (h *handler[T, P]) respond(
	w http.ResponseWriter, response *admissionv1.AdmissionResponse, operations []jsonpatch.Operation,
) {
	buffer := answers.Get().(*answerBuffer) //nolint:forcetypeassert // the pool holds nothing else
	defer buffer.release()
	if len(operations) > 0 {
		buffer.patch = inject.AppendPatch(buffer.patch[:0], operations)
		response.Patch, response.PatchType = buffer.patch, &jsonPatch
	}
	buffer.body.Reset()
	envelope := &admissionv1.AdmissionReview{TypeMeta: reviewType, Response: response}
	if err := json.MarshalWrite(&buffer.body, envelope, json.Deterministic(true)); err != nil {
		h.log.Error(err, "Cannot encode the response", "path", h.path)
		http.Error(w, "cannot encode the response", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(buffer.body.Len()))
	if _, err := w.Write(buffer.body.Bytes()); err != nil {
		h.log.V(1).Info("Cannot write the response", "path", h.path, "error", err.Error())
	}
}

// answerBuffer is the buffer of a response.
type answerBuffer struct {
	patch []byte
	body  bytes.Buffer
}

var answers = sync.Pool{New: func() any { return new(answerBuffer) }}

// release returns the buffer to the pool, unless it is unusually large.
func (b *answerBuffer) release() {
	if b.body.Cap() <= 256<<10 {
		answers.Put(b)
	}
}

var reviewType = metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}
