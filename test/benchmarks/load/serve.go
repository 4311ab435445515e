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

// serveCommand is the argument with which the program starts itself as a server, so that the CPU
// time and memory of the server are those of its process.
const serveCommand = "serve"

// The servers.
const (
	ours  = "ours"
	echo  = "echo"
	azure = "azure"
)

// serve runs a webhook server until ctx ends. Kind ours is the server of the product, with its log
// on standard error and its facts in memory. Kind echo is a plain net/http server without limits
// and metrics that only echoes the UID.
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
		return fmt.Errorf("the server must be %s or %s, not %q", ours, echo, kind)
	}
	source, err := reviews.Facts()
	if err != nil {
		return err
	}
	hooks := ctrlwebhook.NewServer(ctrlwebhook.Options{}) // with the metrics of the product
	webhook.Register(hooks.Register, webhook.Options{Reviewer: review.Reviewer{Source: source}, Log: log, Metrics: webhook.NewMetrics(metrics.Registry)})
	drain := &serving.Drain{Log: log}
	server, err := serving.NewServer(address, drain.Handler(hooks.WebhookMux()), serving.NewCallers(false, metrics.Registry), certificate)
	if err != nil {
		return err
	}
	return server.Start(ctx)
}
