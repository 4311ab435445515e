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
	"github.com/akv-injector/akv-injector/controller/canary"
	"github.com/akv-injector/akv-injector/controller/findings"
	"github.com/akv-injector/akv-injector/controller/rotation"
	"github.com/akv-injector/akv-injector/core/class"
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

// The values of --env-files.
const (
	envFilesOff   = "off"
	envFilesCheck = "check"
	envFilesOn    = "on"
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
	tracing, findings                         bool
	canaryNamespace                           string
	canaryInterval                            time.Duration
	envFiles, envFilesNamespace               string
	rotation                                  bool
	rotationConcurrency                       int
	rotationInterval, rotationTimeout         time.Duration
	extraWorkloads                            []string
	drainPeriod                               time.Duration
	defaults                                  func() (inject.Defaults, error)
}

func serveCommand() *cobra.Command {
	var o serveOptions
	cmd := &cobra.Command{
		Use: "serve", Short: "Serve the admission webhook", Args: cobra.NoArgs,
		Long: `Serve the admission webhooks: inject pods, let pod templates inherit the annotations of their
workloads, and check pods against the policy of their namespaces. The API server calls them by a
MutatingWebhookConfiguration and a ValidatingWebhookConfiguration named akv-injector. The
controller in the same program creates the managed SecretProviderClasses that injected pods mount,
and writes events on workloads and pods about what only a warning said.

After SIGTERM or SIGINT, readiness fails at once, and the program answers reviews for another
--drain-period, until the API server uses other replicas. A second signal ends it at once.

Serving certificates:
  --certs=cert-manager  the Secret of a Certificate; readiness fails while it does not exist
  --certs=self-signed   a certificate that the injector creates, keeps in a Secret and renews; it
                        writes the CA bundle into the webhook configurations
  --certs=files         files in --cert-dir, which another program writes`,
		Example: "  akv-injector serve --tenant-id 11111111-2222-3333-4444-555555555555\n" +
			"  akv-injector serve --certs files --cert-dir /tls --log-level debug\n" +
			"  akv-injector serve --kubeconfig ~/.kube/config --webhook-bind-address 192.0.2.7:9443 # outside the cluster",
		RunE: func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), &o, cmd.ErrOrStderr()) },
	}
	f := cmd.Flags()
	sources := strings.Join([]string{certsCertManager, certsSelfSigned, certsFiles}, ", ")
	f.StringVar(&o.certs, "certs", certsCertManager, "source of the serving certificate: "+sources)
	f.StringVar(&o.certificate, "certificate", name, "with --certs=cert-manager: name of the Certificate, in --namespace")
	f.StringVar(&o.certificateSecret, "certificate-secret", name+"-tls",
		"with --certs=cert-manager: name of its Secret, as in spec.secretName")
	f.StringVar(&o.certDir, "cert-dir", "/tls",
		"with --certs=files: directory of tls.crt and tls.key, which are reloaded when they change")
	f.DurationVar(&o.propagationDelay, "propagation-delay", time.Minute,
		"with --certs=self-signed: delay between a new CA bundle and the use of its certificate")
	f.StringVar(&o.clientCA, "client-ca", "",
		"PEM file of CAs; callers must have a client certificate of one of them (default: any caller)")
	f.StringVar(&o.webhookAddress, "webhook-bind-address", ":9443", "address for reviews, HTTPS")
	f.StringVar(&o.metricsAddress, "metrics-bind-address", ":8080", "address for /metrics, HTTP; 0 turns it off")
	f.StringVar(&o.probeAddr, "health-probe-bind-address", ":8081",
		"address for /healthz and /readyz, HTTP; 0 turns it off")
	f.DurationVar(&o.drainPeriod, "drain-period", 15*time.Second,
		"how long reviews are answered after SIGTERM or SIGINT, while readiness fails")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "path to a kubeconfig (default: kubectl's rules, then in-cluster)")
	f.StringVar(&o.namespace, "namespace", name+"-system", "namespace of the injector and of its certificate")
	f.StringVar(&o.service, "service", name, "Service that the API server calls")
	f.StringVar(&o.tlsMin, "tls-min-version", "1.3", "minimum TLS version: 1.2, 1.3")
	f.StringVar(&o.logLevel, "log-level", "info", "log level: error, info, debug")
	f.StringVar(&o.pprofAddress, "pprof-bind-address", "0",
		"address for /debug/pprof, HTTP without authentication; 0 turns it off")
	f.BoolVar(&o.tracing, "tracing", false,
		"send spans of reviews by OTLP over HTTP; OTEL_EXPORTER_OTLP_* and OTEL_TRACES_SAMPLER* configure it")
	f.BoolVar(&o.findings, "findings", true,
		"write events on workloads and pods about what only a warning said, and about pods that were not injected")
	f.StringVar(&o.canaryNamespace, "canary-namespace", "",
		"namespace in which pods are created as a dry run, to check that they are injected (default: no such check)")
	f.DurationVar(&o.canaryInterval, "canary-interval", time.Minute,
		"with --canary-namespace: time between two of these checks, 10s to 5m")
	f.StringVar(&o.envFiles, "env-files", envFilesOff, "whether pods may set keyvault.io/env-source: file: "+
		envFilesOff+"; "+envFilesCheck+", if the API server and every Linux node support it; "+envFilesOn+", without a check")
	f.StringVar(&o.envFilesNamespace, "env-files-namespace", "",
		"with --env-files="+envFilesCheck+": namespace in which a pod is created as a dry run")
	f.BoolVar(&o.rotation, "rotation", false,
		"restart workloads with keyvault.io/on-rotation: restart when an object has a new version")
	f.IntVar(&o.rotationConcurrency, "rotation-max-concurrent", 10,
		"with --rotation: how many workloads restart at a time; of each namespace, one")
	f.DurationVar(&o.rotationInterval, "rotation-min-interval", 10*time.Minute,
		"with --rotation: the least time between two restarts of a workload")
	f.DurationVar(&o.rotationTimeout, "rotation-timeout", 10*time.Minute,
		"with --rotation: the time after which an incomplete restart has failed, and the next one of its namespace may begin")
	f.StringArrayVar(&o.extraWorkloads, "extra-workload", nil,
		"with --rotation: another kind to restart, KIND=RESOURCE.VERSION.GROUP[:PATH] with the path of its pod template "+
			"(default spec.template), such as Rollout=rollouts.v1alpha1.argoproj.io; can be repeated")
	o.defaults = defaultsFlags(cmd)
	return cmd
}

// serve starts the webhook server and everything it needs, until ctx ends.
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
	if o.canaryInterval < 10*time.Second || o.canaryInterval > 5*time.Minute {
		return fmt.Errorf("--canary-interval: must be from 10s to 5m, is %s", o.canaryInterval)
	}
	if o.rotationConcurrency < 1 || o.rotationInterval < 0 || o.rotationTimeout <= 0 {
		return errors.New("--rotation-max-concurrent must be 1 or more, --rotation-min-interval 0 or more, " +
			"and --rotation-timeout above 0")
	}
	extra := make([]rotation.Kind, len(o.extraWorkloads))
	for i, text := range o.extraWorkloads {
		if extra[i], err = rotation.ParseKind(text); err != nil {
			return fmt.Errorf("--extra-workload: %w", err)
		}
	}
	tlsMin, ok := map[string]uint16{"1.2": tls.VersionTLS12, "1.3": tls.VersionTLS13}[o.tlsMin]
	if !ok {
		return fmt.Errorf("--tls-min-version: must be 1.2 or 1.3, is %q", o.tlsMin)
	}
	if o.certs != certsCertManager && o.certs != certsSelfSigned && o.certs != certsFiles {
		return fmt.Errorf("--certs: must be %s, %s or %s, is %q", certsCertManager, certsSelfSigned, certsFiles, o.certs)
	}
	config, err := clusterConfig(o.kubeconfig, "", "run in a pod")
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
	envFiles, err := newEnvFiles(o, live, config, log.WithName("env-files"))
	if err != nil {
		return err
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
	// For its metrics; it has neither a drain nor limits of ours, and is not started.
	hooks := ctrlwebhook.NewServer(ctrlwebhook.Options{})
	register := func(path string, handler http.Handler) { hooks.Register(path, traced(path, handler)) }
	webhook.Register(register, webhook.Options{
		Reviewer: review.Reviewer{Source: cached, Defaults: defaults},
		Log:      log.WithName("webhook"),
		Metrics:  webhook.NewMetrics(metrics.Registry),
	})
	drain := &serving.Drain{Period: o.drainPeriod, Log: log.WithName("drain")}
	callers := serving.NewCallers(o.clientCA != "", metrics.Registry)
	server, err := serving.NewServer(o.webhookAddress, drain.Handler(hooks.WebhookMux()), callers,
		certs.Configure(source, tlsMin), clients.Configure)
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
	if envFiles != nil {
		if err := mgr.Add(envFiles); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	if o.findings {
		err = mgr.Add(findings.New(findings.Options{
			Live: live, Cache: cached, Client: client, Excludes: watcher.Excludes,
			Defaults: defaults, Log: log.WithName("findings"), Metrics: metrics.Registry,
		}))
		if err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	if o.rotation {
		err = mgr.Add(rotation.New(rotation.Options{
			Live: live, Cache: cached, Client: client, Events: mgr.GetEventRecorder(class.ManagedBy), Namespace: o.namespace, Extra: extra,
			MaxConcurrent: o.rotationConcurrency, MinInterval: o.rotationInterval, Timeout: o.rotationTimeout,
			Log: log.WithName("rotation"), Metrics: metrics.Registry,
		}))
		if err != nil {
			return fmt.Errorf("set up: %w", err)
		}
	}
	if o.canaryNamespace != "" {
		if err := addCanary(mgr, o, config, log.WithName("canary")); err != nil {
			return err
		}
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

// newEnvFiles sets how live finds out whether the cluster supports env vars from files. It returns what
// checks the cluster; nil if nothing does.
func newEnvFiles(o *serveOptions, live *cluster.Live, config *rest.Config, log logr.Logger) (*cluster.EnvFiles, error) {
	switch o.envFiles {
	case envFilesOn:
		return nil, nil
	case envFilesOff:
		live.EnvFiles = func() string { return "the injector does not offer it; set envFiles.mode to check in its chart" }
		return nil, nil
	case envFilesCheck:
	default:
		return nil, fmt.Errorf("--env-files: must be %s, %s or %s, is %q", envFilesOff, envFilesCheck, envFilesOn, o.envFiles)
	}
	if o.envFilesNamespace == "" {
		return nil, fmt.Errorf("--env-files-namespace: must be set with --env-files=%s", envFilesCheck)
	}
	client, err := quietClient(config)
	if err != nil {
		return nil, err
	}
	found := cluster.NewEnvFiles(live, client, o.envFilesNamespace, log)
	live.EnvFiles = found.Unsupported
	return found, nil
}

// quietClient returns a client that logs no warnings of the API server about pods of dry runs.
func quietClient(config *rest.Config) (kubernetes.Interface, error) {
	config = rest.CopyConfig(config)
	config.WarningHandlerWithContext = rest.NoWarnings{}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("reach the cluster: %w", err)
	}
	return client, nil
}

// addCanary adds the canary to a manager.
func addCanary(mgr manager.Manager, o *serveOptions, config *rest.Config, log logr.Logger) error {
	client, err := quietClient(config)
	if err != nil {
		return err
	}
	err = mgr.Add(canary.New(canary.Options{
		Client: client, Namespace: o.canaryNamespace, Interval: o.canaryInterval,
		Service: types.NamespacedName{Namespace: o.namespace, Name: o.service},
		Log:     log, Metrics: metrics.Registry,
	}))
	if err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// newCertificates returns the serving certificates that the flags select.
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
			Options:     options,
			CertManager: certManager,
			Namespace:   o.namespace,
			Certificate: o.certificate,
			Secret:      o.certificateSecret,
		})
	}
	service := o.service + "." + o.namespace
	hosts := []string{service + ".svc", service + ".svc.cluster.local"}
	if host != "" {
		hosts = append(hosts, host) // outside a cluster, the API server calls the address
	}
	return certs.SelfSigned(certs.SelfSignedOptions{
		Options:          options,
		Namespace:        o.namespace,
		SecretName:       name + "-serving-cert",
		Hosts:            hosts,
		PropagationDelay: o.propagationDelay,
	})
}

// newLog returns a logger that writes JSON, one line for each event, with times in RFC 3339.
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
