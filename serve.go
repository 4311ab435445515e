package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	certmanagerclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	"github.com/go-logr/logr"
	"github.com/go-logr/zapr"
	"github.com/spf13/cobra"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"k8s.io/apimachinery/pkg/types"
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
	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/cluster/registration"
	"github.com/akv-injector/akv-injector/controller"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/tracing"
	"github.com/akv-injector/akv-injector/webhook"
	"github.com/akv-injector/akv-injector/webhook/serving"
)

// The values of --certs.
const (
	certsCertManager = "cert-manager"
	certsSelfSigned  = "self-signed"
	certsFiles       = "files"
)

// serveOptions are the flags of serve.
type serveOptions struct {
	certs, certDir, clientCA                  string
	certificate, certificateSecret            string
	propagationDelay                          time.Duration
	webhookAddress, metricsAddress, probeAddr string
	kubeconfig, namespace, service            string
	tlsMin, logLevel                          string
	pprofAddress                              string
	tracing                                   bool
	drainPeriod                               time.Duration
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

When told to end it is unready at once, and for another --drain-period answers reviews and keeps all else up, so that none
is lost while the API server finds its way to other replicas. A second signal ends it at once.

With --certs=cert-manager it serves what cert-manager keeps in the Secret of a Certificate, and while there is none its
readiness says why. With --certs=self-signed it makes its own serving certificate, keeps it in a Secret, renews it in time
and writes the CA bundle into the webhook configurations. With --certs=files it serves what another program puts into
--cert-dir.`,
		Example: "  akv-injector serve --tenant-id 11111111-2222-3333-4444-555555555555\n" +
			"  akv-injector serve --certs files --cert-dir /tls --log-level debug\n" +
			"  akv-injector serve --kubeconfig ~/.kube/config --webhook-bind-address 192.0.2.7:9443 # outside the cluster",
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), &o, cmd.ErrOrStderr()) },
	}
	f := cmd.Flags()
	f.StringVar(&o.certs, "certs", certsCertManager, "where the serving certificate comes from: "+strings.Join([]string{certsCertManager, certsSelfSigned, certsFiles}, ", "))
	f.StringVar(&o.certificate, "certificate", name, "with --certs=cert-manager: the Certificate, in --namespace")
	f.StringVar(&o.certificateSecret, "certificate-secret", name+"-tls", "with --certs=cert-manager: the Secret that its spec.secretName says")
	f.StringVar(&o.certDir, "cert-dir", "/tls", "with --certs=files: the folder of tls.crt and tls.key, read again when they change")
	f.DurationVar(&o.propagationDelay, "propagation-delay", time.Minute, "with --certs=self-signed: how long API servers are given to learn of a new CA before its certificate is served")
	f.StringVar(&o.clientCA, "client-ca", "", "file of CAs, in PEM: a caller must present a client certificate that one of them signed, or its review is rejected unread (default: callers need none)")
	f.StringVar(&o.webhookAddress, "webhook-bind-address", ":9443", "where reviews are served, by HTTPS")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":8080", "where /metrics is served, by HTTP; 0 for nowhere")
	f.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081", "where /healthz and /readyz are served, by HTTP; 0 for nowhere")
	f.DurationVar(&o.drainPeriod, "drain-period", 15*time.Second, "how long reviews are still answered after SIGTERM or SIGINT, while readiness is false already; 0 for not at all")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "file that says how to reach the cluster; by default as kubectl does, or from inside a pod")
	f.StringVar(&o.namespace, "namespace", name+"-system", "the injector's own namespace, which holds its certificate")
	f.StringVar(&o.service, "service", name, "the Service by which the API server calls")
	f.StringVar(&o.tlsMin, "tls-min-version", "1.3", "oldest TLS version that is served: 1.2, 1.3")
	f.StringVar(&o.logLevel, "log-level", "info", "how much is logged: error, info, debug")
	f.StringVar(&o.pprofAddress, "pprof-bind-address", "0", "where /debug/pprof is served, by HTTP and to anyone who reaches it; 0 for nowhere")
	f.BoolVar(&o.tracing, "tracing", false, "send spans of reviews by OTLP over HTTP, as the environment variables OTEL_EXPORTER_OTLP_* and OTEL_TRACES_SAMPLER* say")
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
	host, _, err := net.SplitHostPort(o.webhookAddress)
	if err != nil {
		return fmt.Errorf("--webhook-bind-address: %w", err)
	}
	if o.drainPeriod < 0 {
		return fmt.Errorf("--drain-period: must be 0 or more, is %s", o.drainPeriod)
	}
	if o.propagationDelay <= 0 {
		return fmt.Errorf("--propagation-delay: must be above 0, is %s", o.propagationDelay)
	}
	tlsMin, ok := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[o.tlsMin]
	if !ok {
		return fmt.Errorf("--tls-min-version: must be 1.2 or 1.3, is %q", o.tlsMin)
	}
	if o.certs != certsCertManager && o.certs != certsSelfSigned && o.certs != certsFiles {
		return fmt.Errorf("--certs: must be %s, %s or %s, is %q", certsCertManager, certsSelfSigned, certsFiles, o.certs)
	}
	config, err := clusterConfig(o.kubeconfig, "run in a pod")
	if err != nil {
		return err
	}
	traced := func(_ string, handler http.Handler) http.Handler { return handler }
	if o.tracing {
		t, err := tracing.New(ctx, name, buildVersion(), log.WithName("tracing"))
		if err != nil {
			return fmt.Errorf("--tracing: %w", err)
		}
		defer t.Stop(context.WithoutCancel(ctx)) // which ends before the last spans are made
		config.Wrap(t.Transport)
		traced = t.Handler
	}
	source, err := newCertificates(o, config, host)
	if err != nil {
		return err
	}
	clients, err := certs.NewClientAuth(o.clientCA, nil)
	if err != nil {
		return fmt.Errorf("--client-ca: %w", err)
	}
	live, err := cluster.NewLive(config)
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	cached := cluster.NewCache(live, log.WithName("cluster"))
	cached.Register(metrics.Registry)
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return fmt.Errorf("reach the cluster: %w", err)
	}
	registered := registration.Options{
		Client: client, Service: types.NamespacedName{Namespace: o.namespace, Name: o.service},
		Log: log.WithName("registration"), Metrics: metrics.Registry,
	}
	watcher := registration.NewWatcher(registered)
	hooks := ctrlwebhook.NewServer(ctrlwebhook.Options{}) // for its metrics; it has neither a drain nor limits of ours, and is not started
	register := func(path string, handler http.Handler) { hooks.Register(path, traced(path, handler)) }
	webhook.Register(register, webhook.Options{
		Reviewer: review.Reviewer{Source: cached, Defaults: defaults}, Log: log.WithName("webhook"), Metrics: webhook.NewMetrics(metrics.Registry),
	})
	drain := &serving.Drain{Period: o.drainPeriod, Log: log.WithName("drain")}
	callers := serving.NewCallers(o.clientCA != "", metrics.Registry)
	server, err := serving.NewServer(o.webhookAddress, drain.Handler(hooks.WebhookMux()), callers, certs.Configure(source, tlsMin), clients.Configure)
	if err != nil {
		return fmt.Errorf("--webhook-bind-address: %w", err)
	}
	mgr, err := manager.New(config, manager.Options{
		Logger:                 log,
		Metrics:                metricsserver.Options{BindAddress: o.metricsAddress},
		HealthProbeBindAddress: o.probeAddr,
		PprofBindAddress:       o.pprofAddress,
	})
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	err = controller.AddTo(mgr, controller.Options{
		Live: live, Cache: cached, Defaults: defaults, Log: log.WithName("controller"), Metrics: metrics.Registry,
	})
	if err != nil {
		return err
	}
	err = errors.Join(
		mgr.Add(server), mgr.Add(source), mgr.Add(clients), mgr.Add(cached), mgr.Add(watcher),
		mgr.AddHealthzCheck("ping", healthz.Ping),
		mgr.AddReadyzCheck("certificate", source.Ready),
		mgr.AddReadyzCheck("cluster", cached.Ready),
		mgr.AddReadyzCheck("drain", drain.Ready),
	)
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	if o.clientCA == "" {
		if err := mgr.Add(registration.NewExposure(registered)); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	log.Info("Starting", "version", buildVersion(), "certs", o.certs, "identityMode", defaults.Mode)
	ctx, end := drain.Outlast(ctx)
	defer end()
	return mgr.Start(ctx)
}

// newCertificates is the source of the serving certificate that the flags ask for.
func newCertificates(o *serveOptions, config *rest.Config, host string) (certs.Certificates, error) {
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	options := certs.Options{Client: client, WebhookConfigurations: []string{name}, Metrics: metrics.Registry}
	switch o.certs {
	case certsFiles:
		return certs.Files(o.certDir, options)
	case certsCertManager:
		certManager, err := certmanagerclient.NewForConfig(config)
		if err != nil {
			return nil, fmt.Errorf("reach the cluster: %w", err)
		}
		return certs.CertManager(certs.CertManagerOptions{
			Options: options, CertManager: certManager, Namespace: o.namespace, Certificate: o.certificate, Secret: o.certificateSecret,
		})
	}
	service := o.service + "." + o.namespace
	hosts := []string{service + ".svc", service + ".svc.cluster.local"}
	if host != "" {
		hosts = append(hosts, host) // outside a cluster the API server calls by the address itself
	}
	return certs.SelfSigned(certs.SelfSignedOptions{
		Options: options, Namespace: o.namespace, SecretName: name + "-serving-cert", Hosts: hosts, PropagationDelay: o.propagationDelay,
	})
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
