package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
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
	return provider.Await(ctx, func(ctx context.Context) error { return answers(ctx, socket) })
}
