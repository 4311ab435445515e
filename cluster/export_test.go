package cluster

import (
	"context"
	"time"

	"golang.org/x/time/rate"
)

// SetLimits sets how long a Cluster waits for what.
func (c *Cache) SetLimits(probe, age, failing, label time.Duration) {
	c.limits = limits{probe, age, failing, label}
}

// Reads are requests that callers share.
type Reads = reads

// NewReads makes them.
var NewReads = newReads

// Ask asks for the object of a name in a namespace.
func (r *Reads) Ask(ctx context.Context, namespace, name string, read func(context.Context) (string, error)) (string, error) {
	return share(ctx, r, question{namespace, "things", name}, read)
}

// NewLimit is a limit of requests.
func NewLimit(perSecond float64, burst int) *rate.Limiter {
	return rate.NewLimiter(rate.Limit(perSecond), burst)
}

// NamespaceBurst is how many requests about a namespace are made without a pause.
const NamespaceBurst = namespaceBurst
