// Package certs supplies the serving certificate of an HTTPS admission webhook. It reads or creates
// the certificate, replaces it while the server runs, and checks whether the API server accepts it.
// There are three sources: [CertManager] watches a Secret that cert-manager writes, [Files] reads a
// directory that another program writes, and [SelfSigned] is its own certificate authority and
// writes the CA bundle to the webhook configurations.
//
//	options := certs.Options{Client: client, WebhookConfigurations: []string{"akv-injector"}}
//	source, err := certs.Files("/tls", options)
//	mgr.Add(source)
//	mgr.AddReadyzCheck("certificate", source.Ready)
//	tlsOpts := []func(*tls.Config){certs.Configure(source, 0)}
//	server := webhook.NewServer(webhook.Options{TLSOpts: tlsOpts})
//
// Changing a certificate fails no review: an invalid certificate never replaces a valid one, and a
// valid one never replaces another before API servers have had time to receive its CA.
//
// The package does not serve requests and does not read pods.
package certs

import (
	"context"
	"crypto/tls"
	"net/http"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/utils/clock"
)

// Certificates supplies a serving certificate and replaces it while the server runs. It is a
// controller-runtime Runnable that runs in every replica. Its Ready is a healthz.Checker.
type Certificates interface {
	// Start renews or reloads the certificate until ctx ends. It logs problems and retries. Ready
	// reports them too.
	Start(ctx context.Context) error
	// NeedLeaderElection is always false: every replica serves.
	NeedLeaderElection() bool
	// GetCertificate is for tls.Config. It returns an error while there is no certificate.
	GetCertificate(hello *tls.ClientHelloInfo) (*tls.Certificate, error)
	// Ready returns why the API server would not accept the served certificate, and how to fix it:
	// there is no certificate, it has expired, or the CA bundle of one of the injector's webhook
	// configurations does not verify it.
	Ready(req *http.Request) error
}

// Options configure every source of certificates.
type Options struct {
	// Client reads the injector's webhook configurations. Nil means that there is no cluster;
	// certificates are then not checked against CA bundles.
	Client kubernetes.Interface
	// WebhookConfigurations are the names of the injector's MutatingWebhookConfigurations and
	// ValidatingWebhookConfigurations. Each name may exist in both kinds, in one, or in none.
	WebhookConfigurations []string
	// Metrics is the registry for the metrics of the source; nil registers none.
	Metrics prometheus.Registerer
	// Clock measures validity and delays; nil is the wall clock.
	Clock clock.WithTicker
}

// Configure returns an option for webhook.Options.TLSOpts that makes a TLS server present the
// certificate of src. A zero minVersion means TLS 1.3.
func Configure(src Certificates, minVersion uint16) func(*tls.Config) {
	if minVersion == 0 {
		minVersion = tls.VersionTLS13
	}
	return func(c *tls.Config) {
		c.MinVersion = minVersion
		c.GetCertificate = src.GetCertificate
	}
}
