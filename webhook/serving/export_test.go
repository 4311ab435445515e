package serving

import (
	"context"
	"crypto/tls"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// NewImpatientServer is NewServer with other limits in time.
func NewImpatientServer(address string, handler http.Handler, idle, body, answer time.Duration, configure ...func(*tls.Config)) (*manager.Server, error) {
	l := serverLimits
	l.idle, l.body, l.answer = idle, body, answer
	return newServer(address, handler, NewCallers(false, prometheus.NewRegistry()), l, configure...)
}

// NewSmallServer is NewServer with another number of connections.
func NewSmallServer(address string, handler http.Handler, callers *Callers, total int64, configure ...func(*tls.Config)) (*manager.Server, error) {
	l := serverLimits
	l.connections = total
	return newServer(address, handler, callers, l, configure...)
}

// Capacity is for the tests of what peers share.
type Capacity = capacity

// NewCapacity is a capacity of that many bytes.
var NewCapacity = newCapacity

// Acquire takes size bytes for a peer.
func (c *Capacity) Acquire(ctx context.Context, address netip.Addr, size int64) error {
	if c.tryAcquire(address, size) {
		return nil
	}
	return c.acquire(ctx, address, size)
}

// Release gives them back.
func (c *Capacity) Release(address netip.Addr, size int64) { c.release(address, size) }
