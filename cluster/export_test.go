package cluster

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// SetLimits sets the intervals and timeouts of a Cache. It must be called before Start.
func (c *Cache) SetLimits(probe, age, failing, label time.Duration) {
	c.limits = limits{probe, age, failing, label}
}

// Reads shares requests between callers.
type Reads = reads

// NewReads returns a Reads.
var NewReads = newReads

// Share returns the result of read for the object of a name in a namespace.
func (r *Reads) Share(ctx context.Context, namespace, name string, read func(context.Context) (string, error)) (string, error) {
	return share(ctx, r, target{namespace, "things", name}, read)
}

// NewLimit returns a limit of requests.
func NewLimit(perSecond float64, burst int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

// NamespaceBurst is the number of requests for one namespace that are sent without a delay.
const NamespaceBurst = namespaceBurst
