package certs_test

import (
	"crypto"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/akv-injector/akv-injector/certs"
)

// mount is a directory as the kubelet writes it: tls.crt and tls.key are links through ..data,
// which is replaced atomically.
type mount struct {
	t       *testing.T
	dir     string
	version int
}

func newMount(t *testing.T) *mount {
	t.Helper()
	m := &mount{t: t, dir: t.TempDir()}
	for _, name := range []string{"tls.crt", "tls.key"} {
		m.must(os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
	}
	return m
}

func (m *mount) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

// swap replaces the pair as the kubelet does.
func (m *mount) swap(crt, key []byte) {
	m.t.Helper()
	m.version++
	dir := fmt.Sprintf("..version_%d", m.version)
	m.must(os.Mkdir(filepath.Join(m.dir, dir), 0o700))
	m.must(os.WriteFile(filepath.Join(m.dir, dir, "tls.crt"), crt, 0o600))
	m.must(os.WriteFile(filepath.Join(m.dir, dir, "tls.key"), key, 0o600))
	m.must(os.Symlink(dir, filepath.Join(m.dir, "..data_tmp")))
	m.must(os.Rename(filepath.Join(m.dir, "..data_tmp"), filepath.Join(m.dir, "..data")))
	m.must(os.RemoveAll(filepath.Join(m.dir, fmt.Sprintf("..version_%d", m.version-1))))
}

// tamper writes a file in place, as cp does.
func (m *mount) tamper(name string, data []byte) {
	m.t.Helper()
	m.must(os.WriteFile(filepath.Join(m.dir, name), data, 0o600))
}

type fileSource struct {
	certs.Certificates
	t        *testing.T
	clock    *pacer
	registry *prometheus.Registry
	book     *logbook
}

func startFiles(t *testing.T, dir string, o certs.Options) *fileSource {
	t.Helper()
	clock, registry := newPacer(), prometheus.NewPedanticRegistry()
	o.Clock, o.Metrics = clock, registry
	src, err := certs.Files(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	book, _ := start(t, src)
	return &fileSource{Certificates: src, t: t, clock: clock, registry: registry, book: book}
}

func (s *fileSource) tick() { s.clock.tick(s.t) }

func (s *fileSource) refused(t *testing.T) float64 {
	t.Helper()
	return metric(t, s.registry, "akv_injector_certificate_reload_errors_total")
}

// meets waits until the source serves want to a client that trusts ca.
func (s *fileSource) meets(t *testing.T, address string, ca, want *keyPair) {
	t.Helper()
	eventually(t, "new certificate", func() error {
		got, err := handshake(address, serviceHost, ca.crt, s.clock.Now())
		if err != nil {
			return err
		}
		if !got.Equal(want.cert) {
			return errors.New("another certificate")
		}
		return nil
	}, s.tick)
}

func TestFilesReload(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry)
	intermediate := issue(t, "intermediate", ecdsaKey(t), ca, true, expiry)
	for behaviour, test := range map[string]struct {
		key    crypto.Signer
		parent *keyPair
		chain  []byte
	}{
		"an ECDSA pair":                {key: ecdsaKey(t), parent: ca},
		"an RSA pair":                  {key: rsaKey(t), parent: ca},
		"a chain with an intermediate": {key: ecdsaKey(t), parent: intermediate, chain: intermediate.crt},
	} {
		t.Run(behaviour+" is loaded after a symlink swap", func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			first := issue(t, "first", ecdsaKey(t), ca, false, expiry)
			m.swap(first.crt, first.key)
			src := startFiles(t, m.dir, certs.Options{})
			address := serveTLS(t, src, 0)
			src.meets(t, address, ca, first)

			second := issue(t, "second", test.key, test.parent, false, expiry.Add(time.Hour))
			m.swap(slices.Concat(second.crt, test.chain), second.key)
			src.meets(t, address, ca, second)
			if got := src.refused(t); got != 0 {
				t.Errorf("%v certificates counted as refused, want none", got)
			}
			if got, want := metric(t, src.registry, "akv_injector_serving_certificate_expiry_seconds"), float64(second.cert.NotAfter.Unix()); got != want {
				t.Errorf("expiry metric %v, want %v", got, want)
			}
		})
	}

	t.Run("a chain whose intermediate alone changed is loaded", func(t *testing.T) {
		t.Parallel()
		m := newMount(t)
		leaf := issue(t, "leaf", ecdsaKey(t), intermediate, false, expiry)
		m.swap(leaf.crt, leaf.key)
		src := startFiles(t, m.dir, certs.Options{})
		address := serveTLS(t, src, 0)
		eventually(t, "leaf alone", func() error { _, err := src.GetCertificate(nil); return err }, src.tick)
		if _, err := handshake(address, serviceHost, ca.crt, birth); err == nil {
			t.Fatal("verifies without its intermediate")
		}
		m.swap(slices.Concat(leaf.crt, intermediate.crt), leaf.key)
		src.meets(t, address, ca, leaf)
	})
}

// TestFilesRefuseNoPairThatWasExchangedMeanwhile replaces both files between the two reads.
func TestFilesRefuseNoPairThatWasExchangedMeanwhile(t *testing.T) {
	expiry := birth.AddDate(100, 0, 0) // the clock below runs fast
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry)
	pairs := []*keyPair{
		issue(t, "one", ecdsaKey(t), ca, false, expiry),
		issue(t, "two", ecdsaKey(t), ca, false, expiry),
	}
	m := newMount(t)
	m.swap(pairs[0].crt, pairs[0].key)
	src := startFiles(t, m.dir, certs.Options{})
	done := make(chan struct{})
	var ticking sync.WaitGroup
	var ticks atomic.Int64
	ticking.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				src.tick()
				ticks.Add(1)
			}
		}
	})
	for n := range 1000 {
		// At most one exchange for each tick, at a random time.
		for begin := ticks.Load(); ticks.Load() < begin+2; {
			runtime.Gosched()
		}
		m.swap(pairs[n%2].crt, pairs[n%2].key)
	}
	close(done)
	ticking.Wait()
	if got := src.refused(t); got != 0 {
		t.Errorf("%v certificates counted as refused, want none", got)
	}
	src.meets(t, serveTLS(t, src, 0), ca, pairs[1])
}

func TestFilesRefuse(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry)
	good := issue(t, "good", ecdsaKey(t), ca, false, expiry)
	other := issue(t, "other", ecdsaKey(t), ca, false, expiry)
	expired := issue(t, "expired", ecdsaKey(t), ca, false, birth.Add(-time.Hour))
	early := issue(t, "early", ecdsaKey(t), ca, false, expiry, notBefore(birth.Add(time.Hour)))
	for behaviour, test := range map[string]struct {
		harm func(*mount)
		log  string
	}{
		"a truncated certificate":        {func(m *mount) { m.tamper("tls.crt", other.crt[:200]) }, "failed to find any PEM data"},
		"a truncated key":                {func(m *mount) { m.tamper("tls.key", good.key[:60]) }, "failed to find any PEM data"},
		"a key that does not match":      {func(m *mount) { m.swap(good.crt, other.key) }, "private key does not match public key"},
		"a pair of which half is copied": {func(m *mount) { m.tamper("tls.crt", other.crt) }, "private key does not match public key"},
		"an expired pair":                {func(m *mount) { m.swap(expired.crt, expired.key) }, "expired on 2029-12-31T23:00:00Z"},
		"a pair that is not valid yet":   {func(m *mount) { m.swap(early.crt, early.key) }, "not valid before 2030-01-01T01:00:00Z"},
		"an emptied file":                {func(m *mount) { m.tamper("tls.crt", nil) }, "failed to find any PEM data"},
		"a lost file":                    {func(m *mount) { m.must(os.Remove(filepath.Join(m.dir, "tls.key"))) }, "no such file"},
	} {
		t.Run(behaviour+" keeps the old pair serving", func(t *testing.T) {
			t.Parallel()
			m := newMount(t)
			m.swap(good.crt, good.key)
			src := startFiles(t, m.dir, certs.Options{})
			address := serveTLS(t, src, 0)
			src.meets(t, address, ca, good)

			test.harm(m)
			eventually(t, "refusal", func() error {
				if got := src.refused(t); got != 1 {
					return fmt.Errorf("%v counted", got)
				}
				if got := src.book.String(); !strings.Contains(got, test.log) {
					return fmt.Errorf("%q is not logged: %s", test.log, got)
				}
				return nil
			}, src.tick)
			for range 10 {
				src.tick()
				src.meets(t, address, ca, good)
			}
			if err := src.Ready(nil); err != nil {
				t.Errorf("not ready with a good certificate: %v", err)
			}
			if got := src.refused(t); got != 1 {
				t.Errorf("one bad pair counted %v times", got)
			}
			for _, pair := range []*keyPair{good, other, expired} {
				if strings.Contains(src.book.String(), strings.Split(string(pair.key), "\n")[1]) {
					t.Error("a private key was logged")
				}
			}

			repaired := newMountLike(m)
			repaired.swap(other.crt, other.key)
			src.meets(t, address, ca, other)
		})
	}
}

func TestEmptyFilesAreRefusedAtTheStart(t *testing.T) {
	m := newMount(t)
	m.swap(nil, nil)
	src := startFiles(t, m.dir, certs.Options{})
	says(t, src, "no serving certificate: "+filepath.Join(m.dir, "tls.crt")+" and "+filepath.Join(m.dir, "tls.key")+
		": tls: failed to find any PEM data in certificate input", src.tick)
	for range 10 {
		src.tick()
	}
	if got := src.refused(t); got != 1 {
		t.Errorf("counted as refused %v times, want once", got)
	}
}

func TestACertificateThatIsValidInAMomentIsServedThen(t *testing.T) {
	ca := issue(t, "root", ecdsaKey(t), nil, true, birth.Add(validity))
	old := issue(t, "old", ecdsaKey(t), ca, false, birth.Add(validity))
	next := issue(t, "next", ecdsaKey(t), ca, false, birth.Add(validity), notBefore(birth.Add(10*time.Second)))
	m := newMount(t)
	m.swap(old.crt, old.key)
	src := startFiles(t, m.dir, certs.Options{})
	src.clock.round(t)
	m.swap(next.crt, next.key)
	for second := range 11 {
		src.clock.round(t)
		want := old
		if second == 10 {
			want = next
		}
		if got, err := src.GetCertificate(nil); err != nil || !got.Leaf.Equal(want.cert) {
			t.Errorf("after %d seconds: %v, want %s", second, err, want.cert.Subject.CommonName)
		}
		src.clock.Step(time.Second)
	}
	if got := src.refused(t); got != 0 || src.book.count("certificate refused") > 0 {
		t.Errorf("counted as refused %v times:\n%s", got, src.book)
	}
}

// newMountLike creates the links of m again.
func newMountLike(m *mount) *mount {
	m.t.Helper()
	for _, name := range []string{"tls.crt", "tls.key"} {
		m.must(os.RemoveAll(filepath.Join(m.dir, name)))
		m.must(os.Symlink(filepath.Join("..data", name), filepath.Join(m.dir, name)))
	}
	return m
}

func TestFilesReady(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry.Add(validity))
	good := issue(t, "good", ecdsaKey(t), ca, false, expiry)
	_, client := newAPIServer(t, webhookConfigurations()...)
	m := newMount(t)
	src := startFiles(t, m.dir, certs.Options{Client: client, WebhookConfigurations: []string{configuration}})
	says := func(want string) {
		t.Helper()
		says(t, src, want, src.tick)
	}
	setBundles := func(bundle []byte) {
		t.Helper()
		setBundles(t, client, bundle)
	}

	says("no serving certificate: open " + filepath.Join(m.dir, "tls.crt") + ": no such file or directory")
	m.swap(good.crt, good.key)
	says("the CA bundle of ValidatingWebhookConfiguration akv-injector, webhook pods.keyvault.io, does not verify the serving certificate: " +
		"x509: certificate signed by unknown authority; set that caBundle to the CA that signed " + filepath.Join(m.dir, "tls.crt"))
	if got := metric(t, src.registry, "akv_injector_ca_bundle_mismatch"); got != 3 {
		t.Errorf("%v webhooks counted as mismatched, want 3", got)
	}
	stranger := issue(t, "stranger", ecdsaKey(t), nil, true, expiry)
	setBundles(stranger.crt)
	says("unknown authority")
	setBundles(slices.Concat(stranger.crt, ca.crt))
	says("ready")
	if got := metric(t, src.registry, "akv_injector_ca_bundle_mismatch"); got != 0 {
		t.Errorf("%v webhooks counted as mismatched, want none", got)
	}
	if diff := cmp.Diff([]string{"list", "watch"}, verbs(client.Actions(), "get", "update")); diff != "" {
		t.Errorf("verbs used (-want +got):\n%s", diff)
	}

	src.clock.Step(validity)
	says("the serving certificate expired on " + expiry.Format(time.RFC3339))
	renewed := issue(t, "renewed", ecdsaKey(t), ca, false, expiry.Add(validity/2))
	m.swap(renewed.crt, renewed.key)
	says("ready")

	unnamed := issue(t, "root again", ecdsaKey(t), ca, true, expiry.Add(validity/2))
	m.swap(unnamed.crt, unnamed.key)
	eventually(t, "refusal", func() error {
		if src.book.count("is for no names, while the injector's webhook configurations call "+serviceHost+", 127.0.0.1; issue it for these") == 0 {
			return errors.New(src.book.String())
		}
		return nil
	}, src.tick)
	says("ready")
	if got, err := src.GetCertificate(nil); err != nil || !got.Leaf.Equal(renewed.cert) {
		t.Errorf("a certificate without names is served: %v", err)
	}
}

func TestACAThatHasExpiredIsLoggedOnce(t *testing.T) {
	ca := issue(t, "root", ecdsaKey(t), nil, true, birth.Add(time.Hour))
	good := issue(t, "good", ecdsaKey(t), ca, false, birth.Add(validity))
	_, client := newAPIServer(t, webhookConfigurations()...)
	setBundles(t, client, ca.crt)
	m := newMount(t)
	m.swap(good.crt, good.key)
	src := startFiles(t, m.dir, certs.Options{Client: client, WebhookConfigurations: []string{configuration}})
	says(t, src, "ready", src.tick)
	before := src.book.count("certificate not ready")
	src.clock.Step(2 * time.Hour)
	says(t, src, "expired or is not yet valid: now is after "+birth.Add(time.Hour).Format(time.RFC3339), src.tick)
	for range 10 {
		src.tick()
	}
	if got := src.book.count("certificate not ready") - before; got != 1 {
		t.Errorf("logged %d times, want once:\n%s", got, src.book)
	}
}

func TestConfigure(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "root", ecdsaKey(t), nil, true, expiry)
	good := issue(t, "good", ecdsaKey(t), ca, false, expiry)
	m := newMount(t)
	m.swap(good.crt, good.key)
	src := startFiles(t, m.dir, certs.Options{})
	roots := x509.NewCertPool()
	roots.AddCert(ca.cert)
	for behaviour, test := range map[string]struct {
		min, offered uint16
		refused      bool
	}{
		"TLS 1.3 is the default":     {offered: tls.VersionTLS13},
		"TLS 1.2 is not the default": {offered: tls.VersionTLS12, refused: true},
		"TLS 1.2 can be allowed":     {min: tls.VersionTLS12, offered: tls.VersionTLS12},
	} {
		t.Run(behaviour, func(t *testing.T) {
			address := serveTLS(t, src, test.min)
			src.meets(t, serveTLS(t, src, 0), ca, good)
			conn, err := tls.Dial("tcp", address, &tls.Config{
				RootCAs: roots, ServerName: serviceHost, MinVersion: tls.VersionTLS12, MaxVersion: test.offered,
				Time: src.clock.Now,
			})
			if err == nil {
				_ = conn.Close()
			}
			if (err != nil) != test.refused {
				t.Errorf("handshake: %v", err)
			}
		})
	}
}
