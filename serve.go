package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strconv"

	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/akv-injector/akv-injector/certs"
	"github.com/akv-injector/akv-injector/controller"
	"github.com/akv-injector/akv-injector/webhook"
	"github.com/akv-injector/akv-injector/webhook/facts"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// The values of --certs.
const (
	certsSelfSigned = "self-signed"
	certsFiles      = "files"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	certs, certDir                            string
	webhookAddress, metricsAddress, probeAddr string
	kubeconfig, namespace, service            string
	tlsMin, logLevel                          string
	defaults                                  func() (inject.Defaults, error)
}

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve the admission webhook", Args: cobra.NoArgs,
		Long: `Serve the admission webhook until SIGTERM or SIGINT: inject pods on creation, and hand the annotations of workloads down
to their pod templates, and hold all pods against their namespaces' policy. It needs a MutatingWebhookConfiguration and a
ValidatingWebhookConfiguration named akv-injector that call it. Beside that, make the managed classes that injected pods
mount, and keep them as long as these do.

With --certs=self-signed it makes its own serving certificate, keeps it in a Secret, renews it in time and writes the CA
bundle into the webhook configurations. With --certs=files it serves what another program, such as cert-manager, puts
into --cert-dir.`,
		Example: "  akv-injector serve --tenant-id 11111111-2222-3333-4444-555555555555\n" +
			"  akv-injector serve --certs files --cert-dir /tls --log-level debug\n" +
			"  akv-injector serve --kubeconfig ~/.kube/config --webhook-bind-address 192.0.2.7:9443 # outside the cluster",
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), &o, cmd.ErrOrStderr()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.certs, "certs", certsSelfSigned, "where the serving certificate comes from: "+certsSelfSigned+", "+certsFiles)
	f.StringVar(&o.certDir, "cert-dir", "/tls", "with --certs=files: the folder of tls.crt and tls.key, read again when they change")
	f.StringVar(&o.webhookAddress, "webhook-bind-address", ":9443", "where reviews are served, by HTTPS")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":8080", "where /metrics is served, by HTTP; 0 for nowhere")
	f.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served, by HTTP; 0 for nowhere")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the cluster; by default as kubectl does, or from inside a pod")
	f.StringVar(&o.namespace, "namespace", name+"-system", "the injector's own namespace, which holds its certificate")
	f.StringVar(&o.service, "service", name, "the Service by which the API server calls")
	f.StringVar(&o.tlsMin, "tls-min-version", "1.3", "oldest TLS version that is served: 1.2, 1.3")
	f.StringVar(&o.logLevel, "log-level", "info", "how much is logged: error, info, debug")
	o.defaults = defaultsFlags(cmd)
	return cmd
}

// serve wires the webhook server and what it needs, and runs them until ctx ends.
func serve(ctx context.Context, o *serveOptions, logTo io.Writer) error {
	defaults, err := o.defaults()
	if err != nil {
		return err
	}
	log, err := newLog(o.logLevel, logTo)
	if err != nil {
		return err
	}
	ctrl.SetLogger(log)
	klog.SetLogger(log.WithName("client"))
	slog.SetDefault(slog.New(logr.ToSlogHandler(log.WithName("http")))) // of net/http, which writes to the standard logger
	host, port, err := splitAddress(o.webhookAddress)
	if err != nil {
		return fmt.Errorf("--webhook-bind-address: %w", err)
	}
	tlsMin, ok := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[o.tlsMin]
	if !ok {
		return fmt.Errorf("--tls-min-version: must be 1.2 or 1.3, is %q", o.tlsMin)
	}
	if o.certs != certsSelfSigned && o.certs != certsFiles {
		return fmt.Errorf("--certs: must be %s or %s, is %q", certsSelfSigned, certsFiles, o.certs)
	}
	config, err := clusterConfig(o.kubeconfig, "run in a pod")
	if err != nil {
		return err
	}
	source, err := newCertificates(o, config, host)
	if err != nil {
		return err
	}
	live, err := facts.NewLive(config)
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	cluster := facts.NewCluster(live, log.WithName("facts"))
	cluster.Register(metrics.Registry)
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: host, Port: port, TLSOpts: []func(*tls.Config){
		certs.Configure(source, tlsMin),
		func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} },
	}})
	webhook.Register(server.Register, webhook.Options{
		Source: cluster, Defaults: defaults, Log: log.WithName("webhook"), Metrics: webhook.NewMetrics(metrics.Registry),
	})
	mgr, err := manager.New(config, manager.Options{
		Logger:                 log,
		WebhookServer:          server,
		Metrics:                metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress: o.probeAddr,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	err = controller.AddTo(mgr, controller.Options{
		Live: live, Cluster: cluster, Defaults: defaults, Log: log.WithName("controller"), Metrics: metrics.Registry,
	})
	if err != nil {
		return err
	}
	err = errors.Join(
		mgr.Add(server), mgr.Add(source), mgr.Add(cluster),
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("certificate", source.Ready),
		mgr.AddReadyzCheck("cluster", cluster.Ready),
	)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	log.Info("Starting", "version", buildVersion(), "certs", o.certs, "identityMode", defaults.Mode)
	return mgr.Start(ctx)
}

// newCertificates is the source of the serving certificate that the flags ask for.
func newCertificates(o *serveOptions, config *rest.Config, host string) (certs.Source, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	options := certs.Options{Client: client, WebhookConfigurations: []string{name}, Metrics: metrics.Registry}
	if o.certs == certsFiles {
		return certs.Files(o.certDir, options)
	}
	service := o.service + "." + o.namespace
	hosts := []string{service + ".svc", service + ".svc.cluster.local"}
	if host != "" {
		hosts = append(hosts, host) // outside a cluster the API server calls by the address itself
	}
	return certs.SelfSigned(certs.SelfSignedOptions{Options: options, Namespace: o.namespace, SecretName: name + "-serving-cert", Hosts: hosts})
}

// newLog makes the JSON log: a line an event, times in RFC 3339.
func newLog(level string, to io.Writer) (logr.Logger, error) {
	levels := map[string]zapcore.Level{"error": zapcore.ErrorLevel, "info": zapcore.InfoLevel, "debug": zapcore.DebugLevel}
	enabled, ok := levels[level]
	if !ok {
		return logr.Logger{}, fmt.Errorf("--log-level: must be error, info or debug, is %q", level)
	}
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	core := zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(zapcore.AddSync(to)), enabled)
	return zapr.NewLogger(zap.New(core)), nil
}

func splitAddress(address string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(address)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("must have a port from 1 to 65535, is %q", text)
	}
	return host, port, nil
}
