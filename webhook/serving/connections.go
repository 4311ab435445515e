package serving

import (
	"net"
	"sync"
)

// maxConnections is the number of connections that all peers share. A connection takes about 40
// KiB. An API server opens one connection for each concurrent call, and by default it processes 200
// mutating requests at a time.
const maxConnections = 1024

// limitedListener closes new connections of a peer that exceed its share.
type limitedListener struct {
	net.Listener

	shared  *peers
	refused func()
}

// Accept implements [net.Listener].
func (l limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := PeerOf(conn.RemoteAddr().String())
		if l.shared.TryAcquire(peer, 1) {
			return limitedConn{Conn: conn, release: sync.OnceFunc(func() { l.shared.Release(peer, 1) })}, nil
		}
		_ = conn.Close() // the connection was not used, so an error does not matter
		l.refused()
	}
}

type limitedConn struct {
	net.Conn

	release func()
}

// Close implements [net.Conn].
func (c limitedConn) Close() error {
	defer c.release()
	return c.Conn.Close()
}
