// Package rotation restarts workloads when a Key Vault object that they use gets a new version: env
// vars and mounts by subPath keep the value that they had when their container started.
//
//	rotator := rotation.New(rotation.Options{
//		Live: live, Cache: cached, Client: client, Events: mgr.GetEventRecorder("akv-injector"),
//		Namespace: "akv-injector-system", MaxConcurrent: 10, MinInterval: 10 * time.Minute,
//		Timeout: 10 * time.Minute, Log: log, Metrics: metrics.Registry,
//	})
//	mgr.Add(rotator)
//
// The Secrets Store CSI driver reports the version of each mounted object in a
// SecretProviderClassPodStatus, without its value. The package writes the versions into the
// annotation [api.RestartedFor] of the workload, and, to restart it, of its pod template. All that it
// knows is in these annotations: it writes a function of the versions, so a second replica, a restart
// or an upgrade of the injector restarts nothing. A Lease decides which replica writes, which keeps
// the pace.
//
// It never reads a Secret, and changes nothing but that annotation.
package rotation

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/utils/clock"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// fieldManager owns the annotations in server-side apply.
const fieldManager = "akv-injector-rotation"

const (
	// interval is the time between two steps.
	interval = time.Second
	// maxReviews is the number of workloads that one step reads from the API server.
	maxReviews = 50
	// settle is the delay between a change and the review, so that the pods of a workload are
	// reviewed together.
	settle = 2 * time.Second
	// again is the delay before a workload is reviewed again that waits for something.
	again = 10 * time.Second
	// retry is the delay after an error.
	retry = time.Minute
	// jitter is the longest delay that a restart gets at random, so that workloads that use one object
	// do not restart at once.
	jitter = 20 * time.Second
	// lagTimeout is the time for which a restart waits for nodes that still have an old version.
	lagTimeout = 5 * time.Minute
)

// Options configure a [Rotator]. Every field but Extra is required.
type Options struct {
	// Live reads and writes workloads. Cache supplies the annotations of namespaces. New registers
	// a handler with it, so it must not be started yet.
	Live  *cluster.Live
	Cache *cluster.Cache
	// Client reads pods, and keeps the Lease in Namespace.
	Client    kubernetes.Interface
	Events    events.EventRecorder
	Namespace string
	// Extra has the kinds to restart besides Deployment, StatefulSet and DaemonSet.
	Extra []Kind
	// MaxConcurrent is the number of workloads that restart at a time; of one namespace, one does.
	MaxConcurrent int
	// MinInterval is the least time between two restarts of a workload.
	MinInterval time.Duration
	// Timeout is the time after which a restart that is not complete has failed.
	Timeout time.Duration
	Log     logr.Logger
	Metrics prometheus.Registerer
}

// Rotator is a controller-runtime Runnable. Every replica watches; the one that holds the Lease
// restarts.
type Rotator struct {
	Options

	clock   clock.WithTicker
	jitter  time.Duration
	table   *table
	feeds   []*feed.Feed
	metrics *rotationMetrics

	leading sync.Mutex // held by lead

	mu sync.Mutex
	// dirty has the workloads to review, and when.
	dirty map[workload]time.Time

	// The rest belongs to the replica that holds the Lease.

	// due has the workloads to restart, and active those that restart.
	due    map[workload]*pending
	active map[workload]*activity
	// isReviewed is true once every workload has been reviewed: until then, active may lack the
	// restarts of another replica.
	isReviewed bool
}

// pending is a workload that waits for its restart.
type pending struct {
	verdict

	// after is the earliest time of the restart.
	after time.Time
	pods  int
}

// activity is a restart in progress.
type activity struct{ started, checked time.Time }

// New returns a Rotator, and registers its metrics.
func New(o Options) *Rotator {
	r := &Rotator{
		Options: o, clock: clock.RealClock{}, jitter: jitter, dirty: map[workload]time.Time{},
	}
	r.table = &table{changed: func(w workload) { r.later(w, settle) }, namespaces: map[string]map[string]*pod{}}
	r.feeds = r.table.feeds(o.Live.Raw, kindsWith(o.Extra))
	for _, f := range r.feeds {
		f.Register(o.Metrics)
	}
	r.metrics = newMetrics(o.Metrics, r.table)
	o.Cache.OnNamespace(r.namespaceChanged)
	return r
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false: the
// Lease of the package guards only restarts, and its loss must not end the program.
func (*Rotator) NeedLeaderElection() bool { return false }

// Start implements controller-runtime's Runnable. It restarts workloads until ctx ends.
func (r *Rotator) Start(ctx context.Context) error {
	var running sync.WaitGroup
	defer running.Wait()
	for _, f := range r.feeds {
		running.Go(func() { f.Run(logr.NewContext(ctx, r.Log)) })
	}
	for _, f := range r.feeds {
		select {
		case <-ctx.Done():
			return nil
		case <-f.Filled():
		}
	}
	if r.Cache.AwaitFilled(ctx) != nil {
		return nil
	}
	host, _ := os.Hostname() // the name is only information
	lock := &resourcelock.LeaseLock{
		LeaseMeta:  metav1.ObjectMeta{Namespace: r.Namespace, Name: fieldManager},
		Client:     r.Client.CoordinationV1(),
		LockConfig: resourcelock.ResourceLockConfig{Identity: host + "_" + string(uuid.NewUUID())},
	}
	for ctx.Err() == nil {
		leaderelection.RunOrDie(ctx, leaderelection.LeaderElectionConfig{
			Lock: lock, ReleaseOnCancel: true,
			LeaseDuration: time.Minute, RenewDeadline: 40 * time.Second, RetryPeriod: 10 * time.Second,
			Callbacks: leaderelection.LeaderCallbacks{OnStartedLeading: r.lead, OnStoppedLeading: func() {}},
		})
	}
	return nil
}

// lead restarts workloads until ctx ends.
func (r *Rotator) lead(ctx context.Context) {
	r.leading.Lock() // the previous call may not have returned yet
	defer r.leading.Unlock()
	r.Log.Info("Restarting workloads on rotation")
	defer r.metrics.clear()
	r.due, r.active, r.isReviewed = map[workload]*pending{}, map[workload]*activity{}, false
	r.namespaceChanged("")
	ticker := r.clock.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C():
			r.step(ctx)
		}
	}
}

// namespaceChanged makes the workloads of a namespace dirty; with an empty name, those of all
// namespaces.
func (r *Rotator) namespaceChanged(namespace string) {
	for _, w := range r.table.all() {
		if namespace == "" || namespace == w.namespace {
			r.later(w, 0)
		}
	}
}

// later makes a workload dirty after a delay, or at an earlier time that is set already.
func (r *Rotator) later(w workload, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	at := r.clock.Now().Add(delay)
	if before, found := r.dirty[w]; !found || at.Before(before) {
		r.dirty[w] = at
	}
}

// step checks the restarts in progress, reviews dirty workloads, and begins restarts.
func (r *Rotator) step(ctx context.Context) {
	now := r.clock.Now()
	for w, a := range r.active {
		if now.Sub(a.checked) >= 5*interval {
			a.checked = now
			r.check(ctx, w, a)
		}
	}
	dirty := r.takeDirty(now)
	for _, w := range dirty {
		if _, err := r.review(ctx, w); err != nil {
			r.failed(ctx, w, err)
		}
	}
	r.isReviewed = r.isReviewed || len(dirty) < maxReviews
	if r.isReviewed {
		for _, w := range slices.SortedFunc(maps.Keys(r.due), func(a, b workload) int {
			return r.due[a].after.Compare(r.due[b].after)
		}) {
			if r.mayRestart(ctx, w, now) {
				if err := r.restart(ctx, w); err != nil {
					r.failed(ctx, w, err)
				}
			}
		}
	}
	r.metrics.observe(r.due, now)
}

// failed logs an error about a workload, and has it reviewed again.
func (r *Rotator) failed(ctx context.Context, w workload, err error) {
	switch {
	case apierrors.IsConflict(err): // it has changed since it was read
		r.later(w, settle)
	case ctx.Err() == nil:
		r.Log.Error(err, "Rotation is delayed", "kind", w.kind.Name, "namespace", w.namespace, "name", w.name)
		r.later(w, retry)
	}
}

// takeDirty returns workloads to review now, those that wait longest first.
func (r *Rotator) takeDirty(now time.Time) []workload {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []workload
	for w, at := range r.dirty {
		if !at.After(now) {
			list = append(list, w)
		}
	}
	slices.SortFunc(list, func(a, b workload) int { return r.dirty[a].Compare(r.dirty[b]) })
	list = list[:min(len(list), maxReviews)]
	for _, w := range list {
		delete(r.dirty, w)
	}
	return list
}

// review decides about a workload: it records new versions, or makes the workload due. It returns the
// workload as it is now if it is due; else nil.
func (r *Rotator) review(ctx context.Context, w workload) (*object, error) {
	waiting := r.due[w]
	delete(r.due, w)
	namespace, err := r.Cache.Namespace(ctx, w.namespace, false)
	if err != nil {
		return nil, err
	}
	byDefault := namespace.Annotations[api.OnRotation] == string(api.RotationRestart)
	if !namespace.OptedIn() || !byDefault && !r.table.requests(w) {
		return nil, nil
	}
	o, err := r.get(ctx, w)
	if err != nil || o == nil {
		return nil, err
	}
	if !o.hasTemplate {
		r.Log.Info("Workload has no pod template", "kind", w.kind.Name, "namespace", w.namespace, "name", w.name,
			"path", strings.Join(w.kind.Template, "."))
		return nil, nil
	}
	own := o.held()
	now := r.clock.Now()
	names, statuses, all := r.table.of(w, o.ofTemplate)
	if restarted := o.restarted().Time; r.active[w] == nil && !o.isRolledOut(len(names)) && now.Sub(restarted) < r.Timeout {
		r.active[w] = &activity{started: restarted, checked: now} // by another replica
	}
	if len(names) == 0 {
		return nil, nil // its pods are about to be replaced, or not mounted yet
	}
	uses, err := r.usesOf(ctx, w.namespace, names[0], namespace)
	if err != nil || len(uses) == 0 {
		return nil, err
	}
	v := decide(uses, own, statuses, all)
	if len(v.changed) == 0 {
		if len(v.current) == 0 || maps.Equal(v.current, own) {
			return nil, nil
		}
		return nil, r.apply(ctx, w, o, v.current.String(), o.ofTemplate)
	}
	p := &pending{verdict: v, pods: len(names), after: now.Add(rand.N(r.jitter + 1))} //nolint:gosec // only spreads restarts
	if waiting != nil {
		p.after = waiting.after
	}
	if floor := o.restarted().Add(r.MinInterval); floor.After(p.after) {
		p.after = floor
	}
	if v.lagging && now.Before(v.since.Add(lagTimeout)) || o.isPaused() {
		p.after = later(p.after, now.Add(again))
		r.later(w, again)
	}
	r.due[w] = p
	return o, nil
}

// get returns a workload as it is now; nil if it does not exist.
func (r *Rotator) get(ctx context.Context, w workload) (*object, error) {
	resource := w.kind.Resource
	body, err := r.Live.Raw.Get().
		AbsPath("apis", resource.Group, resource.Version, "namespaces", w.namespace, resource.Resource, w.name).
		SetHeader("Accept", runtime.ContentTypeJSON).DoRaw(ctx)
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	var o *object
	if err == nil {
		o, err = w.kind.read(body)
	}
	if err != nil {
		return nil, fmt.Errorf("read %s %s: %w", w.kind.Name, w.name, err)
	}
	return o, nil
}

// usesOf returns what a pod uses; nothing if it does not request restarts.
func (r *Rotator) usesOf(ctx context.Context, in, name string, namespace facts.Namespace) ([]use, error) {
	found, err := r.Client.CoreV1().Pods(in).Get(ctx, name, metav1.GetOptions{ResourceVersion: "0"})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read pod %s: %w", name, err)
	}
	subject := pods.SubjectOf(&pods.Pod{Meta: &pods.Meta{Annotations: found.Annotations}})
	request, _, _ := api.ParseRequest(api.Annotations{Pod: subject.Annotations, Namespace: namespace.Annotations})
	if request.OnRotation != api.RotationRestart || request.OptedOut {
		return nil, nil
	}
	answer, err := r.Live.Facts(ctx, in, facts.Needs{Classes: slices.Sorted(maps.Values(classesOf(found)))}, false)
	if err != nil {
		return nil, err
	}
	return usesOf(found, answer.Classes), nil
}

// mayRestart reports whether a workload that is due may restart now.
func (r *Rotator) mayRestart(ctx context.Context, w workload, now time.Time) bool {
	if now.Before(r.due[w].after) || len(r.active) >= r.MaxConcurrent {
		return false
	}
	for other := range r.active {
		if other.namespace == w.namespace {
			return false
		}
	}
	namespace, err := r.Cache.Namespace(ctx, w.namespace, false)
	if err != nil {
		return false
	}
	text, limited := namespace.Annotations[api.RestartWindow]
	window, err := api.ParseWindow(text)
	now = now.UTC()
	return !limited || err == nil && window.Contains((int(now.Weekday())*24+now.Hour())*60+now.Minute())
}

// restart reviews a workload again, and begins its restart if it is still due.
func (r *Rotator) restart(ctx context.Context, w workload) error {
	o, err := r.review(ctx, w)
	p := r.due[w]
	now := r.clock.Now()
	if err != nil || p == nil || now.Before(p.after) {
		return err
	}
	versions := p.current.String()
	obstacle := ""
	if o.isInPlace() {
		obstacle = "its update strategy updates pods in place, which restarts no container; set another one, or delete the pods"
	} else if err = r.apply(ctx, w, o, versions, versions); apierrors.IsForbidden(err) || apierrors.IsInvalid(err) {
		// Another webhook added to the update, which the policy of the injector rejects, or a policy of
		// the cluster forbids it.
		obstacle = "the API server rejected the restart: " + err.Error()
	}
	switch {
	case obstacle != "": // the next attempt would end in the same way
		p.after = now.Add(r.MinInterval)
		r.metrics.restarts.WithLabelValues(rejected).Inc()
		r.event(w, o, corev1.EventTypeWarning, api.RestartRejected, obstacle)
		return nil
	case err != nil:
		return err
	}
	delete(r.due, w)
	r.active[w] = &activity{started: now, checked: now}
	r.metrics.restarts.WithLabelValues(started).Inc()
	r.event(w, o, corev1.EventTypeNormal, api.Restarted, changesOf(o.held(), &p.verdict))
	return nil
}

// apply writes the annotations of a workload and its template. With the UID and the resource version,
// the API server rejects the write if the workload has changed since it was read.
func (r *Rotator) apply(ctx context.Context, w workload, o *object, own, ofTemplate string) error {
	applied := &unstructured.Unstructured{}
	applied.SetGroupVersionKind(w.kind.Resource.GroupVersion().WithKind(w.kind.Name))
	applied.SetNamespace(w.namespace)
	applied.SetName(w.name)
	applied.SetUID(o.Metadata.UID)
	applied.SetResourceVersion(o.Metadata.ResourceVersion)
	applied.SetAnnotations(map[string]string{api.RestartedFor: own})
	path := w.kind.inTemplate("metadata", "annotations", api.RestartedFor)
	if ofTemplate != "" { // an apply without it would remove it
		_ = unstructured.SetNestedField(applied.Object, ofTemplate, path...) // there is nothing else
	}
	write := func() (*unstructured.Unstructured, error) {
		return r.Live.Dynamic.Resource(w.kind.Resource).Namespace(w.namespace).
			Apply(ctx, w.name, applied, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	}
	stored, err := write()
	if err == nil {
		if kept, _, _ := unstructured.NestedString(stored.Object, path...); kept != ofTemplate { // so nothing restarts
			applied.SetResourceVersion(stored.GetResourceVersion())
			applied.SetAnnotations(map[string]string{api.RestartedFor: o.Metadata.Annotations[api.RestartedFor]})
			if _, err = write(); err == nil {
				err = apierrors.NewInvalid(applied.GroupVersionKind().GroupKind(), w.name, field.ErrorList{
					field.Forbidden(field.NewPath(path[0], path[1:]...), "the schema of the kind drops annotations of the pod template"),
				})
			}
		}
	}
	if err != nil {
		return fmt.Errorf("write %s %s: %w", w.kind.Name, w.name, err)
	}
	return nil
}

// check ends the restart of a workload that is complete or has failed.
func (r *Rotator) check(ctx context.Context, w workload, a *activity) {
	o, err := r.get(ctx, w)
	if err != nil {
		r.Log.Error(err, "Cannot check a restart", "kind", w.kind.Name, "namespace", w.namespace, "name", w.name)
		return
	}
	if o == nil {
		delete(r.active, w)
		return
	}
	names, _, _ := r.table.of(w, o.ofTemplate)
	switch now := r.clock.Now(); {
	case o.isRolledOut(len(names)):
		delete(r.active, w)
		r.metrics.restarts.WithLabelValues(succeeded).Inc()
	case now.Sub(a.started) >= r.Timeout:
		delete(r.active, w)
		r.metrics.restarts.WithLabelValues(failed).Inc()
		r.event(w, o, corev1.EventTypeWarning, api.RestartFailed,
			fmt.Sprintf("the restart for a new version is not complete after %s; run: kubectl -n %s describe %s/%s",
				r.Timeout, w.namespace, w.kind.Resource.GroupResource(), w.name))
	}
}
