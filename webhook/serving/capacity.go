package serving

import (
	"context"
	"net/netip"
	"slices"
	"sync"
)

// capacity is a number of units, such as bytes or connections, that peers share. No peer gets more than it leaves free, so that one peer can use
// half of the capacity, two peers a third each, and so on: something is left for a peer that uses nothing yet. Waiting requests of one
// peer are served in their order; among peers, the one that uses the least is served first.
type capacity struct {
	total int64

	mu    sync.Mutex
	used  int64
	peers map[netip.Addr]*peer // those that use something or wait
}

type peer struct {
	used    int64
	waiting []*waiter
}

type waiter struct {
	size    int64
	granted chan struct{}
}

func newCapacity(total int64) *capacity {
	return &capacity{total: total, peers: map[netip.Addr]*peer{}}
}

func (c *capacity) inUse() int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.used
}

// fits reports whether a peer can have size units more.
func (c *capacity) fits(p *peer, size int64) bool {
	return p.used+size <= c.total-c.used-size
}

func (c *capacity) peer(address netip.Addr) *peer {
	p := c.peers[address]
	if p == nil {
		p = &peer{}
		c.peers[address] = p
	}
	return p
}

func (c *capacity) take(p *peer, size int64) {
	p.used += size
	c.used += size
}

// tryAcquire takes size units for a peer if it need not wait for them.
func (c *capacity) tryAcquire(address netip.Addr, size int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peer(address)
	if len(p.waiting) > 0 || !c.fits(p, size) {
		c.forget(address, p)
		return false
	}
	c.take(p, size)
	return true
}

// acquire takes size units for a peer as soon as it can, or returns the error of ctx.
func (c *capacity) acquire(ctx context.Context, address netip.Addr, size int64) error {
	w := &waiter{size: size, granted: make(chan struct{})}
	c.mu.Lock()
	p := c.peer(address)
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
	c.forget(address, p)
	c.grant() // those behind it may need less
	return ctx.Err()
}

// release gives back what a peer acquired.
func (c *capacity) release(address netip.Addr, size int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.peers[address]
	c.take(p, -size)
	c.forget(address, p)
	c.grant()
}

func (c *capacity) forget(address netip.Addr, p *peer) {
	if p.used == 0 && len(p.waiting) == 0 {
		delete(c.peers, address)
	}
}

// grant serves waiting requests as long as there is enough.
func (c *capacity) grant() {
	for {
		var next *peer
		for _, p := range c.peers {
			if len(p.waiting) > 0 && c.fits(p, p.waiting[0].size) && (next == nil || p.used < next.used) {
				next = p
			}
		}
		if next == nil {
			return
		}
		w := next.waiting[0]
		next.waiting = slices.Delete(next.waiting, 0, 1)
		c.take(next, w.size)
		close(w.granted)
	}
}
