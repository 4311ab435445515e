package certs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	certmanagerclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	corev1 "k8s.io/api/core/v1"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// While a certificate is missing, cert-manager's objects are read again after pauses that grow between these.
const (
	shortestPause = 500 * time.Millisecond
	longestPause  = 15 * time.Second
)

// CertManagerOptions say which Certificate of cert-manager's is served.
type CertManagerOptions struct {
	// Options must have a Client.
	Options
	// CertManager reads cert-manager's own objects, to say why there is no certificate. Required.
	CertManager certmanagerclient.CertmanagerV1Interface
	// Namespace holds all of these. Required.
	Namespace string
	// Certificate is the name of the Certificate, and Secret that of its spec.secretName. Both are required.
	Certificate, Secret string
}

// CertManager returns Certificates that serves what cert-manager keeps in one Secret, as soon as it changes there. The same
// certificates are refused and held back as by Files. While there is none to serve, or the newest is refused, Ready says
// why in the words of cert-manager's own objects: cert-manager or the Certificate is missing, its Issuer is missing or not
// ready, its newest CertificateRequest was denied, is invalid or has failed. cert-manager may be installed later.
//
// It needs these verbs, where the last two lines serve the explanation alone and their absence is what it then says:
//
//	secrets                                          get, list, watch   the one, by name
//	mutating-, validatingwebhookconfigurations       get, list, watch   our own, by name
//	certificates.cert-manager.io                     get                the one, by name
//	issuers, clusterissuers, certificaterequests     get, get, list     in the Namespace, but for clusterissuers
func CertManager(o CertManagerOptions) (Certificates, error) {
	if o.Client == nil || o.CertManager == nil || o.Namespace == "" || o.Certificate == "" || o.Secret == "" {
		return nil, errors.New("certificate of cert-manager: must have clients, a namespace, a Certificate and a Secret")
	}
	certificate := o.Namespace + "/" + o.Certificate
	s, err := newServing(o.Options, "cert-manager's cainjector writes that caBundle where the configuration has the annotation "+
		"cert-manager.io/inject-ca-from: "+certificate+", and logs why when it does not")
	if err != nil {
		return nil, err
	}
	key := o.Namespace + "/" + o.Secret
	return &certManager{
		guard:    guard{serving: s, origin: "Secret " + key},
		issuance: issuance{client: o.CertManager, namespace: o.Namespace, certificate: o.Certificate, secret: o.Secret},
		secret: newWatcher("Secret "+key, key,
			coreinformers.NewFilteredSecretInformer(o.Client, o.Namespace, 0, nil, only(o.Secret))),
	}, nil
}

type certManager struct {
	guard
	issuance issuance
	secret   *watcher

	want  string // what is wanted of cert-manager, empty for nothing
	why   error  // why it is not there, as of the last look
	next  time.Time
	pause time.Duration
}

// Start follows the Secret until ctx ends.
func (c *certManager) Start(ctx context.Context) error {
	c.follow(log.IntoContext(ctx, log.FromContext(ctx).WithName("certs")), c.round, c.secret)
	return nil
}

// Ready says why the API server would not accept the certificate that is served now, and what mends it.
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

// take serves what is in the Secret. Its error says what only cert-manager can mend.
func (c *certManager) take(ctx context.Context) error {
	secret, ok := c.secret.object().(*corev1.Secret)
	if !ok {
		return fmt.Errorf("%s does not exist", c.origin)
	}
	return c.offer(ctx, found{crt: secret.Data[corev1.TLSCertKey], key: secret.Data[corev1.TLSPrivateKeyKey]})
}

// explain asks cert-manager's objects, at first at once and then less and less often.
func (c *certManager) explain(ctx context.Context, wanting error) error {
	if want := wanting.Error(); want != c.want {
		c.want, c.next, c.pause = want, time.Time{}, shortestPause
	}
	if now := c.clock.Now(); !now.Before(c.next) {
		why := c.issuance.trouble(ctx)
		if c.why != nil && why.Error() != c.why.Error() {
			c.pause = shortestPause // where something has moved, more will
		}
		c.why = why
		c.next, c.pause = now.Add(c.pause), min(2*c.pause, longestPause)
	}
	return c.why
}
