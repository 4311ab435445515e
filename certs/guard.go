package certs

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/log"
)

const (
	// lookInterval is the interval at which files are read and decisions that depend on the clock
	// are made.
	lookInterval = time.Second
	// propagation is the time that API servers get to receive a CA bundle that another program
	// wrote. Their watches usually take milliseconds.
	propagation = 5 * time.Second
	// skew is how far the clock of an issuer may be ahead without a line in the log: cert-manager's
	// certificates are valid from the second in which they are issued.
	skew = 10 * time.Second
)

// A guard decides which of the certificates that another program supplies are served. It rejects
// those that no API server would accept, and holds back those that API servers would not accept
// yet. Only the goroutine of Start uses it.
type guard struct {
	*serving
	origin string // where the certificates come from, for errors

	found   found
	newest  *tls.Certificate // the certificate in found; nil if it cannot be read
	flaw    error            // why it cannot be read
	refusal string           // the latest error that was counted and logged

	known []configuration // as of this round
	since time.Time       // of the latest change of their CA bundles
}

// found is the content of the origin.
type found struct {
	crt, key []byte // PEM
	err      string
}

func (f found) equal(g found) bool {
	return bytes.Equal(f.crt, g.crt) && bytes.Equal(f.key, g.key) && f.err == g.err
}

// follow calls round at once, after each change of a watched object, and every second, until ctx
// ends.
func (g *guard) follow(ctx context.Context, round func(context.Context), watchers ...*watcher) {
	defer g.watch(ctx, append(watchers, g.configurations.watchers...))()
	ticker := g.clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for {
		round(ctx)
		select {
		case <-ctx.Done():
			return
		case <-g.wake:
		case <-ticker.C():
		}
	}
}

// offer serves a certificate that was found, as soon as API servers accept it. Its error says why
// no API server would.
func (g *guard) offer(ctx context.Context, now found) error {
	g.observe()
	unjudged := g.newest == nil && g.flaw == nil // a zero found is possible: empty files, an empty Secret
	if unjudged || !now.equal(g.found) {
		g.found, g.refusal = now, ""
		g.newest, g.flaw = g.read(now)
	}
	served := g.presented()
	same := served != nil && g.newest != nil && slices.EqualFunc(served.Certificate, g.newest.Certificate, bytes.Equal)
	at := g.clock.Now() // the same time for judge and early
	if err := g.judge(at); err != nil {
		if text := err.Error(); !same && text != g.refusal && !g.early(at) {
			g.refusal = text
			g.refused.Inc()
			log.FromContext(ctx).Error(err, "certificate refused")
		}
		g.troubled(err)
		return err
	}
	g.refusal = ""
	if same {
		g.troubled(nil)
		return nil
	}
	if reason := g.hold(served); reason != nil {
		g.troubled(fmt.Errorf("certificate %s of %s is held back: %w", serial(g.newest), g.origin, reason))
		return nil
	}
	g.present(ctx, g.newest)
	g.troubled(nil)
	return nil
}

func (g *guard) read(now found) (*tls.Certificate, error) {
	if now.err != "" {
		return nil, errors.New(now.err)
	}
	cert, err := tls.X509KeyPair(now.crt, now.key)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", g.origin, err)
	}
	return &cert, nil
}

// judge returns why no API server would accept the newest certificate, with any CA bundle, or nil.
func (g *guard) judge(now time.Time) error {
	if g.flaw != nil {
		return g.flaw
	}
	leaf := g.newest.Leaf
	switch {
	case now.After(leaf.NotAfter):
		return fmt.Errorf("%s: expired on %s; renew it", g.origin, leaf.NotAfter.UTC().Format(time.RFC3339))
	case now.Before(leaf.NotBefore):
		return fmt.Errorf("%s: not valid before %s; it is served then; "+
			"otherwise correct the clocks of this node and of the issuer",
			g.origin, leaf.NotBefore.UTC().Format(time.RFC3339))
	}
	var names []string
	for _, w := range callersOf(g.known) {
		if leaf.VerifyHostname(w.host) == nil {
			return nil
		}
		if !slices.Contains(names, w.host) {
			names = append(names, w.host)
		}
	}
	if len(names) > 0 {
		return fmt.Errorf("%s: is for %s, while the injector's webhook configurations call %s; issue it for these",
			g.origin, named(leaf), strings.Join(names, ", "))
	}
	return nil
}

// early reports whether the newest certificate becomes valid within skew.
func (g *guard) early(now time.Time) bool {
	if g.newest == nil {
		return false
	}
	wait := g.newest.Leaf.NotBefore.Sub(now)
	return 0 < wait && wait <= skew
}

// named returns the names that a certificate is for, as text.
func named(leaf *x509.Certificate) string {
	if names := hosts(leaf); len(names) > 0 {
		return strings.Join(names, ", ")
	}
	return "no names"
}

// hold returns why the newest certificate must not replace the served one now, or nil.
func (g *guard) hold(served *tls.Certificate) error {
	if !g.usable() {
		return nil
	}
	now := g.clock.Now()
	amiss := mismatches(g.known, "it", g.newest, now)
	settled := g.since.Add(propagation)
	switch {
	case len(amiss) < len(mismatches(g.known, "the other", served, now)):
		return nil // some webhook verifies only the newest
	case len(amiss) > 0:
		return fmt.Errorf("%w; %s", amiss[0], g.remedy)
	case now.Before(settled):
		return fmt.Errorf("the CA bundle changed a moment ago; it is served from %s on", settled.UTC().Format(time.RFC3339))
	}
	return nil
}

// observe reads the injector's webhook configurations, and records when their CA bundles last
// changed.
func (g *guard) observe() {
	known := g.configurations.known()
	if !slices.EqualFunc(callersOf(known), callersOf(g.known), webhook.equal) {
		g.since = g.clock.Now()
	}
	g.known = known
}
