package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"
)

// bundles returns the CA bundles of the injector's webhooks.
func bundles(ctx context.Context, t *testing.T) [][]byte {
	t.Helper()
	c, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for _, w := range c.Webhooks {
		all = append(all, w.ClientConfig.CABundle)
	}
	return all
}

// setBundles writes the CA bundle of every webhook of the injector.
func setBundles(t *testing.T, bundle []byte) {
	t.Helper()
	var patch []map[string]any
	for i := range bundles(t.Context(), t) {
		patch = append(patch, map[string]any{"op": "replace", "path": fmt.Sprintf("/webhooks/%d/clientConfig/caBundle", i), "value": bundle})
	}
	body, err := json.Marshal(patch)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Patch(t.Context(), configuration, types.JSONPatchType, body, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// servedBy returns the certificate that is served at an address, after verifying it against the CA
// bundle in the webhook configuration.
func servedBy(t *testing.T, address string) *x509.Certificate {
	t.Helper()
	conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0]
}

// secret returns the Secret that all replicas share.
func secret(ctx context.Context) (*corev1.Secret, error) {
	return client.CoreV1().Secrets(injectorNamespace).Get(ctx, servingSecret, metav1.GetOptions{})
}

func certificatesIn(t *testing.T, text []byte) []*x509.Certificate {
	t.Helper()
	certificates, err := cert.ParseCertsPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	return certificates
}

// creates returns an error unless the API server creates a pod and the injector injects it.
func creates(ctx context.Context, namespace string) error {
	got, err := resource(objects, document(pod), namespace).Create(ctx, in(document(pod), namespace), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
	if err == nil && got.GetLabels()["keyvault.io/injected"] != "true" {
		err = errors.New("the pod is not injected")
	}
	return err
}

// TestSelfSigned runs two replicas, which must agree on one certificate, and damages in turn
// everything that they must repair.
func TestSelfSigned(t *testing.T) {
	const namespace = "certificates"
	newNamespace(t, namespace, "enabled", surroundings()...)
	r := startReplica(t, "--certs=self-signed")
	r.waitReady(t)
	agreed, err := secret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaf := certificatesIn(t, agreed.Data[corev1.TLSCertKey])[0]
	for _, address := range []string{strings.TrimPrefix(server.URL, "https://"), r.address} {
		if !servedBy(t, address).Equal(leaf) {
			t.Errorf("%s does not serve the certificate in the Secret", address)
		}
	}
	filled := bundles(t.Context(), t)
	if len(filled) != 4 {
		t.Fatalf("%d webhooks, want 4", len(filled))
	}
	for i, bundle := range filled {
		if !bytes.Equal(bundle, agreed.Data["ca.crt"]) {
			t.Errorf("webhook %d has a CA bundle that differs from the Secret", i)
		}
	}

	t.Run("a CA bundle that is overwritten is repaired", func(t *testing.T) {
		stranger, _, err := cert.GenerateSelfSignedCertKey("stranger", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		setBundles(t, stranger)
		waitFor(t, "the CA bundle", func(ctx context.Context) error {
			for i, bundle := range bundles(ctx, t) {
				if !bytes.Equal(bundle, filled[i]) {
					return fmt.Errorf("webhook %d has another CA bundle", i)
				}
			}
			return nil
		})
		// The API server may see the CA bundle a moment later.
		waitFor(t, "a pod", func(ctx context.Context) error { return creates(ctx, namespace) })
		r.waitReady(t)
	})

	t.Run("a deleted Secret is recreated with the served certificate", func(t *testing.T) {
		if err := client.CoreV1().Secrets(injectorNamespace).Delete(t.Context(), servingSecret, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		var again *corev1.Secret
		waitFor(t, "the Secret", func(ctx context.Context) (err error) {
			again, err = secret(ctx)
			return err
		})
		if !bytes.Equal(again.Data[corev1.TLSCertKey], agreed.Data[corev1.TLSCertKey]) || len(again.Data["next.crt"]) == 0 {
			t.Error("the recreated Secret lacks the served certificate, or the next one")
		}
		waitFor(t, "the CA of the next certificate", func(ctx context.Context) error {
			for i, bundle := range bundles(ctx, t) {
				if n := len(certificatesIn(t, bundle)); n != 2 {
					return fmt.Errorf("webhook %d trusts %d CAs, want 2", i, n)
				}
			}
			return nil
		})
		if err := creates(t.Context(), namespace); err != nil {
			t.Errorf("the API server cannot call the injector: %v", err)
		}
		for _, address := range []string{strings.TrimPrefix(server.URL, "https://"), r.address} {
			if !servedBy(t, address).Equal(leaf) {
				t.Errorf("%s serves another certificate before API servers could read the new CA bundle", address)
			}
		}
		r.waitReady(t)
	})
}

// TestFiles runs a replica with --certs=files. While the injector that repairs CA bundles is
// stopped, the replica must report a wrong CA bundle as not ready.
func TestFiles(t *testing.T) {
	const namespace = "files"
	newNamespace(t, namespace, "enabled", surroundings()...)
	dir := t.TempDir()
	r := startReplica(t, "--certs=files", "--cert-dir="+dir)
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]certificate failed", "[+]cluster ok")

	crt, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	stranger := certificatesIn(t, crt)
	write(t, dir, crt, key)
	waitFor(t, "the certificate of an unknown CA", func(context.Context) error {
		conn, err := tls.Dial("tcp", r.address, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return err
		}
		defer conn.Close()
		if !conn.ConnectionState().PeerCertificates[0].Equal(stranger[0]) {
			return errors.New("another certificate is served")
		}
		return nil
	})
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]certificate failed")

	agreed, err := secret(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, agreed.Data[corev1.TLSCertKey], agreed.Data[corev1.TLSPrivateKeyKey])
	waitForProbe(t, r, "/readyz", http.StatusOK, "[+]certificate ok")
	if !servedBy(t, r.address).Equal(certificatesIn(t, agreed.Data[corev1.TLSCertKey])[0]) {
		t.Error("the served certificate is not the one in the files")
	}

	right := bundles(t.Context(), t)[0]
	if err := syscall.Kill(server.PID(), syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	thaw := func() error { return syscall.Kill(server.PID(), syscall.SIGCONT) }
	defer thaw() //nolint:errcheck // in case the test ends early
	setBundles(t, crt)
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]certificate failed")
	if err := thaw(); err != nil {
		t.Fatal(err)
	}
	waitForProbe(t, r, "/readyz", http.StatusOK, "[+]certificate ok")
	if got := bundles(t.Context(), t)[0]; !bytes.Equal(got, right) {
		t.Errorf("the restored CA bundle differs:\n%s", got)
	}
	waitFor(t, "the API server to call the injector again", func(ctx context.Context) error { return creates(ctx, namespace) })
}

// write replaces the certificate and key files.
func write(t *testing.T, dir string, crt, key []byte) {
	t.Helper()
	for name, text := range map[string][]byte{corev1.TLSCertKey: crt, corev1.TLSPrivateKeyKey: key} {
		if err := os.WriteFile(filepath.Join(dir, name), text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
