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

// maxTime bounds a review where the API server does not say how long it waits.
const maxTime = 10 * time.Second

// timeMargin is how much sooner than the API server a review gives up, so that the answer says why.
const timeMargin = 200 * time.Millisecond

// handler answers the reviews of one path.
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
	// A body that never ends must not hold what was read of it for longer than a review takes.
	if err := http.NewResponseController(w).SetReadDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.log.V(1).Info("Reading is not bounded in time", "path", h.path, "error", err.Error())
	}
	req, code, err := readRequest[T, P](w, r)
	if err != nil {
		// Anyone in the cluster can post anything, so it gets no line of the log by default; the metric counts it.
		h.log.V(1).Info("Refused what is no review", "path", h.path, "code", code, "error", err.Error())
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
		http.Error(w, faulty(err), http.StatusInternalServerError)
	default:
		h.respond(w, answer(req.UID, lastingName[T, P](req), req.Kind, &verdict), verdict.Operations)
	}
	h.metrics.observe(outcome, reason, start)
	note(ctx, req.UID, outcome, reason)
	h.logReview(req, outcome, reason, len(verdict.Warnings), time.Since(start), err)
}

// note tells the span of a review, if there is one, what came of it. No text that an author wrote belongs there; the UID leads to the line
// of the log.
func note(ctx context.Context, uid types.UID, outcome inject.Outcome, reason api.Reason) {
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

func (h *handler[T, P]) logReview(req *request[T], outcome inject.Outcome, reason api.Reason, warnings int, took time.Duration, err error) {
	fields := []any{
		"path", h.path, "uid", req.UID, "kind", req.Kind.Kind, "namespace", req.Namespace, "name", objectName[T, P](req), "operation", req.Operation,
		"dryRun", req.DryRun, "outcome", outcome, "reason", reason, "warnings", warnings, "seconds", took.Seconds(),
	}
	if err != nil {
		h.log.Error(err, "Reviewed", fields...)
		return
	}
	h.log.Info("Reviewed", fields...)
}

// recoverVerdict turns a panic into an error: the API server has to be told something.
func (h *handler[T, P]) recoverVerdict(ctx context.Context, req *request[T]) (verdict review.Verdict, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	return h.verdict(ctx, req)
}

// timeout is how long a review may take: what the API server says in its query that it waits, less a margin.
func timeout(r *http.Request) time.Duration {
	wait, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || wait <= 0 || wait > maxTime {
		return maxTime
	}
	return max(wait-timeMargin, wait/2)
}

// respond writes the answer, with operations as its patch.
func (h *handler[T, P]) respond(w http.ResponseWriter, response *admissionv1.AdmissionResponse, operations []jsonpatch.Operation) {
	buffer := answers.Get().(*answerBuffer) //nolint:forcetypeassert // the pool holds nothing else
	defer buffer.release()
	if len(operations) > 0 {
		buffer.patch = inject.AppendPatch(buffer.patch[:0], operations)
		response.Patch, response.PatchType = buffer.patch, &jsonPatch
	}
	buffer.body.Reset()
	if err := json.MarshalWrite(&buffer.body, &admissionv1.AdmissionReview{TypeMeta: reviewType, Response: response}, json.Deterministic(true)); err != nil {
		h.log.Error(err, "Answer can't be printed", "path", h.path)
		http.Error(w, "the answer can't be printed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", strconv.Itoa(buffer.body.Len()))
	if _, err := w.Write(buffer.body.Bytes()); err != nil {
		h.log.V(1).Info("Answer not taken", "path", h.path, "error", err.Error())
	}
}

// answerBuffer holds an answer while it is written.
type answerBuffer struct {
	patch []byte
	body  bytes.Buffer
}

var answers = sync.Pool{New: func() any { return new(answerBuffer) }}

// release gives the buffer to the next answer, unless this one was unusually large.
func (b *answerBuffer) release() {
	if b.body.Cap() <= 256<<10 {
		answers.Put(b)
	}
}

var reviewType = metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}
