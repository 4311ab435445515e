package serving

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/internal/fair"
)

// Limits of the bytes of requests that are processed at a time. A review takes at most five times
// its size in memory, and an API server seldom sends a review larger than 64 KiB. Large requests
// have a separate capacity: the requests of all tenants come from the same API server, and the
// large requests of one tenant must not delay the small ones of others.
const (
	maxSmall, maxLarge = 4 << 20, 8 << 20
	leastRequest       = 16 << 10     // the size that a smaller request counts as
	largeRequest       = 256 << 10    // the size from which a request is large
	mostRequest        = maxLarge / 4 // the size that a larger request counts as, or a request without Content-Length
)

// maxWait is how long a request waits for capacity, and maxWaiting is how many requests wait. A
// waiting request takes about 18 KiB.
const (
	maxWait    = 5 * time.Second
	maxWaiting = 1024
)

// Callers limits the memory that the callers of a server use. Callers with a verified client
// certificate share one capacity, and all others share a second one: each has 4 MiB for small
// requests and 8 MiB for large ones, from 256 KiB. Large requests therefore do not block small
// ones. Within a capacity, each address gets a share, at most half, so that a flood from one
// address does not block other addresses. Up to 1,024 requests wait for a share, up to 5 seconds
// each.
type Callers struct {
	// CertificateRequired rejects callers without a verified client certificate before their body
	// is read.
	CertificateRequired bool

	authenticated, others bounds
	refused               *prometheus.CounterVec
}

// peers is a capacity that the addresses of callers share.
type peers = fair.Capacity[netip.Addr]

func newPeers(total int64) *peers { return fair.NewCapacity[netip.Addr](total) }

// bounds are the bytes of small and of large requests, and the number of requests that wait for
// them.
type bounds struct{ small, large, waiting *peers }

func newBounds() bounds {
	return bounds{newPeers(maxSmall), newPeers(maxLarge), newPeers(maxWaiting)}
}

func (b bounds) inUse() float64 { return float64(b.small.InUse() + b.large.InUse()) }

// acquire acquires bytes for a request of a peer, and waits up to maxWait. It returns false if the
// request must be rejected.
func (b bounds) acquire(ctx context.Context, bytes *peers, peer netip.Addr, size int64) bool {
	if bytes.TryAcquire(peer, size) {
		return true
	}
	if !b.waiting.TryAcquire(peer, 1) {
		return false
	}
	defer b.waiting.Release(peer, 1)
	ctx, cancel := context.WithTimeout(ctx, maxWait)
	defer cancel()
	return bytes.Acquire(ctx, peer, size) == nil
}

// Reasons to reject a request; a label of a metric.
const (
	unauthenticated = "unauthenticated"
	busy            = "busy"
	connections     = "connections"
)

// NewCallers returns the limits of callers and registers their metrics.
func NewCallers(certificateRequired bool, registry prometheus.Registerer) *Callers {
	c := &Callers{
		CertificateRequired: certificateRequired,
		authenticated:       newBounds(),
		others:              newBounds(),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_calls_refused_total",
			Help: "Requests rejected before a review was read: no client certificate (unauthenticated), no capacity in time (busy), or too many connections (connections).",
		}, []string{"reason"}),
	}
	for _, reason := range []string{unauthenticated, busy, connections} {
		c.refused.WithLabelValues(reason)
	}
	registry.MustRegister(c.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "akv_injector_bytes_in_flight",
		Help: "Bytes of the requests in progress. A smaller request counts as 16 KiB.",
	}, func() float64 { return c.authenticated.inUse() + c.others.inUse() }))
	return c
}

// Handler returns next with the limits. A request waits for capacity before its body is read;
// without capacity in time it gets status 503.
func (c *Callers) Handler(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		shared := c.others
		switch {
		case IsAuthenticated(r):
			shared = c.authenticated
		case c.CertificateRequired:
			c.refused.WithLabelValues(unauthenticated).Inc()
			w.Header().Set("Connection", "close")
			http.Error(w, "must present a client certificate that a CA of --client-ca has signed", http.StatusForbidden)
			return
		}
		peer, size := PeerOf(r.RemoteAddr), r.ContentLength
		if size < 0 {
			size = mostRequest
		}
		size = min(max(size, leastRequest), mostRequest)
		bytes := shared.small
		if size >= largeRequest {
			bytes = shared.large
		}
		if !shared.acquire(r.Context(), bytes, peer, size) {
			c.refused.WithLabelValues(busy).Inc()
			http.Error(w, "too many requests in progress; retry", http.StatusServiceUnavailable)
			return
		}
		defer bytes.Release(peer, size)
		next.ServeHTTP(w, r)
	})
}

// IsAuthenticated reports whether the caller presented a client certificate that was verified.
func IsAuthenticated(r *http.Request) bool {
	return r.TLS != nil && len(r.TLS.VerifiedChains) > 0
}

// PeerOf returns the address that a caller counts as, given its address and port: an IPv4 address,
// or the /64 network of an IPv6 address, since a single machine may have a whole /64. It returns
// the zero Addr for an address that cannot be parsed.
func PeerOf(remote string) netip.Addr {
	address, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	peer := address.Addr().Unmap().WithZone("")
	if peer.Is6() {
		prefix, _ := peer.Prefix(64) // the only possible error is about more than 128 bits
		return prefix.Addr()
	}
	return peer
}
