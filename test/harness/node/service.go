package node

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/url"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// startService serves the address of the Service kubernetes for pods, and forwards connections to
// the API server, which listens on loopback only.
func (n *Node) startService(context.Context) error {
	server, err := url.Parse(n.plane.Config.Host)
	if err != nil {
		return fmt.Errorf("serve Service kubernetes: %w", err)
	}
	listener, err := net.Listen("tcp", net.JoinHostPort(controlplane.ServiceIP, "443"))
	if err != nil {
		return fmt.Errorf("serve Service kubernetes: %w", err)
	}
	n.servers = append(n.servers, listener.Close)
	go func() {
		for {
			client, err := listener.Accept()
			if err != nil {
				return // it is closed
			}
			go forward(client, server.Host)
		}
	}()
	return nil
}

// forward copies data between client and address until one of them closes the connection.
func forward(client net.Conn, address string) {
	defer client.Close()
	server, err := net.Dial("tcp", address)
	if err != nil {
		return // the client sees a closed connection
	}
	defer server.Close()
	go func() {
		_, _ = io.Copy(server, client)
		_ = server.Close()
	}()
	_, _ = io.Copy(client, server)
}
