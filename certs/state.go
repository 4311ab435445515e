package certs

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
)

const (
	// caName marks a CA as ours in a CA bundle.
	caName = "akv-injector self-signed CA"
	// maxAuthorities limits a CA bundle in case the Secret is deleted again and again. Rotation
	// needs two.
	maxAuthorities = 16
	// backdate lets an API server with a slow clock accept a certificate at once.
	backdate = 5 * time.Minute

	// Keys of the Secret besides tls.crt and tls.key.
	bundleKey  = "ca.crt"
	nextCrtKey = "next.crt"
	nextKeyKey = "next.key"
)

// A pair is a serving certificate with its key and the CA that signed it. The key of the CA is not
// kept: a CA signs one certificate, so an old CA in a bundle verifies only that one.
type pair struct {
	cert     *tls.Certificate
	ca       *x509.Certificate
	crt, key []byte // PEM
}

func (p *pair) valid(now time.Time) bool {
	return p != nil && now.Before(p.cert.Leaf.NotAfter) && now.Before(p.ca.NotAfter)
}

func (p *pair) covers(hosts []string) bool {
	return !slices.ContainsFunc(hosts, func(h string) bool { return p.cert.Leaf.VerifyHostname(h) != nil })
}

// A state is what replicas agree on through the Secret: the certificate to serve, the certificate
// to serve as soon as API servers accept it, and the CAs of the bundle.
type state struct {
	current, next *pair
	authorities   []*x509.Certificate
}

// encode returns the Secret's data. Equal states have equal data.
func (s state) encode() map[string][]byte {
	data := map[string][]byte{
		bundleKey:               encodeCertificates(s.authorities),
		corev1.TLSCertKey:       s.current.crt,
		corev1.TLSPrivateKeyKey: s.current.key,
	}
	if s.next != nil {
		data[nextCrtKey], data[nextKeyKey] = s.next.crt, s.next.key
	}
	return data
}

// decodeState reads the Secret's data. It omits unusable parts, and its error names them.
func decodeState(data map[string][]byte) (state, error) {
	s := state{authorities: ours(data[bundleKey])}
	var err, nextErr error
	if s.current, err = decodePair(data[corev1.TLSCertKey], data[corev1.TLSPrivateKeyKey], s.authorities); err != nil {
		err = fmt.Errorf("%s and %s: %w", corev1.TLSCertKey, corev1.TLSPrivateKeyKey, err)
	}
	if data[nextCrtKey] != nil || data[nextKeyKey] != nil {
		if s.next, nextErr = decodePair(data[nextCrtKey], data[nextKeyKey], s.authorities); nextErr != nil {
			nextErr = fmt.Errorf("%s and %s: %w", nextCrtKey, nextKeyKey, nextErr)
		}
	}
	return s, errors.Join(err, nextErr)
}

func decodePair(crt, key []byte, authorities []*x509.Certificate) (*pair, error) {
	cert, err := tls.X509KeyPair(crt, key)
	if err != nil {
		return nil, err
	}
	for _, ca := range authorities {
		if cert.Leaf.CheckSignatureFrom(ca) == nil {
			return &pair{cert: &cert, ca: ca, crt: crt, key: key}, nil
		}
	}
	return nil, fmt.Errorf("signed by no CA of the injector in %s", bundleKey)
}

// sameData reports whether the data of two Secrets are equal.
func sameData(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// newPair creates a CA and the only certificate that it signs, for DNS names and IP addresses.
func newPair(hosts []string, now time.Time, validity time.Duration) (*pair, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create CA key: %w", err)
	}
	caTemplate := &x509.Certificate{
		Subject:               pkix.Name{CommonName: caName},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(validity),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, caTemplate, caTemplate, caKey.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, fmt.Errorf("create CA: %w", err)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("create serving key: %w", err)
	}
	template := &x509.Certificate{
		Subject:     pkix.Name{CommonName: "akv-injector"},
		NotBefore:   caTemplate.NotBefore,
		NotAfter:    caTemplate.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return nil, fmt.Errorf("create serving certificate: %w", err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode serving key: %w", err)
	}
	return decodePair(
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
		[]*x509.Certificate{ca})
}

// hosts returns the names and addresses that a certificate is for.
func hosts(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// authorities returns the CAs of some pairs, and others that are still valid, in the same order in
// every replica. It omits a CA only after its expiry, so a replica that is late to serve the next
// certificate loses no connection.
func authorities(now time.Time, pairs []*pair, others ...*x509.Certificate) []*x509.Certificate {
	var all []*x509.Certificate
	for _, p := range pairs {
		if p != nil && !containsCertificate(all, p.ca) {
			all = append(all, p.ca)
		}
	}
	others = slices.SortedFunc(slices.Values(others), func(a, b *x509.Certificate) int {
		return compareCertificates(b, a)
	})
	for _, ca := range others {
		if len(all) < maxAuthorities && now.Before(ca.NotAfter) && !containsCertificate(all, ca) {
			all = append(all, ca)
		}
	}
	slices.SortFunc(all, compareCertificates)
	return all
}

// ours returns the CAs in a bundle that an Authority created. An Authority does not publish others.
func ours(bundle []byte) []*x509.Certificate {
	return slices.DeleteFunc(parseCertificates(bundle), func(ca *x509.Certificate) bool {
		return ca.Subject.CommonName != caName
	})
}

func compareCertificates(a, b *x509.Certificate) int {
	return cmp.Or(a.NotBefore.Compare(b.NotBefore), bytes.Compare(a.Raw, b.Raw))
}

func containsCertificate(all []*x509.Certificate, cert *x509.Certificate) bool {
	return slices.ContainsFunc(all, cert.Equal)
}

// parseCertificates returns the certificates in PEM blocks. It ignores other and invalid blocks.
func parseCertificates(data []byte) []*x509.Certificate {
	var all []*x509.Certificate
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		if cert, err := x509.ParseCertificate(block.Bytes); err == nil {
			all = append(all, cert)
		}
	}
	return all
}

func encodeCertificates(all []*x509.Certificate) []byte {
	var b bytes.Buffer
	for _, cert := range all {
		b.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw}))
	}
	return b.Bytes()
}
