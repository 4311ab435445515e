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
	// maxAuthorities bounds a CA bundle when somebody keeps deleting the Secret. Two is what rotation needs.
	maxAuthorities = 16
	// backdate lets an API server whose clock is slow accept a certificate at once.
	backdate = 5 * time.Minute

	// What the Secret holds, besides tls.crt and tls.key.
	bundleKey  = "ca.crt"
	nextCrtKey = "next.crt"
	nextKeyKey = "next.key"
)

// A pair is a serving certificate with its key and the CA that signed it. The CA's key is gone: it signs one
// certificate, so that an old CA in a bundle vouches for nothing but that.
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

// A state is what replicas agree on through the Secret: what to serve, what to serve next as soon as API servers trust
// it, and all the CAs to trust meanwhile.
type state struct {
	current, next *pair
	authorities   []*x509.Certificate
}

// encode is the Secret's data. Equal states have equal data.
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

// decodeState reads the Secret's data. What is unusable is left out, and the error names it.
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

// sameData says whether a Secret holds just what it should.
func sameData(a, b map[string][]byte) bool { return maps.EqualFunc(a, b, bytes.Equal) }

// newPair makes a CA and the one certificate that it ever signs, for DNS names and IP addresses.
func newPair(hosts []string, now time.Time, validity time.Duration) (*pair, error) {
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make CA key: %w", err)
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
		return nil, fmt.Errorf("make CA: %w", err)
	}
	ca, err := x509.ParseCertificate(caDER)
	if err != nil {
		return nil, fmt.Errorf("make CA: %w", err)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make serving key: %w", err)
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
		return nil, fmt.Errorf("make serving certificate: %w", err)
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

// hosts are the names and addresses that a certificate is for.
func hosts(cert *x509.Certificate) []string {
	names := slices.Clone(cert.DNSNames)
	for _, ip := range cert.IPAddresses {
		names = append(names, ip.String())
	}
	return names
}

// authorities makes a CA bundle of the CAs of some pairs and of others that are still valid, in the one order that all
// replicas arrive at. Only expiry takes a CA away, so a replica that is late to serve the next certificate loses nothing.
func authorities(now time.Time, pairs []*pair, others ...*x509.Certificate) []*x509.Certificate {
	var all []*x509.Certificate
	for _, p := range pairs {
		if p != nil && !containsCertificate(all, p.ca) {
			all = append(all, p.ca)
		}
	}
	others = slices.SortedFunc(slices.Values(others), func(a, b *x509.Certificate) int { return compareCertificates(b, a) })
	for _, ca := range others {
		if len(all) < maxAuthorities && now.Before(ca.NotAfter) && !containsCertificate(all, ca) {
			all = append(all, ca)
		}
	}
	slices.SortFunc(all, compareCertificates)
	return all
}

// ours are the CAs in a bundle that an Authority made. Others have no place in what we publish.
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

// parseCertificates reads what certificates there are among PEM blocks and passes over the rest.
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
