package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// rotations is the number of rotations in each mode.
const rotations = 20

// TestRotation rotates the serving certificate repeatedly while the API server creates pods through
// the injector. Each wave of pods uses new connections, whose handshakes fail if certificate and CA
// bundle do not match. None may fail.
func TestRotation(t *testing.T) {
	for mode, issuer := range map[string]issuer{
		"cert-manager": issuedByCertManager,
		"self-signed":  issuedByItself,
		"files":        issuedByHand,
	} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			values, begin := issuer(t)
			if err := unstructured.SetNestedField(values, mode, "certs", "mode"); err != nil {
				t.Fatal(err)
			}
			c := startSecuredCluster(t, values, controlplane.Options{NoControllers: true})
			args, rotate := begin(t, c)
			args = append(args, "--certs="+mode)
			replicas := []*serving{c.startReplica(t, args...), c.startReplica(t, args...)}
			for _, r := range replicas {
				r.waitReady(t)
			}
			waitFor(t, "a pod", c.creates) // the API server may see the CA bundle a moment later
			l := c.startLoad(t)
			started := time.Now()
			for n := range rotations {
				before := serial(t, replicas[0].address)
				rotate(t, n)
				waitForAnother(t, before, replicas...)
				l.meet(t)
			}
			took := time.Since(started)
			l.stop()
			t.Logf("%s: %d rotations in %s, %s", mode, rotations, took.Round(time.Second), l)
			for why, times := range l.errors {
				t.Errorf("%d creations failed: %s", times, why)
			}
			if l.late > 0 {
				t.Errorf("%d handshakes failed with an old CA bundle", l.late)
			}
			for _, r := range replicas {
				waitForProbe(t, r.replica, "/readyz", http.StatusOK, "[+]certificate ok")
			}
			if mode == "cert-manager" {
				t.Run("re-issued by another Issuer", func(t *testing.T) { c.reissue(t, replicas) })
			}
		})
	}
}

// reissue alternates between two Issuers under load. CA and certificate are then replaced at the
// same time, and cert-manager's CA bundle does not contain both CAs, so some creations fail. The
// test logs how many, and requires that the failures end.
func (c *securedCluster) reissue(t *testing.T, replicas []*serving) {
	t.Helper()
	const times = 10
	c.install(t, documents(otherIssuer)...)
	waitFor(t, "the other Issuer", func(ctx context.Context) error {
		_, err := c.issued(ctx, "other-ca")
		return err
	})
	l := c.startLoad(t)
	for n := range times {
		before := serial(t, replicas[0].address)
		c.setIssuer(t, []string{"other", certificateName}[n%2])
		waitForAnother(t, before, replicas...)
		for lost := -1; lost != l.failures(); { // until a wave has no failure
			lost = l.failures()
			l.meet(t)
		}
	}
	l.stop()
	t.Logf("%d times re-issued by another Issuer, %s: %v", times, l, l.errors)
	for _, r := range replicas {
		waitForProbe(t, r.replica, "/readyz", http.StatusOK, "[+]certificate ok")
	}
}

// issuer returns the chart's values for a certificate mode, and how to start it in a cluster.
type issuer func(*testing.T) (values map[string]any, begin beginning)

// beginning returns arguments for the injector, and a function that rotates the certificate for the
// n-th time.
type beginning func(*testing.T, *securedCluster) (args []string, rotate func(t *testing.T, n int))

// issuedByCertManager renews the certificate by cert-manager, and the CA before every fifth
// renewal.
func issuedByCertManager(*testing.T) (map[string]any, beginning) {
	return map[string]any{}, func(t *testing.T, c *securedCluster) ([]string, func(*testing.T, int)) {
		t.Helper()
		if err := certmanager.InstallCRDs(t.Context(), c.ControlPlane); err != nil {
			t.Fatal(err)
		}
		c.install(t, c.chain...)
		c.startCertManager(t)
		return nil, func(t *testing.T, n int) {
			t.Helper()
			if n%5 == 4 {
				c.renewed(t, "akv-injector-ca", caSecret)
			}
			c.renew(t, certificateName)
		}
	}
}

// issuedByItself deletes the Secret of the self-signed mode. The injector then creates a CA and a
// certificate by all steps of a renewal.
func issuedByItself(*testing.T) (map[string]any, beginning) {
	return map[string]any{}, func(_ *testing.T, c *securedCluster) ([]string, func(*testing.T, int)) {
		return []string{"--propagation-delay=3s"}, func(t *testing.T, _ int) {
			t.Helper()
			c.deleteSecret(t, servingSecret)
		}
	}
}

// issuedByHand replaces the certificate files as the kubelet does. Every fifth certificate is from
// a new CA, which is added to the CA bundle first.
func issuedByHand(t *testing.T) (map[string]any, beginning) {
	t.Helper()
	dir, ca := t.TempDir(), newAuthority(t)
	publish(t, dir, ca, -1)
	values := map[string]any{
		"certs":   map[string]any{"files": map[string]any{"secretName": "by-hand"}},
		"webhook": map[string]any{"caBundle": base64.StdEncoding.EncodeToString(ca.pem)},
	}
	return values, func(_ *testing.T, c *securedCluster) ([]string, func(*testing.T, int)) {
		return []string{"--cert-dir=" + dir}, func(t *testing.T, n int) {
			t.Helper()
			if n%5 == 4 {
				old := ca
				ca = newAuthority(t)
				c.setBundles(t, slices.Concat(old.pem, ca.pem))
			}
			publish(t, dir, ca, n)
		}
	}
}

// setBundles writes the CA bundle of every webhook.
func (c *securedCluster) setBundles(t *testing.T, bundle []byte) {
	t.Helper()
	admission := c.client.AdmissionregistrationV1()
	mutating, err := admission.MutatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	validating, err := admission.ValidatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	patch := func(webhooks int) []byte {
		var operations []map[string]any
		for i := range webhooks {
			operations = append(operations, map[string]any{"op": "add", "path": fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), "value": bundle})
		}
		body, err := json.Marshal(operations)
		if err != nil {
			t.Fatal(err)
		}
		return body
	}
	if _, err := admission.MutatingWebhookConfigurations().
		Patch(t.Context(), configuration, types.JSONPatchType, patch(len(mutating.Webhooks)), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := admission.ValidatingWebhookConfigurations().
		Patch(t.Context(), configuration, types.JSONPatchType, patch(len(validating.Webhooks)), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// authority is a CA for certificates in files.
type authority struct {
	certificate *x509.Certificate
	key         *ecdsa.PrivateKey
	pem         []byte
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{key: newKey(t)}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "by hand"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageCertSign, BasicConstraintsValid: true, IsCA: true,
	}
	a.certificate, a.pem = sign(t, template, template, a.key, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, template, parent *x509.Certificate, of, by *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	t.Helper()
	template.SerialNumber = new(big.Int).SetUint64(uint64(time.Now().UnixNano()))
	der, err := x509.CreateCertificate(rand.Reader, template, parent, of.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	certificate, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return certificate, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// publish writes a new key and certificate to dir, and makes both visible at once by the symlink
// swap that the kubelet uses.
func publish(t *testing.T, dir string, ca *authority, n int) {
	t.Helper()
	key := newKey(t)
	_, crt := sign(t, &x509.Certificate{
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{serviceHost}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, ca.certificate, key, ca.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	version := fmt.Sprintf("..version-%d", n+1)
	if err := os.Mkdir(filepath.Join(dir, version), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{
		corev1.TLSCertKey:       crt,
		corev1.TLSPrivateKeyKey: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}),
	} {
		if err := os.WriteFile(filepath.Join(dir, version, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(filepath.Join("..data", name), filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
			t.Fatal(err)
		}
	}
	if err := errors.Join(
		os.Symlink(version, filepath.Join(dir, "..data_tmp")),
		os.Rename(filepath.Join(dir, "..data_tmp"), filepath.Join(dir, "..data")),
	); err != nil {
		t.Fatal(err)
	}
}
