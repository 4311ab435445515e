// Package serving is the HTTPS server of the webhook: its timeouts, its limits for callers, and a
// shutdown that loses no review.
//
//	callers := serving.NewCallers(false, registry)
//	server, err := serving.NewServer(":9443", handler, callers, withCertificate)
//
// It decodes no review, and does not load the serving certificate.
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

// limits limit what a client can use. They must not affect the API server: it does not retry a
// call, so if the server closes a connection just as the API server sends a call, the creation of a
// pod fails.
type limits struct {
	// idle is how long a connection may wait for a request, and how long a request's header may
	// take. The API server, like every client of client-go, closes an idle connection after 90
	// seconds, so the server must wait longer. This also applies to new connections, for which
	// net/http counts the wait as header time: Go's client opens connections in reserve. A shorter
	// limit for headers has no benefit, since a client can keep a connection open without sending
	// one.
	idle time.Duration
	// headerBytes is the size of the largest header.
	headerBytes int
	// body is how long the body of a request may take, from the end of its header. A handler may
	// set a shorter read deadline, and limits the size.
	body time.Duration
	// answer is how long a request may take from the end of its header to the end of the response.
	// It is also the limit of a TLS handshake.
	answer time.Duration
	// shutdown is how long requests in progress may take after the start of the shutdown.
	shutdown time.Duration
	// connections is the number of connections that all peers share.
	connections int64
}

// A review takes at most 10 seconds with its body. With the injector's webhook configurations, the
// API server waits 5 seconds.
var serverLimits = limits{
	idle:        2 * time.Minute,
	headerBytes: 16 << 10,
	body:        12 * time.Second,
	answer:      15 * time.Second,
	shutdown:    10 * time.Second,
	connections: maxConnections,
}

// NewServer listens at address and returns a server for HTTP/1.1 and HTTP/2 over TLS; configure
// changes the TLS configuration. When the context of the started server ends, the server closes the
// listener and idle connections, and finishes the requests in progress. Use [Drain] to delay that.
func NewServer(
	address string, handler http.Handler, callers *Callers, configure ...func(*tls.Config),
) (*manager.Server, error) {
	return newServer(address, handler, callers, serverLimits, configure...)
}

func newServer(
	address string, handler http.Handler, callers *Callers, l limits, configure ...func(*tls.Config),
) (*manager.Server, error) {
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
			// Buffers of HTTP/2 for bodies that are not read yet. The default for a
			// connection is 1 MiB.
			HTTP2: &http.HTTP2Config{MaxReceiveBufferPerConnection: 128 << 10, MaxReceiveBufferPerStream: 64 << 10},
		},
		ShutdownTimeout: &l.shutdown,
	}, nil
}

// boundBody limits the time to read a body. [http.Server.ReadTimeout] cannot be used: it starts
// with a new connection, which may be long before its first request.
func boundBody(next http.Handler, limit time.Duration) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		err := http.NewResponseController(w).SetReadDeadline(time.Now().Add(limit))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			http.Error(w, fmt.Sprintf("set read deadline: %v", err), http.StatusInternalServerError)
			return
		}
		next.ServeHTTP(w, r)
	})
}
