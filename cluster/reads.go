package cluster

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"

	"github.com/akv-injector/akv-injector/internal/fair"
)

// Limits of the requests, per second, that the reviews of one caller cause at the API server: for
// one namespace, and in total. They are separate for each caller, so one caller cannot use up the
// limits of another.
const (
	namespaceRate, namespaceBurst = 50, 100
	callerRate, callerBurst       = 100, 200
	// maxConcurrent is the number of concurrent requests of all reviews, because an answer may have
	// a megabyte or more. Callers share it fairly. Each request counts for at least minTime, so all
	// callers together cause at most 800 requests a second.
	maxConcurrent = 8
	minTime       = 10 * time.Millisecond
	// maxDelay is how long a request waits for these limits.
	maxDelay = time.Second
	// maxRead is the timeout of a request.
	maxRead = 3 * time.Second
	// maxLimits is the number of limits for a namespace of a caller that are kept.
	maxLimits = 4096
)

// NewCallerLimit returns a limit for the requests that the reviews of one caller cause: 100
// requests a second, with a burst of 200. Pass it to [WithCaller].
func NewCallerLimit() *rate.Limiter {
	return rate.NewLimiter(callerRate, callerBurst)
}

type callerKey struct{}

// WithCaller returns a context whose lookups count against the limit of a caller. Without a caller,
// only the limits of namespaces apply.
func WithCaller(ctx context.Context, limit *rate.Limiter) context.Context {
	return context.WithValue(ctx, callerKey{}, limit)
}

// reads shares requests between reviews. Reviews that need the same object share a request that
// starts after each of them has joined. So no review gets an answer that is older than itself, and
// a review finds every object that was applied before it.
type reads struct {
	concurrent *fair.Capacity[*rate.Limiter] // by caller

	mu         sync.Mutex
	flights    map[flightKey]*flight
	namespaces *lru.Cache // a *rate.Limiter by limitKey
}

// target is what a request reads: an object, or with an empty name a list.
type target struct{ namespace, resource, name string }

// flightKey identifies a request. Callers do not share requests, because a caller beyond its limits
// would delay the others.
type flightKey struct {
	caller *rate.Limiter // nil for a caller without a limit in total
	target
}

// limitKey identifies the limit for a namespace of a caller.
type limitKey struct {
	caller    *rate.Limiter
	namespace string
}

// flight is a request that reviews wait for.
type flight struct {
	begun bool
	next  *flight // of the reviews that joined after it had begun
	ended chan struct{}
	value any
	err   error
}

func newReads() *reads {
	return &reads{
		concurrent: fair.NewCapacity[*rate.Limiter](maxConcurrent),
		flights:    map[flightKey]*flight{},
		namespaces: lru.New(maxLimits),
	}
}

// share returns the result of read, or of the same read for another review. If r is nil, it calls
// read.
func share[T any](
	ctx context.Context, r *reads, t target, read func(context.Context) (T, error),
) (answer T, err error) {
	if r == nil {
		return read(ctx)
	}
	f := r.join(ctx, t, func(ctx context.Context) (any, error) { return read(ctx) })
	select {
	case <-f.ended:
	case <-ctx.Done():
		return answer, ctx.Err()
	}
	if f.err != nil {
		return answer, f.err
	}
	answer, _ = f.value.(T) // all answers for one target have the same type
	return answer, nil
}

// join returns the first request for a target that has not begun. It creates it if necessary.
func (r *reads) join(ctx context.Context, t target, read func(context.Context) (any, error)) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	caller, _ := ctx.Value(callerKey{}).(*rate.Limiter)
	key := flightKey{caller, t}
	f := r.flights[key]
	switch {
	case f == nil:
		f = &flight{ended: make(chan struct{})}
		r.flights[key] = f
		go r.fly(context.WithoutCancel(ctx), key, f, read) // others may join it, so it does not end with ctx
	case f.begun:
		if f.next == nil {
			f.next = &flight{ended: make(chan struct{})}
		}
		f = f.next
	}
	return f
}

// fly sends the request of f, and then those of the flights that follow it.
func (r *reads) fly(ctx context.Context, key flightKey, f *flight, read func(context.Context) (any, error)) {
	for f != nil {
		err := r.pace(ctx, limitKey{key.caller, key.namespace})
		r.mu.Lock()
		f.begun = true
		r.mu.Unlock()
		if f.err = err; err == nil {
			start := time.Now()
			f.value, f.err = readSafely(ctx, read)
			time.AfterFunc(minTime-time.Since(start), func() { r.concurrent.Release(key.caller, 1) })
		}
		r.mu.Lock()
		next := f.next
		if next != nil {
			r.flights[key] = next
		} else {
			delete(r.flights, key)
		}
		r.mu.Unlock()
		close(f.ended)
		f = next
	}
}

// readSafely calls read with the timeout maxRead, and returns a panic as an error, because a panic
// in this goroutine would end the process.
func readSafely(ctx context.Context, read func(context.Context) (any, error)) (value any, err error) {
	defer func() {
		if reason := recover(); reason != nil {
			err = fmt.Errorf("panic: %v\n%s", reason, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(ctx, maxRead)
	defer cancel()
	return read(ctx)
}

// pace waits until the limits allow a request. If it returns no error, the caller must release one
// unit of concurrent after the request.
func (r *reads) pace(ctx context.Context, key limitKey) error {
	ctx, cancel := context.WithTimeout(ctx, maxDelay)
	defer cancel()
	if key.caller != nil && key.caller.Wait(ctx) != nil {
		return errors.New("too many lookups are waiting for this caller")
	}
	if err := r.limitOf(key).Wait(ctx); err != nil {
		return fmt.Errorf("too many lookups are waiting in namespace %s", key.namespace)
	}
	if r.concurrent.Acquire(ctx, key.caller, 1) != nil {
		return errors.New("too many lookups are under way")
	}
	return nil
}

func (r *reads) limitOf(key limitKey) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if limit, ok := r.namespaces.Get(key); ok {
		return limit.(*rate.Limiter) //nolint:forcetypeassert // it holds nothing else
	}
	limit := rate.NewLimiter(namespaceRate, namespaceBurst)
	r.namespaces.Add(key, limit)
	return limit
}
