package serving

import (
	"net"
	"net/netip"
	"sync"
)

// A connection takes some 40 KiB. An API server opens as many as it has calls under way.
const (
	maxConnections        = 2048
	maxConnectionsPerPeer = 512
)

// limitedListener closes connections that exceed its limits as soon as it has accepted them.
type limitedListener struct {
	net.Listener

	total, perPeer int
	refused        func()

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]int
}

func limitConnections(listener net.Listener, total, perPeer int, refused func()) net.Listener {
	return &limitedListener{Listener: listener, total: total, perPeer: perPeer, refused: refused, peers: map[netip.Addr]int{}}
}

// Accept implements [net.Listener].
func (l *limitedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := PeerOf(conn.RemoteAddr().String())
		if l.add(peer, 1) {
			return &limitedConn{Conn: conn, forget: sync.OnceFunc(func() { l.add(peer, -1) })}, nil
		}
		_ = conn.Close() // it was never used
		l.refused()
	}
}

// add counts n more connections of a peer, unless that exceeds a limit.
func (l *limitedListener) add(peer netip.Addr, n int) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open+n > l.total || l.peers[peer]+n > l.perPeer {
		return false
	}
	l.open += n
	if l.peers[peer] += n; l.peers[peer] == 0 {
		delete(l.peers, peer)
	}
	return true
}

type limitedConn struct {
	net.Conn

	forget func()
}

// Close implements [net.Conn].
func (c *limitedConn) Close() error {
	defer c.forget()
	return c.Conn.Close()
}
