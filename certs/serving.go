package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// serving is the certificate that is presented now, and the judgement over it. Every Source embeds one.
type serving struct {
	clock          clock.WithTicker
	configurations *configurations
	remedy         string // what mends a certificate that the CA bundle does not cover
	refused        prometheus.Counter

	mu      sync.RWMutex
	cert    *tls.Certificate
	trouble error // what stands between us and a newer certificate
}

func newServing(o Options, remedy string) (*serving, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	s := &serving{
		clock:          o.Clock,
		configurations: newConfigurations(o.Client, o.WebhookConfigurations),
		remedy:         remedy,
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "akv_injector_certificate_reload_errors_total",
			Help: "Certificates that were found and refused, because they were unreadable, expired or did not match their key. The one before kept serving.",
		}),
		trouble: errors.New("none has been loaded yet"),
	}
	if o.Metrics == nil {
		return s, nil
	}
	for _, c := range []prometheus.Collector{
		s.refused,
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "akv_injector_serving_certificate_expiry_seconds",
			Help: "When the serving certificate expires, in seconds since the Unix epoch; 0 while there is none.",
		}, s.expiry),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "akv_injector_ca_bundle_mismatch",
			Help: "Webhooks of our own configurations whose CA bundle does not verify the serving certificate.",
		}, func() float64 { return float64(len(s.mismatches())) }),
	} {
		if err := o.Metrics.Register(c); err != nil {
			return nil, fmt.Errorf("register certificate metrics: %w", err)
		}
	}
	return s, nil
}

// NeedLeaderElection is always false: every replica serves.
func (s *serving) NeedLeaderElection() bool { return false }

// GetCertificate returns the certificate that is served now, or an error while there is none.
func (s *serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.cert == nil {
		return nil, fmt.Errorf("no serving certificate: %w", s.trouble)
	}
	return s.cert, nil
}

// Ready says why the API server would not accept the certificate that is served now, and what mends it.
func (s *serving) Ready(*http.Request) error {
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return err
	}
	s.mu.RLock()
	trouble := s.trouble
	s.mu.RUnlock()
	if expiry := cert.Leaf.NotAfter; s.clock.Now().After(expiry) {
		return errors.Join(fmt.Errorf("the serving certificate expired on %s and none has replaced it", expiry.UTC().Format(time.RFC3339)), trouble)
	}
	if err := s.configurations.synced(); err != nil {
		return err
	}
	if mismatches := s.mismatches(); len(mismatches) > 0 {
		return fmt.Errorf("%w; %s", errors.Join(append(mismatches, trouble)...), s.remedy)
	}
	return nil
}

func (s *serving) mismatches() []error {
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return nil
	}
	return s.configurations.mismatches(cert, s.clock.Now())
}

func (s *serving) expiry() float64 {
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return 0
	}
	return float64(cert.Leaf.NotAfter.Unix())
}

func (s *serving) present(ctx context.Context, cert *tls.Certificate) {
	s.mu.Lock()
	s.cert = cert
	s.mu.Unlock()
	log.FromContext(ctx).Info("serving certificate loaded",
		"serial", cert.Leaf.SerialNumber.Text(16), "notAfter", cert.Leaf.NotAfter.UTC())
}

// presented is what is served now, nil while there is none.
func (s *serving) presented() *tls.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cert
}

// troubled remembers, for Ready, what stands between us and a newer certificate; nil is nothing.
func (s *serving) troubled(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = err
}
