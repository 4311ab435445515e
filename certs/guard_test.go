package certs_test

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes/fake"

	"github.com/akv-injector/akv-injector/certs"
)

// settling is the time for which CA bundles must be unchanged before a source serves another
// certificate that they verify as well.
const settling = 5 * time.Second

// TestGuard offers a new certificate to a source that serves another one.
func TestGuard(t *testing.T) {
	expiry := birth.Add(validity)
	ca := issue(t, "old CA", ecdsaKey(t), nil, true, expiry.Add(validity))
	otherCA := issue(t, "new CA", ecdsaKey(t), nil, true, expiry.Add(validity))
	stranger := issue(t, "stranger", ecdsaKey(t), nil, true, expiry.Add(validity))
	old := issue(t, "old", ecdsaKey(t), ca, false, expiry)
	sibling := issue(t, "sibling", ecdsaKey(t), ca, false, expiry.Add(time.Hour))
	newcomer := issue(t, "newcomer", ecdsaKey(t), otherCA, false, expiry.Add(time.Hour))
	both := slices.Concat(ca.crt, otherCA.crt)
	for behaviour, test := range map[string]struct {
		before []byte                            // the CA bundle while the old certificate is served
		next   *keyPair                          // the new certificate
		change func(*testing.T, *fake.Clientset) // of the CA bundle, later
		step   time.Duration                     // of the clock, later
		want   *keyPair                          // the certificate that is served at the end
		held   string                            // text in the log in between
		ready  string                            // readiness at the end
	}{
		"a new certificate of the same CA is served at once": {
			before: ca.crt, next: sibling, want: sibling, ready: "ready",
		},
		"a new certificate of another CA waits for the CA bundle": {
			before: ca.crt, next: newcomer, step: validity / 2, want: old, ready: "ready",
			held: "is held back: the CA bundle of MutatingWebhookConfiguration akv-injector, webhook pods.keyvault.io, does not verify it: " +
				"x509: certificate signed by unknown authority",
		},
		"a new certificate is served at once when the CA bundle verifies it instead of the old one": {
			before: ca.crt, next: newcomer, want: newcomer, ready: "ready", held: "is held back: the CA bundle of",
			change: func(t *testing.T, c *fake.Clientset) { t.Helper(); setBundles(t, c, otherCA.crt) },
		},
		"a new certificate is served at once if the CA bundle has long had both CAs": {
			before: both, next: newcomer, want: newcomer, ready: "ready",
		},
		"a new certificate waits while API servers receive a CA bundle of both": {
			before: ca.crt, next: newcomer, step: settling - 1, want: old, ready: "ready", held: "the CA bundle changed a moment ago",
			change: func(t *testing.T, c *fake.Clientset) { t.Helper(); setBundles(t, c, both) },
		},
		"a new certificate is served after API servers have received a CA bundle of both": {
			before: ca.crt, next: newcomer, step: settling, want: newcomer, ready: "ready", held: "the CA bundle changed a moment ago",
			change: func(t *testing.T, c *fake.Clientset) { t.Helper(); setBundles(t, c, both) },
		},
		"a new certificate is served when the old one has expired, even if not trusted": {
			before: ca.crt, next: newcomer, step: validity + time.Second, want: newcomer,
			ready: "does not verify the serving certificate: x509: certificate signed by unknown authority",
		},
		"a new certificate that one more webhook trusts is served": {
			before: ca.crt, next: newcomer, want: newcomer, held: "is held back",
			change: func(t *testing.T, c *fake.Clientset) { t.Helper(); setMutatingBundles(t, c, otherCA.crt) },
			ready:  "the CA bundle of ValidatingWebhookConfiguration akv-injector, webhook pods.keyvault.io, does not verify the serving certificate",
		},
		"a new certificate that is trusted, unlike the old one, is served at once": {
			before: otherCA.crt, next: newcomer, want: newcomer, ready: "ready",
		},
		"a new certificate that no more webhooks trust waits": {
			before: stranger.crt, next: newcomer, want: old, held: "", ready: "is held back",
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			_, client := newAPIServer(t, webhookConfigurations()...)
			setBundles(t, client, test.before)
			m := newMount(t)
			m.swap(old.crt, old.key)
			src := startFiles(t, m.dir, certs.Options{Client: client, WebhookConfigurations: []string{configuration}})
			serves := func(want *keyPair, step func()) {
				t.Helper()
				eventually(t, "certificate "+want.cert.Subject.CommonName, func() error {
					got, err := src.GetCertificate(nil)
					if err == nil && !got.Leaf.Equal(want.cert) {
						err = fmt.Errorf("serves %s", got.Leaf.Subject.CommonName)
					}
					return err
				}, step)
			}
			serves(old, src.tick)
			// The source must have seen the CA bundle, and that it did not change.
			eventually(t, "the CA bundle", func() error {
				if src.book.count("certificate ready")+src.book.count("does not verify the serving certificate") == 0 {
					return errors.New(src.book.String())
				}
				return nil
			}, src.tick)
			src.clock.round(t)
			src.clock.Step(settling)

			m.swap(test.next.crt, test.next.key)
			src.clock.round(t)
			if test.change != nil {
				serves(old, nil)
				test.change(t, client)
			}
			if test.held != "" {
				eventually(t, "reason", func() error {
					if src.book.count(test.held) == 0 {
						return errors.New(src.book.String())
					}
					return nil
				}, nil)
			}
			if test.step > 0 {
				src.clock.Step(test.step)
				src.clock.round(t)
			}
			serves(test.want, nil)
			src.clock.round(t)
			serves(test.want, nil)
			says(t, src, test.ready, nil)
			if test.held != "" && test.change == nil && src.book.count(test.held) != 1 {
				t.Errorf("%q is logged %d times", test.held, src.book.count(test.held))
			}
		})
	}
}

// TestReplicasThatDisagreeAreBothTrusted has replicas with different certificates: the kubelet
// updates a volume at a different time on each node.
func TestReplicasThatDisagreeAreBothTrusted(t *testing.T) {
	expiry := birth.Add(validity)
	ca, otherCA := issue(t, "old CA", ecdsaKey(t), nil, true, expiry), issue(t, "new CA", ecdsaKey(t), nil, true, expiry)
	old, next := issue(t, "old", ecdsaKey(t), ca, false, expiry), issue(t, "next", ecdsaKey(t), otherCA, false, expiry)
	bundle := slices.Concat(ca.crt, otherCA.crt)
	_, client := newAPIServer(t, webhookConfigurations()...)
	setBundles(t, client, bundle)
	var mounts []*mount
	var replicas []*fileSource
	var addresses []string
	for range 2 {
		m := newMount(t)
		m.swap(old.crt, old.key)
		src := startFiles(t, m.dir, certs.Options{Client: client, WebhookConfigurations: []string{configuration}})
		mounts, replicas, addresses = append(mounts, m), append(replicas, src), append(addresses, serveTLS(t, src, 0))
	}
	meets := func(want ...*keyPair) {
		t.Helper()
		for i, src := range replicas {
			eventually(t, "certificate", func() error {
				got, err := handshake(addresses[i], serviceHost, bundle, birth)
				if err == nil && !got.Equal(want[i].cert) {
					err = fmt.Errorf("replica %d serves %s", i, got.Subject.CommonName)
				}
				return errors.Join(err, src.Ready(nil))
			}, src.tick)
		}
	}
	meets(old, old)
	mounts[0].swap(next.crt, next.key)
	meets(next, old)
	for range 30 {
		replicas[1].clock.round(t)
		meets(next, old)
	}
	mounts[1].swap(next.crt, next.key)
	meets(next, next)
}

// TestTheSameCertificateIsLoadedOnce removes a file and writes the same content again.
func TestTheSameCertificateIsLoadedOnce(t *testing.T) {
	ca := issue(t, "root", ecdsaKey(t), nil, true, birth.Add(validity))
	pair := issue(t, "pair", ecdsaKey(t), ca, false, birth.Add(validity))
	m := newMount(t)
	m.swap(pair.crt, pair.key)
	src := startFiles(t, m.dir, certs.Options{})
	says(t, src, "ready", src.tick)
	m.tamper("tls.key", bytes.ToUpper(pair.key))
	eventually(t, "refusal", func() error {
		if src.refused(t) != 1 {
			return errors.New(src.book.String())
		}
		return nil
	}, src.tick)
	m.tamper("tls.key", pair.key)
	eventually(t, "recovery", func() error {
		if lines := strings.Split(src.book.String(), "\n"); !strings.Contains(lines[len(lines)-1], `"certificate ready"`) {
			return errors.New(src.book.String())
		}
		return nil
	}, src.tick)
	if got := src.book.count("serving certificate loaded"); got != 1 {
		t.Errorf("loaded %d times:\n%s", got, src.book)
	}
}
