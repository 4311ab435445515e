package certs_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/akv-injector/akv-injector/certs"
)

func asClient(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth} }

func asServer(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }

func TestClientAuth(t *testing.T) {
	expiry := birth.AddDate(100, 0, 0) // the server's own clock verifies clients
	past := func(c *x509.Certificate) { c.NotBefore = birth.AddDate(-20, 0, 0) }
	ca := issue(t, "CA", ecdsaKey(t), nil, true, expiry, past)
	otherCA := issue(t, "other CA", ecdsaKey(t), nil, true, expiry, past)
	serving := issue(t, "serving", ecdsaKey(t), ca, false, expiry, past)
	apiServer := issue(t, "API server", ecdsaKey(t), ca, false, expiry, past, asClient)
	renewed := issue(t, "renewed API server", ecdsaKey(t), otherCA, false, expiry, past, asClient)
	server := issue(t, "no client", ecdsaKey(t), ca, false, expiry, past, asServer)

	m := newMount(t)
	m.swap(serving.crt, serving.key)
	src := startFiles(t, m.dir, certs.Options{})
	says(t, src, "ready", src.tick)
	file := filepath.Join(t.TempDir(), "ca.crt")
	write := func(data []byte) {
		t.Helper()
		if err := errors.Join(os.WriteFile(file+".new", data, 0o600), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
	}
	write(ca.crt)
	clock := newPacer()
	clients, err := certs.NewClientAuth(file, clock)
	if err != nil {
		t.Fatal(err)
	}
	book := &logbook{}
	ctx, cancel := context.WithCancel(book.into(t.Context()))
	done := make(chan error, 1)
	go func() { done <- clients.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	address := serveTLS(t, src, 0, clients.Configure)
	tries := func(want bool, what string, client *keyPair) {
		t.Helper()
		roots := x509.NewCertPool()
		roots.AddCert(ca.cert)
		config := &tls.Config{RootCAs: roots, ServerName: serviceHost, MinVersion: tls.VersionTLS13}
		if client != nil {
			pair, err := tls.X509KeyPair(client.crt, client.key)
			if err != nil {
				t.Fatal(err)
			}
			// Ignore the list of CAs that the server accepts, as an attacker would.
			config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
		}
		if _, err := dial(address, config); (err == nil) != want {
			t.Errorf("%s: %v", what, err)
		}
	}
	tries(true, "the API server", apiServer)
	tries(true, "a client without a certificate, which the handler has to reject", nil)
	tries(false, "a client of another CA", renewed)
	tries(false, "a certificate that is for servers", server)

	write(slices.Concat(ca.crt, otherCA.crt))
	clock.round(t)
	tries(true, "the API server after its CA was joined by another", apiServer)
	tries(true, "a client of the other CA", renewed)

	for behaviour, bad := range map[string][]byte{
		"half a bundle":        slices.Concat(ca.crt, otherCA.crt[:len(otherCA.crt)/2]),
		"a broken first entry": slices.Concat(ca.crt[:len(ca.crt)/2], otherCA.crt),
		"a key among them":     slices.Concat(ca.crt, otherCA.key),
		"an empty file":        nil,
	} {
		refused := book.count("client CA bundle refused")
		write(bad)
		for range 10 {
			clock.round(t)
		}
		if got := book.count("client CA bundle refused") - refused; got != 1 {
			t.Errorf("%s is logged %d times, want once:\n%s", behaviour, got, book)
		}
		tries(true, behaviour+" keeps the old one", renewed)
		write(slices.Concat(ca.crt, otherCA.crt))
		clock.round(t)
	}
	write(otherCA.crt)
	clock.round(t)
	tries(false, "the API server after its CA was removed", apiServer)
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	clock.round(t)
	tries(true, "a client of the other CA, without the file", renewed)
}

func TestClientAuthNeedsItsFile(t *testing.T) {
	if _, err := certs.NewClientAuth(filepath.Join(t.TempDir(), "ca.crt"), nil); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v, want that the file does not exist", err)
	}
}

func TestNoFileLetsEveryClientIn(t *testing.T) {
	clients, err := certs.NewClientAuth("", nil)
	if err != nil {
		t.Fatal(err)
	}
	c := &tls.Config{}
	clients.Configure(c)
	if c.ClientAuth != tls.NoClientCert {
		t.Errorf("requests a client certificate: %s", c.ClientAuth)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := clients.Start(ctx); err != nil {
		t.Error(err)
	}
}
