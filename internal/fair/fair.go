// Package fair shares a capacity of bytes, connections or requests fairly between peers.
//
//	c := fair.NewCapacity[netip.Addr](1 << 20)
//	if err := c.Acquire(ctx, peer, size); err == nil {
//		defer c.Release(peer, size)
//	}
//
// The package does not measure rates, and does not interpret the units.
package fair

import (
	"context"
	"slices"
	"sync"
)

// Capacity is a number of units that peers share. A peer never gets more units than remain free:
// one peer can use half of the capacity, two peers a third each, and so on, so that units remain
// for a new peer. Waiting requests of one peer are served in order. Of several waiting peers, the
// one that uses the least is served first; of equal ones, the one that was served the longest time
// ago.
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

// NewCapacity returns a capacity of total units.
func NewCapacity[K comparable](total int64) *Capacity[K] {
	return &Capacity[K]{total: total, peers: map[K]*peer{}}
}

// InUse returns the number of units that peers have acquired.
func (c *Capacity[K]) InUse() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// fits reports whether a peer can get size more units.
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

// TryAcquire takes size units for the peer key if they are available without waiting. It reports
// whether it did.
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

// Acquire waits until it can take size units for the peer key. If ctx ends first, it returns the
// error of ctx and takes nothing. A size above half of the capacity never fits: Acquire then waits
// until ctx ends, and so do the peer's later calls behind it.
func (c *Capacity[K]) Acquire(ctx context.Context, key K, size int64) error {
	w := &waiter{size: size, granted: make(chan struct{})}
	c.mu.Lock()
	p := c.peer(key)
	p.waiting = append(p.waiting, w)
	c.grant() // it may fit at once
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
	c.grant() // later requests may need less
	return ctx.Err()
}

// Release returns size units that the peer key acquired. It panics for a peer that has acquired
// nothing and waits for nothing.
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

// grant serves waiting requests while they fit.
func (c *Capacity[K]) grant() {
	for {
		var next *peer
		for _, p := range c.peers {
			isBefore := next == nil || p.used < next.used || p.used == next.used && p.turn < next.turn
			if len(p.waiting) > 0 && c.fits(p, p.waiting[0].size) && isBefore {
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
