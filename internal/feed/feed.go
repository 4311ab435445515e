// Package feed watches one kind of objects and writes them to a store. It retries for as long as it
// runs: after lost connections, without the necessary permissions, and while the cluster does not
// have the kind.
//
//	secrets := feed.NewObjects[*corev1.Secret](onChange)
//	f := feed.New(feed.Kind{
//		Plural:    "Secrets",
//		ListWatch: feed.ListWatch(client.CoreV1().Secrets(namespace), nil),
//		Client:    client,
//		Example:   &corev1.Secret{},
//	}, secrets)
//	go f.Run(ctx)
//	<-f.Filled()
//
// A store that needs less than whole objects implements [cache.TransformingStore] itself. [Objects]
// is the store for a kind with few objects.
//
// The package does not resynchronize stores, and it does not index, interpret or change what it
// stores.
package feed

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// Kind describes the objects to watch.
type Kind struct {
	// Plural names them in logs, errors and metrics, such as "Namespaces".
	Plural string
	// ListWatch lists and watches the objects; see [ListWatch].
	ListWatch cache.ListWatch
	// Client is the client set that ListWatch uses. The reflector checks whether it supports
	// streamed lists.
	Client any
	// Example is an object of the type that ListWatch returns.
	Example any
	// Wake ends the wait before the next attempt. It may be nil.
	Wake <-chan struct{}
}

// A Client lists and watches the objects of one kind, as the clients of client-go do. L is the type
// of the list.
type Client[L runtime.Object] interface {
	List(ctx context.Context, options metav1.ListOptions) (L, error)
	Watch(ctx context.Context, options metav1.ListOptions) (watch.Interface, error)
}

// ListWatch returns functions that list and watch by client. If restrict is not nil, it sets
// selectors in the options of each request.
func ListWatch[L runtime.Object](client Client[L], restrict func(*metav1.ListOptions)) cache.ListWatch {
	if restrict == nil {
		restrict = func(*metav1.ListOptions) {}
	}
	return cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			restrict(&options)
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			restrict(&options)
			return client.Watch(ctx, options)
		},
	}
}

// Feed keeps a store equal to the cluster's objects of one kind. If the cluster does not have the
// kind, the store is empty.
type Feed struct {
	objects   string
	store     cache.ReflectorStore
	reflector *cache.Reflector
	wake      <-chan struct{}

	filled       chan struct{} // closed after the first complete list
	fill         sync.Once
	latestErr    atomic.Pointer[error]     // of the latest attempt
	failingSince atomic.Pointer[time.Time] // nil while requests succeed
	absent       atomic.Bool
}

// New returns a feed that writes the objects of a kind to store while [Feed.Run] runs. Nothing else
// may write to store.
func New(kind Kind, store cache.TransformingStore) *Feed {
	f := &Feed{objects: kind.Plural, wake: kind.Wake, filled: make(chan struct{})}
	noting := &notingStore{TransformingStore: store, feed: f}
	f.store = noting
	// The reflector retries a failed watch without returning an error, so the feed observes each
	// request.
	observed := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := kind.ListWatch.ListWithContextFunc(ctx, options)
			f.observe(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			events, err := kind.ListWatch.WatchFuncWithContext(ctx, options)
			f.observe(err)
			return events, err
		},
	}
	f.reflector = cache.NewReflectorWithOptions(
		cache.ToListWatcherWithWatchListSemantics(observed, kind.Client), kind.Example, noting,
		cache.ReflectorOptions{Name: "feed", TypeDescription: kind.Plural},
	)
	return f
}

// notingStore records in its feed that the store is filled.
type notingStore struct {
	cache.TransformingStore
	feed *Feed
}

// Replace implements [cache.ReflectorStore]. The reflector calls it at the end of every list.
func (s *notingStore) Replace(objects []any, resourceVersion string) error {
	if err := s.TransformingStore.Replace(objects, resourceVersion); err != nil {
		return fmt.Errorf("store %s: %w", s.feed.objects, err)
	}
	s.feed.latestErr.Store(nil)
	s.feed.fill.Do(func() { close(s.feed.filled) })
	return nil
}

// observe records whether a list or a watch succeeded. NotFound counts as success: the API server
// answered.
func (f *Feed) observe(err error) {
	f.absent.Store(apierrors.IsNotFound(err))
	if err == nil || apierrors.IsNotFound(err) {
		f.failingSince.Store(nil)
		return
	}
	now := time.Now()
	f.failingSince.CompareAndSwap(nil, &now)
}

// Register adds the gauge akv_injector_facts_stale_seconds to a registry, with the label objects.
// [Feed.Ready] does not report a feed that loses the API server after its first list; the gauge
// does.
func (f *Feed) Register(registry prometheus.Registerer) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "akv_injector_facts_stale_seconds",
		Help:        "Seconds since objects of a kind could last be listed or watched; 0 while they can be.",
		ConstLabels: prometheus.Labels{"objects": f.objects},
	}, func() float64 { return f.Failing().Seconds() }))
}

// Failing returns the time since the first of the current series of failed lists and watches; 0 if
// the latest one succeeded.
func (f *Feed) Failing() time.Duration {
	if since := f.failingSince.Load(); since != nil {
		return time.Since(*since)
	}
	return 0
}

// Absent reports whether the cluster does not have the kind.
func (f *Feed) Absent() bool {
	return f.absent.Load()
}

// Filled returns a channel that is closed once the store holds the cluster's objects.
func (f *Feed) Filled() <-chan struct{} {
	return f.filled
}

// IsFilled reports whether the store has held the cluster's objects. Once true, it stays true.
func (f *Feed) IsFilled() bool {
	select {
	case <-f.filled:
		return true
	default:
		return false
	}
}

// Err returns the error of the latest attempt to list the objects; nil before the first attempt
// ends and after each list.
func (f *Feed) Err() error {
	if err := f.latestErr.Load(); err != nil {
		return *err
	}
	return nil
}

// Ready returns why the store does not hold the cluster's objects yet, or nil. Once it returns nil,
// it always does.
func (f *Feed) Ready() error {
	if f.IsFilled() {
		return nil
	}
	err := f.Err()
	if err == nil {
		err = errUnanswered
	}
	return fmt.Errorf("read %s: %w", f.objects, err)
}

var errUnanswered = errors.New("the API server has not answered yet")

// backoff is the delay between attempts. After an attempt that lasted longer than stable, the delay
// starts again at its minimum.
var backoff = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 10, Cap: 30 * time.Second}

const stable = time.Minute

// Run writes to the store until ctx ends. It logs to the logger of ctx, at error level once for
// each different error in a row.
//
// Run replaces the reflector's own loop, which logs an error every few seconds for a kind that the
// cluster does not have, and which keeps the objects of a kind that was removed.
func (f *Feed) Run(ctx context.Context) {
	log := logr.FromContextOrDiscard(ctx).WithValues("objects", f.objects)
	ctx = logr.NewContext(ctx, log.V(1)) // the reflector logs each watch that ends, which is normal
	delay := backoff
	var logged string
	for {
		start := time.Now()
		err := f.reflector.ListAndWatchWithContext(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > stable {
			delay = backoff
		}
		switch {
		case err == nil:
			logged = ""
		case apierrors.IsNotFound(err):
			if err := f.store.Replace(nil, ""); err != nil {
				log.Error(err, "Could not forget objects of a kind that is gone")
			}
			logged = ""
		default:
			f.latestErr.Store(&err)
			if text := err.Error(); text != logged {
				log.Error(err, "Objects may be out of date")
				logged = text
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			delay = backoff
		case <-time.After(delay.Step()):
		}
	}
}
