package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/webhook"
	"github.com/akv-injector/akv-injector/webhook/serving"
)

// serveCommand is how the program calls itself for a server in a process of its own, whose CPU and memory are its alone.
const serveCommand = "serve"

// The servers.
const (
	ours  = "ours"
	echo  = "echo"
	azure = "azure"
)

// serve runs a webhook server until ctx ends: that of the product, with its log on stderr and its facts in memory, or a bare server of
// net/http, without limits, metrics or a listener of ours, that only echoes the UID.
func serve(ctx context.Context, kind, address, certDir string) error {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	log := zapr.NewLogger(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(os.Stderr), zapcore.InfoLevel)))
	ctrl.SetLogger(log)
	pair, err := tls.LoadX509KeyPair(filepath.Join(certDir, "tls.crt"), filepath.Join(certDir, "tls.key"))
	if err != nil {
		return fmt.Errorf("load the serving certificate: %w", err)
	}
	certificate := func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} }
	switch kind {
	case echo:
		var config tls.Config
		certificate(&config)
		server := &http.Server{Addr: address, Handler: http.HandlerFunc(reviews.Echo), TLSConfig: &config, ReadHeaderTimeout: time.Minute}
		context.AfterFunc(ctx, func() { _ = server.Close() })
		return server.ListenAndServeTLS("", "")
	case ours:
	default:
		return fmt.Errorf("must be %s or %s, not %q", ours, echo, kind)
	}
	source, err := reviews.Facts()
	if err != nil {
		return err
	}
	hooks := ctrlwebhook.NewServer(ctrlwebhook.Options{}) // counts, as in the product
	webhook.Register(hooks.Register, webhook.Options{Reviewer: review.Reviewer{Source: source}, Log: log, Metrics: webhook.NewMetrics(metrics.Registry)})
	drain := &serving.Drain{Log: log}
	server, err := serving.NewServer(address, drain.Handler(hooks.WebhookMux()), serving.NewCallers(false, metrics.Registry), certificate)
	if err != nil {
		return err
	}
	return server.Start(ctx)
}
