package certs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// resync is the longest time between two rounds, in case a watch misses a change.
const resync = 10 * time.Minute

// SelfSignedOptions configure a self-signed certificate and the Secret that holds it.
type SelfSignedOptions struct {
	// Options may lack a Client. CA and certificate are then in memory only, and clients need the
	// bundle from [Authority.CABundle].
	Options
	// Namespace and SecretName name the Secret by which replicas agree on one certificate. The
	// Authority overwrites all other content of the Secret. Both are required with a Client.
	Namespace, SecretName string
	// Hosts are the DNS names and IP addresses by which the API server calls:
	// SERVICE.NAMESPACE.svc, or the host of clientConfig.url. At least one is required.
	Hosts []string
	// Validity is the validity of a certificate and its CA. They are renewed after two thirds of
	// it. 0 means 90 days.
	Validity time.Duration
	// PropagationDelay is the time for which a new CA must have been in every webhook configuration
	// before its certificate is served, so that all API servers have received it. 0 means a minute.
	PropagationDelay time.Duration
}

// An Authority is Certificates that signs its certificate itself, keeps it in a Secret, and writes
// the CA to the injector's webhook configurations. Renewal has these steps. Any replica can do each
// of them, and all replicas see the result in the Secret:
//
//  1. Create a new CA and certificate, and store them as next.crt and next.key. Replicas serve the
//     old certificate.
//  2. Set the CA bundle of every webhook to the old and the new CA.
//  3. When the bundles have had both for the propagation delay, move the next certificate to
//     tls.crt and tls.key.
//  4. Remove the old CA from the bundle when it expires, long after the last replica stopped serving
//     its certificate.
//
// Independently of the Secret, a replica serves another certificate only after it has itself seen
// the CA in all webhook configurations for that delay, unless it has no valid certificate. So a
// Secret that was lost, edited or restored from a backup goes through the same steps. After the
// Secret is deleted, it is created again with the old certificate and a next one. Delete it to
// request a new key.
type Authority struct {
	*serving
	o      SelfSignedOptions
	secret *watcher             // nil without a Client
	seen   map[string]time.Time // when all webhook configurations got a CA, by its raw bytes

	mu    sync.Mutex // protects writes of state, by Start's goroutine, from CABundle
	state state
}

// SelfSigned returns an [Authority]. It returns an error if the options are incomplete or
// contradict each other, or if the metrics are registered already.
func SelfSigned(o SelfSignedOptions) (*Authority, error) {
	switch {
	case len(o.Hosts) == 0:
		return nil, errors.New("self-signed certificate: must have a host to be for")
	case o.Client != nil && (o.Namespace == "" || o.SecretName == ""):
		return nil, errors.New("self-signed certificate: must have the namespace and name of a Secret")
	}
	if o.Validity == 0 {
		o.Validity = 90 * 24 * time.Hour
	}
	if o.PropagationDelay == 0 {
		o.PropagationDelay = time.Minute
	}
	if o.PropagationDelay >= o.Validity/3 {
		return nil, errors.New("self-signed certificate: must have a propagation delay below a third of the validity")
	}
	s, err := newServing(o.Options,
		"it is rewritten within seconds where the injector may get, list, watch and patch that configuration")
	if err != nil {
		return nil, err
	}
	a := &Authority{serving: s, o: o, seen: map[string]time.Time{}}
	if o.Client != nil {
		a.secret = newSecretWatcher(types.NamespacedName{Namespace: o.Namespace, Name: o.SecretName}, o.Client, s.changed)
	}
	return a, nil
}

// CABundle returns the PEM bundle of the CAs that clients must trust. It is empty before the first
// certificate.
func (a *Authority) CABundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return encodeCertificates(a.state.authorities)
}

// Ready returns why the API server would not accept the served certificate, and how to fix it.
func (a *Authority) Ready(*http.Request) error {
	if a.secret != nil && a.presented() == nil {
		if err := errors.Join(a.secret.synced(), a.configurations.synced()); err != nil {
			return fmt.Errorf("no serving certificate: %w", err)
		}
	}
	return a.serving.Ready(nil)
}

// Start creates, publishes, renews and repairs the certificate until ctx ends.
func (a *Authority) Start(ctx context.Context) error {
	ctx = log.IntoContext(ctx, log.FromContext(ctx).WithName("certs"))
	watchers := slices.Clone(a.configurations.watchers)
	if a.secret != nil {
		watchers = append(watchers, a.secret)
	}
	defer a.watch(ctx, watchers)()
	if !a.readFirst(ctx, watchers) {
		return nil
	}

	var backoff *wait.Backoff
	for {
		rest, err := a.reconcile(ctx)
		a.troubled(err)
		if err == nil {
			backoff = nil
		} else if ctx.Err() == nil {
			log.FromContext(ctx).Error(err, "certificate not reconciled")
			if backoff == nil {
				backoff = &wait.Backoff{Duration: 200 * time.Millisecond, Factor: 2, Jitter: 0.2, Steps: 12, Cap: time.Minute}
			}
			rest = min(rest, backoff.Step())
		}
		a.report(ctx, a.Ready(nil))
		timer := a.clock.NewTimer(rest)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-a.wake:
		case <-timer.C():
		}
		timer.Stop()
	}
}

// readFirst waits until all watchers have read their objects, and logs which have not. It returns
// false if ctx ends first.
func (a *Authority) readFirst(ctx context.Context, watchers []*watcher) bool {
	ticker := a.clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for len(watchers) > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-watchers[0].Filled():
			watchers = watchers[1:]
		case <-ticker.C():
			a.report(ctx, a.Ready(nil))
		}
	}
	return true
}

// reconcile does one round and returns the time until the next.
func (a *Authority) reconcile(ctx context.Context) (time.Duration, error) {
	now := a.clock.Now()
	if err := a.agree(ctx, now); err != nil {
		return resync, err
	}
	var errs []error
	for _, conf := range a.configurations.known() {
		errs = append(errs, a.configurations.setBundle(ctx, conf, func(present []byte) []byte {
			pairs := []*pair{a.state.current, a.state.next}
			// An unknown CA of ours may belong to a replica that has not written the
			// Secret yet.
			return encodeCertificates(authorities(now, pairs, append(ours(present), a.state.authorities...)...))
		}))
	}
	a.observe()
	a.serve(ctx, now)
	return a.rest(now), errors.Join(errs...)
}

// agree makes the Secret and the state equal. The Secret wins, unless it is missing, damaged or due
// for renewal.
func (a *Authority) agree(ctx context.Context, now time.Time) error {
	if a.secret == nil {
		want, err := a.plan(now, state{}, false)
		if err != nil {
			return err
		}
		a.adopt(want)
		return nil
	}
	secret, _ := a.secret.object().(*corev1.Secret)
	for range attempts {
		var have state
		var spoiled error
		if secret != nil {
			have, spoiled = decodeState(secret.Data)
		}
		want, err := a.plan(now, have, secret != nil)
		if err != nil {
			return err
		}
		if secret != nil && sameData(secret.Data, want.encode()) {
			a.adopt(want)
			return nil
		}
		err = a.write(ctx, secret, want.encode())
		switch {
		case err == nil:
			if spoiled != nil {
				a.refused.Inc()
				log.FromContext(ctx).Info("spoiled Secret repaired", "reason", spoiled.Error())
			}
			if want.next != nil && (a.state.next == nil || !want.next.ca.Equal(a.state.next.ca)) {
				log.FromContext(ctx).Info("next certificate made, served when API servers trust its CA",
					"serial", serial(want.next.cert), "delay", a.o.PropagationDelay.String())
			}
			a.adopt(want)
			return nil
		case !apierrors.IsConflict(err) && !apierrors.IsAlreadyExists(err) && !apierrors.IsNotFound(err):
			return fmt.Errorf("write %s: %w", a.secret.what, err)
		}
		// Another client has written the Secret.
		secret, err = a.o.Client.CoreV1().Secrets(a.o.Namespace).Get(ctx, a.o.SecretName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			secret = nil
		} else if err != nil {
			return fmt.Errorf("read %s: %w", a.secret.what, err)
		}
	}
	return fmt.Errorf("write %s: others changed it %d times meanwhile", a.secret.what, attempts)
}

// plan returns the state that must follow the Secret's.
func (a *Authority) plan(now time.Time, have state, exists bool) (state, error) {
	want := state{current: have.current, next: have.next}
	if !want.current.valid(now) && a.state.current.valid(now) {
		want.current, want.next = a.state.current, a.state.next
	}
	if !want.next.valid(now) {
		want.next = nil
	}
	switch {
	case want.next != nil && (a.settled(want.next, now) || !want.current.valid(now)):
		want.current, want.next = want.next, nil
	case !want.current.valid(now):
		made, err := newPair(a.o.Hosts, now, a.o.Validity)
		if err != nil {
			return state{}, err
		}
		want.current = made
	case want.next == nil && (a.due(want.current, now) || (a.secret != nil && !exists)):
		names := a.o.Hosts
		if !want.current.covers(names) {
			// A replica with other options created it. Keep its names, or the two
			// replicas would renew in turns.
			names = slices.Concat(names, hosts(want.current.cert.Leaf))
			slices.Sort(names)
			names = slices.Compact(names)
		}
		made, err := newPair(names, now, a.o.Validity)
		if err != nil {
			return state{}, err
		}
		want.next = made
	}
	known := slices.Concat(have.authorities, a.state.authorities)
	want.authorities = authorities(now, []*pair{want.current, want.next}, known...)
	return want, nil
}

// due reports whether p must be renewed.
func (a *Authority) due(p *pair, now time.Time) bool {
	return !now.Before(a.renewal(p)) || !p.covers(a.o.Hosts)
}

func (a *Authority) renewal(p *pair) time.Time { return p.cert.Leaf.NotAfter.Add(-a.o.Validity / 3) }

// settled reports whether API servers have had the time to receive p's CA.
func (a *Authority) settled(p *pair, now time.Time) bool {
	since, seen := a.seen[string(p.ca.Raw)]
	return seen && now.Sub(since) >= a.o.PropagationDelay
}

func (a *Authority) adopt(s state) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = s
}

func (a *Authority) write(ctx context.Context, secret *corev1.Secret, data map[string][]byte) error {
	secrets := a.o.Client.CoreV1().Secrets(a.o.Namespace)
	if secret == nil {
		_, err := secrets.Create(ctx, &corev1.Secret{
			ObjectMeta: metav1.ObjectMeta{Namespace: a.o.Namespace, Name: a.o.SecretName},
			Type:       corev1.SecretTypeTLS,
			Data:       data,
		}, metav1.CreateOptions{})
		return err
	}
	secret = secret.DeepCopy()
	secret.Data = data
	_, err := secrets.Update(ctx, secret, metav1.UpdateOptions{})
	return err
}

// observe records when all webhook configurations got each CA.
func (a *Authority) observe() {
	now := a.clock.Now()
	seen := map[string]time.Time{}
	for _, ca := range a.state.authorities {
		if !a.configurations.contain(ca) {
			continue
		}
		since, before := a.seen[string(ca.Raw)]
		if !before {
			since = now
		}
		seen[string(ca.Raw)] = since
	}
	a.seen = seen
}

// serve serves the agreed certificate as soon as API servers accept it.
func (a *Authority) serve(ctx context.Context, now time.Time) {
	old, agreed := a.presented(), a.state.current
	switch {
	case old != nil && old.Leaf.Equal(agreed.cert.Leaf):
	case old == nil, !now.Before(old.Leaf.NotAfter), a.settled(agreed, now) && agreed.covers(a.o.Hosts):
		a.present(ctx, agreed.cert)
	}
}

// rest returns the time until the clock alone requires another round after one at now.
func (a *Authority) rest(now time.Time) time.Duration {
	next := now.Add(resync)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) { // this round did what was due
			next = t
		}
	}
	sooner(a.renewal(a.state.current))
	for _, ca := range a.state.authorities {
		sooner(ca.NotAfter)
	}
	for _, since := range a.seen {
		sooner(since.Add(a.o.PropagationDelay))
	}
	return max(0, next.Sub(a.clock.Now()))
}
