package canary_test

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/akv-injector/akv-injector/controller/canary"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

var service = types.NamespacedName{Namespace: "akv-injector-system", Name: "akv-injector"}

// injected adds what the injector adds to the canary's pod.
func injected(p *corev1.Pod) {
	p.Labels = map[string]string{api.Injected: "true"}
	p.Spec.Volumes = []corev1.Volume{{Name: "keyvault", VolumeSource: corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{
		Driver: class.Driver, VolumeAttributes: map[string]string{class.Attribute: "kv-0123456789"},
	}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "keyvault", MountPath: "/mnt/secrets-store"}}
}

// calling returns a webhook configuration that calls a Service; with an empty name, a URL.
func calling(namespace, name string) *admissionregistrationv1.MutatingWebhookConfiguration {
	to := admissionregistrationv1.WebhookClientConfig{URL: new("https://192.0.2.7/mutate/pods")}
	if name != "" {
		to = admissionregistrationv1.WebhookClientConfig{
			Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: name},
		}
	}
	return &admissionregistrationv1.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "akv-injector"},
		Webhooks:   []admissionregistrationv1.MutatingWebhook{{Name: "pods.akv-injector.io", ClientConfig: to}},
	}
}

var own = calling(service.Namespace, service.Name)

// failing returns the error of an API server that could not call a webhook.
func failing(webhook, why string) error {
	return apierrors.NewInternalError(errors.New(`failed calling webhook "` + webhook + `": failed to call webhook: ` + why))
}

// status returns an error of the API server.
func status(code int32, reason metav1.StatusReason, message string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{Status: metav1.StatusFailure, Code: code, Reason: reason, Message: message}}
}

// TestResults has the answers of an API server to the canary's pod, and the result of each.
func TestResults(t *testing.T) {
	const (
		webhook = "pods.akv-injector.io"
		post    = `Post "https://akv-injector.akv-injector-system.svc:443/mutate/pods?timeout=5s": `
	)
	resource := schema.GroupResource{Resource: "pods"}
	for behaviour, test := range map[string]struct {
		change        func(*corev1.Pod)
		err           error
		configuration *admissionregistrationv1.MutatingWebhookConfiguration
		want          canary.Result
	}{
		"the pod is injected":                         {change: injected, configuration: own, want: canary.Injected},
		"the pod comes back unchanged":                {configuration: own, want: canary.NotCalled},
		"there is no webhook configuration":           {want: canary.NotCalled},
		"the pod has the label alone":                 {change: func(p *corev1.Pod) { p.Labels = map[string]string{api.Injected: "true"} }, configuration: own, want: canary.NotCalled},
		"the volume is not mounted":                   {change: func(p *corev1.Pod) { injected(p); p.Spec.Containers[0].VolumeMounts = nil }, configuration: own, want: canary.NotCalled},
		"another Service is called, and injects":      {change: injected, configuration: calling("team", service.Name), want: canary.OtherInstallation},
		"another Service is called, and is not there": {err: failing(webhook, `service "akv" not found`), configuration: calling(service.Namespace, "akv"), want: canary.OtherInstallation},
		"a URL is called":                             {configuration: calling("", ""), want: canary.OtherInstallation},
		"the certificate is of another CA":            {err: failing(webhook, post+"tls: failed to verify certificate: x509: certificate signed by unknown authority"), configuration: own, want: canary.Certificate},
		"the injector demands a client certificate":   {err: failing(webhook, post+"remote error: tls: certificate required"), configuration: own, want: canary.Certificate},
		"the injector hangs":                          {err: failing(webhook, post+"context deadline exceeded"), configuration: own, want: canary.Late},
		"the network drops packets":                   {err: failing(webhook, post+"dial tcp 10.0.0.7:443: i/o timeout"), configuration: own, want: canary.Late},
		"no replica listens":                          {err: failing(webhook, post+"dial tcp 10.0.0.7:443: connect: connection refused"), configuration: own, want: canary.Unreachable},
		"no replica is ready":                         {err: failing(webhook, post+`no endpoints available for service "akv-injector"`), configuration: own, want: canary.Unreachable},
		"the Service is missing":                      {err: failing(webhook, post+`service "akv-injector" not found`), configuration: own, want: canary.Unreachable},
		"the injector answers with an error":          {err: failing(webhook, `an error on the server ("akv-injector could not review the request; a retry may succeed: context deadline exceeded") has prevented the request from succeeding`), configuration: own, want: canary.Failed},
		"the webhook of another program fails":        {err: failing("mutation.azure-workload-identity.io", post+"context deadline exceeded"), configuration: own, want: canary.Failed},
		"the injector rejects the pod":                {err: status(http.StatusUnprocessableEntity, metav1.StatusReasonInvalid, `admission webhook "pods.akv-injector.io" denied the request: [TenantIDRequired]`), configuration: own, want: canary.Rejected},
		"a policy rejects the pod":                    {err: apierrors.NewForbidden(resource, "canary", errors.New("violates PodSecurity")), configuration: own, want: canary.Rejected},
		"a webhook does not support dry runs":         {err: apierrors.NewBadRequest(`admission webhook "x" does not support dry run`), configuration: own, want: canary.Rejected},
		"the right is missing":                        {err: apierrors.NewForbidden(resource, "", errors.New(`User "system:serviceaccount:akv-injector-system:akv-injector" cannot create resource "pods" in API group "" in the namespace "canary"`)), want: canary.Failed},
		"the namespace is missing":                    {err: apierrors.NewNotFound(schema.GroupResource{Resource: "namespaces"}, "canary"), want: canary.Failed},
		"the API server does not answer":              {err: context.DeadlineExceeded, want: canary.Failed},
	} {
		t.Run(behaviour, func(t *testing.T) {
			client := fake.NewClientset()
			if test.configuration != nil {
				client = fake.NewClientset(test.configuration)
			}
			client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
				create, ok := action.(clienttesting.CreateActionImpl)
				if !ok || !cmp.Equal(create.CreateOptions.DryRun, []string{metav1.DryRunAll}) || create.GetNamespace() != "canary" {
					t.Errorf("the request must be a dry run in the canary's namespace, is %+v", action)
				}
				p := create.GetObject().DeepCopyObject().(*corev1.Pod) //nolint:forcetypeassert // a pod is created
				if test.change != nil {
					test.change(p)
				}
				return true, p, test.err
			})
			registry := prometheus.NewRegistry()
			c := canary.New(canary.Options{Client: client, Namespace: "canary", Interval: time.Minute, Service: service, Metrics: registry})
			before := time.Now()
			c.Try(t.Context())
			counts, success := gather(t, registry)
			want := map[canary.Result]float64{}
			for _, result := range canary.Results {
				want[result] = 0
			}
			want[test.want] = 1
			if diff := cmp.Diff(want, counts); diff != "" {
				t.Errorf("akv_injector_canary_total (-want +got):\n%s", diff)
			}
			if got := success >= float64(before.Unix()); got != (test.want == canary.Injected) {
				t.Errorf("the time of the latest success is %v", success)
			}
		})
	}
}

// TestLog checks that a result is logged when it changes only.
func TestLog(t *testing.T) {
	client := fake.NewClientset(own)
	inject := false
	client.PrependReactor("create", "pods", func(action clienttesting.Action) (bool, runtime.Object, error) {
		p := action.(clienttesting.CreateAction).GetObject().(*corev1.Pod) //nolint:forcetypeassert // a pod is created
		if inject {
			injected(p)
		}
		return true, p, nil
	})
	type line struct{ Msg, Result string }
	var lines []line
	log := funcr.NewJSON(func(text string) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Error(err)
		}
		lines = append(lines, l)
	}, funcr.Options{})
	c := canary.New(canary.Options{Client: client, Namespace: "canary", Service: service, Log: log, Metrics: prometheus.NewRegistry()})
	for _, inject = range []bool{false, false, true, true, false} {
		c.Try(t.Context())
	}
	const good, bad = "A pod that requests injection is injected", "A pod that requests injection is not injected"
	if diff := cmp.Diff([]line{{bad, "not-called"}, {good, ""}, {bad, "not-called"}}, lines); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
}

// gather returns the values of the canary's metrics.
func gather(t *testing.T, registry *prometheus.Registry) (counts map[canary.Result]float64, success float64) {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts = map[canary.Result]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == "akv_injector_canary_total" {
				counts[canary.Result(m.GetLabel()[0].GetValue())] = m.GetCounter().GetValue()
			} else {
				success = m.GetGauge().GetValue()
			}
		}
	}
	return counts, success
}
