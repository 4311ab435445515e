// Package feed keeps a store like a cluster's objects of one kind: through lost connections, missing rights and kinds that the
// cluster does not know.
//
// It knows nothing of what is stored, or why.
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

// Kind is a kind of objects to follow.
type Kind struct {
	// Objects names them in logs, errors and metrics, such as "Namespaces".
	Objects string
	// ListWatch asks for them by Client, which knows whether lists can be streamed.
	ListWatch cache.ListWatch
	Client    any
	// Example is an object of the type that ListWatch deals in.
	Example any
	// Wake cuts short the wait before the next attempt. It may be nil.
	Wake <-chan struct{}
}

// Feed keeps a store like the cluster's objects of one kind. A kind that the cluster does not know is one without objects.
type Feed struct {
	objects   string
	store     cache.ReflectorStore
	reflector *cache.Reflector
	wake      <-chan struct{}

	filled       chan struct{} // closed once the store holds what there is
	fill         sync.Once
	trouble      atomic.Pointer[error]     // of the latest attempt
	failingSince atomic.Pointer[time.Time] // nil while requests are answered
	absent       atomic.Bool
}

// New returns a feed that keeps store like the objects of a kind. Nothing else may write to store.
func New(kind Kind, store cache.TransformingStore) *Feed {
	f := &Feed{objects: kind.Objects, wake: kind.Wake, filled: make(chan struct{})}
	noting := &notingStore{TransformingStore: store, feed: f}
	f.store = noting
	// The reflector keeps a watch that can't be had to itself, and tries again for as long as it takes, so each request is looked at.
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
	f.reflector = cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(observed, kind.Client), kind.Example, noting,
		cache.ReflectorOptions{Name: "feed", TypeDescription: kind.Objects})
	return f
}

// notingStore tells its feed when it is filled.
type notingStore struct {
	cache.TransformingStore
	feed *Feed
}

// Replace implements [cache.ReflectorStore]. It ends every list, so from then on the feed is in sync.
func (s *notingStore) Replace(objects []any, resourceVersion string) error {
	if err := s.TransformingStore.Replace(objects, resourceVersion); err != nil {
		return fmt.Errorf("store %s: %w", s.feed.objects, err)
	}
	s.feed.trouble.Store(nil)
	s.feed.fill.Do(func() { close(s.feed.filled) })
	return nil
}

// observe takes note of whether a list or a watch was to be had. That there is no such kind is an answer too.
func (f *Feed) observe(err error) {
	f.absent.Store(apierrors.IsNotFound(err))
	if err == nil || apierrors.IsNotFound(err) {
		f.failingSince.Store(nil)
		return
	}
	now := time.Now()
	f.failingSince.CompareAndSwap(nil, &now)
}

// Register adds the gauge akv_injector_facts_stale_seconds to a registry: a feed that lost the API server stays ready, and this tells.
func (f *Feed) Register(registry prometheus.Registerer) {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name:        "akv_injector_facts_stale_seconds",
		Help:        "Seconds since objects of a kind could last be listed or watched; 0 while they can be.",
		ConstLabels: prometheus.Labels{"objects": f.objects},
	}, func() float64 { return f.Failing().Seconds() }))
}

// Failing is for how long neither a list nor a watch of the objects has succeeded; 0 while one does.
func (f *Feed) Failing() time.Duration {
	if since := f.failingSince.Load(); since != nil {
		return time.Since(*since)
	}
	return 0
}

// Absent reports whether the cluster does not know the kind.
func (f *Feed) Absent() bool {
	return f.absent.Load()
}

// Filled is closed once the store holds the cluster's objects.
func (f *Feed) Filled() <-chan struct{} {
	return f.filled
}

// Ready says why the store does not hold the cluster's objects yet, or nil. Once it does, it stays ready.
func (f *Feed) Ready() error {
	select {
	case <-f.filled:
		return nil
	default:
	}
	if trouble := f.trouble.Load(); trouble != nil {
		return fmt.Errorf("read %s: %w", f.objects, *trouble)
	}
	return fmt.Errorf("read %s: %w", f.objects, errUnanswered)
}

var errUnanswered = errors.New("the API server has not answered yet")

// retry is how attempts follow each other. One that lasted starts over, as the connection that it lost was a good one.
var retry = wait.Backoff{Duration: 100 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 10, Cap: 30 * time.Second}

const lasting = time.Minute

// Run feeds the store until ctx, which has the logger, ends. The reflector's own loop would log an error every few seconds for a kind
// that the cluster does not know, and would keep objects of a kind that it no longer knows.
func (f *Feed) Run(ctx context.Context) {
	log := logr.FromContextOrDiscard(ctx).WithValues("objects", f.objects)
	ctx = logr.NewContext(ctx, log.V(1)) // a watch that ends is everyday life
	delay := retry
	var said string
	for {
		start := time.Now()
		err := f.reflector.ListAndWatchWithContext(ctx)
		if ctx.Err() != nil {
			return
		}
		if time.Since(start) > lasting {
			delay = retry
		}
		switch {
		case err == nil:
			said = ""
		case apierrors.IsNotFound(err):
			if err := f.store.Replace(nil, ""); err != nil {
				log.Error(err, "Could not forget objects of a kind that is gone")
			}
			said = ""
		default:
			f.trouble.Store(&err)
			if text := err.Error(); text != said { // once is enough: it is tried again for as long as it takes
				log.Error(err, "Objects may be out of date")
				said = text
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-f.wake:
			delay = retry
		case <-time.After(delay.Step()):
		}
	}
}
