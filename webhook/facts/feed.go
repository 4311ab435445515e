package facts

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// feed keeps a store like the cluster's objects of one kind. A kind that the cluster does not know is one without objects.
type feed struct {
	cache.TransformingStore

	// objects names what is fed, for logs and errors.
	objects   string
	reflector *cache.Reflector
	// wake cuts short the wait before the next attempt. It may be nil.
	wake <-chan struct{}

	synced       atomic.Bool
	trouble      atomic.Pointer[error]     // of the latest attempt
	failingSince atomic.Pointer[time.Time] // nil while requests are answered
}

// follow is the feed of what source, which asks by client, lists and watches into store. Example is an object of the type that source
// deals in.
func follow(objects string, source cache.ListWatch, client, example any, store cache.TransformingStore, wake <-chan struct{}) *feed {
	f := &feed{TransformingStore: store, objects: objects, wake: wake}
	// The reflector keeps a watch that can't be had to itself, and tries again for as long as it takes, so each request is looked at.
	observed := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			list, err := source.ListWithContextFunc(ctx, options)
			f.observe(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			events, err := source.WatchFuncWithContext(ctx, options)
			f.observe(err)
			return events, err
		},
	}
	f.reflector = cache.NewReflectorWithOptions(cache.ToListWatcherWithWatchListSemantics(observed, client), example, f,
		cache.ReflectorOptions{Name: "facts", TypeDescription: objects})
	return f
}

// observe takes note of whether a list or a watch was to be had. That there is no such kind is an answer too.
func (f *feed) observe(err error) {
	if err == nil || apierrors.IsNotFound(err) {
		f.failingSince.Store(nil)
		return
	}
	now := time.Now()
	f.failingSince.CompareAndSwap(nil, &now)
}

// stale is for how many seconds nothing was heard of the objects, since neither a list nor a watch was to be had; 0 while one is.
func (f *feed) stale() float64 {
	if since := f.failingSince.Load(); since != nil {
		return time.Since(*since).Seconds()
	}
	return 0
}

// Replace implements [cache.ReflectorStore]. It ends every list, so from then on the feed is in sync.
func (f *feed) Replace(objects []any, resourceVersion string) error {
	if err := f.TransformingStore.Replace(objects, resourceVersion); err != nil {
		return fmt.Errorf("store %s: %w", f.objects, err)
	}
	f.synced.Store(true)
	f.trouble.Store(nil)
	return nil
}

// ready says why the store does not hold the cluster's objects yet, or nil. Once it does, it stays ready.
func (f *feed) ready() error {
	if f.synced.Load() {
		return nil
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

// run feeds the store until ctx ends. The reflector's own loop would log an error every few seconds for a kind that the cluster
// does not know, and would keep objects of a kind that it no longer knows.
func (f *feed) run(ctx context.Context) {
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
			if err := f.Replace(nil, ""); err != nil {
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
