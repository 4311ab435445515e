// Package webhook is the admission shell: it takes AdmissionReviews off the wire, has them judged, and puts the answer on the
// wire. It decides nothing: what the annotations mean is webhook/inject's business, what the cluster holds webhook/facts's.
package webhook

import (
	"context"
	"net/http"

	"github.com/go-logr/logr"
	admissionv1 "k8s.io/api/admission/v1"

	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/review"
)

// Paths of the webhooks, as the webhook configuration names them.
const (
	MutatePods      = "/mutate/pods"
	MutateWorkloads = "/mutate/workloads"

	ValidatePods      = "/validate/pods"
	ValidateWorkloads = "/validate/workloads"
)

// Options are what the webhooks work with.
type Options struct {
	// Source answers what the cluster holds.
	Source facts.Source
	// Defaults are the server's flags.
	Defaults inject.Defaults
	// Log gets one line a review.
	Log logr.Logger
	// Metrics count reviews.
	Metrics *Metrics
}

// Register puts every webhook at its path.
func Register(register func(path string, handler http.Handler), o Options) {
	mutated := []inject.Outcome{inject.NotRequested, inject.Unchanged, inject.Injected, inject.Invalid, inject.Forbidden}
	judged := []inject.Outcome{inject.NotRequested, review.Allowed, inject.Forbidden}
	callers := newCallerLimits()
	register(MutatePods, &handler[pods.Pod, *pods.Pod]{path: MutatePods, log: o.Log, callers: callers, metrics: o.Metrics.at(MutatePods, mutated), judge: o.pod})
	register(MutateWorkloads, &handler[pods.Workload, *pods.Workload]{path: MutateWorkloads, log: o.Log, callers: callers, metrics: o.Metrics.at(MutateWorkloads, mutated), judge: o.workload})
	register(ValidatePods, &handler[pods.Pod, *pods.Pod]{path: ValidatePods, log: o.Log, callers: callers, metrics: o.Metrics.at(ValidatePods, judged), judge: o.podPolicy})
	register(ValidateWorkloads, &handler[pods.Workload, *pods.Workload]{path: ValidateWorkloads, log: o.Log, callers: callers, metrics: o.Metrics.at(ValidateWorkloads, judged), judge: o.workloadPolicy})
}

// pod judges the creation of a pod; its other operations are nobody's business here.
func (o *Options) pod(ctx context.Context, r *request[pods.Pod]) (review.Verdict, error) {
	if r.Operation != admissionv1.Create {
		return review.Verdict{Outcome: inject.NotRequested}, nil
	}
	if r.TooLarge {
		return review.TooLarge(ctx, o.Source, true, r.Namespace)
	}
	return review.Pod(ctx, o.Source, podOf(r), r.Namespace, o.Defaults)
}

func podOf(r *request[pods.Pod]) inject.Subject {
	subject := inject.Pod(r.Object)
	subject.ByNode = r.ByNode
	return subject
}

// workload judges the creation or update of a workload.
func (o *Options) workload(ctx context.Context, r *request[pods.Workload]) (review.Verdict, error) {
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return review.Verdict{Outcome: inject.NotRequested}, nil
	}
	if r.TooLarge {
		return review.TooLarge(ctx, o.Source, false, r.Namespace)
	}
	if r.Operation == admissionv1.Create {
		r.OldObject = nil
	}
	return review.Workload(ctx, o.Source, r.Object, r.OldObject, r.Namespace, o.Defaults)
}

// podPolicy holds a new pod, or one whose labels change, against its namespace's policy. A Binding changes its pod's labels to its own.
func (o *Options) podPolicy(ctx context.Context, r *request[pods.Pod]) (review.Verdict, error) {
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return review.Verdict{Outcome: inject.NotRequested}, nil
	}
	if r.TooLarge {
		return review.TooLarge(ctx, o.Source, true, r.Namespace)
	}
	if r.Kind.Kind == "Binding" {
		return review.BindingPolicy(ctx, o.Source, inject.Pod(r.Object), r.Namespace)
	}
	if r.Operation == admissionv1.Create {
		r.OldObject = nil
	}
	return review.PodPolicy(ctx, o.Source, podOf(r), r.OldObject, r.Namespace, o.Defaults)
}

// workloadPolicy tells what the policy of their namespace will say of a workload's pods.
func (o *Options) workloadPolicy(ctx context.Context, r *request[pods.Workload]) (review.Verdict, error) {
	if r.Operation != admissionv1.Create && r.Operation != admissionv1.Update {
		return review.Verdict{Outcome: inject.NotRequested}, nil
	}
	if r.TooLarge {
		return review.TooLarge(ctx, o.Source, false, r.Namespace)
	}
	return review.WorkloadPolicy(ctx, o.Source, r.Object, r.Namespace, o.Defaults)
}
