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

// Probe says how fast the balancer learns that a replica is ready or not. In the shipped manifests
// the kubelet probes every 2 seconds. In a busy cluster, endpoints and the rules on the nodes
// follow a second later.
type Probe struct {
	// Period is the time between two probes of a replica. A probe without an answer within a second
	// fails.
	Period time.Duration
	// Failures is the number of failed probes in a row that make a replica unready. One success
	// makes it ready.
	Failures int
	// Delay is the time between a change of readiness and the change of where new connections go.
	Delay time.Duration
}

const probeTimeout = time.Second

// balancer stands in for a Service, the kubelet's probes and kube-proxy: it probes the readiness of
// replicas, and forwards each new connection to a ready replica, in turns. A connection stays with
// its replica until one end closes it.
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
	since              time.Time // time of the last change of ready
}

// newBalancer returns a balancer that runs until ctx ends or close is called.
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

// add adds a replica, which is unready at first. The balancer probes it until remove or close is
// called.
func (b *balancer) add(ctx context.Context, address, readiness string) {
	ctx, forget := context.WithCancel(context.WithoutCancel(ctx))
	e := &endpoint{address: address, readiness: readiness, forget: forget}
	b.mu.Lock()
	b.endpoints = append(b.endpoints, e)
	b.mu.Unlock()
	b.running.Go(func() { b.follow(ctx, e) })
}

// remove removes a replica. Open connections to it stay.
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

// leadsTo reports whether new connections can go to a replica.
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

// isReady reports whether new connections can go to e. The caller must hold mu.
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

// pick returns the address of the next ready replica, or "" if no replica is ready.
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

// pass forwards data between conn and a replica until one of the two connections or ctx ends. If no
// replica can be reached, pass resets conn, because it can no longer refuse it.
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
