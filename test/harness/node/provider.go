package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

// providerFolder is the folder in which the driver finds providers.
const providerFolder = "/run/secrets-store-csi-providers"

// startProvider starts the Azure provider. The host names of Azure lead it to the fake, and it
// trusts only the fake's certificate authority.
func (n *Node) startProvider(ctx context.Context) error {
	socket := filepath.Join(providerFolder, "azure.sock")
	if err := os.MkdirAll(providerFolder, 0o755); err != nil {
		return fmt.Errorf("start the provider: %w", err)
	}
	cmd := exec.Command(n.machine.Parts.Provider, "--endpoint=unix://"+socket,
		"--token-proxy-url=https://"+tokenProxy, "--sni-name="+tokenProxy)
	cmd.Env = []string{"SSL_CERT_FILE=" + n.authorityFile(), "SSL_CERT_DIR=/nonexistent"}
	provider, err := n.run(cmd)
	if err != nil {
		return err
	}
	n.provider = provider
	return provider.Await(ctx, func(ctx context.Context) error { return answers(ctx, socket) })
}

// StopProvider makes the node one on which no provider runs. It also restarts the driver: a driver
// that has called a provider waits for it for two minutes, and then reports only the timeout.
func (n *Node) StopProvider(ctx context.Context) error {
	n.mu.Lock()
	n.parts = slices.DeleteFunc(n.parts, func(p *process.Process) bool { return p == n.provider })
	n.mu.Unlock()
	if err := n.provider.Stop(); err != nil {
		return fmt.Errorf("stop the provider: %w", err)
	}
	if err := n.StopDriver(ctx); err != nil {
		return err
	}
	return n.StartDriver(ctx)
}

// StartProvider reverts [Node.StopProvider].
func (n *Node) StartProvider(ctx context.Context) error { return n.startProvider(ctx) }
