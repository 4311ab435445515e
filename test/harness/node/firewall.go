package node

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// startFirewall starts the firewall of kube-router, which enforces NetworkPolicies between pods,
// and waits for its first rules. As with every network plugin, the node itself can reach its pods,
// and so can the API server.
func (n *Node) startFirewall(ctx context.Context) error {
	// On an installed system, update-alternatives selects the implementation of iptables.
	links := filepath.Join(folder, "iptables")
	if err := os.MkdirAll(links, 0o755); err != nil {
		return fmt.Errorf("start the firewall: %w", err)
	}
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		if err := os.Symlink(n.machine.program("usr/sbin/xtables-nft-multi"), filepath.Join(links, name)); err != nil {
			return fmt.Errorf("start the firewall: %w", err)
		}
	}
	libraries, err := filepath.Glob(n.machine.program("usr/lib/*/xtables"))
	if err != nil || len(libraries) != 1 {
		return fmt.Errorf("start the firewall: must find one folder with the libraries of iptables, found %q: %w", libraries, err)
	}
	if err := os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte("1"), 0o644); err != nil {
		return fmt.Errorf("start the firewall: %w", err)
	}
	cmd := exec.Command(n.machine.Parts.Firewall, "--kubeconfig="+n.plane.Kubeconfig, "--hostname-override="+Name,
		"--run-firewall=true", "--run-router=false", "--run-service-proxy=false", "--run-loadbalancer=false", "--enable-ipv6=false",
		"--service-cluster-ip-range="+controlplane.ServiceRange, "--health-port=0", "--metrics-port=0")
	cmd.Env = append(os.Environ(), "PATH="+links+":"+os.Getenv("PATH"), "XTABLES_LIBDIR="+libraries[0], "LD_LIBRARY_PATH="+filepath.Dir(libraries[0]))
	firewall, err := n.run(cmd)
	if err != nil {
		return err
	}
	return firewall.Await(ctx, func(ctx context.Context) error {
		list := exec.CommandContext(ctx, filepath.Join(links, "iptables-save"))
		list.Env = cmd.Env
		rules, err := list.CombinedOutput()
		if err == nil && !strings.Contains(string(rules), "KUBE-ROUTER-FORWARD") {
			err = errors.New("it has written no rules")
		}
		return err
	})
}
