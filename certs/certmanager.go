package certs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	certmanagerclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// While a certificate is missing, cert-manager's objects are read at growing intervals between
// these.
const (
	shortestPause = 500 * time.Millisecond
	longestPause  = 15 * time.Second
)

// CertManagerOptions select the Certificate of cert-manager that is served.
type CertManagerOptions struct {
	// Options must have a Client.
	Options
	// CertManager reads cert-manager's objects, to explain why there is no certificate. Required.
	CertManager certmanagerclient.CertmanagerV1Interface
	// Namespace is the namespace of the Certificate and the Secret. Required.
	Namespace string
	// Certificate is the name of the Certificate, and Secret its spec.secretName. Both are
	// required.
	Certificate, Secret string
}

// CertManager returns Certificates that serve the certificate in a Secret of cert-manager, as soon
// as it changes. It rejects and holds back the same certificates as [Files]. While there is no
// certificate, or the newest one is rejected, Ready returns the reason from cert-manager's objects:
// cert-manager or the Certificate is missing, its Issuer is missing or not ready, or its newest
// CertificateRequest was denied, is invalid or has failed. cert-manager may be installed later.
//
// It needs these permissions. The last two lines are only for the reason; without them, the reason
// is the missing permission.
//
//	secrets                                          get, list, watch   the Secret, by name
//	mutating-, validatingwebhookconfigurations       get, list, watch   the injector's, by name
//	certificates.cert-manager.io                     get                the Certificate, by name
//	issuers, clusterissuers, certificaterequests     get, get, list     in the Namespace, except clusterissuers
func CertManager(o CertManagerOptions) (Certificates, error) {
	if o.Client == nil || o.CertManager == nil || o.Namespace == "" || o.Certificate == "" || o.Secret == "" {
		return nil, errors.New("certificate of cert-manager: must have clients, a namespace, a Certificate and a Secret")
	}
	certificate := o.Namespace + "/" + o.Certificate
	remedy := "cert-manager's cainjector writes that caBundle where the configuration has the annotation " +
		"cert-manager.io/inject-ca-from: " + certificate + ", and logs why when it does not"
	s, err := newServing(o.Options, remedy)
	if err != nil {
		return nil, err
	}
	secret := newSecretWatcher(types.NamespacedName{Namespace: o.Namespace, Name: o.Secret}, o.Client, s.changed)
	return &certManager{
		guard:    guard{serving: s, origin: secret.what},
		issuance: issuance{client: o.CertManager, namespace: o.Namespace, certificate: o.Certificate, secret: o.Secret},
		secret:   secret,
	}, nil
}

type certManager struct {
	guard
	issuance issuance
	secret   *watcher

	want  string // what cert-manager must do; empty for nothing
	why   error  // why cert-manager has not done it, when last read
	next  time.Time
	pause time.Duration
}

// Start watches the Secret until ctx ends.
func (c *certManager) Start(ctx context.Context) error {
	c.follow(log.IntoContext(ctx, log.FromContext(ctx).WithName("certs")), c.round, c.secret)
	return nil
}

// Ready returns why the API server would not accept the served certificate, and how to fix it.
func (c *certManager) Ready(*http.Request) error {
	if c.presented() == nil {
		if err := c.secret.synced(); err != nil {
			return fmt.Errorf("no serving certificate: %w", err)
		}
	}
	return c.serving.Ready(nil)
}

func (c *certManager) round(ctx context.Context) {
	if c.secret.synced() == nil {
		if wanting := c.take(ctx); wanting != nil {
			c.troubled(fmt.Errorf("%w: %w", wanting, c.explain(ctx, wanting)))
		} else {
			c.want = ""
		}
	}
	c.report(ctx, c.Ready(nil))
}

// take serves the certificate in the Secret. Its error is a problem that only cert-manager can fix.
func (c *certManager) take(ctx context.Context) error {
	secret, ok := c.secret.object().(*corev1.Secret)
	if !ok {
		return fmt.Errorf("%s does not exist", c.origin)
	}
	return c.offer(ctx, found{crt: secret.Data[corev1.TLSCertKey], key: secret.Data[corev1.TLSPrivateKeyKey]})
}

// explain returns why cert-manager has not fixed a problem. It reads cert-manager's objects at once
// for a new problem, and then less and less often.
func (c *certManager) explain(ctx context.Context, wanting error) error {
	if want := wanting.Error(); want != c.want {
		c.want, c.next, c.pause = want, time.Time{}, shortestPause
	}
	if now := c.clock.Now(); !now.Before(c.next) {
		why := c.issuance.trouble(ctx)
		if c.why != nil && why.Error() != c.why.Error() {
			c.pause = shortestPause // one change is often followed by another
		}
		c.why = why
		c.next, c.pause = now.Add(c.pause), min(2*c.pause, longestPause)
	}
	return c.why
}
