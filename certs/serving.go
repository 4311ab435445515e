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

// startup is the time after the start in which an object that has not been read yet is not logged.
const startup = 10 * time.Second

// serving holds the served certificate and checks it. Every source embeds one.
type serving struct {
	clock          clock.WithTicker
	configurations *configurations
	remedy         string // how to fix a CA bundle that does not verify the certificate
	refused        prometheus.Counter
	wake           chan struct{}
	born           time.Time
	reported       string // the state that was logged last; only Start's goroutine uses it

	mu      sync.RWMutex
	cert    *tls.Certificate
	trouble error // why there is no newer certificate
}

func newServing(o Options, remedy string) (*serving, error) {
	if o.Clock == nil {
		o.Clock = clock.RealClock{}
	}
	s := &serving{
		clock:  o.Clock,
		born:   o.Clock.Now(),
		remedy: remedy,
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "akv_injector_certificate_reload_errors_total",
			Help: "Certificates that were found and refused, because they were unreadable, not valid now, for other names or not of their key. The one before kept serving.",
		}),
		wake:    make(chan struct{}, 1),
		trouble: errors.New("none has been loaded yet"),
	}
	s.configurations = newConfigurations(o.Client, o.WebhookConfigurations, s.changed)
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
			Help: "Webhooks of the injector's configurations whose CA bundle does not verify the serving certificate.",
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

// GetCertificate returns the served certificate, or an error while there is none.
func (s *serving) GetCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.cert == nil {
		return nil, fmt.Errorf("no serving certificate: %w", s.trouble)
	}
	return s.cert, nil
}

// Ready returns why the API server would not accept the served certificate, and how to fix it.
func (s *serving) Ready(*http.Request) error {
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return err
	}
	s.mu.RLock()
	trouble := s.trouble
	s.mu.RUnlock()
	if expiry := cert.Leaf.NotAfter; s.clock.Now().After(expiry) {
		expired := fmt.Errorf("the serving certificate expired on %s and none has replaced it",
			expiry.UTC().Format(time.RFC3339))
		return errors.Join(expired, trouble)
	}
	if err := s.configurations.synced(); err != nil {
		return err
	}
	if mismatches := s.mismatches(); len(mismatches) > 0 {
		return errors.Join(fmt.Errorf("%w; %s", errors.Join(mismatches...), s.remedy), trouble)
	}
	return nil
}

func (s *serving) mismatches() []error {
	cert, err := s.GetCertificate(nil)
	if err != nil {
		return nil
	}
	return mismatches(s.configurations.known(), "the serving certificate", cert, s.clock.Now())
}

// usable reports whether the served certificate has not expired.
func (s *serving) usable() bool {
	cert := s.presented()
	return cert != nil && !s.clock.Now().After(cert.Leaf.NotAfter)
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
		"serial", serial(cert), "notAfter", cert.Leaf.NotAfter.UTC())
}

// presented returns the served certificate; nil while there is none.
func (s *serving) presented() *tls.Certificate {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.cert
}

// troubled sets why there is no newer certificate, for Ready; nil for no problem.
func (s *serving) troubled(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.trouble = err
}

// report logs the state of the certificate whenever it changes. The health endpoint logs nothing.
func (s *serving) report(ctx context.Context, unready error) {
	if errors.Is(unready, errUnread) && s.clock.Since(s.born) < startup {
		return
	}
	s.mu.RLock()
	trouble := s.trouble
	s.mu.RUnlock()
	message, reason := "certificate ready", ""
	switch {
	case unready != nil:
		message, reason = "certificate not ready", unready.Error()
	case trouble != nil:
		message, reason = "certificate ready, its successor is not", trouble.Error()
	}
	if message+reason == s.reported {
		return
	}
	s.reported = message + reason
	if reason == "" {
		log.FromContext(ctx).Info(message)
		return
	}
	log.FromContext(ctx).Info(message, "reason", reason)
}

// watch runs watchers until ctx ends, and wakes Start's goroutine when a watcher has read its
// object. It returns at once; the function that it returns waits for the end.
func (s *serving) watch(ctx context.Context, watchers []*watcher) (wait func()) {
	var watches sync.WaitGroup
	for _, w := range watchers {
		watches.Go(func() { w.Run(ctx) })
		watches.Go(func() {
			select {
			case <-ctx.Done():
			case <-w.Filled():
				s.changed() // the last change came before IsFilled became true
			}
		})
	}
	return watches.Wait
}

func (s *serving) changed() {
	select {
	case s.wake <- struct{}{}:
	default: // a round is due already, and will read this change too
	}
}

func serial(cert *tls.Certificate) string { return cert.Leaf.SerialNumber.Text(16) }
