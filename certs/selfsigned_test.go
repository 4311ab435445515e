package certs_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
	testingclock "k8s.io/utils/clock/testing"

	"github.com/akv-injector/akv-injector/certs"
)

const (
	validity = 90 * 24 * time.Hour
	delay    = time.Minute
)

var birth = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// cluster is a fake API server, a clock that only the test moves, and replicas.
type cluster struct {
	t      *testing.T
	api    *apiServer
	client *fake.Clientset
	clock  *testingclock.FakeClock
}

type replica struct {
	*certs.Authority
	book     *logbook
	stop     func()
	registry *prometheus.Registry
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	api, client := newAPIServer(t, webhookConfigurations()...)
	return &cluster{t: t, api: api, client: client, clock: testingclock.NewFakeClock(birth)}
}

func (c *cluster) replica(hosts ...string) *replica {
	c.t.Helper()
	if len(hosts) == 0 {
		hosts = []string{serviceHost, "127.0.0.1"}
	}
	registry := prometheus.NewPedanticRegistry()
	authority, err := certs.SelfSigned(certs.SelfSignedOptions{
		Options: certs.Options{
			Client:                c.client,
			WebhookConfigurations: []string{configuration},
			Metrics:               registry,
			Clock:                 c.clock,
		},
		Namespace: namespace, SecretName: secretName, Hosts: hosts, Validity: validity, PropagationDelay: delay,
	})
	if err != nil {
		c.t.Fatal(err)
	}
	book, stop := start(c.t, authority)
	return &replica{Authority: authority, book: book, stop: stop, registry: registry}
}

func (c *cluster) ready(replicas ...*replica) {
	c.t.Helper()
	eventually(c.t, "all replicas ready", func() error {
		for _, r := range replicas {
			if err := r.Ready(nil); err != nil {
				return err
			}
		}
		return nil
	}, nil)
}

func (c *cluster) tick() { c.clock.Step(delay / 10) }

func served(r *replica) string {
	cert, err := r.GetCertificate(nil)
	if err != nil {
		return err.Error()
	}
	return cert.Leaf.SerialNumber.Text(16)
}

// authoritiesIn returns the number of CAs in a bundle.
func authoritiesIn(bundle string) int { return strings.Count(bundle, "BEGIN CERTIFICATE") }

func TestSelfSignedAgrees(t *testing.T) {
	c := newCluster(t)
	replicas := []*replica{c.replica(), c.replica(), c.replica()}
	c.ready(replicas...)
	for _, r := range replicas {
		if got, want := served(r), served(replicas[0]); got != want {
			t.Errorf("replicas serve %s and %s", got, want)
		}
		address := serveTLS(t, r, 0)
		for _, host := range []string{serviceHost, "127.0.0.1"} {
			if _, err := handshake(address, host, []byte(bundles(t, c.client)[0]), c.clock.Now()); err != nil {
				t.Errorf("handshake as %s: %v", host, err)
			}
		}
	}
	if got := authoritiesIn(bundles(t, c.client)[0]); got != 1 {
		t.Errorf("a first certificate has %d CAs in the bundle, want 1", got)
	}
	if diff := cmp.Diff(string(replicas[0].CABundle()), string(readSecret(t, c.client).Data["ca.crt"])); diff != "" {
		t.Errorf("CABundle is not the Secret's (-want +got):\n%s", diff)
	}
	cert, err := replicas[0].GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	got := []float64{
		metric(t, replicas[0].registry, "akv_injector_ca_bundle_mismatch"),
		metric(t, replicas[0].registry, "akv_injector_serving_certificate_expiry_seconds"),
		metric(t, replicas[0].registry, "akv_injector_certificate_reload_errors_total"),
	}
	if diff := cmp.Diff([]float64{0, float64(cert.Leaf.NotAfter.Unix()), 0}, got); diff != "" {
		t.Errorf("metrics (-want +got):\n%s", diff)
	}
}

func TestSelfSignedWritesNothingButTheBundle(t *testing.T) {
	c := newCluster(t)
	c.ready(c.replica())
	got, err := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations().Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	got.ResourceVersion = ""
	for i := range got.Webhooks {
		got.Webhooks[i].ClientConfig.CABundle = nil
	}
	if diff := cmp.Diff(webhookConfigurations()[0], runtime.Object(got)); diff != "" {
		t.Errorf("the configuration changed (-want +got):\n%s", diff)
	}
}

// TestRotationLosesNoHandshake rotates under load, with API servers that receive a bundle late.
func TestRotationLosesNoHandshake(t *testing.T) {
	const rotations = 20
	c := newCluster(t)
	replicas := []*replica{c.replica(), c.replica()}
	c.ready(replicas...)

	// The slowest API server has the bundles of nine tenths of the delay ago.
	type published struct {
		at      time.Time
		bundles []string
	}
	var mu sync.RWMutex // held so that the clock does not move during a handshake
	var history []published
	record := func() {
		if now := bundles(t, c.client); len(history) == 0 || !slices.Equal(history[len(history)-1].bundles, now) {
			history = append(history, published{c.clock.Now(), now})
		}
	}
	lagging := func() []string {
		since := c.clock.Now().Add(-delay * 9 / 10)
		for _, p := range slices.Backward(history) {
			if !p.at.After(since) {
				return p.bundles
			}
		}
		return history[0].bundles
	}
	mu.Lock()
	record()
	mu.Unlock()

	var load sync.WaitGroup
	var handshakes, failures atomic.Int64
	ctx := t.Context()
	done, completed := make(chan struct{}), make(chan struct{})
	for _, r := range replicas {
		address := serveTLS(t, r, 0)
		for i, host := range []string{serviceHost, "127.0.0.1"} {
			load.Go(func() {
				for n := 0; ; n++ {
					select {
					case <-done:
						return
					case <-ctx.Done():
						return
					default:
					}
					mu.RLock()
					view := lagging()
					if n%2 == 0 {
						view = history[len(history)-1].bundles
					}
					now := c.clock.Now()
					_, err := handshake(address, host, []byte(view[i*2]), now)
					mu.RUnlock()
					handshakes.Add(1)
					select {
					case completed <- struct{}{}:
					default:
					}
					if err != nil && failures.Add(1) <= 5 {
						t.Errorf("handshake %d at %s: %v", handshakes.Load(), now, err)
					}
				}
			})
		}
	}
	step := func(d time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		record()
		c.clock.Step(d)
	}

	for n := range rotations {
		old := served(replicas[0])
		step(validity * 2 / 3)
		eventually(t, fmt.Sprintf("rotation %d", n), func() error {
			for _, r := range replicas {
				if served(r) == old {
					return errors.New("a replica serves the old certificate")
				}
			}
			if a, b := served(replicas[0]), served(replicas[1]); a != b {
				return fmt.Errorf("replicas serve %s and %s", a, b)
			}
			return nil
		}, func() {
			for range 4 {
				select {
				case <-completed:
				case <-ctx.Done():
				}
			}
			step(delay / 10)
		})
		if got := authoritiesIn(bundles(t, c.client)[0]); got != 2 {
			t.Errorf("after rotation %d the bundle has %d CAs, want the old and the new", n, got)
		}
	}
	close(done)
	load.Wait()
	t.Logf("%d rotations, %d handshakes, %d failed", rotations, handshakes.Load(), failures.Load())
	for _, r := range replicas {
		if err := r.Ready(nil); err != nil {
			t.Errorf("not ready after %d rotations: %v", rotations, err)
		}
	}
}

func TestNextCertificateWaits(t *testing.T) {
	c := newCluster(t)
	var forbidden atomic.Bool
	c.client.PrependReactor("patch", "validatingwebhookconfigurations", func(clienttesting.Action) (bool, runtime.Object, error) {
		if !forbidden.Load() {
			return false, nil, nil
		}
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "validatingwebhookconfigurations"}, configuration, errors.New("no rule allows it"))
	})
	r := c.replica()
	c.ready(r)
	old := served(r)

	// API servers cannot receive the new CA while writing it fails.
	forbidden.Store(true)
	c.clock.Step(validity * 2 / 3)
	eventually(t, "half published", func() error {
		if got := bundles(t, c.client); authoritiesIn(got[0]) != 2 || authoritiesIn(got[2]) != 1 {
			return fmt.Errorf("%d and %d CAs", authoritiesIn(got[0]), authoritiesIn(got[2]))
		}
		return nil
	}, c.tick)
	for range 100 {
		c.tick()
	}
	eventually(t, "forbidden write logged", func() error {
		if !strings.Contains(r.book.String(), "no rule allows it") {
			return errors.New(r.book.String())
		}
		return nil
	}, c.tick)
	if served(r) != old || readSecret(t, c.client).Data["next.crt"] == nil {
		t.Error("the next certificate is served while one webhook configuration lacks its CA")
	}

	forbidden.Store(false)
	eventually(t, "published", func() error {
		if got := authoritiesIn(bundles(t, c.client)[2]); got != 2 {
			return fmt.Errorf("%d CAs", got)
		}
		return nil
	}, c.tick)
	if served(r) != old {
		t.Error("the next certificate is served without waiting for API servers to learn of its CA")
	}
	eventually(t, "next certificate served", func() error {
		if served(r) == old {
			return errors.New("old certificate")
		}
		return nil
	}, c.tick)
	// The Secret is updated, and the old CA is removed when it expires.
	eventually(t, "old CA dropped", func() error {
		data, got := readSecret(t, c.client).Data, bundles(t, c.client)
		if data["next.crt"] != nil || authoritiesIn(string(data["ca.crt"])) != 1 || authoritiesIn(got[0]) != 1 {
			return fmt.Errorf("%d and %d CAs", authoritiesIn(string(data["ca.crt"])), authoritiesIn(got[0]))
		}
		return nil
	}, func() { c.clock.Step(validity / 100) })
	c.ready(r)
}

// TestOldCAComesBackToAnOverwrittenBundle has a replica that cannot reach the API server, and
// serves the old certificate while it is valid.
func TestOldCAComesBackToAnOverwrittenBundle(t *testing.T) {
	c := newCluster(t)
	r := c.replica()
	c.ready(r)
	old, bundle := served(r), bundles(t, c.client)[0]
	c.clock.Step(validity * 2 / 3)
	eventually(t, "rotation", func() error {
		if served(r) == old {
			return errors.New("old certificate")
		}
		return nil
	}, c.tick)

	// A replica that started later has the old CA only from the Secret.
	r.stop()
	configurations := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	conf, err := configurations.Get(t.Context(), configuration, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	conf.Webhooks[0].ClientConfig.CABundle, conf.Webhooks[1].ClientConfig.CABundle = nil, nil
	if _, err := configurations.Update(t.Context(), conf, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.ready(c.replica())
	if got := bundles(t, c.client)[0]; !strings.Contains(got, bundle) || authoritiesIn(got) != 2 {
		t.Errorf("the bundle has %d CAs, want the old and the new", authoritiesIn(got))
	}
}

func TestSelfSignedRepairs(t *testing.T) {
	update := func(change func(map[string][]byte)) func(*testing.T, *cluster) {
		return func(t *testing.T, c *cluster) {
			t.Helper()
			secret := readSecret(t, c.client)
			change(secret.Data)
			if _, err := c.client.CoreV1().Secrets(namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	overwrite := func(bundle []byte) func(*testing.T, *cluster) {
		return func(t *testing.T, c *cluster) {
			t.Helper()
			configurations := c.client.AdmissionregistrationV1().MutatingWebhookConfigurations()
			conf, err := configurations.Get(t.Context(), configuration, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			conf.Webhooks[1].ClientConfig.CABundle = bundle
			if _, err := configurations.Update(t.Context(), conf, metav1.UpdateOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	stranger := issue(t, "stranger", ecdsaKey(t), nil, true, birth.Add(validity))
	for behaviour, test := range map[string]struct {
		harm    func(*testing.T, *cluster)
		refused float64 // by all replicas in total
		renewed bool
	}{
		"a deleted Secret comes back with a next certificate": {
			harm: func(t *testing.T, c *cluster) {
				t.Helper()
				if err := c.client.CoreV1().Secrets(namespace).Delete(t.Context(), secretName, metav1.DeleteOptions{}); err != nil {
					t.Fatal(err)
				}
			},
			renewed: true,
		},
		"an emptied Secret is restored":          {harm: update(func(d map[string][]byte) { clear(d) }), refused: 1},
		"a garbage certificate is restored":      {harm: update(func(d map[string][]byte) { d["tls.crt"] = []byte("garbage") }), refused: 1},
		"a truncated key is restored":            {harm: update(func(d map[string][]byte) { d["tls.key"] = d["tls.key"][:100] }), refused: 1},
		"a key of another certificate is undone": {harm: update(func(d map[string][]byte) { d["tls.key"] = stranger.key }), refused: 1},
		"a lost ca.crt is restored":              {harm: update(func(d map[string][]byte) { delete(d, "ca.crt") }), refused: 1},
		"a foreign CA alone in ca.crt is undone": {harm: update(func(d map[string][]byte) { d["ca.crt"] = stranger.crt }), refused: 1},
		"a garbage next certificate is dropped":  {harm: update(func(d map[string][]byte) { d["next.crt"] = []byte("garbage") }), refused: 1},
		"a foreign key of the Secret is dropped": {harm: update(func(d map[string][]byte) { d["mine"] = []byte("?") })},
		"an emptied CA bundle is restored":       {harm: overwrite(nil)},
		"a foreign CA bundle is overwritten":     {harm: overwrite(stranger.crt)},
		"a garbage CA bundle is overwritten":     {harm: overwrite([]byte("garbage"))},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			replicas := []*replica{c.replica(), c.replica()}
			c.ready(replicas...)
			old, secret, bundle := served(replicas[0]), readSecret(t, c.client), bundles(t, c.client)
			keys := secretKeys(secret)

			test.harm(t, c)
			eventually(t, "repair", func() error {
				got, err := c.client.CoreV1().Secrets(namespace).Get(t.Context(), secretName, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if test.renewed {
					if !bytes.Equal(got.Data["tls.crt"], secret.Data["tls.crt"]) || got.Data["next.crt"] == nil {
						return errors.New("must have the old certificate and a next one")
					}
					if !strings.Contains(bundles(t, c.client)[0], bundle[0]) {
						return errors.New("the old CA is not in the bundle")
					}
					return nil
				}
				if diff := cmp.Diff(secret.Data, got.Data); diff != "" {
					return errors.New(diff)
				}
				if diff := cmp.Diff(bundle, bundles(t, c.client)); diff != "" {
					return errors.New(diff)
				}
				return nil
			}, nil)
			c.ready(replicas...)
			var refused float64
			for _, r := range replicas {
				if got := served(r); got != old {
					t.Errorf("serves %s instead of %s", got, old)
				}
				refused += metric(t, r.registry, "akv_injector_certificate_reload_errors_total")
			}
			if refused != test.refused {
				t.Errorf("%v certificates counted as refused, want %v", refused, test.refused)
			}
			if test.renewed {
				keys = append(keys, secretKeys(readSecret(t, c.client))...)
				eventually(t, "new certificate", func() error {
					for _, r := range replicas {
						if served(r) == old {
							return errors.New("old certificate")
						}
					}
					return nil
				}, c.tick)
			}
			for _, r := range replicas {
				for _, key := range keys {
					if strings.Contains(r.book.String(), key) {
						t.Error("a private key was logged")
					}
				}
			}
		})
	}
}

// secretKeys returns a line of each private key in a Secret.
func secretKeys(secret *corev1.Secret) []string {
	var lines []string
	for _, name := range []string{"tls.key", "next.key"} {
		if data := secret.Data[name]; data != nil {
			lines = append(lines, strings.Split(string(data), "\n")[1])
		}
	}
	return lines
}

func metric(t *testing.T, registry *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		if family.GetName() == name {
			return family.GetMetric()[0].GetCounter().GetValue() + family.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// TestReplicaKeepsItsCertificateUntilTheNextIsTrusted has a replica that starts after the Secret
// was lost and before it is repaired. Its certificate is not trusted yet.
func TestReplicaKeepsItsCertificateUntilTheNextIsTrusted(t *testing.T) {
	c := newCluster(t)
	r := c.replica()
	c.ready(r)
	old, oldBundle := served(r), bundles(t, c.client)[0]

	// The writes of the other replica, in one step.
	other := newCluster(t)
	other.ready(other.replica())
	secret := readSecret(t, c.client)
	secret.Data = readSecret(t, other.client).Data
	if _, err := c.client.CoreV1().Secrets(namespace).Update(t.Context(), secret, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both CAs published", func() error {
		got := bundles(t, c.client)[0]
		if !strings.Contains(got, oldBundle) || authoritiesIn(got) != 2 {
			return fmt.Errorf("%d CAs", authoritiesIn(got))
		}
		return nil
	}, nil)
	if got := served(r); got != old {
		t.Error("switched to a certificate before API servers could trust it")
	}
	eventually(t, "the Secret's certificate served", func() error {
		if served(r) == old {
			return errors.New("old certificate")
		}
		return nil
	}, c.tick)
	c.ready(r)
}

func TestABundleNeverLosesACAThatMayBeServed(t *testing.T) {
	c := newCluster(t)
	first := c.replica()
	c.ready(first)
	bundle := bundles(t, c.client)[0]
	first.stop()
	if err := c.client.CoreV1().Secrets(namespace).Delete(t.Context(), secretName, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	// For the second replica, this is as if the first were disconnected, not stopped.
	c.ready(c.replica())
	if got := bundles(t, c.client)[0]; !strings.Contains(got, bundle) || authoritiesIn(got) != 2 {
		t.Errorf("the bundle has %d CAs, want the new one and that of a replica which may still serve", authoritiesIn(got))
	}
}

func TestABundleWrittenMeanwhileIsNotLost(t *testing.T) {
	other := newCluster(t)
	other.ready(other.replica())
	theirs := bundles(t, other.client)[0]

	c := newCluster(t)
	var once sync.Once
	c.client.PrependReactor("patch", "mutatingwebhookconfigurations", func(clienttesting.Action) (bool, runtime.Object, error) {
		once.Do(func() {
			conf, ok := webhookConfigurations()[0].(*admissionregistrationv1.MutatingWebhookConfiguration)
			if !ok {
				t.Error("not a mutating configuration")
				return
			}
			conf.Webhooks[0].ClientConfig.CABundle = []byte(theirs)
			if err := c.api.Update(admissionregistrationv1.SchemeGroupVersion.WithResource("mutatingwebhookconfigurations"), conf, ""); err != nil {
				t.Error(err)
			}
		})
		return false, nil, nil
	})
	c.ready(c.replica())
	if got := bundles(t, c.client)[0]; !strings.Contains(got, theirs) || authoritiesIn(got) != 2 {
		t.Errorf("the bundle has %d CAs, want ours and the one that came meanwhile", authoritiesIn(got))
	}
}

func TestReplicasWithOtherHostsAgree(t *testing.T) {
	c := newCluster(t)
	before := c.replica(serviceHost)
	eventually(t, "first certificate", func() error { _, err := before.GetCertificate(nil); return err }, nil)
	after := c.replica(serviceHost, "127.0.0.1")
	eventually(t, "one certificate for both", func() error {
		if got, want := served(before), served(after); got != want {
			return fmt.Errorf("%s and %s", got, want)
		}
		return errors.Join(before.Ready(nil), after.Ready(nil))
	}, c.tick)
	for range 50 {
		c.tick()
	}
	if readSecret(t, c.client).Data["next.crt"] != nil {
		t.Error("the replicas renew in turns")
	}
}

func TestExpiredCertificateIsReplacedAtOnce(t *testing.T) {
	c := newCluster(t)
	r := c.replica()
	c.ready(r)
	old := served(r)
	r.stop()
	c.clock.Step(2 * validity)
	if err := r.Ready(nil); err == nil || !strings.Contains(err.Error(), "expired on 2030-04-01") {
		t.Errorf("Ready with an expired certificate: %v", err)
	}
	r = c.replica()
	c.ready(r)
	if served(r) == old {
		t.Error("serves an expired certificate")
	}
	if got := authoritiesIn(bundles(t, c.client)[0]); got != 1 {
		t.Errorf("%d CAs in the bundle, want 1", got)
	}
}

func TestSelfSignedSaysWhatItLacks(t *testing.T) {
	denied := func(verb, resource string) func(*fake.Clientset) {
		return func(client *fake.Clientset) {
			client.PrependReactor(verb, resource, func(clienttesting.Action) (bool, runtime.Object, error) {
				return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", errors.New("no rule allows it"))
			})
		}
	}
	for behaviour, test := range map[string]struct {
		deny func(*fake.Clientset)
		want string
	}{
		"a Secret that can't be listed": {
			deny: denied("list", "secrets"),
			want: "no serving certificate: Secret " + namespace + "/" + secretName + " could not be read; it needs get, list and watch on it:",
		},
		"a Secret that can't be created": {
			deny: denied("create", "secrets"),
			want: "no serving certificate: write Secret " + namespace + "/" + secretName + ": ",
		},
		"webhook configurations that can't be listed": {
			deny: denied("list", "mutatingwebhookconfigurations"),
			want: "MutatingWebhookConfiguration akv-injector could not be read",
		},
		"webhook configurations that can't be patched": {
			deny: denied("patch", "mutatingwebhookconfigurations"),
			want: "the CA bundle of MutatingWebhookConfiguration akv-injector, webhook pods.keyvault.io, does not verify the serving certificate: ",
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			c := newCluster(t)
			test.deny(c.client)
			r := c.replica()
			eventually(t, "reason", func() error {
				err := r.Ready(nil)
				if err == nil {
					t.Fatal("ready")
				}
				for _, want := range []string{test.want, "no rule allows it"} {
					if !strings.Contains(err.Error(), want) {
						return fmt.Errorf("%w: lacks %q", err, want)
					}
				}
				return nil
			}, nil)
		})
	}
}

func TestMismatchIsMeasured(t *testing.T) {
	c := newCluster(t)
	c.client.PrependReactor("patch", "mutatingwebhookconfigurations", func(clienttesting.Action) (bool, runtime.Object, error) {
		return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: "mutatingwebhookconfigurations"}, "", nil)
	})
	r := c.replica()
	eventually(t, "certificate", func() error { _, err := r.GetCertificate(nil); return err }, nil)
	eventually(t, "mismatch of the mutating webhooks alone", func() error {
		if got := metric(t, r.registry, "akv_injector_ca_bundle_mismatch"); got != 2 {
			return fmt.Errorf("%v webhooks", got)
		}
		return nil
	}, nil)
}

func TestConfigurationsMayComeLater(t *testing.T) {
	c := newCluster(t)
	admission := c.client.AdmissionregistrationV1()
	if err := admission.MutatingWebhookConfigurations().Delete(t.Context(), configuration, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	r := c.replica()
	c.ready(r)
	late, ok := webhookConfigurations()[0].(*admissionregistrationv1.MutatingWebhookConfiguration)
	if !ok {
		t.Fatal("not a mutating configuration")
	}
	if _, err := admission.MutatingWebhookConfigurations().Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "bundle", func() error {
		if got := authoritiesIn(bundles(t, c.client)[0]); got != 1 {
			return fmt.Errorf("%d CAs", got)
		}
		return nil
	}, nil)
	c.ready(r)
}

func TestSelfSignedWithoutCluster(t *testing.T) {
	clock := testingclock.NewFakeClock(birth)
	authority, err := certs.SelfSigned(certs.SelfSignedOptions{
		Options: certs.Options{Clock: clock}, Hosts: []string{"127.0.0.1"}, Validity: validity, PropagationDelay: delay,
	})
	if err != nil {
		t.Fatal(err)
	}
	r := &replica{Authority: authority}
	start(t, authority)
	eventually(t, "ready", func() error { return authority.Ready(nil) }, nil)
	first, trusted := served(r), authority.CABundle()
	address := serveTLS(t, authority, 0)
	if _, err := handshake(address, "127.0.0.1", trusted, clock.Now()); err != nil {
		t.Error(err)
	}
	clock.Step(validity * 2 / 3)
	eventually(t, "renewal", func() error {
		if served(r) == first {
			return errors.New("old certificate")
		}
		return nil
	}, func() { clock.Step(delay / 10) })
	if _, err := handshake(address, "127.0.0.1", authority.CABundle(), clock.Now()); err != nil {
		t.Error(err)
	}
	if _, err := handshake(address, "127.0.0.1", trusted, clock.Now()); err == nil {
		t.Error("the new certificate has the old CA")
	}
}

func TestSelfSignedCertificate(t *testing.T) {
	c := newCluster(t)
	r := c.replica()
	c.ready(r)
	cert, err := r.GetCertificate(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := cert.Leaf.PublicKeyAlgorithm; got != x509.ECDSA {
		t.Errorf("key is %s", got)
	}
	if cert.Leaf.IsCA {
		t.Error("the serving certificate is a CA")
	}
	if diff := cmp.Diff([]string{serviceHost}, cert.Leaf.DNSNames); diff != "" {
		t.Errorf("DNS names (-want +got):\n%s", diff)
	}
	if want := birth.Add(validity); !cert.Leaf.NotAfter.Equal(want) {
		t.Errorf("expires %s, want %s", cert.Leaf.NotAfter, want)
	}
	// The key of the CA must not be stored: the Secret has only the serving key.
	for name, data := range readSecret(t, c.client).Data {
		if block, _ := pem.Decode(data); block != nil && block.Type == "PRIVATE KEY" && name != "tls.key" {
			t.Errorf("%s holds a private key", name)
		}
	}
}

func TestSelfSignedOptionsAreChecked(t *testing.T) {
	_, client := newAPIServer(t)
	for behaviour, o := range map[string]certs.SelfSignedOptions{
		"a host is required":                        {},
		"a Secret is required with a client":        {Options: certs.Options{Client: client}, Hosts: []string{serviceHost}},
		"a delay must leave room within a validity": {Hosts: []string{serviceHost}, Validity: time.Minute, PropagationDelay: time.Minute},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if _, err := certs.SelfSigned(o); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestSelfSignedSaysThatTheAPIServerIsSilent(t *testing.T) {
	const unread = "no serving certificate: Secret " + namespace + "/" + secretName + " has not been read yet"
	_, client := newAPIServer(t, webhookConfigurations()...)
	silenceSecrets(t, client)
	clock := newPacer()
	src, err := certs.SelfSigned(certs.SelfSignedOptions{
		Options:   certs.Options{Client: client, WebhookConfigurations: []string{configuration}, Clock: clock},
		Namespace: namespace, SecretName: secretName, Hosts: []string{serviceHost},
	})
	if err != nil {
		t.Fatal(err)
	}
	book, _ := start(t, src)
	eventually(t, "all but the Secret", func() error {
		if err := src.Ready(nil); err == nil || err.Error() != unread {
			return fmt.Errorf("not ready: %w", err)
		}
		return nil
	}, nil)
	for range 20 {
		clock.tick(t)
	}
	if got := book.count(unread); got != 1 {
		t.Errorf("logged %d times, want once:\n%s", got, book)
	}
}
