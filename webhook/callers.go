package webhook

import (
	"context"
	"net/http"
	"net/netip"
	"sync"

	"golang.org/x/time/rate"
	"k8s.io/utils/lru"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/webhook/serving"
)

// maxCallers is the number of callers whose limits are kept.
const maxCallers = 1024

// callerLimits has a rate limit of lookups for each caller without a client certificate.
type callerLimits struct {
	mu     sync.Mutex
	limits *lru.Cache // a *rate.Limiter by netip.Addr
}

func newCallerLimits() *callerLimits {
	return &callerLimits{limits: lru.New(maxCallers)}
}

// limited returns the context of a request with the limit of its caller.
func (c *callerLimits) limited(ctx context.Context, r *http.Request) context.Context {
	if serving.IsAuthenticated(r) {
		return ctx
	}
	return cluster.WithCaller(ctx, c.of(serving.PeerOf(r.RemoteAddr)))
}

func (c *callerLimits) of(peer netip.Addr) *rate.Limiter {
	c.mu.Lock()
	defer c.mu.Unlock()
	if limit, ok := c.limits.Get(peer); ok {
		return limit.(*rate.Limiter) //nolint:forcetypeassert // it holds nothing else
	}
	limit := cluster.NewCallerLimit()
	c.limits.Add(peer, limit)
	return limit
}
