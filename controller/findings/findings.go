// Package findings tells the authors of workloads and pods what only an admission warning said, or
// what no admission saw: it writes events on these objects, and counts them in a metric. Users of
// GitOps tools see no warnings, and a pod that was created while the API server did not call the
// injector got none.
//
//	finder := findings.New(findings.Options{
//		Live: live, Cache: cached, Client: client, Excludes: watcher.Excludes,
//		Defaults: defaults, Log: log, Metrics: metrics.Registry,
//	})
//	mgr.Add(finder)
//
// The package watches the workloads that an author writes, and pods. It keeps a few hundred bytes
// of each object that has an annotation of the injector, and nothing of the others. It reviews an
// object as the webhook does, with package review, some seconds after the object or the facts about
// its namespace changed: objects that are applied together arrive in any order.
//
// Every replica runs it. The name of an event is a hash of its content, so two replicas, or a
// restart, write it once. The package rejects and changes nothing.
package findings

import (
	"context"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/time/rate"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/util/workqueue"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/fair"
	"github.com/akv-injector/akv-injector/internal/feed"
)

const (
	// maxFindings is the number of findings, and so of events, of one object at a time.
	maxFindings = 5
	// maxEvents is the number of events that a replica writes in a minute. Namespaces share it
	// fairly: one namespace gets at most half of it.
	maxEvents = 120
	// maxReviews is the number of objects that are read from the API server and reviewed in a
	// second.
	maxReviews = 50
	// logInterval is the least time between two errors in the log: many objects may have the same.
	logInterval = time.Minute
)

// delays are the delays between the steps of a [Finder].
type delays struct {
	// settle is the delay between a change and the review.
	settle time.Duration
	// retry is the delay after a failed review or event, and while there are too many events.
	retry time.Duration
	// window is the time in which at most maxEvents events are written.
	window time.Duration
}

// Options configure a [Finder]. Every field is required.
type Options struct {
	// Live reads objects. Cache supplies the facts by which they are reviewed. New registers
	// handlers with it, so it must not be started yet.
	Live  *cluster.Live
	Cache *cluster.Cache
	// Client creates events.
	Client kubernetes.Interface
	// Excludes reports whether the webhook configurations exclude a namespace by its name.
	Excludes func(namespace string) bool
	// Defaults must equal those of the webhook.
	Defaults inject.Defaults
	Log      logr.Logger
	Metrics  prometheus.Registerer
}

// Finder finds and reports. It is a controller-runtime Runnable that runs in every replica.
type Finder struct {
	Options

	reviewer review.Reviewer
	delays   delays
	instance string // of the event's reporter
	feeds    []*feed.Feed
	found    *prometheus.GaugeVec
	events   *fair.Capacity[string] // by namespace
	reviews  *rate.Limiter

	// queue has the namespaces with units that are due. Each turn of a namespace handles one unit.
	queue  workqueue.TypedDelayingInterface[string]
	logged time.Time // when an error was logged; only turn uses it

	mu sync.Mutex
	table
}

// New returns a Finder. It registers the gauge akv_injector_findings{reason}, and
// akv_injector_facts_stale_seconds for each kind that it watches.
func New(o Options) *Finder {
	f := &Finder{
		Options:  o,
		reviewer: review.Reviewer{Source: settled{o.Cache}, Defaults: o.Defaults},
		delays:   delays{settle: 10 * time.Second, retry: 5 * time.Second, window: time.Minute},
		instance: instance(),
		found: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "akv_injector_findings",
			Help: "Workloads and pods with a finding now, by Reason. The pods of one controller count as one.",
		}, []string{"reason"}),
		events:  fair.NewCapacity[string](maxEvents),
		reviews: rate.NewLimiter(maxReviews, maxReviews),
		queue:   workqueue.NewTypedDelayingQueue[string](),
		table:   newTable(),
	}
	for i := range api.Reasons {
		f.found.WithLabelValues(string(api.Reasons[i].Reason)) // so that every series exists
	}
	o.Metrics.MustRegister(f.found)
	for _, k := range kinds {
		watched := feed.New(feed.Kind{
			Plural: k.name + "s", ListWatch: k.stream(o.Live.Raw).ListWatch(), Client: o.Live.Raw, Example: &object{},
		}, &store{f, k})
		watched.Register(o.Metrics)
		f.feeds = append(f.feeds, watched)
	}
	o.Cache.OnFacts(f.factsChanged)
	return f
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false.
func (*Finder) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable. It finds and reports until ctx ends.
func (f *Finder) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	defer context.AfterFunc(ctx, f.queue.ShutDown)()
	// Reviews and managed classes are more urgent: their objects are read first. One kind is read
	// after the other, which takes less memory.
	if f.Cache.AwaitFilled(ctx) != nil {
		return nil
	}
	select {
	case <-ctx.Done():
		return nil
	case <-time.After(f.delays.settle):
	}
	for _, watched := range f.feeds {
		running.Go(func() { watched.Run(logr.NewContext(ctx, f.Log)) })
		select {
		case <-ctx.Done():
			return nil
		case <-watched.Filled():
		}
	}
	for { // only now: which findings a pod has depends on its workload
		namespace, ended := f.queue.Get()
		if ended {
			return nil
		}
		f.turn(ctx, namespace)
		f.queue.Done(namespace)
	}
}

// factsChanged makes all units of a namespace due; with an empty name, those of all namespaces.
func (f *Finder) factsChanged(namespace string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, units := range f.namespaces {
		if namespace != "" && namespace != name {
			continue
		}
		for _, u := range units {
			f.change(u)
		}
		f.queue.AddAfter(name, f.delays.settle)
	}
}

// change makes a unit due for a review. The caller enqueues its namespace. mu must be locked.
func (f *Finder) change(u *unit) {
	u.changes++
	if u.due.IsZero() {
		u.due = time.Now().Add(f.delays.settle)
	}
}

// turn handles one unit of a namespace that is due, and enqueues the namespace again if there are
// more. So each namespace with changes has its turn.
func (f *Finder) turn(ctx context.Context, namespace string) {
	u, due := f.next(namespace)
	if u == nil {
		if !due.IsZero() {
			f.queue.AddAfter(namespace, time.Until(due))
		}
		return
	}
	delay, err := f.handle(ctx, u)
	if err != nil && ctx.Err() == nil && time.Since(f.logged) > logInterval {
		f.logged = time.Now()
		f.Log.Error(err, "Findings may be missing", "namespace", namespace)
	}
	if delay > 0 {
		f.mu.Lock()
		if u.due.IsZero() {
			u.due = time.Now().Add(delay)
		}
		f.mu.Unlock()
	}
	f.queue.Add(namespace)
}

// handle reviews a unit if it has changed, and writes its events. It returns the delay after which
// the rest must be done; 0 if nothing is left.
func (f *Finder) handle(ctx context.Context, u *unit) (time.Duration, error) {
	if s := f.subjectOf(u); s.changes != s.reviewed {
		list, err := f.review(ctx, s)
		if err != nil {
			return f.delays.retry, err
		}
		f.record(u, s, list)
	}
	for _, n := range f.unwritten(u) {
		if !f.events.TryAcquire(u.namespace, 1) {
			return f.delays.retry, nil
		}
		time.AfterFunc(f.delays.window, func() { f.events.Release(u.namespace, 1) })
		if err := f.write(ctx, n); err != nil {
			return f.delays.retry, err
		}
		f.mu.Lock()
		u.written[n.name] = true
		f.mu.Unlock()
	}
	return 0, nil
}
