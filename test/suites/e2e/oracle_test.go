package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// TestOracle sends reviews that claim another namespace, to learn names from the answers, as any
// pod can that reaches the webhook port. With --client-ca the caller gets 403 before the body is
// read. The API server presents a certificate and gets answers.
func TestOracle(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	ca := newAuthority(t)
	key := newKey(t)
	_, certificate := sign(t, &x509.Certificate{
		Subject: pkix.Name{CommonName: "kube-apiserver"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca.certificate, key, ca.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, text []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	kubeconfig := file("kubeconfig", []byte(`apiVersion: v1
kind: Config
users:
- name: '*'
  user:
    client-certificate: `+file("client.crt", certificate)+`
    client-key: `+file("client.key", pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}))+`
`))
	var plugins strings.Builder
	for _, name := range []string{"MutatingAdmissionWebhook", "ValidatingAdmissionWebhook"} {
		plugins.WriteString(`
- name: ` + name + `
  configuration: {apiVersion: apiserver.config.k8s.io/v1, kind: WebhookAdmissionConfiguration, kubeConfigFile: ` + kubeconfig + `}`)
	}
	configuration := file("admission.yaml", []byte("apiVersion: apiserver.config.k8s.io/v1\nkind: AdmissionConfiguration\nplugins:"+plugins.String()+"\n"))
	// startCluster returns when the API server calls the injector.
	c := startCluster(t, []string{"--admission-control-config-file=" + configuration}, "--client-ca="+file("ca.crt", ca.pem))

	const namespace, secret = "oracle", "payments-db-admin"
	newGoverned(t, namespace, `{keyvault.io/injection: enabled}`, `{}`, document(strings.ReplaceAll(oracleClass, "NAME", secret)))
	client := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, // the caller does not know the CA
		// The client sends the body only after the server's 100 Continue.
		ExpectContinueTimeout: patience,
	}}
	t.Cleanup(client.CloseIdleConnections)
	guess := bare("guess")
	guess.Annotations = map[string]string{"keyvault.io/class": "payments", "keyvault.io/secrets": "guess", "identity.io/mode": "none"}
	body := creation(t, namespace, guess)
	ask := func(url string) (code int, read bool, answer string) {
		reader := &watchedReader{Reader: bytes.NewReader(body)}
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, url, reader)
		if err != nil {
			t.Fatal(err)
		}
		request.ContentLength = int64(len(body))
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Expect", "100-continue")
		response, err := client.Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		text, err := io.ReadAll(response.Body)
		if err != nil {
			t.Fatal(err)
		}
		return response.StatusCode, reader.read.Load(), string(text)
	}
	waitFor(t, "the injector to see the class", func(context.Context) error {
		if code, _, answer := ask(server.URL + "/mutate/pods"); code != http.StatusOK || !strings.Contains(answer, secret) {
			return fmt.Errorf("without --client-ca, the answer names no secret: %d, %s", code, answer)
		}
		return nil
	})
	for _, path := range []string{"/mutate/pods", "/validate/pods", "/mutate/workloads", "/validate/workloads", "/"} {
		if code, read, answer := ask(c.injector.URL + path); code != http.StatusForbidden || read || strings.Contains(answer, secret) {
			t.Errorf("with --client-ca, %s answers %d, body read %t: %s", path, code, read, answer)
		}
	}
}

// oracleClass has an object that a suggestion would name.
const oracleClass = `
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: payments}
spec:
  provider: azure
  parameters:
    keyvaultName: payments-kv
    objects: |
      array:
      - |
        objectName: NAME
        objectType: secret
`

// watchedReader records whether it was read from.
type watchedReader struct {
	io.Reader

	read atomic.Bool
}

func (w *watchedReader) Read(p []byte) (int, error) {
	w.read.Store(true)
	return w.Reader.Read(p)
}
