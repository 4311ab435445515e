package serving

import (
	"context"
	"net/http"
	"net/netip"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/internal/fair"
)

// Limits of the bytes of requests that are processed at a time. A review takes at most five times its size in memory, and what an
// API server sends is seldom larger than 64 KiB. Larger requests have a capacity of their own: those of one tenant and those of all others come
// from the same API server, and must not wait for each other.
const (
	maxSmall, maxLarge = 4 << 20, 8 << 20
	leastRequest       = 16 << 10     // what a smaller request counts as
	largeRequest       = 256 << 10    // what makes a request large
	mostRequest        = maxLarge / 4 // what a larger one counts as, and one that does not say its size
)

// maxWait is how long a request waits for others to end, and maxWaiting how many do. A request that waits takes some 18 KiB.
const (
	maxWait    = 5 * time.Second
	maxWaiting = 1024
)

// Callers bounds what callers of a server can use together. Callers that present a verified client certificate share one capacity; all
// others share a second one, of which each address gets a share. A flood from one address therefore does not keep another one out, and large
// requests do not keep small ones out.
type Callers struct {
	// CertificateRequired is true where a caller without a verified client certificate is rejected before its body is read.
	CertificateRequired bool

	authenticated, others bounds
	refused               *prometheus.CounterVec
}

// peers is a capacity that the addresses of callers share.
type peers = fair.Capacity[netip.Addr]

func newPeers(total int64) *peers { return fair.NewCapacity[netip.Addr](total) }

// bounds are the bytes of small and of large requests, and the number of requests that wait for them.
type bounds struct{ small, large, waiting *peers }

func newBounds() bounds {
	return bounds{newPeers(maxSmall), newPeers(maxLarge), newPeers(maxWaiting)}
}

func (b bounds) inUse() float64 { return float64(b.small.InUse() + b.large.InUse()) }

// acquire takes bytes for a request of a peer, and reports whether there were enough in time.
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

// Why a call is refused; a label of a metric.
const (
	unauthenticated = "unauthenticated"
	busy            = "busy"
	connections     = "connections"
)

// NewCallers registers the metrics of callers.
func NewCallers(certificateRequired bool, registry prometheus.Registerer) *Callers {
	c := &Callers{
		CertificateRequired: certificateRequired,
		authenticated:       newBounds(),
		others:              newBounds(),
		refused: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "akv_injector_calls_refused_total",
			Help: "Calls refused before a review was read: without a client certificate (unauthenticated), after waiting for other calls (busy), or beyond the limit of connections (connections).",
		}, []string{"reason"}),
	}
	for _, reason := range []string{unauthenticated, busy, connections} {
		c.refused.WithLabelValues(reason)
	}
	registry.MustRegister(c.refused, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "akv_injector_bytes_in_flight",
		Help: "Bytes of the calls that are processed, where a small call counts as 16 KiB.",
	}, func() float64 { return c.authenticated.inUse() + c.others.inUse() }))
	return c
}

// Handler passes on the requests that there is capacity for. A request waits for capacity before its body is read.
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
			http.Error(w, "is busy with other calls; try again", http.StatusServiceUnavailable)
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

// PeerOf is the address that a caller counts as, given its address and port: an IPv4 address, or a network of 64 bits of IPv6, which a single
// machine may have to itself.
func PeerOf(remote string) netip.Addr {
	address, err := netip.ParseAddrPort(remote)
	if err != nil {
		return netip.Addr{}
	}
	peer := address.Addr().Unmap().WithZone("")
	if peer.Is6() {
		prefix, _ := peer.Prefix(64) // the only error is about more bits than there are
		return prefix.Addr()
	}
	return peer
}
