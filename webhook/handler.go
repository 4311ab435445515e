package webhook

import (
	"context"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"os"
	"runtime/debug"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/go-logr/logr"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/review"
)

// maxBody bounds a review, in bytes. The API server takes objects of at most 3 MiB, and an update's review holds two.
const maxBody = 7 << 20

// maxTime bounds a review where the API server does not say how long it waits.
const maxTime = 10 * time.Second

// timeMargin is how much sooner than the API server a review gives up, so that the answer says why.
const timeMargin = 200 * time.Millisecond

// admissionReview is an AdmissionReview whose objects are decoded in the same pass, straight into T. What T does not know is
// passed over, and can't be lost: an answer only ever names what it adds.
type admissionReview[T any] struct {
	metav1.TypeMeta `json:",inline"`

	Request *request[T] `json:"request"`
}

// request is the part of an AdmissionRequest that a review is about.
type request[T any] struct {
	UID       types.UID               `json:"uid"`
	Kind      metav1.GroupVersionKind `json:"kind"`
	Name      string                  `json:"name"`
	Namespace string                  `json:"namespace"`
	Operation admissionv1.Operation   `json:"operation"`
	Object    *T                      `json:"object"`
	OldObject *T                      `json:"oldObject"`
	DryRun    bool                    `json:"dryRun"`
}

// handler answers the reviews of one path.
type handler[T any] struct {
	path    string
	log     logr.Logger
	metrics *pathMetrics
	judge   func(context.Context, *request[T]) (review.Verdict, error)
}

// ServeHTTP implements [http.Handler].
func (h *handler[T]) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	start := time.Now()
	deadline := start.Add(timeout(r))
	// A body that never ends holds what was read of it until then. There is no limit on how many are read at once: those who post such
	// bodies could use it up and have the API server's own reviews turned away.
	if err := http.NewResponseController(w).SetReadDeadline(deadline); err != nil && !errors.Is(err, http.ErrNotSupported) {
		h.log.V(1).Info("Reading is not bounded in time", "path", h.path, "error", err.Error())
	}
	req, code, err := readReview[T](w, r)
	if err != nil {
		// Anyone in the cluster can post anything, so it gets no line of the log by default; the metric counts it.
		h.log.V(1).Info("Refused what is no review", "path", h.path, "code", code, "error", err.Error())
		h.metrics.observe(malformed, "", start)
		http.Error(w, err.Error(), code)
		return
	}
	// The request's context ends when the API server hangs up. The review is finished all the same, and told as what it is.
	ctx, cancel := context.WithDeadline(context.WithoutCancel(r.Context()), deadline)
	defer cancel()
	verdict, err := h.judgeSafely(ctx, req)
	var response *admissionv1.AdmissionResponse
	outcome, reason := verdict.Outcome, firstReason(verdict)
	if err != nil {
		outcome, reason = failed, ""
		response = faulty(req.UID, err)
	} else {
		response = answer(req.UID, lastingName(req), req.Kind, &verdict)
	}
	h.respond(w, response)
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
		attribute.String("akv_injector.review.uid", api.Cut(string(uid), maxName)),
		attribute.String("akv_injector.review.outcome", string(outcome)),
		attribute.String("akv_injector.review.reason", string(reason)),
	)
	if outcome == failed { // the HTTP status is 200 all the same
		span.SetStatus(codes.Error, "")
	}
}

func (h *handler[T]) logReview(req *request[T], outcome inject.Outcome, reason api.Reason, warnings int, took time.Duration, err error) {
	fields := []any{
		"path", h.path, "uid", req.UID, "kind", req.Kind.Kind, "namespace", req.Namespace, "name", objectName(req), "operation", req.Operation,
		"dryRun", req.DryRun, "outcome", outcome, "reason", reason, "warnings", warnings, "seconds", took.Seconds(),
	}
	if err != nil {
		h.log.Error(err, "Reviewed", fields...)
		return
	}
	h.log.Info("Reviewed", fields...)
}

// judgeSafely turns a panic into an error: the API server has to be told something.
func (h *handler[T]) judgeSafely(ctx context.Context, req *request[T]) (verdict review.Verdict, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	return h.judge(ctx, req)
}

// readReview reads the one review that an HTTP request carries, or says why it carries none, with the HTTP status for that.
func readReview[T any](w http.ResponseWriter, r *http.Request) (*request[T], int, error) {
	if r.Method != http.MethodPost {
		return nil, http.StatusMethodNotAllowed, errors.New("must be a POST of an AdmissionReview")
	}
	if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" {
		return nil, http.StatusUnsupportedMediaType, errors.New("must have Content-Type application/json")
	}
	var got admissionReview[T]
	// Looking for duplicate names costs a map an object, and the API server writes none.
	err := json.UnmarshalRead(http.MaxBytesReader(w, r.Body, maxBody), &got, jsontext.AllowDuplicateNames(true))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("must be at most %d bytes", maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, http.StatusRequestTimeout, errors.New("must arrive within the time that a review may take")
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("decode review: %w", err)
	}
	if err := got.check(); err != nil {
		return nil, http.StatusBadRequest, err
	}
	return got.Request, http.StatusOK, nil
}

// check says why a review can't be judged.
func (a *admissionReview[T]) check() error {
	switch {
	case a.APIVersion != admissionv1.SchemeGroupVersion.String() || a.Kind != "AdmissionReview":
		return fmt.Errorf("must be an AdmissionReview of %s, is %q of %q", admissionv1.SchemeGroupVersion, api.Echo(a.Kind), api.Echo(a.APIVersion))
	case a.Request == nil:
		return errors.New("request: must be set")
	case a.Request.UID == "":
		return errors.New("request.uid: must be set")
	case a.Request.Object == nil && (a.Request.Operation == admissionv1.Create || a.Request.Operation == admissionv1.Update):
		return fmt.Errorf("request.object: must be set on %s", a.Request.Operation)
	}
	return nil
}

// timeout is how long a review may take: what the API server says in its query that it waits, less a margin.
func timeout(r *http.Request) time.Duration {
	wait, err := time.ParseDuration(r.URL.Query().Get("timeout"))
	if err != nil || wait <= 0 || wait > maxTime {
		return maxTime
	}
	return max(wait-timeMargin, wait/2)
}

func (h *handler[T]) respond(w http.ResponseWriter, response *admissionv1.AdmissionResponse) {
	text, err := json.Marshal(&admissionv1.AdmissionReview{TypeMeta: reviewType, Response: response}, json.Deterministic(true))
	if err != nil {
		h.log.Error(err, "Answer can't be printed", "path", h.path)
		http.Error(w, "the answer can't be printed", http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if _, err := w.Write(text); err != nil {
		h.log.V(1).Info("Answer not taken", "path", h.path, "error", err.Error())
	}
}

var reviewType = metav1.TypeMeta{APIVersion: admissionv1.SchemeGroupVersion.String(), Kind: "AdmissionReview"}
