// Package serving is the HTTPS server that reviews come to: how long it waits for what, and how it ends without losing one.
//
// It does not know what a review is, nor where the serving certificate comes from.
package serving

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/manager"
)

// limits bound what a client can hold on to. None may hurt the API server: it never repeats a call, so a connection that we close just
// as it sends one costs somebody's pod.
type limits struct {
	// idle is how long a connection may wait for a request, and how long a request's header may take. The API server, as every client
	// of client-go, closes an idle connection itself after 90 seconds: ours must be the longer wait. That is true of a new connection
	// too, whose wait net/http counts as header time: Go's client opens connections that it then leaves in reserve. A shorter
	// time for headers would gain nothing, since whoever wants to keep a connection open can do so without sending one.
	idle time.Duration
	// headerBytes is the size of a header.
	headerBytes int
	// body is how long a request may take from the end of its header to its own end. A handler that knows better sets the read
	// deadline itself, and bounds the size.
	body time.Duration
	// answer is how long it may take from the end of the header to the end of the answer, and TLS's handshake.
	answer time.Duration
	// shutdown is how long requests may take that are under way when the server has to end.
	shutdown time.Duration
	// connections is the number of connections that peers share.
	connections int64
}

// No review takes more than 10 seconds, its body included: with our configurations the API server waits 5.
var serverLimits = limits{
	idle:        2 * time.Minute,
	headerBytes: 16 << 10,
	body:        12 * time.Second,
	answer:      15 * time.Second,
	shutdown:    10 * time.Second,
	connections: maxConnections,
}

// NewServer listens at address, and once it is started serves HTTP/1.1 and HTTP/2 there to callers, over TLS as configure says. When its context
// ends it closes the listener and idle connections, and finishes the requests under way. See [Drain] for what should precede that.
func NewServer(address string, handler http.Handler, callers *Callers, configure ...func(*tls.Config)) (*manager.Server, error) {
	return newServer(address, handler, callers, serverLimits, configure...)
}

func newServer(address string, handler http.Handler, callers *Callers, l limits, configure ...func(*tls.Config)) (*manager.Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	config := &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"h2", "http/1.1"}}
	for _, c := range configure {
		c(config)
	}
	listener = limitedListener{listener, newPeers(l.connections), callers.refused.WithLabelValues(connections).Inc}
	return &manager.Server{
		Name:     "webhook",
		Listener: tls.NewListener(listener, config),
		Server: &http.Server{
			Handler:           boundBody(callers.Handler(handler), l.body),
			ReadHeaderTimeout: l.idle,
			WriteTimeout:      l.answer,
			IdleTimeout:       l.idle,
			MaxHeaderBytes:    l.headerBytes,
			// What HTTP/2 receives of bodies that wait to be read. The default of a connection is 1 MiB.
			HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 128 << 10, MaxReceiveBufferPerStream: 64 << 10},
		},
		ShutdownTimeout: &l.shutdown,
	}, nil
}

// boundBody does what [http.Server.ReadTimeout] can't: that begins when a new connection does, long before its first request may.
func boundBody(next http.Handler, limit time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(limit))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			http.Error(w, fmt.Sprintf("bound the time to read: %v", err), http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}
