package keyvault

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"sync"
	"time"
)

// Authority is a certificate authority that issues a certificate for every host.
type Authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey

	mu     sync.Mutex
	leaves map[string]*tls.Certificate
}

// NewAuthority creates an authority. Clients must be configured to trust it.
func NewAuthority() (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create key: %w", err)
	}
	template := certificate("fake Azure")
	template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("certify authority: %w", err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("read authority's certificate: %w", err)
	}
	return &Authority{certificate: parsed, key: key, leaves: make(map[string]*tls.Certificate)}, nil
}

func certificate(name string) *x509.Certificate {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		serial = big.NewInt(time.Now().UnixNano())
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-time.Hour), NotAfter: now.Add(24 * time.Hour),
	}
}

// PEM returns the authority's certificate, for example for the file of SSL_CERT_FILE.
func (a *Authority) PEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.certificate.Raw})
}

// TLS returns a server configuration with a certificate for every host that a client names.
func (a *Authority) TLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if hello.ServerName == "" {
				return nil, errors.New("the client names no host")
			}
			return a.certify(hello.ServerName)
		},
	}
}

func (a *Authority) certify(host string) (*tls.Certificate, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if leaf, ok := a.leaves[host]; ok {
		return leaf, nil
	}
	template := certificate(host)
	template.Subject = pkix.Name{} // a common name is too short for some hosts
	template.DNSNames, template.ExtKeyUsage = []string{host}, []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, a.key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("certify %s: %w", host, err)
	}
	leaf := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: a.key}
	a.leaves[host] = leaf
	return leaf, nil
}

// Proxy is an HTTP proxy on loopback that passes every request, over HTTP or HTTPS and for any
// host, to one handler. Requests through it never leave the machine.
type Proxy struct {
	// URL is the URL of the proxy.
	URL string

	plain, secure *http.Server
	tunnels       *tunnels
}

// Listen starts a proxy to handler. The certificates of its hosts come from authority.
func Listen(handler http.Handler, authority *Authority) (*Proxy, error) {
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		return nil, fmt.Errorf("listen on loopback: %w", err)
	}
	p := &Proxy{
		URL:     "http://" + listener.Addr().String(),
		tunnels: &tunnels{address: listener.Addr(), opened: make(chan net.Conn), closed: make(chan struct{})},
	}
	serve := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodConnect {
			p.tunnels.open(w)
			return
		}
		handler.ServeHTTP(w, r)
	})
	const patience = time.Minute
	p.plain = &http.Server{Handler: serve, ReadHeaderTimeout: patience, IdleTimeout: patience}
	p.secure = &http.Server{Handler: handler, TLSConfig: authority.TLS(), ReadHeaderTimeout: patience, IdleTimeout: patience}
	go func() { _ = p.plain.Serve(listener) }() // ends when it is closed
	go func() { _ = p.secure.ServeTLS(p.tunnels, "", "") }()
	return p, nil
}

// Close stops the proxy and closes its connections.
func (p *Proxy) Close() error {
	return errors.Join(p.secure.Close(), p.plain.Close())
}

// Environ returns environment variables that make a Go program use the proxy, and trust only the
// authority whose certificate is in file. The empty variables keep the program from looking for
// identities of a virtual machine elsewhere.
func (p *Proxy) Environ(file string) map[string]string {
	return map[string]string{
		"HTTPS_PROXY": p.URL, "https_proxy": p.URL, "HTTP_PROXY": p.URL, "http_proxy": p.URL, "NO_PROXY": "", "no_proxy": "",
		"SSL_CERT_FILE": file, "SSL_CERT_DIR": "/nonexistent",
		"IDENTITY_ENDPOINT": "", "IDENTITY_HEADER": "", "IMDS_ENDPOINT": "", "MSI_ENDPOINT": "", "MSI_SECRET": "",
	}
}

// tunnels is a [net.Listener] for the connections that clients open through the proxy.
type tunnels struct {
	address net.Addr
	opened  chan net.Conn
	closed  chan struct{}
	once    sync.Once
}

func (t *tunnels) open(w http.ResponseWriter) {
	connection, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	if _, err := connection.Write([]byte("HTTP/1.1 200 Connection established\r\n\r\n")); err != nil {
		_ = connection.Close()
		return
	}
	select {
	case t.opened <- connection:
	case <-t.closed:
		_ = connection.Close()
	}
}

func (t *tunnels) Accept() (net.Conn, error) {
	select {
	case connection := <-t.opened:
		return connection, nil
	case <-t.closed:
		return nil, net.ErrClosed
	}
}

func (t *tunnels) Close() error {
	t.once.Do(func() { close(t.closed) })
	return nil
}

func (t *tunnels) Addr() net.Addr { return t.address }
