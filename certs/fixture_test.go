package certs_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	"github.com/go-logr/logr/funcr"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	clienttesting "k8s.io/client-go/testing"
	"k8s.io/utils/clock"
	testingclock "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/akv-injector/akv-injector/certs"
)

const (
	namespace     = "akv-injector-system"
	secretName    = "akv-injector-serving-cert"
	configuration = "akv-injector"
	serviceHost   = "akv-injector.akv-injector-system.svc"
)

// apiServer is client-go's fake with resource versions and conflicts, which replicas need to agree.
type apiServer struct {
	clienttesting.ObjectTracker

	mu      sync.Mutex
	version int
}

func newAPIServer(t *testing.T, objects ...runtime.Object) (*apiServer, *fake.Clientset) {
	t.Helper()
	kinds := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(kinds), certmanagerv1.AddToScheme(kinds)); err != nil {
		t.Fatal(err)
	}
	api := &apiServer{ObjectTracker: clienttesting.NewObjectTracker(kinds, serializer.NewCodecFactory(kinds).UniversalDecoder())}
	for _, obj := range objects {
		api.bump(obj)
		if err := api.Add(obj); err != nil {
			t.Fatal(err)
		}
	}
	client := &fake.Clientset{}
	react := clienttesting.ObjectReaction(api)
	client.AddReactor("*", "*", func(action clienttesting.Action) (bool, runtime.Object, error) {
		handled, obj, err := react(action)
		var status apierrors.APIStatus
		if err != nil && action.GetVerb() == "patch" && !errors.As(err, &status) {
			// The API server's answer to a patch whose test operation fails.
			err = apierrors.NewGenericServerResponse(http.StatusUnprocessableEntity, "", schema.GroupResource{}, "", err.Error(), 0, false)
		}
		return handled, obj, err
	})
	client.AddWatchReactor("*", func(action clienttesting.Action) (bool, watch.Interface, error) {
		var o metav1.ListOptions
		if action, ok := action.(clienttesting.WatchActionImpl); ok {
			o = action.ListOptions
		}
		w, err := api.Watch(action.GetResource(), action.GetNamespace(), o)
		return true, w, err
	})
	return api, client
}

func (s *apiServer) bump(obj runtime.Object) {
	s.version++
	m, err := meta.Accessor(obj)
	if err != nil {
		panic(err)
	}
	m.SetResourceVersion(strconv.Itoa(s.version))
}

func (s *apiServer) Create(gvr schema.GroupVersionResource, obj runtime.Object, ns string, o ...metav1.CreateOptions) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.bump(obj)
	return s.ObjectTracker.Create(gvr, obj, ns, o...)
}

func (s *apiServer) Update(gvr schema.GroupVersionResource, obj runtime.Object, ns string, o ...metav1.UpdateOptions) error {
	return s.replace(gvr, obj, ns, func() error { return s.ObjectTracker.Update(gvr, obj, ns, o...) })
}

func (s *apiServer) Patch(gvr schema.GroupVersionResource, obj runtime.Object, ns string, o ...metav1.PatchOptions) error {
	return s.replace(gvr, obj, ns, func() error { return s.ObjectTracker.Patch(gvr, obj, ns, o...) })
}

func (s *apiServer) replace(gvr schema.GroupVersionResource, obj runtime.Object, ns string, write func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	m, err := meta.Accessor(obj)
	if err != nil {
		return err
	}
	old, err := s.Get(gvr, ns, m.GetName())
	if err != nil {
		return err
	}
	oldMeta, err := meta.Accessor(old)
	if err != nil {
		return err
	}
	if v := m.GetResourceVersion(); v != "" && v != oldMeta.GetResourceVersion() {
		return apierrors.NewConflict(gvr.GroupResource(), m.GetName(), errors.New("the object has been modified"))
	}
	s.bump(obj)
	return write()
}

// webhookConfigurations returns one of each kind: one calls a Service, the other a URL.
func webhookConfigurations() []runtime.Object {
	url := "https://127.0.0.1:9443/validate/pods"
	return []runtime.Object{
		&admissionregistrationv1.MutatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: configuration},
			Webhooks: []admissionregistrationv1.MutatingWebhook{
				{
					Name: "pods.keyvault.io",
					ClientConfig: admissionregistrationv1.WebhookClientConfig{
						Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: "akv-injector"},
					},
					NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"keyvault.io/injection": "enabled"}},
				},
				{
					Name: "workloads.keyvault.io",
					ClientConfig: admissionregistrationv1.WebhookClientConfig{
						Service: &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: "akv-injector"},
					},
				},
			},
		},
		&admissionregistrationv1.ValidatingWebhookConfiguration{
			ObjectMeta: metav1.ObjectMeta{Name: configuration},
			Webhooks: []admissionregistrationv1.ValidatingWebhook{
				{Name: "pods.keyvault.io", ClientConfig: admissionregistrationv1.WebhookClientConfig{URL: &url}},
			},
		},
	}
}

// bundles returns the CA bundles of all webhooks, in order.
func bundles(t *testing.T, client *fake.Clientset) []string {
	t.Helper()
	mutating, err := client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	validating, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, w := range mutating.Webhooks {
		all = append(all, string(w.ClientConfig.CABundle))
	}
	for _, w := range validating.Webhooks {
		all = append(all, string(w.ClientConfig.CABundle))
	}
	return all
}

// setBundles sets the CA bundle of every webhook.
func setBundles(t *testing.T, client *fake.Clientset, bundle []byte) {
	t.Helper()
	setMutatingBundles(t, client, bundle)
	admission := client.AdmissionregistrationV1().ValidatingWebhookConfigurations()
	validating, err := admission.Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	validating.Webhooks[0].ClientConfig.CABundle = bundle
	if _, err := admission.Update(t.Context(), validating, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func setMutatingBundles(t *testing.T, client *fake.Clientset, bundle []byte) {
	t.Helper()
	admission := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	mutating, err := admission.Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range mutating.Webhooks {
		mutating.Webhooks[i].ClientConfig.CABundle = bundle
	}
	if _, err := admission.Update(t.Context(), mutating, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// silenceSecrets blocks lists of Secrets until the test ends.
func silenceSecrets(t *testing.T, client *fake.Clientset) {
	t.Helper()
	client.PrependReactor("list", "secrets", func(clienttesting.Action) (bool, runtime.Object, error) {
		client.Unlock() // the reactor's caller holds the lock
		defer client.Lock()
		<-t.Context().Done()
		return true, nil, t.Context().Err()
	})
}

// verbs returns the verbs of actions, except some that the test itself used.
func verbs(actions []clienttesting.Action, except ...string) []string {
	var used []string
	for _, action := range actions {
		if verb := action.GetVerb(); !slices.Contains(except, verb) {
			used = append(used, verb)
		}
	}
	slices.Sort(used)
	return slices.Compact(used)
}

func readSecret(t *testing.T, client *fake.Clientset) *corev1.Secret {
	t.Helper()
	secret, err := client.CoreV1().Secrets(namespace).Get(t.Context(), secretName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return secret
}

// A pacer is a clock that only the test moves, with tickers that tick when the test calls round.
type pacer struct {
	*testingclock.FakeClock
	ticks chan time.Time
}

func newPacer() *pacer {
	return &pacer{FakeClock: testingclock.NewFakeClock(birth), ticks: make(chan time.Time)}
}

func (p *pacer) NewTicker(time.Duration) clock.Ticker { return ticker(p.ticks) }

type ticker chan time.Time

func (t ticker) C() <-chan time.Time { return t }
func (t ticker) Stop()               {}

// round returns when the source has done a whole round.
func (p *pacer) round(t *testing.T) {
	t.Helper()
	for range 2 { // the second tick is received after the round of the first
		select {
		case p.ticks <- p.Now():
		case <-t.Context().Done():
			t.Error(t.Context().Err())
		}
	}
}

// tick moves the clock by a second, and waits for a round.
func (p *pacer) tick(t *testing.T) {
	t.Helper()
	p.Step(time.Second)
	p.round(t)
}

// logbook keeps log lines, of every verbosity.
type logbook struct {
	mu    sync.Mutex
	lines []string
}

func (l *logbook) into(ctx context.Context) context.Context {
	return log.IntoContext(ctx, funcr.New(func(prefix, args string) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.lines = append(l.lines, prefix+" "+args)
	}, funcr.Options{Verbosity: 1}))
}

// count returns the number of lines that contain a text.
func (l *logbook) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, line := range l.lines {
		if strings.Contains(line, text) {
			n++
		}
	}
	return n
}

func (l *logbook) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Join(l.lines, "\n")
}

// start runs src until the returned function is called or the test ends.
func start(t *testing.T, src certs.Certificates) (book *logbook, stop func()) {
	t.Helper()
	book = &logbook{}
	ctx, cancel := context.WithCancel(book.into(t.Context()))
	done := make(chan error, 1)
	go func() { done <- src.Start(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Start: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Start does not end with its context")
		}
	})
	t.Cleanup(stop)
	return book, stop
}

// says waits until the error of Ready contains a text; without an error, the text is "ready".
func says(t *testing.T, src certs.Certificates, want string, step func()) {
	t.Helper()
	eventually(t, "readiness", func() error {
		got := "ready"
		if err := src.Ready(nil); err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			return fmt.Errorf("%q lacks %q", got, want)
		}
		return nil
	}, step)
}

// eventually waits until check returns nil. It calls step between tries, which may move a clock.
func eventually(t *testing.T, what string, check func() error, step func()) {
	t.Helper()
	var err error
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if err = check(); err == nil {
			return
		}
		if step != nil {
			step()
		}
		select {
		case <-t.Context().Done():
			t.Fatal(t.Context().Err())
		case <-time.After(2 * time.Millisecond):
		}
	}
	t.Fatalf("%s: timed out: %v", what, err)
}

// serveTLS serves handshakes on loopback with the certificate of src.
func serveTLS(t *testing.T, src certs.Certificates, minVersion uint16, options ...func(*tls.Config)) (address string) {
	t.Helper()
	config := &tls.Config{}
	for _, apply := range append(options, certs.Configure(src, minVersion)) {
		apply(config)
	}
	listener, err := tls.Listen("tcp", "127.0.0.1:0", config)
	if err != nil {
		t.Fatal(err)
	}
	var open sync.WaitGroup
	open.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			open.Go(func() {
				defer conn.Close()
				if err := conn.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
					return
				}
				if tlsConn, ok := conn.(*tls.Conn); ok && tlsConn.HandshakeContext(t.Context()) == nil {
					_, _ = conn.Write([]byte{0})
				}
			})
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		open.Wait()
	})
	return listener.Addr().String()
}

// handshake connects as an API server with a CA bundle at a time, and returns the server's
// certificate.
func handshake(address, host string, bundle []byte, now time.Time) (*x509.Certificate, error) {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(bundle)
	return dial(address, &tls.Config{
		RootCAs: roots, ServerName: host, Time: func() time.Time { return now }, MinVersion: tls.VersionTLS12,
	})
}

func dial(address string, config *tls.Config) (*x509.Certificate, error) {
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 10 * time.Second}, "tcp", address, config)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	if _, err := conn.Read(make([]byte, 1)); err != nil {
		return nil, fmt.Errorf("read after handshake: %w", err)
	}
	return conn.ConnectionState().PeerCertificates[0], nil
}

// A keyPair is a certificate that the test issued, in PEM.
type keyPair struct {
	cert     *x509.Certificate
	signer   crypto.Signer
	crt, key []byte
}

// issue returns a certificate that parent signs; a nil parent means self-signed.
func issue(t *testing.T, name string, signer crypto.Signer, parent *keyPair, isCA bool, notAfter time.Time, change ...func(*x509.Certificate)) *keyPair {
	t.Helper()
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: name},
		NotBefore: birth.AddDate(-1, 0, 0),
		NotAfter:  notAfter,
		KeyUsage:  x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		IsCA:      isCA, BasicConstraintsValid: true,
	}
	if !isCA {
		template.DNSNames = []string{serviceHost}
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	for _, f := range change {
		f(template)
	}
	issuer, issuerKey := template, signer
	if parent != nil {
		issuer, issuerKey = parent.cert, parent.signer
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, signer.Public(), issuerKey)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(signer)
	if err != nil {
		t.Fatal(err)
	}
	return &keyPair{
		cert: cert, signer: signer,
		crt: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		key: pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

func ecdsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func rsaKey(t *testing.T) crypto.Signer {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func notBefore(at time.Time) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.NotBefore = at }
}
