package main

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"

	"github.com/go-logr/zapr"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	ctrlwebhook "sigs.k8s.io/controller-runtime/pkg/webhook"

	"github.com/akv-injector/akv-injector/webhook"
	"github.com/akv-injector/akv-injector/webhook/corpus/reviews"
)

// serveCommand is how the program calls itself for a server in a process of its own, whose CPU and memory are its alone.
const serveCommand = "serve"

// The servers.
const (
	ours = "ours"
	echo = "echo"
)

// serve runs a webhook server until ctx ends: that of the product, with its log on stderr and its facts in memory, or one of the same kind
// that only echoes the UID.
func serve(ctx context.Context, kind, address, certDir string) error {
	encoder := zap.NewProductionEncoderConfig()
	encoder.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	log := zapr.NewLogger(zap.New(zapcore.NewCore(zapcore.NewJSONEncoder(encoder), zapcore.Lock(os.Stderr), zapcore.InfoLevel)))
	ctrl.SetLogger(log)
	host, portText, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return err
	}
	server := ctrlwebhook.NewServer(ctrlwebhook.Options{Host: host, Port: port, CertDir: certDir, TLSOpts: []func(*tls.Config){
		func(c *tls.Config) { c.MinVersion, c.NextProtos = tls.VersionTLS13, []string{"h2", "http/1.1"} },
	}})
	switch kind {
	case echo:
		server.Register(webhook.MutatePods, http.HandlerFunc(reviews.Echo))
	case ours:
		source, err := reviews.Facts()
		if err != nil {
			return err
		}
		webhook.Register(server.Register, webhook.Options{Source: source, Log: log, Metrics: webhook.NewMetrics(metrics.Registry)})
	default:
		return fmt.Errorf("must be %s or %s, not %q", ours, echo, kind)
	}
	return server.Start(ctx)
}

// usage is what a process has used so far.
type usage struct {
	// cpu is in seconds, to a hundredth; peak is the largest resident set, in MiB.
	cpu, peak float64
}

// usageOf reads what proc(5) says of a process.
func usageOf(pid int) (usage, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return usage{}, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return usage{}, err
	}
	// What follows the command's name, which may hold spaces, starts with the third field; utime is the 14th, stime the 15th.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 13 {
		return usage{}, fmt.Errorf("read the CPU time of process %d: too few fields", pid)
	}
	const ticks = 100 // a second, on every Linux that Go runs on
	var u usage
	for _, field := range fields[11:13] {
		n, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return usage{}, fmt.Errorf("read the CPU time of process %d: %w", pid, err)
		}
		u.cpu += n / ticks
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	line, _, _ := strings.Cut(rest, "kB")
	kib, err := strconv.ParseFloat(strings.TrimSpace(line), 64)
	if err != nil {
		return usage{}, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	u.peak = kib / 1024
	return u, nil
}
