package registration

import (
	"context"
	"slices"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/internal/feed"
)

// Options configure a Watcher and an Exposure. Every field is required.
type Options struct {
	// Client reads from the API server. A Watcher needs list and watch on all
	// MutatingWebhookConfigurations: RBAC has no narrower permission that shows names and
	// selectors, and these objects hold no secrets. An Exposure needs list on the EndpointSlices of
	// the Service's namespace.
	Client kubernetes.Interface
	// Service is the Service by which the API server calls this injector.
	Service types.NamespacedName
	Log     logr.Logger
	// Metrics is the registry for the metrics of the Watcher or Exposure.
	Metrics prometheus.Registerer
}

// Watcher runs [Check] on the cluster's MutatingWebhookConfigurations after the first list and
// after every change, and logs problems that appear and disappear. It is a controller-runtime
// Runnable that runs in every replica.
type Watcher struct {
	service  types.NamespacedName
	log      logr.Logger
	problems *prometheus.GaugeVec
	feed     *feed.Feed

	configurations *feed.Objects[*admissionregistrationv1.MutatingWebhookConfiguration]
	found          []Problem // by the latest check; only the feed's goroutine uses it
}

// NewWatcher returns a watcher and registers two gauges:
// akv_injector_configuration_problems{problem}, which has series from the first check on, and
// akv_injector_facts_stale_seconds{objects="MutatingWebhookConfigurations"}, which grows while the
// watcher cannot read the configurations.
func NewWatcher(o Options) *Watcher {
	w := &Watcher{service: o.Service, log: o.Log}
	w.problems = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "akv_injector_configuration_problems",
		Help: "What in the cluster's MutatingWebhookConfigurations keeps the injector from its work now, by kind of problem.",
	}, []string{"problem"})
	o.Metrics.MustRegister(w.problems)
	w.configurations = feed.NewObjects[*admissionregistrationv1.MutatingWebhookConfiguration](w.check)
	w.feed = feed.New(feed.Kind{
		Plural:    "MutatingWebhookConfigurations",
		ListWatch: feed.ListWatch(o.Client.AdmissionregistrationV1().MutatingWebhookConfigurations(), nil),
		Client:    o.Client,
		Example:   &admissionregistrationv1.MutatingWebhookConfiguration{},
	}, w.configurations)
	w.feed.Register(o.Metrics)
	return w
}

// Start implements controller-runtime's Runnable. It checks until ctx ends, and retries after
// errors.
func (w *Watcher) Start(ctx context.Context) error {
	w.feed.Run(logr.NewContext(ctx, w.log))
	return nil
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false:
// every replica logs the problems.
func (w *Watcher) NeedLeaderElection() bool {
	return false
}

// Excludes reports whether the configurations that call this injector exclude a namespace by its
// name, so that no label opts it in. It returns false if no configuration calls this injector.
func (w *Watcher) Excludes(namespace string) bool {
	excluded := false
	for _, c := range w.configurations.All() {
		if !isInjector(c) || !callsService(c, w.service) && !callsURL(c) {
			continue
		}
		for _, hook := range c.Webhooks {
			if hook.NamespaceSelector == nil || !slices.ContainsFunc(hook.NamespaceSelector.MatchExpressions,
				func(e metav1.LabelSelectorRequirement) bool {
					return e.Key == corev1.LabelMetadataName && e.Operator == metav1.LabelSelectorOpNotIn &&
						slices.Contains(e.Values, namespace)
				}) {
				return false
			}
			excluded = true
		}
	}
	return excluded
}

// check logs how the problems differ from those of the previous check.
func (w *Watcher) check() {
	found := Check(w.service, w.configurations.All())
	counts := map[ProblemType]int{}
	for _, f := range found {
		counts[f.Type]++
		if slices.Contains(w.found, f) {
			continue
		}
		values := []any{"problem", f.Type, "configuration", f.Configuration, "found", f.Found, "fix", f.Fix}
		if f.Type == FailsOpen {
			w.log.Info("The injector is not called as it should be", values...)
		} else {
			w.log.Error(nil, "The injector is not called as it should be", values...)
		}
	}
	for _, f := range w.found {
		if !slices.Contains(found, f) {
			w.log.Info("A problem with how the injector is called is gone", "problem", f.Type, "configuration", f.Configuration)
		}
	}
	for _, p := range problems {
		w.problems.WithLabelValues(string(p)).Set(float64(counts[p]))
	}
	w.found = found
}
