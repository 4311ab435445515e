package registration

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/cluster/feed"
)

// Options are what a Watcher takes.
type Options struct {
	// Client asks for the configurations. It needs list and watch on all of them: RBAC has no lesser right that shows names and selectors, and
	// what they hold besides is no secret.
	Client kubernetes.Interface
	// Service is by which the API server calls this injector.
	Service types.NamespacedName
	Log     logr.Logger
	// Metrics is where the Watcher's metrics are registered.
	Metrics prometheus.Registerer
}

// Watcher checks the cluster's MutatingWebhookConfigurations as soon as they are known and whenever one changes. It is a controller-runtime
// Runnable that every replica runs.
type Watcher struct {
	feed  *feed.Feed
	store *store
	log   logr.Logger
}

// NewWatcher is a watcher that checks from Start on. It registers the gauges akv_injector_configuration_problems{problem}, which is there from
// the first check on, and akv_injector_facts_stale_seconds{objects="MutatingWebhookConfigurations"}, which tells that it can't check.
func NewWatcher(o Options) *Watcher {
	s := &store{service: o.Service, log: o.Log, known: map[string]*admissionregistrationv1.MutatingWebhookConfiguration{}}
	s.problems = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "akv_injector_configuration_problems",
		Help: "What in the cluster's MutatingWebhookConfigurations keeps the injector from its work now, by kind of problem.",
	}, []string{"problem"})
	o.Metrics.MustRegister(s.problems)
	all := o.Client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	f := feed.New(feed.Kind{
		Objects: "MutatingWebhookConfigurations",
		ListWatch: cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				return all.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				return all.Watch(ctx, options)
			},
		},
		Client:  o.Client,
		Example: &admissionregistrationv1.MutatingWebhookConfiguration{},
	}, s)
	f.Register(o.Metrics)
	return &Watcher{feed: f, store: s, log: o.Log}
}

// Start implements controller-runtime's Runnable: it checks until ctx ends, through whatever trouble.
func (w *Watcher) Start(ctx context.Context) error {
	w.feed.Run(logr.NewContext(ctx, w.log))
	return nil
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable: whoever reads the log of any replica is to find it there.
func (w *Watcher) NeedLeaderElection() bool {
	return false
}

// store is what the feed writes to, from one goroutine, and where each write is followed by a check.
type store struct {
	service  types.NamespacedName
	log      logr.Logger
	problems *prometheus.GaugeVec

	known map[string]*admissionregistrationv1.MutatingWebhookConfiguration
	found []Problem // by the last check
}

// check says what has come and what is gone since the last one.
func (s *store) check() {
	found := Check(s.service, slices.Collect(maps.Values(s.known)))
	counts := map[ProblemType]int{}
	for _, f := range found {
		counts[f.Type]++
		if slices.Contains(s.found, f) {
			continue
		}
		values := []any{"problem", f.Type, "configuration", f.Configuration, "found", f.Found, "fix", f.Fix}
		if f.Type == FailsOpen {
			s.log.Info("The injector is not called as it should be", values...)
		} else {
			s.log.Error(nil, "The injector is not called as it should be", values...)
		}
	}
	for _, f := range s.found {
		if !slices.Contains(found, f) {
			s.log.Info("A problem with how the injector is called is gone", "problem", f.Type, "configuration", f.Configuration)
		}
	}
	for _, p := range problems {
		s.problems.WithLabelValues(string(p)).Set(float64(counts[p]))
	}
	s.found = found
}

func (s *store) put(object any) error {
	c, ok := object.(*admissionregistrationv1.MutatingWebhookConfiguration)
	if !ok {
		return fmt.Errorf("must be a MutatingWebhookConfiguration, is %T", object)
	}
	s.known[c.Name] = c
	return nil
}

// Add implements [cache.ReflectorStore].
func (s *store) Add(object any) error {
	if err := s.put(object); err != nil {
		return err
	}
	s.check()
	return nil
}

// Update implements [cache.ReflectorStore].
func (s *store) Update(object any) error {
	return s.Add(object)
}

// Delete implements [cache.ReflectorStore].
func (s *store) Delete(object any) error {
	c, ok := object.(*admissionregistrationv1.MutatingWebhookConfiguration)
	if !ok {
		return fmt.Errorf("must be a MutatingWebhookConfiguration, is %T", object)
	}
	delete(s.known, c.Name)
	s.check()
	return nil
}

// Replace implements [cache.ReflectorStore].
func (s *store) Replace(objects []any, _ string) error {
	clear(s.known)
	for _, object := range objects {
		if err := s.put(object); err != nil {
			return err
		}
	}
	s.check()
	return nil
}

// Resync implements [cache.ReflectorStore].
func (s *store) Resync() error {
	return nil
}

// Transformer implements [cache.TransformingStore].
func (s *store) Transformer() cache.TransformFunc {
	return nil
}
