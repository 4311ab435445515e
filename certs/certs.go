// Package certs supplies the serving certificate of an HTTPS admission webhook: where it comes from, when it is
// replaced, and whether the API server would accept it. A Certificates is one way to come by it: CertManager follows a Secret
// that cert-manager fills, Files a directory that somebody else fills, SelfSigned is its own authority and tells the API
// server so.
//
// The rule that every implementation of Certificates keeps: no review is lost to a certificate. A bad certificate never replaces a good one,
// and a good one never replaces another before API servers had time to learn of its CA.
//
// The package does not know what the webhook decides, nor anything of pods.
package certs

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// A Source supplies a serving certificate and replaces it while the server runs. It is a controller-runtime Runnable
// that every replica runs, and its Ready is a healthz.Checker.
type Certificates interface {
	// Start keeps the certificate fresh until ctx ends. Trouble on the way is logged and retried, and shows in Ready.
	Start(ctx context.Context) error
	// NeedLeaderElection is always false: every replica serves.
	NeedLeaderElection() bool
	// GetCertificate is the hook of tls.Config. Its error says that there is no certificate yet.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// Ready says why the API server would not accept what is served now, and what mends it: there is no certificate,
	// it has expired, or it does not verify against the CA bundle of one of our own webhook configurations.
	Ready(req *http.Request) error
}

// Options are what every implementation of Certificates takes.
type Options struct {
	// Client reads our own webhook configurations. Nil means that there is no cluster, and nothing to compare with.
	Client kubernetes.Interface
	// WebhookConfigurations are the names of our own MutatingWebhookConfigurations and ValidatingWebhookConfigurations.
	// Each is looked for in both kinds; one that does not exist calls nobody, which is no trouble.
	WebhookConfigurations []string
	// Metrics is where the Source's metrics are registered; nil registers none.
	Metrics prometheus.Registerer
	// Clock tells validity and delays; nil is the wall clock.
	Clock clock.WithTicker
}

// Configure makes a TLS server present what src supplies, for webhook.Options.TLSOpts. A zero minVersion means TLS 1.3.
func Configure(src Certificates, minVersion uint16) func(*tls.Config) {
	if minVersion == 0 {
		minVersion = tls.VersionTLS13
	}
	return func(c *tls.Config) {
		c.MinVersion = minVersion
		c.GetCertificate = src.GetCertificate
	}
}
