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
	"k8s.io/apimachinery/pkg/util/wait"
	coreinformers "k8s.io/client-go/informers/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/log"
)

// resync is how long a change that no watch reported can go unnoticed.
const resync = 10 * time.Minute

// SelfSignedOptions say whom a self-signed certificate is for and where it is kept.
type SelfSignedOptions struct {
	// Options may lack a Client; then CA and certificate are in memory only and CABundle is the way to trust them.
	Options
	// Namespace and SecretName are where replicas agree on one certificate. The Secret belongs to the Source: whatever
	// else is in it is overwritten. Both are required with a Client.
	Namespace, SecretName string
	// Hosts are the DNS names and IP addresses by which the API server calls: SERVICE.NAMESPACE.svc, or the host of
	// clientConfig.url. At least one is required.
	Hosts []string
	// Validity is how long a certificate and its CA live; they are renewed after two thirds. 0 means 90 days.
	Validity time.Duration
	// PropagationDelay is how long a new CA must have been seen in every webhook configuration before its certificate
	// is served: the time that API servers may take to learn of it. 0 means a minute.
	PropagationDelay time.Duration
}

// An Authority is Certificates that signs its certificate itself, keeps it in a Secret, and publishes the CA in our own
// webhook configurations. Renewal takes these steps, each of which any replica can take and all see in the Secret:
//
//  1. A new CA and certificate are made and kept as next.crt and next.key. The old certificate is served.
//  2. The CA bundle of every webhook becomes old and new CA.
//  3. When that has been seen for the propagation delay, next becomes tls.crt and tls.key.
//  4. The old CA leaves the bundle when it expires, long after the last replica stopped serving what it signed.
//
// A replica never serves another certificate before it has seen its CA in all webhook configurations for that delay
// itself, whatever the Secret says, unless it has none that is valid. So a Secret that was lost, edited or restored
// from a backup goes through the same steps. A deleted Secret comes back with the old certificate and a next one:
// that is how to ask for a new key.
type Authority struct {
	*serving
	o      SelfSignedOptions
	secret *watcher
	seen   map[string]time.Time // since when all webhook configurations have a CA, by its raw bytes

	mu    sync.Mutex // guards changes of state against CABundle; only Start's goroutine makes them
	state state
}

// SelfSigned returns Certificates that is its own certificate authority.
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
	s, err := newServing(o.Options, "it is rewritten within seconds where the injector may get, list, watch and patch that configuration")
	if err != nil {
		return nil, err
	}
	a := &Authority{serving: s, o: o, seen: map[string]time.Time{}}
	if o.Client != nil {
		a.secret = newWatcher("Secret "+o.Namespace+"/"+o.SecretName, o.Namespace+"/"+o.SecretName,
			coreinformers.NewFilteredSecretInformer(o.Client, o.Namespace, 0, nil, only(o.SecretName)))
	}
	return a, nil
}

// CABundle is the PEM bundle of CAs that clients must trust, empty before the first certificate.
func (a *Authority) CABundle() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return encodeCertificates(a.state.authorities)
}

// Ready says why the API server would not accept the certificate that is served now, and what mends it.
func (a *Authority) Ready(*http.Request) error {
	if a.secret != nil && a.presented() == nil {
		if err := errors.Join(a.secret.synced(), a.configurations.synced()); err != nil {
			return fmt.Errorf("no serving certificate: %w", err)
		}
	}
	return a.serving.Ready(nil)
}

// Start makes, publishes, renews and repairs the certificate until ctx ends.
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

// readFirst waits until everything has been read once, and says what has not. It is false when ctx ends before.
func (a *Authority) readFirst(ctx context.Context, watchers []*watcher) bool {
	ticker := a.clock.NewTicker(lookInterval)
	defer ticker.Stop()
	for len(watchers) > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-watchers[0].HasSyncedChecker().Done():
			watchers = watchers[1:]
		case <-ticker.C():
			a.report(ctx, a.Ready(nil))
		}
	}
	return true
}

// reconcile takes one round and returns how long the next can wait.
func (a *Authority) reconcile(ctx context.Context) (time.Duration, error) {
	now := a.clock.Now()
	if err := a.agree(ctx, now); err != nil {
		return resync, err
	}
	var errs []error
	for _, conf := range a.configurations.known() {
		errs = append(errs, a.configurations.setBundle(ctx, conf, func(present []byte) []byte {
			pairs := []*pair{a.state.current, a.state.next}
			// A CA of ours that we do not know may be that of a replica which has not met us in the Secret yet.
			return encodeCertificates(authorities(now, pairs, append(ours(present), a.state.authorities...)...))
		}))
	}
	a.observe()
	a.serve(ctx, now)
	return a.rest(now), errors.Join(errs...)
}

// agree makes the Secret and our state the same: what the Secret says counts, unless it is lost, spoiled or due.
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
		// Another replica, or somebody else, was first.
		secret, err = a.o.Client.CoreV1().Secrets(a.o.Namespace).Get(ctx, a.o.SecretName, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			secret = nil
		} else if err != nil {
			return fmt.Errorf("read %s: %w", a.secret.what, err)
		}
	}
	return fmt.Errorf("write %s: others changed it %d times meanwhile", a.secret.what, attempts)
}

// plan is the state that should follow the one that the Secret has.
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
			// A replica with other options made it, and its names must stay or the two would renew in turns.
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
	want.authorities = authorities(now, []*pair{want.current, want.next}, slices.Concat(have.authorities, a.state.authorities)...)
	return want, nil
}

// due says whether p is to be renewed.
func (a *Authority) due(p *pair, now time.Time) bool {
	return !now.Before(a.renewal(p)) || !p.covers(a.o.Hosts)
}

func (a *Authority) renewal(p *pair) time.Time { return p.cert.Leaf.NotAfter.Add(-a.o.Validity / 3) }

// settled says whether API servers have had the time to learn of p's CA.
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

// observe notes since when every webhook configuration has had each CA.
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

// serve presents the agreed certificate as soon as that is safe.
func (a *Authority) serve(ctx context.Context, now time.Time) {
	old, agreed := a.presented(), a.state.current
	switch {
	case old != nil && old.Leaf.Equal(agreed.cert.Leaf):
	case old == nil, !now.Before(old.Leaf.NotAfter), a.settled(agreed, now) && agreed.covers(a.o.Hosts):
		a.present(ctx, agreed.cert)
	}
}

// rest is how long after a round at now the clock alone makes a difference.
func (a *Authority) rest(now time.Time) time.Duration {
	next := now.Add(resync)
	sooner := func(t time.Time) {
		if t.After(now) && t.Before(next) { // what is past was seen to in this round
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
