package ha

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// Probe says how fast the balancer learns of a replica's readiness. What is shipped has the kubelet ask every 2 seconds; endpoints and
// the nodes' rules follow a second later when much is going on.
type Probe struct {
	// Period is the time from one probe of a replica to the next. A probe that is not answered for a second fails.
	Period time.Duration
	// Failures in a row make a replica unready; one success makes it ready.
	Failures int
	// Delay is how much later than the probes new connections go elsewhere.
	Delay time.Duration
}

const probeTimeout = time.Second

// balancer does what a Service does, and those behind it: it probes the readiness of replicas, and passes each new connection on to one
// that is ready, in turns. A connection stays with its replica for as long as both ends want it.
type balancer struct {
	probe    Probe
	listener net.Listener
	stop     context.CancelFunc
	running  sync.WaitGroup

	mu        sync.Mutex
	endpoints []*endpoint
	next      int
}

// endpoint is a replica as the balancer sees it.
type endpoint struct {
	address, readiness string
	forget             context.CancelFunc
	ready              bool
	since              time.Time // when it became what it is
}

// newBalancer balances until ctx ends, or it is closed.
func newBalancer(ctx context.Context, probe Probe) (*balancer, error) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen for the Service: %w", err)
	}
	ctx, stop := context.WithCancel(ctx)
	b := &balancer{probe: probe, listener: listener, stop: stop}
	b.running.Go(func() { b.accept(ctx) })
	return b, nil
}

func (b *balancer) address() string { return b.listener.Addr().String() }

// add makes a replica known, which is unready at first. It is probed until it is removed, or the balancer is closed.
func (b *balancer) add(ctx context.Context, address, readiness string) {
	ctx, forget := context.WithCancel(context.WithoutCancel(ctx))
	e := &endpoint{address: address, readiness: readiness, forget: forget}
	b.mu.Lock()
	b.endpoints = append(b.endpoints, e)
	b.mu.Unlock()
	b.running.Go(func() { b.follow(ctx, e) })
}

// remove forgets a replica. Connections to it stay.
func (b *balancer) remove(address string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for i, e := range b.endpoints {
		if e.address == address {
			e.forget()
			b.endpoints = append(b.endpoints[:i:i], b.endpoints[i+1:]...)
			return
		}
	}
}

// leadsTo says whether new connections go to a replica.
func (b *balancer) leadsTo(address string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.endpoints {
		if e.address == address {
			return b.isReady(e)
		}
	}
	return false
}

func (b *balancer) close() error {
	b.stop()
	err := b.listener.Close()
	b.mu.Lock()
	for _, e := range b.endpoints {
		e.forget()
	}
	b.mu.Unlock()
	b.running.Wait()
	return err
}

// isReady needs the lock.
func (b *balancer) isReady(e *endpoint) bool {
	return e.ready == (time.Since(e.since) >= b.probe.Delay)
}

// follow probes a replica until ctx ends.
func (b *balancer) follow(ctx context.Context, e *endpoint) {
	client := &http.Client{Timeout: probeTimeout, Transport: &http.Transport{DisableKeepAlives: true}}
	tick := time.NewTicker(b.probe.Period)
	defer tick.Stop()
	for failures := 0; ; {
		if isOK(ctx, client, e.readiness) {
			failures = 0
		} else {
			failures++
		}
		b.mu.Lock()
		if ready := failures == 0 || (e.ready && failures < b.probe.Failures); ready != e.ready {
			e.ready, e.since = ready, time.Now()
		}
		b.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func isOK(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	defer response.Body.Close()
	return response.StatusCode == http.StatusOK
}

// pick is the next replica that is ready, empty where none is.
func (b *balancer) pick() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	for range b.endpoints {
		b.next++
		if e := b.endpoints[b.next%len(b.endpoints)]; b.isReady(e) {
			return e.address
		}
	}
	return ""
}

func (b *balancer) accept(ctx context.Context) {
	for {
		conn, err := b.listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			b.running.Go(func() { b.pass(ctx, conn) })
		}
	}
}

// pass connects the two ends until one of them, or ctx, ends. Where no replica can be reached it resets the connection, which is as
// near as it comes to having refused it.
func (b *balancer) pass(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	replica, err := (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, "tcp", b.pick())
	if err != nil {
		if conn, ok := conn.(*net.TCPConn); ok {
			_ = conn.SetLinger(0)
		}
		return
	}
	defer replica.Close()
	defer context.AfterFunc(ctx, func() { _, _ = conn.Close(), replica.Close() })()
	var copying sync.WaitGroup
	for to, from := range map[net.Conn]net.Conn{replica: conn, conn: replica} {
		copying.Go(func() {
			_, _ = io.Copy(to, from)
			_, _ = conn.Close(), replica.Close()
		})
	}
	copying.Wait()
}
