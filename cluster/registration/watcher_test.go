package registration_test

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/akv-injector/akv-injector/cluster/registration"
)

// line has the fields of a log line that tests check.
type line struct{ Msg, Problem, Configuration string }

const (
	come = "The injector is not called as it should be"
	gone = "A problem with how the injector is called is gone"
)

// watching is a Watcher that runs until stop is called.
type watching struct {
	*registration.Watcher

	registry *prometheus.Registry
	lines    chan line // of its log
	stop     func()
}

func startWatcher(t *testing.T, client *fake.Clientset) *watching {
	t.Helper()
	w := &watching{registry: prometheus.NewPedanticRegistry(), lines: make(chan line, 100)}
	watcher := registration.NewWatcher(registration.Options{
		Client: client, Service: service, Metrics: w.registry,
		Log: funcr.NewJSON(func(text string) {
			var l line
			if err := json.Unmarshal([]byte(text), &l); err != nil {
				t.Error(err)
			}
			w.lines <- l
		}, funcr.Options{}),
	})
	w.Watcher = watcher
	if watcher.NeedLeaderElection() {
		t.Error("only one replica runs")
	}
	if got := w.problems(t); len(got) != 0 {
		t.Errorf("problems before the first check: %v", got)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	ended := make(chan error, 1)
	go func() { ended <- watcher.Start(ctx) }()
	w.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(w.stop)
	// The fake client does not send events of changes between a list and its watch.
	if err := wait.PollUntilContextCancel(ctx, time.Millisecond, true, func(context.Context) (bool, error) {
		return slices.ContainsFunc(client.Actions(), func(a clienttesting.Action) bool { return a.GetVerb() == "watch" }), nil
	}); err != nil {
		t.Fatalf("no watch: %v", err)
	}
	if got := w.problems(t); len(got) != 5 {
		t.Errorf("problems after the first check: %v", got)
	}
	return w
}

// next waits for a line of the log.
func (w *watching) next(t *testing.T, want line) {
	t.Helper()
	select {
	case got := <-w.lines:
		if got != want {
			t.Fatalf("logged %+v, want %+v", got, want)
		}
	case <-time.After(30 * time.Second):
		t.Fatalf("%+v is not logged", want)
	}
}

// TestWatcher adds, changes and deletes configurations. A problem is logged when it appears and
// when it is gone, and counted in between.
func TestWatcher(t *testing.T) {
	own := newConfiguration("akv-injector", ofPods("pods.akv-injector.io", at(service)))
	client := fake.NewClientset(own)
	w := startWatcher(t, client)
	ctx, configurations := t.Context(), client.AdmissionregistrationV1().MutatingWebhookConfigurations()

	if _, err := configurations.Create(ctx, newConfiguration("second", ofPods("pods.akv-injector.io", at(second))), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.next(t, line{come, "doubled", "second"})
	if _, err := configurations.Update(ctx, newConfiguration("akv-injector", open(own.Webhooks[0])), metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	w.next(t, line{come, "fails-open", "akv-injector"})
	if err := configurations.Delete(ctx, "second", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.next(t, line{gone, "doubled", "second"})
	if err := configurations.Delete(ctx, "akv-injector", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	w.next(t, line{come, "absent", ""})
	w.next(t, line{gone, "fails-open", "akv-injector"})

	w.stop()
	want := map[string]float64{"absent": 1, "elsewhere": 0, "late": 0, "doubled": 0, "fails-open": 0}
	if diff := cmp.Diff(want, w.problems(t)); diff != "" {
		t.Errorf("problems (-want +got):\n%s", diff)
	}
	if len(w.lines) > 0 {
		t.Errorf("also logged: %+v", <-w.lines)
	}
}

// TestExcludes checks which namespaces no label opts in.
func TestExcludes(t *testing.T) {
	excluding := func(webhook admissionregistrationv1.MutatingWebhook, namespaces ...string) admissionregistrationv1.MutatingWebhook {
		webhook.NamespaceSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
			{Key: "keyvault.io/injection", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"shop"}},
			{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpNotIn, Values: namespaces},
		}}
		return webhook
	}
	only := func(webhook admissionregistrationv1.MutatingWebhook) admissionregistrationv1.MutatingWebhook {
		webhook.NamespaceSelector.MatchExpressions[1].Operator = metav1.LabelSelectorOpIn
		return webhook
	}
	ours, theirs := ofPods("pods.akv-injector.io", at(service)), ofPods("pods.akv-injector.io", at(second))
	for behaviour, test := range map[string]struct {
		webhooks []admissionregistrationv1.MutatingWebhook
		want     bool // whether kube-system is excluded
	}{
		"all webhooks exclude it":                {[]admissionregistrationv1.MutatingWebhook{excluding(ours, "kube-system", "x"), excluding(ours, "kube-system")}, true},
		"a webhook selects it alone":             {[]admissionregistrationv1.MutatingWebhook{only(excluding(ours, "kube-system"))}, false},
		"one webhook excludes it":                {[]admissionregistrationv1.MutatingWebhook{excluding(ours, "kube-system"), excluding(ours, "x")}, false},
		"no webhook has a selector":              {[]admissionregistrationv1.MutatingWebhook{ours}, false},
		"the webhook of another injector has it": {[]admissionregistrationv1.MutatingWebhook{excluding(theirs, "kube-system")}, false},
		"there is no webhook":                    {nil, false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			stranger := newConfiguration("stranger", ofPods("pods.example.com", atURL("https://192.0.2.7")))
			w := startWatcher(t, fake.NewClientset(newConfiguration("akv-injector", test.webhooks...), stranger))
			if got := w.Excludes("kube-system"); got != test.want {
				t.Errorf("kube-system is excluded: %t, want %t", got, test.want)
			}
			if w.Excludes("shop") {
				t.Error("shop is excluded")
			}
		})
	}
}

// TestWatcherMissesNothing ends the watch while a configuration is deleted.
func TestWatcherMissesNothing(t *testing.T) {
	client := fake.NewClientset(newConfiguration("akv-injector", ofPods("pods.akv-injector.io", at(service))))
	events := watch.NewFake()
	client.PrependWatchReactor("*", func(clienttesting.Action) (bool, watch.Interface, error) { return true, events, nil })
	w := startWatcher(t, client)
	if err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Delete(t.Context(), "akv-injector", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	events.Error(&metav1.Status{Status: metav1.StatusFailure, Code: http.StatusGone, Reason: metav1.StatusReasonExpired})
	w.next(t, line{come, "absent", ""})
}

// problems returns the samples of akv_injector_configuration_problems.
func (w *watching) problems(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	samples := map[string]float64{}
	for _, family := range families {
		if !strings.HasSuffix(family.GetName(), "configuration_problems") {
			continue
		}
		for _, m := range family.GetMetric() {
			samples[m.GetLabel()[0].GetValue()] = m.GetGauge().GetValue()
		}
	}
	return samples
}
