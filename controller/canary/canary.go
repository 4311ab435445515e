// Package canary shows that the API server calls the injector: at an interval, it creates a pod that
// requests injection, as a dry run, and checks the pod in the answer.
//
//	mgr.Add(canary.New(canary.Options{
//		Client: client, Namespace: "akv-injector-canary", Interval: time.Minute,
//		Service: service, Log: log, Metrics: metrics.Registry,
//	}))
//
// A dry run stores nothing: no pod, and so no managed class, ever exists. The namespace must have
// opted in, and have a ServiceAccount named canary with a client id; the chart creates both.
//
// Every replica runs the canary, at a random point of each interval. So the canary needs no leader,
// and goes on while a replica is replaced. The package does not watch configurations and repairs
// nothing.
package canary

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// A Result is what one attempt shows. Its value is the label of a metric, so it is stable.
type Result string

// The results.
const (
	// Injected means that the pod was injected.
	Injected Result = "injected"
	// NotCalled means that the API server did not call the injector: the pod came back unchanged.
	// With failurePolicy Ignore, this is also the result of every call that failed.
	NotCalled Result = "not-called"
	// OtherInstallation means that the webhook configuration calls another Service, or a URL.
	OtherInstallation Result = "other-installation"
	// Unreachable means that the API server found no replica: no ready endpoint, or no connection.
	Unreachable Result = "unreachable"
	// Late means that the injector did not answer within the timeout of the webhook.
	Late Result = "late"
	// Certificate means that the API server rejected the serving certificate, or the injector the
	// client certificate.
	Certificate Result = "certificate"
	// Rejected means that the injector, or another admission rule, rejected the pod.
	Rejected Result = "rejected"
	// Failed means anything else: the API server did not answer, the canary lacks a right or its
	// namespace, or the injector answered with an error.
	Failed Result = "failed"
)

// Results are all results.
var Results = [...]Result{Injected, NotCalled, OtherInstallation, Unreachable, Late, Certificate, Rejected, Failed}

const (
	// configuration is the name of the injector's webhook configuration.
	configuration = "akv-injector"
	// account is the name of the ServiceAccount in the namespace of the canary.
	account = "canary"
	// timeout is the timeout of an attempt. It exceeds the longest timeout of a webhook, which is 30 s.
	timeout = 45 * time.Second
	// maxDetail is how many bytes of an error are logged.
	maxDetail = 1 << 10
	// tenantID is made up, as the vault is: nothing signs in.
	tenantID = "00000000-0000-4000-8000-000000000000"
)

// Options configure a [Canary]. Every field is required.
type Options struct {
	// Client may create pods in Namespace, as a dry run, and get the webhook configuration.
	Client kubernetes.Interface
	// Namespace is the namespace of the canary.
	Namespace string
	// Interval is the time between two attempts; each delay is up to a tenth longer.
	Interval time.Duration
	// Service is the Service by which the API server calls this injector.
	Service types.NamespacedName
	Log     logr.Logger
	Metrics prometheus.Registerer
}

// Canary is a controller-runtime Runnable that runs in every replica.
type Canary struct {
	Options

	total  *prometheus.CounterVec
	latest prometheus.Gauge
	before Result // of the latest attempt
}

// New returns a Canary and registers its metrics, akv_injector_canary_total{result} and
// akv_injector_canary_success_timestamp_seconds.
func New(o Options) *Canary {
	c := &Canary{
		Options: o,
		total: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_canary_total",
			Help: "Dry runs of a pod that requests injection, by result.",
		}, []string{"result"}),
		latest: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "akv_injector_canary_success_timestamp_seconds",
			Help: "When the canary's pod was last injected, in seconds since the Unix epoch; 0 if it never was.",
		}),
	}
	for _, result := range Results {
		c.total.WithLabelValues(string(result)) // so that the first one is an increase
	}
	o.Metrics.MustRegister(c.total, c.latest)
	return c
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false.
func (*Canary) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable. It calls Try at intervals until ctx ends.
func (c *Canary) Start(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait.Jitter(c.Interval, 0.1)):
		}
		c.Try(ctx)
	}
}

// Try makes one attempt, and logs its result if it differs from the previous one.
func (c *Canary) Try(ctx context.Context) {
	limited, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	result, detail := c.attempt(limited)
	if ctx.Err() != nil {
		return
	}
	c.total.WithLabelValues(string(result)).Inc()
	if result == Injected {
		c.latest.SetToCurrentTime()
	}
	if result == c.before {
		return
	}
	c.before = result
	if result == Injected {
		c.Log.Info("A pod that requests injection is injected")
	} else {
		c.Log.Error(nil, "A pod that requests injection is not injected", "result", result, "detail", detail)
	}
}

// attempt creates the pod and returns the result, with a detail unless the pod was injected.
func (c *Canary) attempt(ctx context.Context) (Result, string) {
	got, err := c.Client.CoreV1().Pods(c.Namespace).
		Create(ctx, pod(), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil && !isFailedCall(err) {
		return refusal(err), api.Cut(err.Error(), maxDetail)
	}
	found, lookupErr := c.Client.AdmissionregistrationV1().MutatingWebhookConfigurations().
		Get(ctx, configuration, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(lookupErr):
		found = &admissionregistrationv1.MutatingWebhookConfiguration{}
	case lookupErr != nil:
		return Failed, api.Cut(lookupErr.Error(), maxDetail)
	}
	at := slices.IndexFunc(found.Webhooks, c.callsOther)
	switch {
	case at >= 0:
		return OtherInstallation, fmt.Sprintf("webhook %s of MutatingWebhookConfiguration %s does not call Service %s",
			found.Webhooks[at].Name, configuration, c.Service)
	case err != nil:
		return failedCall(err.Error()), api.Cut(err.Error(), maxDetail)
	case !isInjected(got):
		return NotCalled, fmt.Sprintf("the pod came back without injection; check that MutatingWebhookConfiguration %s "+
			"exists, selects namespace %s and has failurePolicy Fail", configuration, c.Namespace)
	}
	return Injected, ""
}

// callsOther reports whether a webhook calls anything but this injector.
func (c *Canary) callsOther(hook admissionregistrationv1.MutatingWebhook) bool {
	to := hook.ClientConfig.Service
	return to == nil || to.Namespace != c.Service.Namespace || to.Name != c.Service.Name
}

// isInjected reports whether a pod has the label, and mounts a managed class in its container.
func isInjected(pod *corev1.Pod) bool {
	at := slices.IndexFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.CSI != nil && v.CSI.Driver == class.Driver && class.IsManagedName(v.CSI.VolumeAttributes[class.Attribute])
	})
	return pod.Labels[api.Injected] == "true" && at >= 0 &&
		slices.ContainsFunc(pod.Spec.Containers[0].VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == pod.Spec.Volumes[at].Name
		})
}

// isFailedCall reports whether the API server could not call a webhook of the injector. The API server
// passes on only a text (k8s.io/apiserver/pkg/util/webhook/error.go).
func isFailedCall(err error) bool {
	_, answered := errors.AsType[*apierrors.StatusError](err)
	return answered && strings.Contains(err.Error(), `failed calling webhook "pods.akv-injector.io"`)
}

// refusal returns the result of a creation that failed for another reason.
func refusal(err error) Result {
	switch {
	case apierrors.IsForbidden(err) && strings.Contains(err.Error(), `cannot create resource "pods"`):
		return Failed // RBAC
	case apierrors.IsForbidden(err), apierrors.IsInvalid(err), apierrors.IsBadRequest(err):
		return Rejected
	}
	return Failed
}

// failedCall returns the result of a call that failed, by its text.
func failedCall(text string) Result {
	contains := func(part string) bool { return strings.Contains(text, part) }
	switch {
	case contains("akv-injector could not review the request"): // an answer, which may quote other errors
		return Failed
	case slices.ContainsFunc([]string{"x509: ", "tls: "}, contains):
		return Certificate
	case slices.ContainsFunc([]string{
		"context deadline exceeded", "Client.Timeout exceeded", "i/o timeout", "handshake timeout",
	}, contains):
		return Late
	case slices.ContainsFunc([]string{
		"connection refused", "connection reset", "no endpoints available", "no such host", "no route to host",
		`service "`, "EOF",
	}, contains):
		return Unreachable
	}
	return Failed
}

// pod returns a pod that requests injection, and that meets the Pod Security level restricted.
func pod() *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: "canary",
			Annotations: map[string]string{
				api.IdentityMode:     string(api.ModeWorkloadIdentity),
				api.IdentityTenantID: tenantID,
				api.Vault:            "canary",
				api.Secrets:          "canary",
			},
		},
		Spec: corev1.PodSpec{
			ServiceAccountName: account,
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot:   new(true),
				RunAsUser:      new(int64(65532)),
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Containers: []corev1.Container{{
				Name:  "canary",
				Image: "canary", // which no kubelet pulls
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: new(false),
					Capabilities:             &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
}
