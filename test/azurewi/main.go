// Command azurewi serves Azure's workload identity webhook on loopback: the handler of its module, with the client that it
// runs with in a cluster. Its own program, cmd/webhook, does the same on a port of its own choice at every address of the
// machine, and without a flag that changes either.
//
// It makes no certificate: whoever runs it puts tls.crt and tls.key into --cert-dir. How to reach the cluster it is told by --kubeconfig,
// a flag of controller-runtime's.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/Azure/azure-workload-identity/pkg/webhook"
	"github.com/go-logr/logr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

func main() {
	address := flag.String("address", "", "where reviews are served, by HTTPS: a host and a port")
	probes := flag.String("probe-address", "", "where /readyz is served, by HTTP: a host and a port")
	certDir := flag.String("cert-dir", "", "the folder of tls.crt and tls.key")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := serve(ctx, *address, *probes, *certDir)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// serve serves reviews at /mutate-v1-pod until ctx ends. The handler reads its tenant from the environment, AZURE_TENANT_ID.
func serve(ctx context.Context, address, probes, certDir string) error {
	ctrl.SetLogger(logr.Discard())
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme:                 clientgoscheme.Scheme,
		WebhookServer:          ctrlwebhook.NewServer(ctrlwebhook.Options{Host: host, Port: port, CertDir: certDir}),
		Metrics:                metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: probes,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	handler, err := webhook.NewPodMutator(mgr.GetClient(), mgr.GetAPIReader(), "", mgr.GetScheme(), mgr.GetConfig(), "", "")
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	server := mgr.GetWebhookServer()
	server.Register("/mutate-v1-pod", &ctrlwebhook.Admission{Handler: handler})
	if err := mgr.AddReadyzCheck("webhook", server.StartedChecker()); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return mgr.Start(ctx)
}
