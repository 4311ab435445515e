package facts

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"
)

// Limits of the requests that reviews cause at the API server: by the namespace that they are about, and by the caller that sent them.
const (
	namespaceRate, namespaceBurst = 50, 100
	callerRate, callerBurst       = 100, 200
	// maxDelay is how long a request waits for these limits.
	maxDelay = time.Second
	// maxRead is how long one may take.
	maxRead = 3 * time.Second
	// maxPaced is how many namespaces, and how many callers, limits are kept of.
	maxPaced = 4096
)

// NewCallerLimit is the limit of the requests that the reviews of one caller cause.
func NewCallerLimit() *rate.Limiter {
	return rate.NewLimiter(callerRate, callerBurst)
}

type callerKey struct{}

// WithCaller makes the lookups of a review count against the limit of its caller. Without one, only the limits of namespaces apply.
func WithCaller(ctx context.Context, limit *rate.Limiter) context.Context {
	return context.WithValue(ctx, callerKey{}, limit)
}

// reads makes reviews share the requests that they cause. Reviews that ask the same question share a request that begins after each of them
// has asked: so none gets an answer that is older than itself, and what was applied before a review is found by it.
type reads struct {
	mu         sync.Mutex
	flights    map[question]*flight
	namespaces *lru.Cache // a *rate.Limiter by name
}

// question is what a request asks for: an object, or with an empty name a list.
type question struct{ namespace, resource, name string }

// flight is a request that reviews wait for.
type flight struct {
	caller *rate.Limiter // of the review that asked first
	begun  bool
	next   *flight // of those that asked after it had begun
	ended  chan struct{}
	value  any
	err    error
}

func newReads() *reads {
	return &reads{flights: map[question]*flight{}, namespaces: lru.New(maxPaced)}
}

// share answers a question by read, which other callers may have begun and others may wait for. A nil r calls read.
func share[T any](ctx context.Context, r *reads, q question, read func(context.Context) (T, error)) (answer T, err error) {
	if r == nil {
		return read(ctx)
	}
	f := r.join(ctx, q, func(ctx context.Context) (any, error) { return read(ctx) })
	select {
	case <-f.ended:
	case <-ctx.Done():
		return answer, ctx.Err()
	}
	if f.err != nil {
		return answer, f.err
	}
	answer, _ = f.value.(T) // of one question, all answers have one type
	return answer, nil
}

// join is the first request for q that has not begun.
func (r *reads) join(ctx context.Context, q question, read func(context.Context) (any, error)) *flight {
	r.mu.Lock()
	defer r.mu.Unlock()
	caller, _ := ctx.Value(callerKey{}).(*rate.Limiter)
	f := r.flights[q]
	switch {
	case f == nil:
		f = &flight{caller: caller, ended: make(chan struct{})}
		r.flights[q] = f
		go r.fly(context.WithoutCancel(ctx), q, f, read) // others may join it, so it does not end with ctx
	case f.begun:
		if f.next == nil {
			f.next = &flight{caller: caller, ended: make(chan struct{})}
		}
		f = f.next
	}
	return f
}

// fly makes the request of f, and of those that follow it.
func (r *reads) fly(ctx context.Context, q question, f *flight, read func(context.Context) (any, error)) {
	for f != nil {
		err := r.pace(ctx, q.namespace, f.caller)
		r.mu.Lock()
		f.begun = true
		r.mu.Unlock()
		if f.err = err; err == nil {
			limited, cancel := context.WithTimeout(ctx, maxRead)
			f.value, f.err = read(limited)
			cancel()
		}
		r.mu.Lock()
		next := f.next
		if next != nil {
			r.flights[q] = next
		} else {
			delete(r.flights, q)
		}
		r.mu.Unlock()
		close(f.ended)
		f = next
	}
}

// pace waits until another request may be made.
func (r *reads) pace(ctx context.Context, namespace string, caller *rate.Limiter) error {
	ctx, cancel := context.WithTimeout(ctx, maxDelay)
	defer cancel()
	if err := r.limitOf(namespace).Wait(ctx); err != nil {
		return fmt.Errorf("too many lookups are waiting in namespace %s", namespace)
	}
	if caller != nil && caller.Wait(ctx) != nil {
		return errors.New("too many lookups are waiting for this caller")
	}
	return nil
}

func (r *reads) limitOf(namespace string) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if limit, ok := r.namespaces.Get(namespace); ok {
		return limit.(*rate.Limiter) //nolint:forcetypeassert // it holds nothing else
	}
	limit := rate.NewLimiter(namespaceRate, namespaceBurst)
	r.namespaces.Add(namespace, limit)
	return limit
}
