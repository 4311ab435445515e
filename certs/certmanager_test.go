package certs_test

import (
	"crypto"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	certmanagermetav1 "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	certmanagerclient "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1"
	certmanagerfake "github.com/cert-manager/cert-manager/pkg/client/clientset/versioned/typed/certmanager/v1/fake"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	clienttesting "k8s.io/client-go/testing"

	"github.com/akv-injector/akv-injector/certs"
)

// An issuance is a source that watches the Secret of cert-manager, and a cluster in which the test
// acts as cert-manager.
type issuance struct {
	certs.Certificates
	t        *testing.T
	api      *apiServer
	client   *fake.Clientset
	clock    *pacer
	registry *prometheus.Registry
	book     *logbook
	address  string
}

// startCertManager starts a source in a cluster that prepare has changed.
func startCertManager(t *testing.T, prepare func(*fake.Clientset), objects ...runtime.Object) *issuance {
	t.Helper()
	i := &issuance{t: t, clock: newPacer(), registry: prometheus.NewPedanticRegistry()}
	i.api, i.client = newAPIServer(t, append(webhookConfigurations(), objects...)...)
	if prepare != nil {
		prepare(i.client)
	}
	var err error
	i.Certificates, err = certs.CertManager(certs.CertManagerOptions{
		Options:     certs.Options{Client: i.client, WebhookConfigurations: []string{configuration}, Metrics: i.registry, Clock: i.clock},
		CertManager: &certmanagerfake.FakeCertmanagerV1{Fake: &i.client.Fake},
		Namespace:   namespace, Certificate: "akv-injector", Secret: secretName,
	})
	if err != nil {
		t.Fatal(err)
	}
	i.book, _ = start(t, i.Certificates)
	i.address = serveTLS(t, i.Certificates, 0)
	return i
}

func (i *issuance) tick() { i.clock.tick(i.t) }

// put writes the Secret as cert-manager does.
func (i *issuance) put(crt, key []byte) {
	i.t.Helper()
	secrets := i.client.CoreV1().Secrets(namespace)
	secret := tlsSecret(crt, key)
	_, err := secrets.Update(i.t.Context(), secret, metav1.UpdateOptions{})
	if apierrors.IsNotFound(err) {
		_, err = secrets.Create(i.t.Context(), secret, metav1.CreateOptions{})
	}
	if err != nil {
		i.t.Fatal(err)
	}
}

func tlsSecret(crt, key []byte) *corev1.Secret {
	return &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: secretName},
		Type:       corev1.SecretTypeTLS,
		Data:       map[string][]byte{"tls.crt": crt, "tls.key": key},
	}
}

// meets waits until the source serves want to a client that trusts ca.
func (i *issuance) meets(ca, want *keyPair, step func()) {
	i.t.Helper()
	eventually(i.t, "certificate "+want.cert.Subject.CommonName, func() error {
		got, err := handshake(i.address, serviceHost, ca.crt, i.clock.Now())
		if err == nil && !got.Equal(want.cert) {
			err = fmt.Errorf("serves %s", got.Subject.CommonName)
		}
		return err
	}, step)
}

func (i *issuance) refused() float64 {
	i.t.Helper()
	return metric(i.t, i.registry, "akv_injector_certificate_reload_errors_total")
}

// The objects by which cert-manager would issue our certificate.
func certificate(change ...func(*certmanagerv1.Certificate)) *certmanagerv1.Certificate {
	c := &certmanagerv1.Certificate{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "akv-injector", UID: "c"},
		Spec: certmanagerv1.CertificateSpec{
			SecretName: secretName,
			IssuerRef:  certmanagermetav1.IssuerReference{Name: "ca"},
		},
	}
	for _, f := range change {
		f(c)
	}
	return c
}

func certificateSays(t certmanagerv1.CertificateConditionType, status certmanagermetav1.ConditionStatus, reason, message string) func(*certmanagerv1.Certificate) {
	return func(c *certmanagerv1.Certificate) {
		c.Status.Conditions = append(c.Status.Conditions,
			certmanagerv1.CertificateCondition{Type: t, Status: status, Reason: reason, Message: message})
	}
}

func issuedBy(group, kind, name string) func(*certmanagerv1.Certificate) {
	return func(c *certmanagerv1.Certificate) {
		c.Spec.IssuerRef = certmanagermetav1.IssuerReference{Group: group, Kind: kind, Name: name}
	}
}

func issuerStatus(status certmanagermetav1.ConditionStatus, message string) certmanagerv1.IssuerStatus {
	return certmanagerv1.IssuerStatus{Conditions: []certmanagerv1.IssuerCondition{
		{Type: certmanagerv1.IssuerConditionReady, Status: status, Reason: "Because", Message: message},
	}}
}

func readyIssuer() *certmanagerv1.Issuer {
	return &certmanagerv1.Issuer{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ca"},
		Status:     issuerStatus(certmanagermetav1.ConditionTrue, ""),
	}
}

// request is a CertificateRequest of our Certificate, n minutes old at birth, with conditions.
func request(name string, age time.Duration, conditions ...certmanagerv1.CertificateRequestCondition) *certmanagerv1.CertificateRequest {
	controls := true
	return &certmanagerv1.CertificateRequest{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: namespace, Name: name, CreationTimestamp: metav1.NewTime(birth.Add(-age)),
			OwnerReferences: []metav1.OwnerReference{{UID: types.UID("c"), Controller: &controls}},
		},
		Status: certmanagerv1.CertificateRequestStatus{Conditions: conditions},
	}
}

func requestSays(t certmanagerv1.CertificateRequestConditionType, reason, message string) certmanagerv1.CertificateRequestCondition {
	status := certmanagermetav1.ConditionTrue
	if t == certmanagerv1.CertificateRequestConditionReady && reason != certmanagerv1.CertificateRequestReasonIssued {
		status = certmanagermetav1.ConditionFalse
	}
	return certmanagerv1.CertificateRequestCondition{Type: t, Status: status, Reason: reason, Message: message}
}

func forbid(verb, resource string) func(*fake.Clientset) {
	return func(client *fake.Clientset) {
		client.PrependReactor(verb, resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no rule allows it"))
		})
	}
}

// uninstall answers as an API server without cert-manager's kinds.
func uninstall(client *fake.Clientset) {
	client.PrependReactor("get", "certificates", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewGenericServerResponse(http.StatusNotFound, "get",
			schema.GroupResource{Group: "cert-manager.io", Resource: "certificates"}, "akv-injector", "404 page not found", 0, true)
	})
}

func TestCertManagerSaysWhyThereIsNoCertificate(t *testing.T) {
	const (
		certificateName = "Certificate " + namespace + "/akv-injector"
		renew           = "then `cmctl renew akv-injector -n " + namespace + "`, or wait: cert-manager tries again after an hour, and after each failure later"
	)
	approved := requestSays(certmanagerv1.CertificateRequestConditionApproved, "cert-manager.io", "approved")
	for behaviour, test := range map[string]struct {
		prepare func(*fake.Clientset)
		objects []runtime.Object
		want    string
	}{
		"cert-manager is not installed": {
			prepare: uninstall,
			want:    "cert-manager is not installed: the API server does not know its kinds; install it, or choose another --certs",
		},
		"the Certificate is absent": {
			want: certificateName + " does not exist; create it, or name another by --certificate",
		},
		"the Certificate may not be read": {
			prepare: forbid("get", "certificates"),
			want:    certificateName + " could not be read to say why; the injector's role lacks that: ",
		},
		"the Certificate can't be read": {
			prepare: func(c *fake.Clientset) {
				c.PrependReactor("get", "certificates", func(clienttesting.Action) (bool, runtime.Object, error) {
					return true, nil, errors.New("connection refused")
				})
			},
			want: "read " + certificateName + ": connection refused",
		},
		"the Certificate has another Secret": {
			objects: []runtime.Object{certificate(func(c *certmanagerv1.Certificate) { c.Spec.SecretName = "other" })},
			want:    certificateName + " keeps its certificate in Secret other; set its spec.secretName to " + secretName + ", or --certificate-secret to other",
		},
		"the Issuer is absent": {
			objects: []runtime.Object{certificate()},
			want:    "Issuer " + namespace + "/ca does not exist; create it, or name another in the Certificate's issuerRef",
		},
		"the Issuer may not be read": {
			prepare: forbid("get", "issuers"),
			objects: []runtime.Object{certificate()},
			want:    "Issuer " + namespace + "/ca could not be read to say why",
		},
		"the Issuer is not ready": {
			objects: []runtime.Object{certificate(), &certmanagerv1.Issuer{
				ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ca"},
				Status:     issuerStatus(certmanagermetav1.ConditionFalse, "secret not found"),
			}},
			want: "Issuer " + namespace + "/ca is not ready: secret not found (Because); fix it",
		},
		"the Issuer has no conditions": {
			objects: []runtime.Object{certificate(), &certmanagerv1.Issuer{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "ca"}}},
			want:    "Issuer " + namespace + "/ca has no condition Ready; does cert-manager's controller run?",
		},
		"the ClusterIssuer is absent": {
			objects: []runtime.Object{certificate(issuedBy("cert-manager.io", "ClusterIssuer", "corporate"))},
			want:    "ClusterIssuer corporate does not exist",
		},
		"the ClusterIssuer is not ready": {
			objects: []runtime.Object{certificate(issuedBy("", "ClusterIssuer", "corporate")), &certmanagerv1.ClusterIssuer{
				ObjectMeta: metav1.ObjectMeta{Name: "corporate"},
				Status:     issuerStatus(certmanagermetav1.ConditionUnknown, "vault is sealed"),
			}},
			want: "ClusterIssuer corporate is not ready: vault is sealed (Because); fix it",
		},
		"cert-manager has no issuer of that kind": {
			objects: []runtime.Object{certificate(issuedBy("", "Isuer", "ca"))},
			want:    `issuerRef of ` + certificateName + `: kind must be Issuer or ClusterIssuer, is "Isuer"`,
		},
		"an issuer of another group is not read": {
			objects: []runtime.Object{certificate(issuedBy("example.com", "Authority", "hsm")), request("akv-injector-1", 0, approved,
				requestSays(certmanagerv1.CertificateRequestConditionReady, "Pending", "queued"))},
			want: "CertificateRequest " + namespace + "/akv-injector-1 waits for Authority.example.com hsm: queued (Pending)",
		},
		"the requests may not be listed": {
			prepare: forbid("list", "certificaterequests"),
			objects: []runtime.Object{certificate(), readyIssuer()},
			want:    "CertificateRequests in " + namespace + " could not be read to say why",
		},
		"the newest request was denied": {
			objects: []runtime.Object{
				certificate(), readyIssuer(),
				request("akv-injector-1", time.Hour, approved, requestSays(certmanagerv1.CertificateRequestConditionReady, "Issued", "")),
				request("akv-injector-2", 0,
					requestSays(certmanagerv1.CertificateRequestConditionDenied, "Policy", "names outside the policy"),
					requestSays(certmanagerv1.CertificateRequestConditionReady, "Denied", "The CertificateRequest was denied")),
			},
			want: "CertificateRequest " + namespace + "/akv-injector-2 was denied: names outside the policy (Policy); have such requests approved, delete this one, " + renew,
		},
		"the request is invalid": {
			objects: []runtime.Object{
				certificate(), readyIssuer(),
				request("akv-injector-1", 0, approved, requestSays(certmanagerv1.CertificateRequestConditionInvalidRequest, "Bad", "a usage is missing")),
			},
			want: "CertificateRequest " + namespace + "/akv-injector-1 is invalid: a usage is missing (Bad); change the Certificate to what Issuer " + namespace + "/ca accepts",
		},
		"the request failed": {
			objects: []runtime.Object{
				certificate(), readyIssuer(),
				request("akv-injector-1", 0, approved, requestSays(certmanagerv1.CertificateRequestConditionReady, "Failed", "the CA said no")),
			},
			want: "CertificateRequest " + namespace + "/akv-injector-1 failed: the CA said no; fix Issuer " + namespace + "/ca, " + renew,
		},
		"the request waits for approval": {
			objects: []runtime.Object{certificate(), readyIssuer(), request("akv-injector-1", 0)},
			want:    "CertificateRequest " + namespace + "/akv-injector-1 waits for approval; ",
		},
		"the request waits for its issuer": {
			objects: []runtime.Object{certificate(), readyIssuer(), request("akv-injector-1", 0, approved)},
			want:    "CertificateRequest " + namespace + "/akv-injector-1 waits for Issuer " + namespace + "/ca; does its controller run?",
		},
		"the highest revision counts if requests have the same time": {
			objects: []runtime.Object{
				certificate(), readyIssuer(),
				revised(request("a", 0, approved), "9"), revised(request("b", 0, approved), "10"),
			},
			want: "CertificateRequest " + namespace + "/b waits",
		},
		"requests of other Certificates do not count": {
			objects: []runtime.Object{
				certificate(certificateSays(certmanagerv1.CertificateConditionIssuing, certmanagermetav1.ConditionTrue, "DoesNotExist", "as Secret does not exist")),
				readyIssuer(),
				others(request("other", 0, requestSays(certmanagerv1.CertificateRequestConditionDenied, "", ""))),
			},
			want: certificateName + " is being issued: as Secret does not exist (DoesNotExist)",
		},
		"the last issuance failed": {
			objects: []runtime.Object{
				certificate(
					certificateSays(certmanagerv1.CertificateConditionIssuing, certmanagermetav1.ConditionFalse, "Failed", "the key was bad"),
					certificateSays(certmanagerv1.CertificateConditionReady, certmanagermetav1.ConditionFalse, "DoesNotExist", "as Secret does not exist"),
					func(c *certmanagerv1.Certificate) { c.Status.LastFailureTime = &metav1.Time{Time: birth} }),
				readyIssuer(),
			},
			want: certificateName + " was not issued: the key was bad (Failed); fix that, " + renew,
		},
		"the Certificate has no conditions": {
			objects: []runtime.Object{certificate(), readyIssuer()},
			want:    certificateName + " has no condition Ready; does cert-manager's controller run?",
		},
		"the Certificate is not ready": {
			objects: []runtime.Object{
				certificate(certificateSays(certmanagerv1.CertificateConditionReady, certmanagermetav1.ConditionFalse, "Expired", "expired in March")),
				readyIssuer(),
			},
			want: certificateName + " is not ready: expired in March (Expired)",
		},
		"the Certificate is ready": {
			objects: []runtime.Object{
				certificate(certificateSays(certmanagerv1.CertificateConditionReady, certmanagermetav1.ConditionTrue, "Ready", "up to date")),
				readyIssuer(),
			},
			want: certificateName + " is ready, says cert-manager; its controller writes a deleted or damaged Secret again when it runs",
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			i := startCertManager(t, test.prepare, test.objects...)
			want := "no serving certificate: Secret " + namespace + "/" + secretName + " does not exist: " + test.want
			says(t, i, want, i.tick)
			for range 100 {
				i.tick()
			}
			if got := i.book.count("does not exist: " + logged(test.want)); got != 1 {
				t.Errorf("the reason is logged %d times, want once:\n%s", got, i.book)
			}
			looks := 0
			for _, action := range i.client.Actions() {
				if action.GetResource().Resource == "certificates" {
					looks++
				}
			}
			if looks < 5 || looks > 20 {
				t.Errorf("looked %d times in 100 seconds, want it to look again, and less and less often", looks)
			}
		})
	}
}

// logged returns a text as the log quotes it.
func logged(text string) string { return strings.ReplaceAll(text, `"`, `\"`) }

func revised(r *certmanagerv1.CertificateRequest, revision string) *certmanagerv1.CertificateRequest {
	r.Annotations = map[string]string{certmanagerv1.CertificateRequestRevisionAnnotationKey: revision}
	return r
}

func others(r *certmanagerv1.CertificateRequest) *certmanagerv1.CertificateRequest {
	r.OwnerReferences[0].UID = "another"
	return r
}

func TestCertManagerServesWhatTheSecretHas(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry.Add(validity))
	intermediate := issue(t, "intermediate", ecdsaKey(t), ca, true, expiry)
	first := issue(t, "first", ecdsaKey(t), ca, false, expiry)
	for behaviour, test := range map[string]struct {
		key    crypto.Signer
		parent *keyPair
		chain  []byte
	}{
		"an ECDSA pair":                {key: ecdsaKey(t), parent: ca},
		"an RSA pair":                  {key: rsaKey(t), parent: ca},
		"a chain with an intermediate": {key: ecdsaKey(t), parent: intermediate, chain: intermediate.crt},
	} {
		t.Run(behaviour+" is served as soon as it is there", func(t *testing.T) {
			t.Parallel()
			i := startCertManager(t, nil)
			setBundles(t, i.client, ca.crt)
			says(t, i, "does not exist", nil)
			i.put(first.crt, first.key)
			i.meets(ca, first, nil)
			says(t, i, "ready", nil)
			i.clock.Step(settling)
			i.tick()

			second := issue(t, "second", test.key, test.parent, false, expiry.Add(time.Hour))
			i.put(slices.Concat(second.crt, test.chain), second.key)
			i.meets(ca, second, i.tick) // a bundle that arrives only now must settle first
			says(t, i, "ready", nil)
			got := []float64{
				i.refused(),
				metric(t, i.registry, "akv_injector_ca_bundle_mismatch"),
				metric(t, i.registry, "akv_injector_serving_certificate_expiry_seconds"),
			}
			if diff := cmp.Diff([]float64{0, 0, float64(second.cert.NotAfter.Unix())}, got); diff != "" {
				t.Errorf("metrics (-want +got):\n%s", diff)
			}
		})
	}
}

func TestCertManagerRefuses(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry.Add(validity))
	good := issue(t, "good", ecdsaKey(t), ca, false, expiry)
	next := issue(t, "next", ecdsaKey(t), ca, false, expiry)
	expired := issue(t, "expired", ecdsaKey(t), ca, false, birth.Add(-time.Hour))
	nameless := issue(t, "nameless", ecdsaKey(t), ca, true, expiry)
	const secret = "Secret " + namespace + "/" + secretName + ": "
	for behaviour, test := range map[string]struct {
		crt, key []byte
		want     string
	}{
		"a truncated certificate":         {next.crt[:200], next.key, secret + "tls: failed to find any PEM data in certificate input"},
		"a truncated key":                 {next.crt, next.key[:60], secret + "tls: failed to find any PEM data in key input"},
		"a key that does not match":       {next.crt, good.key, secret + "tls: private key does not match public key"},
		"a certificate without a key":     {next.crt, nil, secret + "tls: failed to find any PEM data in key input"},
		"an expired certificate":          {expired.crt, expired.key, secret + "expired on 2029-12-31T23:00:00Z; renew it"},
		"a certificate without our names": {nameless.crt, nameless.key, secret + "is for no names, while the injector's webhook configurations call " + serviceHost + ", 127.0.0.1; issue it for these"},
	} {
		t.Run(behaviour+" leaves the old one serving", func(t *testing.T) {
			t.Parallel()
			i := startCertManager(t, nil, tlsSecret(good.crt, good.key))
			setBundles(t, i.client, ca.crt)
			i.meets(ca, good, nil)
			says(t, i, "ready", nil)
			i.put(test.crt, test.key)
			eventually(t, "refusal", func() error {
				if i.refused() != 1 || i.book.count(test.want+": Certificate "+namespace+"/akv-injector does not exist") != 1 {
					return errors.New(i.book.String())
				}
				return nil
			}, nil)
			for range 30 {
				i.tick()
			}
			i.meets(ca, good, nil)
			says(t, i, "ready", nil)
			if got := i.refused(); got != 1 {
				t.Errorf("one bad certificate counted %v times", got)
			}
			for _, pair := range []*keyPair{good, next, expired, nameless} {
				if i.book.count(strings.Split(string(pair.key), "\n")[1]) > 0 {
					t.Error("a private key was logged")
				}
			}
			i.put(next.crt, next.key)
			i.meets(ca, next, i.tick)
		})
	}
}

func TestCertManagerRefusesAnEmptySecretAtTheStart(t *testing.T) {
	ca := issue(t, "root", ecdsaKey(t), nil, true, birth.Add(validity))
	good := issue(t, "good", ecdsaKey(t), ca, false, birth.Add(validity))
	i := startCertManager(t, nil, tlsSecret(nil, nil))
	says(t, i, "no serving certificate: Secret "+namespace+"/"+secretName+": tls: failed to find any PEM data in certificate input: "+
		"Certificate "+namespace+"/akv-injector does not exist", nil)
	i.put(good.crt, good.key)
	i.meets(ca, good, nil)
}

func TestCertManagerThroughItsLife(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry.Add(validity))
	first := issue(t, "first", ecdsaKey(t), ca, false, expiry)
	installed := false
	i := startCertManager(t, func(client *fake.Clientset) {
		client.PrependReactor("get", "certificates", func(action clienttesting.Action) (bool, runtime.Object, error) {
			if installed {
				return false, nil, nil
			}
			return true, nil, apierrors.NewGenericServerResponse(http.StatusNotFound, "get", action.GetResource().GroupResource(), "", "404 page not found", 0, true)
		})
	})
	says(t, i, "cert-manager is not installed", nil)
	i.client.Lock()
	installed = true
	i.client.Unlock()
	says(t, i, "Certificate "+namespace+"/akv-injector does not exist", i.tick)
	certmanager := &certmanagerfake.FakeCertmanagerV1{Fake: &i.client.Fake}
	if _, err := certmanager.Certificates(namespace).Create(t.Context(), certificate(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	says(t, i, "Issuer "+namespace+"/ca does not exist", i.tick)
	if _, err := certmanager.Issuers(namespace).Create(t.Context(), readyIssuer(), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	says(t, i, "has no condition Ready", i.tick)

	// cert-manager issues the certificate, and cainjector writes the bundle later.
	i.put(first.crt, first.key)
	says(t, i, "does not verify the serving certificate: x509: certificate signed by unknown authority; "+
		"cert-manager's cainjector writes that caBundle where the configuration has the annotation cert-manager.io/inject-ca-from: "+namespace+"/akv-injector", nil)
	if got := metric(t, i.registry, "akv_injector_ca_bundle_mismatch"); got != 3 {
		t.Errorf("%v webhooks counted as mismatched, want 3", got)
	}
	setMutatingBundles(t, i.client, ca.crt)
	eventually(t, "the validating webhook alone mismatched", func() error {
		if got := metric(t, i.registry, "akv_injector_ca_bundle_mismatch"); got != 1 {
			return fmt.Errorf("%v webhooks", got)
		}
		return nil
	}, nil)
	says(t, i, "the CA bundle of ValidatingWebhookConfiguration akv-injector", nil)
	setBundles(t, i.client, ca.crt)
	says(t, i, "ready", nil)

	// The certificate is served after its Secret is deleted.
	if err := i.client.CoreV1().Secrets(namespace).Delete(t.Context(), secretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the deletion logged", func() error {
		if i.book.count(`"certificate ready, its successor is not" "reason"="Secret `+namespace+"/"+secretName+" does not exist: ") != 1 {
			return errors.New(i.book.String())
		}
		return nil
	}, nil)
	says(t, i, "ready", nil)
	i.meets(ca, first, nil)

	// The certificate is not renewed.
	i.clock.Step(validity + time.Second)
	says(t, i, "the serving certificate expired on "+expiry.Format(time.RFC3339)+" and none has replaced it\nSecret "+namespace+"/"+secretName+" does not exist: ", i.tick)
	early := issue(t, "early", ecdsaKey(t), ca, false, expiry.Add(validity), notBefore(i.clock.Now().Add(time.Minute)))
	i.put(early.crt, early.key)
	says(t, i, "not valid before", nil)
	i.meets(ca, early, i.tick)
	says(t, i, "ready", nil)
	if got := i.refused(); got != 1 {
		t.Errorf("%v certificates counted as refused, want the one that was early", got)
	}
	if diff := cmp.Diff([]string{"list", "watch"}, verbs(i.client.Actions(), "get", "create", "update", "delete")); diff != "" {
		t.Errorf("verbs used (-want +got):\n%s", diff)
	}
}

func TestCertManagerSaysThatItMayNotReadTheSecret(t *testing.T) {
	i := startCertManager(t, forbid("list", "secrets"))
	says(t, i, "no serving certificate: Secret "+namespace+"/"+secretName+" could not be read; it needs get, list and watch on it: ", i.tick)
}

// TestCertManagerSaysThatItMayNoLongerReadTheSecret checks the log: the source stays ready until
// the certificate expires.
func TestCertManagerSaysThatItMayNoLongerReadTheSecret(t *testing.T) {
	ca := issue(t, "root", ecdsaKey(t), nil, true, birth.Add(validity))
	good := issue(t, "good", ecdsaKey(t), ca, false, birth.Add(validity))
	events := watch.NewRaceFreeFake()
	i := startCertManager(t, func(client *fake.Clientset) {
		client.PrependWatchReactor("secrets", clienttesting.DefaultWatchReactor(events, nil))
	}, tlsSecret(good.crt, good.key))
	setBundles(t, i.client, ca.crt)
	says(t, i, "ready", nil)
	forbid("list", "secrets")(i.client)
	i.client.PrependWatchReactor("secrets", clienttesting.DefaultWatchReactor(nil, apierrors.NewForbidden(schema.GroupResource{Resource: "secrets"}, secretName, nil)))
	events.Stop()
	eventually(t, "a line of the log", func() error {
		if i.book.count("Objects may be out of date") == 0 {
			return errors.New(i.book.String())
		}
		return nil
	}, nil)
	says(t, i, "ready", nil)
	i.meets(ca, good, nil)
}

func TestCertManagerSaysThatTheAPIServerIsSilent(t *testing.T) {
	const unread = "no serving certificate: Secret " + namespace + "/" + secretName + " has not been read yet"
	i := startCertManager(t, func(client *fake.Clientset) { silenceSecrets(t, client) })
	says(t, i, unread, i.tick)
	if got := i.book.count(unread); got != 0 {
		t.Errorf("logged %d times right after the start", got)
	}
	for range 20 {
		i.tick()
	}
	if got := i.book.count(unread); got != 1 {
		t.Errorf("logged %d times, want once:\n%s", got, i.book)
	}
}

// TestCertManagerRotationLosesNoHandshake renews the certificate under load. In every other round,
// another CA signs it, and the bundle has the old and the new CA.
func TestCertManagerRotationLosesNoHandshake(t *testing.T) {
	const rotations = 20
	expiry := birth.AddDate(1, 0, 0)
	ca := issue(t, "CA", ecdsaKey(t), nil, true, expiry)
	pair := issue(t, "leaf", ecdsaKey(t), ca, false, expiry)
	i := startCertManager(t, nil, tlsSecret(pair.crt, pair.key))
	setBundles(t, i.client, ca.crt)
	i.meets(ca, pair, nil)
	says(t, i, "ready", nil)
	for n := range rotations {
		bundle, learnt := ca.crt, i.clock.Now()
		before := bundle
		if n%2 == 1 {
			next := issue(t, "CA", ecdsaKey(t), nil, true, expiry)
			bundle = slices.Concat(ca.crt, next.crt)
			ca = next
			setBundles(t, i.client, bundle)
			learnt = learnt.Add(settling - time.Second)
		}
		pair = issue(t, fmt.Sprintf("leaf %d", n), ecdsaKey(t), ca, false, expiry)
		i.put(pair.crt, pair.key)
		eventually(t, pair.cert.Subject.CommonName, func() error {
			known := bundle
			if i.clock.Now().Before(learnt) { // an API server whose watch lags
				known = before
			}
			got, err := handshake(i.address, serviceHost, known, i.clock.Now())
			if err != nil {
				t.Fatalf("rotation %d: %v", n, err)
			}
			if !got.Equal(pair.cert) {
				return fmt.Errorf("serves %s", got.Subject.CommonName)
			}
			return i.Ready(nil)
		}, i.tick)
	}
}

// TestCertManagerIsNotInstalled uses HTTP, because the real client recognizes an absent kind by the
// answer's form.
func TestCertManagerIsNotInstalled(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(server.Close)
	certManager, err := certmanagerclient.NewForConfig(&rest.Config{Host: server.URL})
	if err != nil {
		t.Fatal(err)
	}
	_, client := newAPIServer(t)
	src, err := certs.CertManager(certs.CertManagerOptions{
		Options: certs.Options{Client: client}, CertManager: certManager,
		Namespace: namespace, Certificate: "akv-injector", Secret: secretName,
	})
	if err != nil {
		t.Fatal(err)
	}
	start(t, src)
	says(t, src, "cert-manager is not installed", nil)
}

func TestCertManagerOptionsAreChecked(t *testing.T) {
	if _, err := certs.CertManager(certs.CertManagerOptions{}); err == nil {
		t.Error("accepted")
	}
}
