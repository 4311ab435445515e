package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"sync/atomic"

	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// ClientAuth verifies client certificates with the CAs in a file. API servers present a client
// certificate to a webhook only if the kubeConfigFile of their admission configuration has one.
// ClientAuth is a controller-runtime Runnable that reads the file again when it changes. It logs an
// invalid file, and continues with the previous content.
type ClientAuth struct {
	file  string
	clock clock.WithTicker
	pool  atomic.Pointer[x509.CertPool]
	read  []byte
	flaw  string // the latest error that was logged
}

// NewClientAuth reads the CA bundle in file, in PEM. An empty file name admits every client. A nil
// clock is the wall clock.
func NewClientAuth(file string, c clock.WithTicker) (*ClientAuth, error) {
	if c == nil {
		c = clock.RealClock{}
	}
	a := &ClientAuth{file: file, clock: c}
	if file == "" {
		return a, nil
	}
	if _, err := a.reload(); err != nil {
		return nil, err
	}
	return a, nil
}

// NeedLeaderElection is always false: every replica serves.
func (a *ClientAuth) NeedLeaderElection() bool { return false }

// Start reads the file every second until ctx ends.
func (a *ClientAuth) Start(ctx context.Context) error {
	if a.file == "" {
		<-ctx.Done()
		return nil
	}
	logger := log.FromContext(ctx).WithName("certs")
	ticker := a.clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C():
		}
		changed, err := a.reload()
		switch {
		case err == nil && changed:
			logger.Info("client CA bundle loaded", "file", a.file)
		case err != nil && err.Error() != a.flaw:
			logger.Error(err, "client CA bundle refused")
		}
		a.flaw = ""
		if err != nil {
			a.flaw = err.Error()
		}
	}
}

func (a *ClientAuth) reload() (changed bool, err error) {
	text, err := os.ReadFile(a.file)
	if err != nil {
		return false, err
	}
	if bytes.Equal(text, a.read) {
		return false, nil
	}
	pool, err := wholePool(text)
	if err != nil {
		return false, fmt.Errorf("%s: %w", a.file, err)
	}
	a.read = text
	a.pool.Store(pool)
	return true, nil
}

// Configure makes a TLS server request client certificates and verify those that it gets. A client
// without one completes the handshake; the server's handler must reject its requests.
func (a *ClientAuth) Configure(c *tls.Config) {
	if a.file == "" {
		return
	}
	c.ClientAuth = tls.VerifyClientCertIfGiven
	c.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.Clone() // at the handshake, after all options have been applied
		now.ClientCAs = a.pool.Load()
		return now, nil
	}
}

// wholePool returns a pool of the certificates in a PEM bundle. All blocks must be certificates:
// half a bundle would reject half of the API servers.
func wholePool(text []byte) (*x509.CertPool, error) {
	all := parseCertificates(text)
	if blocks := bytes.Count(text, []byte("-----BEGIN ")); len(all) == 0 || len(all) != blocks {
		return nil, fmt.Errorf("must have whole certificates and nothing else, %d of %d blocks are", len(all), blocks)
	}
	pool := x509.NewCertPool()
	for _, cert := range all {
		pool.AddCert(cert)
	}
	return pool, nil
}
