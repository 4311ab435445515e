package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// providerFolder is where the driver looks for providers.
const providerFolder = "/run/secrets-store-csi-providers"

// startProvider starts the Azure provider, which finds nothing but the fake by Azure's names, and trusts nobody else.
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
