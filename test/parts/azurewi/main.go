// Command azurewi serves Azure's workload identity webhook on loopback: the handler of its module,
// with the same client as in a cluster. The module's program, cmd/webhook, cannot be used, because
// it chooses its port and listens on every address of the machine.
//
// The folder of --cert-dir must contain tls.crt and tls.key. The flag --kubeconfig of
// controller-runtime selects the cluster. With --client-id there is no cluster, and every
// ServiceAccount that the handler looks up has that client ID.
package main

import (
	"context"
	"flag"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/Azure/azure-workload-identity/pkg/webhook"
	"github.com/go-logr/logr"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"
)

func main() {
	address := flag.String("address", "", "`HOST:PORT` of the HTTPS server for reviews")
	probes := flag.String("probe-address", "", "`HOST:PORT` of the HTTP server for /readyz")
	certDir := flag.String("cert-dir", "", "`folder` with tls.crt and tls.key")
	clientID := flag.String("client-id", "", "client `ID` of every ServiceAccount; replaces the cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := serve(ctx, *address, *probes, *certDir, *clientID)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
}

// path is the path of reviews.
const path = "/mutate-v1-pod"

// memory is a client of a cluster in which every ServiceAccount has the same client ID.
type memory struct {
	client.Client

	clientID string
}

// Get implements [client.Reader].
func (m memory) Get(_ context.Context, key client.ObjectKey, object client.Object, _ ...client.GetOption) error {
	object.SetNamespace(key.Namespace)
	object.SetName(key.Name)
	object.SetAnnotations(map[string]string{webhook.ClientIDAnnotation: m.clientID})
	return nil
}

// serve serves reviews at /mutate-v1-pod until ctx ends. The handler reads its tenant from the
// environment variable AZURE_TENANT_ID. serve sets the variable to the client ID, because any ID is
// valid.
func serve(ctx context.Context, address, probes, certDir, clientID string) error {
	ctrl.SetLogger(logr.Discard())
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	port, err := strconv.Atoi(text)
	if err != nil {
		return fmt.Errorf("--address: %w", err)
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: host, Port: port, CertDir: certDir})
	if clientID != "" {
		if err := os.Setenv("AZURE_TENANT_ID", clientID); err != nil {
			return err
		}
		version := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			fmt.Fprint(w, `{"major":"1","minor":"37","gitVersion":"v1.37.0"}`)
		}))
		defer version.Close()
		accounts := memory{clientID: clientID}
		handler, err := webhook.NewPodMutator(accounts, accounts, "", clientgoscheme.Scheme, &rest.Config{Host: version.URL}, "", "")
		if err != nil {
			return fmt.Errorf("set up: %w", err)
		}
		server.Register(path, &ctrlwebhook.Admission{Handler: handler})
		return server.Start(ctx)
	}
	config, err := ctrl.GetConfig()
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	mgr, err := manager.New(config, manager.Options{
		Scheme:                 clientgoscheme.Scheme,
		WebhookServer:          server,
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
	// GetWebhookServer also adds the server to the manager.
	mgr.GetWebhookServer().Register(path, &ctrlwebhook.Admission{Handler: handler})
	if err := mgr.AddReadyzCheck("webhook", server.StartedChecker()); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return mgr.Start(ctx)
}
