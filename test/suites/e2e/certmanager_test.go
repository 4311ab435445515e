package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/cert"

	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// Names of the shipped cert-manager objects.
const (
	certificateName = "akv-injector"
	tlsSecret       = "akv-injector-tls"
	caSecret        = "akv-injector-ca"
)

// Messages of the injector's log about the state of the certificate.
const (
	standsReady   = "certificate ready"
	standsWaiting = "certificate ready, its successor is not"
	standsUnready = "certificate not ready"
)

// otherIssuer is an Issuer with another CA, besides the shipped one.
const otherIssuer = `
apiVersion: cert-manager.io/v1
kind: Certificate
metadata: {name: other-ca, namespace: akv-injector-system}
spec:
  secretName: other-ca
  isCA: true
  commonName: other-ca
  privateKey: {algorithm: ECDSA, size: 256, rotationPolicy: Never}
  issuerRef: {name: akv-injector-selfsigned}
---
apiVersion: cert-manager.io/v1
kind: Issuer
metadata: {name: other, namespace: akv-injector-system}
spec: {ca: {secretName: other-ca}}
`

// TestCertManager runs one replica from an empty cluster through the states of cert-manager and the
// actions of its administrators. The controllers are those of cert-manager.
func TestCertManager(t *testing.T) {
	t.Parallel()
	c := startSecuredCluster(t, map[string]any{}, controlplane.Options{}) // cert-manager is the default
	r := c.startReplica(t, "--certs=cert-manager")
	waitForProbe(t, r.replica, "/healthz", http.StatusOK)
	whole := t // for what outlives a subtest
	// Each step starts where the previous one ended.
	passed := true

	passed = passed && t.Run("cert-manager is not installed", func(t *testing.T) {
		r.waitForStanding(t, standsUnready, "cert-manager is not installed")
		waitForProbe(t, r.replica, "/readyz", http.StatusInternalServerError, "[-]certificate failed", "[+]cluster ok")
		if err := c.creates(t.Context()); !apierrors.IsInternalError(err) {
			t.Errorf("the API server answers %v, want a webhook failure", err)
		}
	})
	passed = passed && t.Run("the CRDs exist, the Certificate does not", func(t *testing.T) {
		if err := certmanager.InstallCRDs(t.Context(), c.ControlPlane); err != nil {
			t.Fatal(err)
		}
		r.waitForStanding(t, standsUnready, "Certificate akv-injector-system/akv-injector does not exist")
	})
	passed = passed && t.Run("the Certificate exists, its Issuer does not", func(t *testing.T) {
		for _, object := range c.chain {
			if object.GetKind() == "Certificate" {
				c.install(t, object)
			}
		}
		r.waitForStanding(t, standsUnready, "Issuer akv-injector-system/akv-injector does not exist")
	})
	passed = passed && t.Run("the chart is applied, no controller runs", func(t *testing.T) {
		c.install(t, c.chain...)
		r.waitForStanding(t, standsUnready, "Issuer akv-injector-system/akv-injector has no condition Ready")
	})
	passed = passed && t.Run("controllers run without the approver", func(t *testing.T) {
		stop := c.startCertManager(t, certmanager.Approver)
		defer stop()
		// The message of the Issuer's own condition.
		r.waitForStanding(t, standsUnready, "Issuer akv-injector-system/akv-injector is not ready: ", `"akv-injector-ca" not found`)
	})
	stop := c.startCertManager(t)
	passed = passed && t.Run("all controllers run", func(t *testing.T) {
		begin := time.Now()
		r.waitForStanding(t, standsReady)
		t.Logf("ready %s after cert-manager started", time.Since(begin).Round(time.Millisecond))
		waitForProbe(t, r.replica, "/readyz", http.StatusOK, "[+]certificate ok")
		waitFor(t, "a pod", c.creates)
	})
	passed = passed && t.Run("a Deployment is injected", func(t *testing.T) {
		if _, err := resource(c.objects, document(deployment), guarded).
			Apply(t.Context(), "app", in(document(deployment), guarded), metav1.ApplyOptions{FieldManager: "e2e"}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the Deployment's pod", func(ctx context.Context) error {
			pods, err := c.client.CoreV1().Pods(guarded).List(ctx, metav1.ListOptions{LabelSelector: "app=app"})
			if err != nil {
				return err
			}
			if len(pods.Items) == 0 {
				return errors.New("no pod yet")
			}
			return injected(&pods.Items[0])
		})
	})
	passed = passed && t.Run("the certificate is the one that cert-manager issued for the Service", func(t *testing.T) { c.verify(t, r) })

	passed = passed && t.Run("a renewed certificate is served within a second", func(t *testing.T) {
		for _, measured := range []bool{false, true} { // the first one may wait, since the CA bundle was just written
			before := serial(t, r.address)
			c.renewed(t, certificateName, tlsSecret)
			begin := time.Now()
			waitForAnother(t, before, r)
			took := time.Since(begin)
			t.Logf("served %s after it was seen in the Secret", took.Round(time.Millisecond))
			if measured && took > time.Second {
				t.Errorf("the renewed certificate is served after %s, want at most a second", took)
			}
			c.works(t, r)
		}
	})
	passed = passed && t.Run("a deleted Secret is recreated, and its certificate is served", func(t *testing.T) {
		before := serial(t, r.address)
		c.deleteSecret(t, tlsSecret)
		waitForAnother(t, before, r)
		c.works(t, r)
	})
	passed = passed && t.Run("the Certificate gets another Issuer", func(t *testing.T) {
		c.install(t, documents(otherIssuer)...)
		before := serial(t, r.address)
		c.setIssuer(t, "other")
		waitForAnother(t, before, r)
		c.works(t, r)
	})
	passed = passed && t.Run("a deleted Issuer does not change the served certificate", func(t *testing.T) {
		before := serial(t, r.address)
		if err := c.objects.Resource(issuers).Namespace(injectorNamespace).Delete(t.Context(), "other", metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.works(t, r)
		// A replica that starts now reads the Secret.
		c.startReplica(t, "--certs=cert-manager").waitReady(t)
		c.deleteSecret(t, tlsSecret)
		r.waitForStanding(t, standsWaiting, "Secret akv-injector-system/akv-injector-tls does not exist", "Issuer akv-injector-system/other does not exist")
		c.works(t, r)
		if got := serial(t, r.address); got != before {
			t.Errorf("serves %s, want %s as before", got, before)
		}
		c.install(t, documents(otherIssuer)...)
		waitForAnother(t, before, r)
		c.works(t, r)
	})
	var (
		empty   *serving
		request string
	)
	passed = passed && t.Run("a denied request is logged with the approver's message", func(t *testing.T) {
		stop()
		stop = c.startCertManager(whole, certmanager.Approver)
		c.deleteSecret(t, tlsSecret)
		empty = c.startReplica(whole, "--certs=cert-manager")
		r.waitForStanding(t, standsWaiting, "waits for approval")
		request = c.pending(t)
		const message = "names of this Service are not for you"
		c.setCondition(t, certificateRequests, request, "Denied", "policy.example.com", message)
		for _, want := range []struct {
			replica *serving
			message string
		}{{r, standsWaiting}, {empty, standsUnready}} {
			want.replica.waitForStanding(t, want.message, "CertificateRequest akv-injector-system/"+request+" was denied: "+message)
		}
		waitForProbe(t, empty.replica, "/readyz", http.StatusInternalServerError, "[-]certificate failed")
		waitForProbe(t, r.replica, "/readyz", http.StatusOK)
	})
	passed = passed && t.Run("the denied request is deleted, and the next one approved", func(t *testing.T) {
		stop()
		stop = c.startCertManager(whole)
		before := serial(t, r.address)
		// While the denied request exists, cert-manager may not issue a new one.
		if err := c.objects.Resource(certificateRequests).Namespace(injectorNamespace).Delete(t.Context(), request, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.renew(t, certificateName)
		waitForAnother(t, before, r, empty)
		c.works(t, r)
		c.works(t, empty)
	})
	passed = passed && t.Run("a deleted Certificate does not change the served certificate", func(t *testing.T) {
		before := serial(t, r.address)
		trusted, err := c.bundles(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := c.objects.Resource(certificates).Namespace(injectorNamespace).Delete(t.Context(), certificateName, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		c.works(t, r)
		c.deleteSecret(t, tlsSecret)
		r.waitForStanding(t, standsWaiting, "Certificate akv-injector-system/akv-injector does not exist")
		c.works(t, r)
		if got := serial(t, r.address); got != before {
			t.Errorf("serves %s, want %s as before", got, before)
		}
		if now, err := c.bundles(t.Context()); err != nil || !bytes.Equal(trusted, now) {
			t.Errorf("the CA bundle changed when the Certificate was deleted, or can't be read: %v", err)
		}
	})
	_ = passed && t.Run("the chart is applied again", func(t *testing.T) {
		before := serial(t, r.address)
		c.install(t, c.chain...)
		waitForAnother(t, before, r, empty)
		c.works(t, r)
	})
}

// verify compares what a replica serves with the Secret and with the CA bundle of the webhook
// configurations.
func (c *securedCluster) verify(t *testing.T, r *serving) {
	t.Helper()
	text, err := c.issued(t.Context(), tlsSecret)
	if err != nil {
		t.Fatal(err)
	}
	issued, err := cert.ParseCertsPEM(text)
	if err != nil {
		t.Fatal(err)
	}
	trusted, err := c.bundles(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(trusted)
	conn, err := tls.Dial("tcp", r.address, &tls.Config{RootCAs: roots, ServerName: serviceHost})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if served := conn.ConnectionState().PeerCertificates[0]; !served.Equal(issued[0]) || served.PublicKeyAlgorithm != x509.ECDSA {
		t.Errorf("serves %s of type %s, want %s and ECDSA", served.SerialNumber.Text(16), served.PublicKeyAlgorithm, issued[0].SerialNumber.Text(16))
	}
}

// works waits until the certificate of a replica is ready and the injector injects a pod over a new
// connection.
func (c *securedCluster) works(t *testing.T, r *serving) {
	t.Helper()
	waitForProbe(t, r.replica, "/readyz", http.StatusOK, "[+]certificate ok")
	if err := c.balancer.renew(t.Context()); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "a pod", c.creates)
}

// waitForAnother waits until all replicas serve the same certificate, which is not the one before.
func waitForAnother(t *testing.T, before string, replicas ...*serving) {
	t.Helper()
	waitFor(t, "another certificate", func(context.Context) error {
		want := ""
		for _, r := range replicas {
			got, err := servedSerial(r.address)
			switch {
			case err != nil:
				return err
			case got == before:
				return fmt.Errorf("%s still serves the previous certificate", r.address)
			case want != "" && got != want:
				return fmt.Errorf("replicas serve %s and %s", got, want)
			}
			want = got
		}
		return nil
	})
}

// bundles returns the CA bundles of all webhooks, concatenated.
func (c *securedCluster) bundles(ctx context.Context) ([]byte, error) {
	mutating, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(ctx, configuration, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	validating, err := c.client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(ctx, configuration, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	var all []byte
	for _, w := range mutating.Webhooks {
		all = append(all, w.ClientConfig.CABundle...)
	}
	for _, w := range validating.Webhooks {
		all = append(all, w.ClientConfig.CABundle...)
	}
	return all, nil
}

func (c *securedCluster) deleteSecret(t *testing.T, name string) {
	t.Helper()
	if err := c.client.CoreV1().Secrets(injectorNamespace).Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}

// setIssuer changes the Issuer of the Certificate.
func (c *securedCluster) setIssuer(t *testing.T, name string) {
	t.Helper()
	patch := []byte(`{"spec":{"issuerRef":{"name":"` + name + `"}}}`)
	if _, err := c.objects.Resource(certificates).Namespace(injectorNamespace).
		Patch(t.Context(), certificateName, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
}

// pending waits until the Certificate has a request without an approval or denial, and returns its
// name.
func (c *securedCluster) pending(t *testing.T) (name string) {
	t.Helper()
	waitFor(t, "a request", func(ctx context.Context) error {
		requests, err := c.objects.Resource(certificateRequests).Namespace(injectorNamespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		for _, r := range requests.Items {
			text, err := r.MarshalJSON()
			if err != nil {
				return err
			}
			if r.GetAnnotations()["cert-manager.io/certificate-name"] == certificateName && !strings.Contains(string(text), `"type":"Approved"`) {
				name = r.GetName()
				return nil
			}
		}
		return errors.New("no pending request yet")
	})
	return name
}
