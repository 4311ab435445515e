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

// Limits of the requests that the reviews of one caller cause at the API server: about one namespace, and in all. No caller uses up what another
// one may ask.
const (
	namespaceRate, namespaceBurst = 50, 100
	callerRate, callerBurst       = 100, 200
	// maxAtOnce is the number of requests of all reviews at the same time: an answer may have a megabyte or more. Callers share it. Each request
	// counts for at least leastTime, so all callers together cause at most 800 requests a second.
	maxAtOnce = 8
	leastTime = 10 * time.Millisecond
	// maxDelay is how long a request waits for these limits.
	maxDelay = time.Second
	// maxRead is how long one may take.
	maxRead = 3 * time.Second
	// maxPaced is how many namespaces of callers limits are kept of.
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
	atOnce *fair.Capacity[*rate.Limiter] // by caller

	mu         sync.Mutex
	flights    map[asked]*flight
	namespaces *lru.Cache // a *rate.Limiter by paced
}

// question is what a request asks for: an object, or with an empty name a list.
type question struct{ namespace, resource, name string }

// asked is a question and whose reviews ask it. Callers share no request: one that is over its limits would take the answer from the others.
type asked struct {
	caller *rate.Limiter // nil for callers that have no limit in all
	question
}

// paced is what a limit is for.
type paced struct {
	caller    *rate.Limiter
	namespace string
}

// flight is a request that reviews wait for.
type flight struct {
	begun bool
	next  *flight // of those that asked after it had begun
	ended chan struct{}
	value any
	err   error
}

func newReads() *reads {
	return &reads{atOnce: fair.NewCapacity[*rate.Limiter](maxAtOnce), flights: map[asked]*flight{}, namespaces: lru.New(maxPaced)}
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
	key := asked{caller, q}
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

// fly makes the request of f, and of those that follow it.
func (r *reads) fly(ctx context.Context, q asked, f *flight, read func(context.Context) (any, error)) {
	for f != nil {
		err := r.pace(ctx, paced{q.caller, q.namespace})
		r.mu.Lock()
		f.begun = true
		r.mu.Unlock()
		if f.err = err; err == nil {
			start := time.Now()
			f.value, f.err = readSafely(ctx, read)
			time.AfterFunc(leastTime-time.Since(start), func() { r.atOnce.Release(q.caller, 1) })
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

// readSafely reads within maxRead, and turns a panic into an error: a panic in this goroutine would end the process.
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

// pace waits until another request may be made. If it returns no error, the caller must release its unit of atOnce after the request.
func (r *reads) pace(ctx context.Context, p paced) error {
	ctx, cancel := context.WithTimeout(ctx, maxDelay)
	defer cancel()
	if p.caller != nil && p.caller.Wait(ctx) != nil {
		return errors.New("too many lookups are waiting for this caller")
	}
	if err := r.limitOf(p).Wait(ctx); err != nil {
		return fmt.Errorf("too many lookups are waiting in namespace %s", p.namespace)
	}
	if r.atOnce.Acquire(ctx, p.caller, 1) != nil {
		return errors.New("too many lookups are under way")
	}
	return nil
}

func (r *reads) limitOf(p paced) *rate.Limiter {
	r.mu.Lock()
	defer r.mu.Unlock()
	if limit, ok := r.namespaces.Get(p); ok {
		return limit.(*rate.Limiter) //nolint:forcetypeassert // it holds nothing else
	}
	limit := rate.NewLimiter(namespaceRate, namespaceBurst)
	r.namespaces.Add(p, limit)
	return limit
}
