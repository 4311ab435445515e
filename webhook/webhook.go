// Package webhook serves admission reviews: it decodes AdmissionReviews, calls package review for
// the verdicts, and writes the responses, metrics and log lines. [Register] registers its handlers:
//
//	webhook.Register(mux.Handle, webhook.Options{
//		Reviewer: review.Reviewer{Source: cached, Defaults: defaults},
//		Log:      log,
//		Metrics:  webhook.NewMetrics(registry),
//	})
//
// It makes no decision about pods, and does not write to a cluster.
package webhook

import (
	"context"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// Paths of the webhooks, as the webhook configurations name them. ValidatePods also gets Bindings.
const (
	MutatePods      = "/mutate/pods"
	MutateWorkloads = "/mutate/workloads"

	ValidatePods      = "/validate/pods"
	ValidateWorkloads = "/validate/workloads"
)

// Options configure the webhooks.
type Options struct {
	// Reviewer reaches the verdicts.
	Reviewer review.Reviewer
	// Log gets one line for each review.
	Log logr.Logger
	// Metrics count reviews.
	Metrics *Metrics
}

// Register registers the handler of each webhook at its path.
func Register(register func(path string, handler http.Handler), o Options) {
	callers := newCallerLimits()
	register(MutatePods, &handler[pods.Pod, *pods.Pod]{
		path: MutatePods, log: o.Log, callers: callers,
		metrics: o.Metrics.at(MutatePods), verdict: o.mutatePod,
	})
	register(MutateWorkloads, &handler[pods.Workload, *pods.Workload]{
		path: MutateWorkloads, log: o.Log, callers: callers,
		metrics: o.Metrics.at(MutateWorkloads), verdict: o.mutateWorkload,
	})
	register(ValidatePods, &handler[pods.Pod, *pods.Pod]{
		path: ValidatePods, log: o.Log, callers: callers,
		metrics: o.Metrics.at(ValidatePods), verdict: o.validatePod,
	})
	register(ValidateWorkloads, &handler[pods.Workload, *pods.Workload]{
		path: ValidateWorkloads, log: o.Log, callers: callers,
		metrics: o.Metrics.at(ValidateWorkloads), verdict: o.validateWorkload,
	})
}

// notReviewed is the verdict about an operation that the webhook allows unchanged.
var notReviewed = review.Verdict{Outcome: inject.NotRequested}

// mutatePod handles CREATE of pods; other operations are allowed unchanged.
func (o *Options) mutatePod(ctx context.Context, r *request[pods.Pod]) (review.Verdict, error) {
	switch {
	case r.Operation != admissionv1.Create:
		return notReviewed, nil
	case r.TooLarge:
		return o.Reviewer.TooLarge(ctx, true, r.Namespace)
	}
	return o.Reviewer.Pod(ctx, subjectOf(r), r.Namespace)
}

func subjectOf(r *request[pods.Pod]) pods.Subject {
	subject := pods.SubjectOf(r.Object)
	subject.ByNode = r.ByNode
	return subject
}

// mutateWorkload handles CREATE and UPDATE of workloads.
func (o *Options) mutateWorkload(ctx context.Context, r *request[pods.Workload]) (review.Verdict, error) {
	switch {
	case !r.writes():
		return notReviewed, nil
	case r.TooLarge:
		return o.Reviewer.TooLarge(ctx, false, r.Namespace)
	}
	return o.Reviewer.Workload(ctx, r.Object, r.OldObject, r.Namespace)
}

// validatePod handles CREATE of pods, UPDATE of their labels, and CREATE of Bindings, whose labels
// become those of a pod.
func (o *Options) validatePod(ctx context.Context, r *request[pods.Pod]) (review.Verdict, error) {
	switch {
	case !r.writes():
		return notReviewed, nil
	case r.TooLarge:
		return o.Reviewer.TooLarge(ctx, true, r.Namespace)
	case r.Kind.Kind == "Binding":
		return o.Reviewer.BindingPolicy(ctx, pods.SubjectOf(r.Object), r.Namespace)
	}
	return o.Reviewer.PodPolicy(ctx, subjectOf(r), r.OldObject, r.Namespace)
}

// validateWorkload handles CREATE and UPDATE of workloads: it warns of what policy will reject in
// their pods.
func (o *Options) validateWorkload(ctx context.Context, r *request[pods.Workload]) (review.Verdict, error) {
	switch {
	case !r.writes():
		return notReviewed, nil
	case r.TooLarge:
		return o.Reviewer.TooLarge(ctx, false, r.Namespace)
	}
	return o.Reviewer.WorkloadPolicy(ctx, r.Object, r.Namespace)
}
