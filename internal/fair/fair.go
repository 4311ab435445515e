// Package fair shares a capacity fairly: of bytes, of connections or of requests.
//
//	c := fair.NewCapacity[netip.Addr](1 << 20)
//	if err := c.Acquire(ctx, peer, size); err == nil {
//		defer c.Release(peer, size)
//	}
//
// It does not know what the units are, and it does not measure rates.
package fair

import (
	"context"
	"slices"
	"sync"
)

// Capacity is a number of units that peers share. A peer gets no more than it leaves free: one peer can use half of the capacity, two peers a
// third each, and so on. Something is left for a peer that uses nothing yet. Waiting requests of one peer are served in their order. Of
// the peers that wait, the one that uses the least is served first, and of several such, the one that was served the longest ago.
type Capacity[K comparable] struct {
	total int64

	mu    sync.Mutex
	used  int64
	turns int64
	peers map[K]*peer // those that use something or wait
}

type peer struct {
	used    int64
	turn    int64 // number of the latest time that it was served
	waiting []*waiter
}

type waiter struct {
	size    int64
	granted chan struct{}
}

// NewCapacity has total units.
func NewCapacity[K comparable](total int64) *Capacity[K] {
	return &Capacity[K]{total: total, peers: map[K]*peer{}}
}

// InUse is the number of units that peers have acquired.
func (c *Capacity[K]) InUse() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// fits reports whether a peer can have size units more.
func (c *Capacity[K]) fits(p *peer, size int64) bool {
	return p.used+size <= c.total-c.used-size
}

func (c *Capacity[K]) peer(key K) *peer {
	p := c.peers[key]
	if p == nil {
		p = &peer{}
		c.peers[key] = p
	}
	return p
}

func (c *Capacity[K]) take(p *peer, size int64) {
	p.used += size
	c.used += size
}

// TryAcquire takes size units for a peer if it need not wait for them.
func (c *Capacity[K]) TryAcquire(key K, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peer(key)
	if len(p.waiting) > 0 || !c.fits(p, size) {
		c.forget(key, p)
		return false
	}
	c.take(p, size)
	return true
}

// Acquire takes size units for a peer as soon as it can, or returns the error of ctx.
func (c *Capacity[K]) Acquire(ctx context.Context, key K, size int64) error {
	w := &waiter{size: size, granted: make(chan struct{})}
	c.mu.Lock()
	p := c.peer(key)
	p.waiting = append(p.waiting, w)
	c.grant() // what did not fit a moment ago may fit now
	c.mu.Unlock()
	select {
	case <-w.granted:
		return nil
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(p.waiting, w)
	if i < 0 {
		return nil // it was granted meanwhile
	}
	p.waiting = slices.Delete(p.waiting, i, i+1)
	c.forget(key, p)
	c.grant() // those behind it may need less
	return ctx.Err()
}

// Release gives back what a peer acquired.
func (c *Capacity[K]) Release(key K, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[key]
	c.take(p, -size)
	c.forget(key, p)
	c.grant()
}

func (c *Capacity[K]) forget(key K, p *peer) {
	if p.used == 0 && len(p.waiting) == 0 {
		delete(c.peers, key)
	}
}

// grant serves waiting requests as long as there is enough.
func (c *Capacity[K]) grant() {
	for {
		var next *peer
		for _, p := range c.peers {
			if len(p.waiting) > 0 && c.fits(p, p.waiting[0].size) && (next == nil || p.used < next.used || p.used == next.used && p.turn < next.turn) {
				next = p
			}
		}
		if next == nil {
			return
		}
		w := next.waiting[0]
		next.waiting = slices.Delete(next.waiting, 0, 1)
		c.take(next, w.size)
		c.turns++
		next.turn = c.turns
		close(w.granted)
	}
}
