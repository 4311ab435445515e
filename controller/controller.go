// Package controller creates the managed SecretProviderClasses that injected pods mount, and
// repairs them while a pod mounts them. Apart from package certs and the events of package findings,
// nothing else in this program writes to the cluster.
//
//	err := controller.AddTo(mgr, controller.Options{
//		Live: live, Cache: cached, Defaults: defaults, Log: log, Metrics: metrics.Registry,
//	})
//
// The controller creates a class only for a pod that mounts it and whose annotations, evaluated
// again in its namespace as it is now, request exactly that class. A pod's labels, status and
// volumes alone never cause a class to be created. The garbage collector of Kubernetes deletes a
// class after its last owner; the controller deletes nothing.
//
// Every replica runs the controller, without leader election: the name of a class is a hash of its
// content, so replicas write the same. The package does not review admission requests.
package controller

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	expiring "k8s.io/apimachinery/pkg/util/cache"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	ctrlcontroller "sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/controller/claims"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// name is the controller's name in metrics.
const name = "managed-classes"

const (
	// maxConcurrent is the number of classes that are reconciled at the same time. Writing one
	// takes a few milliseconds of waiting.
	maxConcurrent = 16
	// restoreDelay is the delay before a deleted class is created again. To delete a workload,
	// people and tools delete the class a moment before its pods. A new pod that mounts the class
	// does not wait for this delay.
	restoreDelay = 500 * time.Millisecond
	// firstRetry and lastRetry are the shortest and longest delay between retries of one class.
	firstRetry, lastRetry = 250 * time.Millisecond, time.Minute
	// evaluationDelay is the delay before a pod that does not request its class is evaluated again.
	evaluationDelay = time.Second
	// liveInterval is the time for which such a pod is evaluated on cached facts alone. There may
	// be thousands of such pods, so the controller reads the API server at most once in this time
	// for each.
	liveInterval = time.Minute
	// maxEvaluated is the number of different pods that one reconcile evaluates, so that no class
	// delays the others.
	maxEvaluated = 10
	// conflicts is how often one reconcile reads a class again after a conflicting write.
	conflicts = 5
	// A class gets owners, up to maxOwners, while fewer than minOwners of its owners have pods that
	// mount it. Thousands of pods may share a class, and each write repeats all owners.
	minOwners, maxOwners = 8, 16
)

// Options configure the controller. Every field is required.
type Options struct {
	// Live reads a class that another replica or another client has just written. Its Dynamic
	// client writes classes.
	Live *cluster.Live
	// Cache supplies the facts by which pods are evaluated, and the known classes. AddTo registers
	// handlers with it, so it must not be started yet.
	Cache *cluster.Cache
	// Defaults must equal those of the webhook.
	Defaults inject.Defaults
	Log      logr.Logger
	Metrics  prometheus.Registerer
}

// controller reconciles managed classes.
type controller struct {
	live     *cluster.Live
	cache    *cluster.Cache
	reviewer review.Reviewer
	events   events.EventRecorder
	log      logr.Logger
	total    *prometheus.CounterVec

	claims     *claims.Table
	podFeed    *feed.Feed
	evaluating singleflight.Group
	denials    *expiring.Expiring // a *denial by *claims.Claimant
	failing    sync.Map           // the classes whose error is logged, until a reconcile succeeds
	// queue is nil until pods and facts have been listed.
	queue atomic.Pointer[workqueue.TypedRateLimitingInterface[types.NamespacedName]]
}

// AddTo adds the controller to a manager. It returns an error if the clients cannot be created or
// the controller is already added.
func AddTo(mgr manager.Manager, o Options) error {
	c := &controller{
		live:     o.Live,
		cache:    o.Cache,
		reviewer: review.Reviewer{Source: o.Cache, Defaults: o.Defaults},
		events:   mgr.GetEventRecorder(class.ManagedBy),
		log:      o.Log,
		total:    newTotal(o.Metrics),
		denials:  expiring.NewExpiring(),
	}
	var err error
	c.claims = claims.NewTable(c.enqueue)
	if c.podFeed, err = claims.Follow(mgr.GetConfig(), mgr.GetHTTPClient(), c.claims); err != nil {
		return err
	}
	c.podFeed.Register(o.Metrics)
	c.cache.OnClass(c.classChanged)
	c.cache.OnNamespace(c.namespaceChanged)
	never := false
	reconciler, err := ctrlcontroller.NewTyped(name, mgr, ctrlcontroller.TypedOptions[types.NamespacedName]{
		Reconciler:              c,
		MaxConcurrentReconciles: maxConcurrent,
		NeedLeaderElection:      &never,
		RateLimiter: workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](
			firstRetry, lastRetry),
		LogConstructor: func(*types.NamespacedName) logr.Logger { return withoutReported(o.Log) },
	})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	if err := reconciler.Watch(source.TypedFunc[types.NamespacedName](c.start)); err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	return nil
}

// start watches pods, and fills the queue once pods and facts have been listed.
func (c *controller) start(
	ctx context.Context, queue workqueue.TypedRateLimitingInterface[types.NamespacedName],
) error {
	go c.podFeed.Run(logr.NewContext(ctx, c.log))
	go func() {
		if c.cache.AwaitFilled(ctx) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-c.podFeed.Filled():
		}
		c.queue.Store(&queue)
		classes := c.enqueueAll()
		c.log.Info("Following injected pods", "pods", c.claims.Pods(), "classes", classes)
	}()
	return nil
}

// enqueue adds a class to the queue: at once, or after firstRetry if its latest reconcile failed,
// so that frequent events do not defeat its backoff.
func (c *controller) enqueue(key types.NamespacedName) {
	queue := c.queue.Load()
	switch {
	case queue == nil:
	case (*queue).NumRequeues(key) > 0:
		(*queue).AddAfter(key, firstRetry)
	default:
		(*queue).Add(key)
	}
}

// enqueueAll enqueues every class that a pod mounts, and returns their number.
func (c *controller) enqueueAll() int {
	keys := c.claims.Classes()
	for _, key := range keys {
		c.enqueue(key)
	}
	return len(keys)
}

// classChanged enqueues a class that was added, updated or deleted; with an empty name, every class
// that a pod mounts.
func (c *controller) classChanged(namespace, name string) {
	queue := c.queue.Load()
	switch {
	case queue == nil || (name != "" && !class.IsManagedName(name)):
	case name == "":
		c.enqueueAll()
	case c.cache.ManagedClass(namespace, name) == nil:
		(*queue).AddAfter(types.NamespacedName{Namespace: namespace, Name: name}, restoreDelay)
	default:
		(*queue).Add(types.NamespacedName{Namespace: namespace, Name: name})
	}
}

// namespaceChanged enqueues the classes of a namespace, whose labels or annotations may have
// changed; with an empty name, every class.
func (c *controller) namespaceChanged(namespace string) {
	if c.queue.Load() == nil {
		return
	}
	for _, key := range c.claims.Classes() {
		if namespace == "" || key.Namespace == namespace {
			c.enqueue(key)
		}
	}
}

// Reconcile implements reconcile.TypedReconciler: it creates or repairs the class of that name if
// its pods request it.
//
// A returned error makes controller-runtime count it and retry with backoff. This includes
// [errSkipped], so that pods which do not request their class are evaluated less and less often.
// Reconcile logs the first error of a class itself; see [reported].
func (c *controller) Reconcile(ctx context.Context, key types.NamespacedName) (reconcile.Result, error) {
	more, err := c.reconcileFound(ctx, key, c.cache.ManagedClass(key.Namespace, key.Name))
	for range conflicts {
		if !isContested(err) {
			break
		}
		var found *cluster.ManagedClass
		if found, err = c.live.ManagedClass(ctx, key.Namespace, key.Name); err == nil {
			more, err = c.reconcileFound(ctx, key, found)
		}
	}
	switch {
	case err == nil:
		c.failing.Delete(key)
		if more {
			return reconcile.Result{RequeueAfter: time.Millisecond}, nil
		}
		return reconcile.Result{}, nil
	case ctx.Err() == nil && !errors.Is(err, errSkipped): // an error because the program ends is not logged
		if _, logged := c.failing.LoadOrStore(key, true); !logged {
			c.log.Info("Class is not as its pods need it",
				"namespace", key.Namespace, "class", key.Name, "why", err.Error())
		}
	}
	return reconcile.Result{}, reported{err}
}

// requeues returns how often the class has been requeued after an error since it was last
// reconciled without one.
func (c *controller) requeues(key types.NamespacedName) int {
	return (*c.queue.Load()).NumRequeues(key) // it has a queue, since the key came from there
}

// errSkipped means that some pods were skipped, and that no evaluated pod requests the class.
var errSkipped = errors.New("pods were skipped")

// reconcileFound creates or repairs the class of that name if its pods request it. Found is the
// class as it exists; nil if it does not. More means that the class was written, and that some pods
// were skipped which may become owners too.
func (c *controller) reconcileFound(
	ctx context.Context, key types.NamespacedName, found *cluster.ManagedClass,
) (more bool, err error) {
	var owners []metav1.OwnerReference
	held := 0
	if found != nil && found.Intact {
		if !found.Ours {
			return false, nil // another client created exactly this class, and keeps it
		}
		owners = found.Owners
		if held = c.claims.Held(key, owners); held >= minOwners {
			return false, nil
		}
	}
	open := c.claims.Of(key, owners)
	if len(open) == 0 {
		return false, nil
	}
	switch namespace, err := c.cache.Namespace(ctx, key.Namespace, false); {
	case err != nil:
		return false, err
	case !namespace.OptedIn() && c.requeues(key) == 0:
		return false, errSkipped // the label of a new namespace may arrive after its pods
	case !namespace.OptedIn():
		if found == nil || found.Ours {
			text := outdatedNote(key.Name, found, &inject.Result{NotOptedIn: true})
			c.record(api.ClassOutdated, key, notesTo(open, key.Name, text))
			c.total.WithLabelValues(outdated).Inc()
		}
		return false, nil
	}
	d, err := c.derive(ctx, key, open, found, maxOwners-held)
	if err != nil {
		return false, err
	}
	if d.wanted == nil && found != nil && !found.Ours {
		d.outdated = nil // these pods use a class of another client
	}
	if d.wanted != nil {
		err = c.write(ctx, key, d, found)
	}
	if len(d.outdated) > 0 && !isContested(err) {
		c.record(api.ClassOutdated, key, d.outdated)
		c.total.WithLabelValues(outdated).Inc()
		if err == nil {
			err = errors.New(d.outdated[0].text)
		}
	}
	switch {
	case err != nil || !d.skipped:
		return false, err
	case d.wanted != nil:
		return true, nil
	}
	return false, errSkipped
}

// isContested reports whether another client wrote a class after it was read.
func isContested(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

// derivation is the result of evaluating the pods of some claims.
type derivation struct {
	// wanted is the class that the pods of the granted claims request; nil without such a claim.
	wanted  *class.SecretProviderClass
	granted []claims.Claim
	// outdated are notes to pods that do not request the class, at most maxNotes.
	outdated []note
	// skipped is true if some pods were not evaluated: they were evaluated a moment ago, or
	// changed, or there are too many.
	skipped bool
}

// derive evaluates pods and grants up to most claims. The claim of an owner is granted if one of
// its pods requests the class.
func (c *controller) derive(
	ctx context.Context, key types.NamespacedName, open []claims.Claim, found *cluster.ManagedClass, most int,
) (*derivation, error) {
	var d derivation
	type candidate struct {
		claim claims.Claim
		pod   *claims.Claimant
		last  *denial
	}
	var first, again []candidate
	for _, claim := range open {
		for _, p := range claim.Pods {
			if last := c.lastDenial(p, key.Name); last == nil {
				first = append(first, candidate{claim, p, nil})
			} else if time.Since(last.evaluated) < evaluationDelay {
				d.skipped = true
			} else {
				again = append(again, candidate{claim, p, last})
			}
		}
	}
	type evaluation struct {
		digest [sha256.Size]byte
		result *inject.Result
	}
	var evaluations []evaluation // of different pods; usually there is one
	for _, pod := range append(first, again...) {
		if len(d.granted) == most {
			break
		}
		if d.grants(pod.claim.Owner) {
			continue
		}
		at := slices.IndexFunc(evaluations, func(e evaluation) bool { return e.digest == pod.pod.Digest })
		if at < 0 && len(evaluations) == maxEvaluated {
			d.skipped = true
			continue
		}
		if at < 0 {
			result, err := c.evaluate(ctx, pod.pod, false)
			if err == nil && result.Class(key.Name) == nil && pod.last == nil {
				result, err = c.evaluate(ctx, pod.pod, true)
			}
			if errors.Is(err, claims.ErrChanged) {
				d.skipped = true
				continue
			}
			if err != nil {
				return nil, err
			}
			at = len(evaluations)
			evaluations = append(evaluations, evaluation{pod.pod.Digest, result})
		}
		result := evaluations[at].result
		if wanted := result.Class(key.Name); wanted != nil {
			d.wanted, d.granted = wanted, append(d.granted, pod.claim)
			continue
		}
		c.deny(pod.pod, result, pod.last)
		if len(d.outdated) < maxNotes && getsEvents(pod.pod, key.Name) {
			d.outdated = append(d.outdated, note{pod.pod, outdatedNote(key.Name, found, result)})
		}
	}
	// If one pod of an owner requests the class, the owner's other pods have it too.
	d.outdated = slices.DeleteFunc(d.outdated, func(n note) bool { return d.grants(n.pod.Owner) })
	return &d, nil
}

// grants reports whether the claim of an owner is granted.
func (d *derivation) grants(owner metav1.OwnerReference) bool {
	return slices.ContainsFunc(d.granted, func(claim claims.Claim) bool { return claim.Owner == owner })
}

// evaluate returns what a pod requests now. Reconciles of different classes of one pod share an
// evaluation. If fresh, it reads the API server, not the cache. The error is [claims.ErrChanged] if
// the pod has changed.
func (c *controller) evaluate(ctx context.Context, p *claims.Claimant, fresh bool) (*inject.Result, error) {
	shared, err, _ := c.evaluating.Do(fmt.Sprintf("%p %t", p, fresh), func() (any, error) {
		outline, err := c.claims.Outline(ctx, p)
		if err != nil {
			return nil, err
		}
		result, err := c.reviewer.Classes(ctx, outline.Subject(), p.Namespace, fresh)
		return &result, err
	})
	if err != nil {
		return nil, err
	}
	result, ok := shared.(*inject.Result)
	if !ok {
		return nil, fmt.Errorf("evaluate a pod: got %T", shared)
	}
	return result, nil
}

// denial records that a pod did not request a class that it mounts.
type denial struct {
	// requested are the names of the classes that the pod requests.
	requested []string
	// evaluated is the time of the pod's latest evaluation, read that of its latest evaluation
	// which read the API server.
	evaluated, read time.Time
}

// lastDenial returns the denial of a class to a pod; nil if there is none, or if it is forgotten.
func (c *controller) lastDenial(p *claims.Claimant, name string) *denial {
	remembered, ok := c.denials.Get(p)
	if !ok {
		return nil
	}
	last, ok := remembered.(*denial)
	if !ok || slices.Contains(last.requested, name) {
		return nil
	}
	return last
}

// deny remembers that a pod did not request a class, until the API server may be read again for the
// pod.
func (c *controller) deny(p *claims.Claimant, result *inject.Result, last *denial) {
	now := time.Now()
	d := &denial{evaluated: now, read: now}
	if len(result.AllErrors()) == 0 {
		for _, spc := range result.Classes {
			d.requested = append(d.requested, spc.Name)
		}
	}
	if last != nil {
		d.read = last.read
	}
	c.denials.Set(p, d, liveInterval-now.Sub(d.read))
}

// write creates the class, or restores its spec and adds owners.
func (c *controller) write(
	ctx context.Context, key types.NamespacedName, d *derivation, found *cluster.ManagedClass,
) error {
	if found != nil && !found.Ours {
		c.record(api.ClassNameTaken, key, notesTo(d.granted, key.Name, takenNote(key.Name)))
		c.total.WithLabelValues(taken).Inc()
		return errors.New("another client created a class of that name")
	}
	result, err := c.apply(ctx, key.Namespace, d, found)
	switch {
	case err == nil:
		c.total.WithLabelValues(result).Inc()
		c.log.V(1).Info("Class written", "namespace", key.Namespace, "class", key.Name, "result", result)
		return nil
	case isContested(err), ctx.Err() != nil:
		return err
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // the pods are deleted too
	}
	c.record(api.ClassNotWritten, key, notesTo(d.granted, key.Name, notWrittenNote(key.Name, err)))
	c.total.WithLabelValues(failed).Inc()
	return fmt.Errorf("write: %w", err)
}

// ownersOf returns owner references for claims, with the UIDs of revisions. If a revision does not
// exist, the owner is one of its pods.
func (c *controller) ownersOf(
	ctx context.Context, namespace string, granted []claims.Claim,
) ([]metav1.OwnerReference, error) {
	owners := make([]metav1.OwnerReference, 0, len(granted))
	for i := range granted {
		owner := granted[i].Owner
		if claims.IsRevision(owner) {
			revision, err := c.live.Dynamic.Resource(revisions).Namespace(namespace).Get(ctx, owner.Name, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				owner = granted[i].Itself()
			case err != nil:
				return nil, fmt.Errorf("read revision %s: %w", owner.Name, err)
			default:
				owner.UID = revision.GetUID()
			}
		}
		// The author of a pod may write the UID of another object, and the API server
		// accepts each UID once.
		if !slices.ContainsFunc(owners, func(o metav1.OwnerReference) bool { return o.UID == owner.UID }) {
			owners = append(owners, owner)
		}
	}
	return owners, nil
}

var revisions = appsv1.SchemeGroupVersion.WithResource("controllerrevisions")

// apply writes the class to the API server, and returns the result as the metric counts it.
func (c *controller) apply(
	ctx context.Context, namespace string, d *derivation, found *cluster.ManagedClass,
) (result string, err error) {
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(d.wanted)
	if err != nil {
		return "", fmt.Errorf("print class: %w", err)
	}
	object := &unstructured.Unstructured{Object: content}
	object.SetNamespace(namespace)
	unstructured.RemoveNestedField(content, "metadata", "creationTimestamp")
	owners, err := c.ownersOf(ctx, namespace, d.granted)
	if err != nil {
		return "", err
	}
	classes := c.live.Dynamic.Resource(class.Resource).Namespace(namespace)
	if found == nil {
		// A server-side apply would change a class that another client has just created,
		// and remove the owners that another replica has just added. Create fails instead.
		object.SetOwnerReferences(owners)
		_, err := classes.Create(ctx, object, metav1.CreateOptions{FieldManager: class.ManagedBy})
		return created, err
	}
	// The API server removes the owners that this apply omits. Owners without pods come last, and
	// are omitted if there are too many.
	held, others := 0, make([]metav1.OwnerReference, 0, len(found.Owners))
	key := types.NamespacedName{Namespace: namespace, Name: object.GetName()}
	for _, owner := range found.Owners {
		switch known := func(o metav1.OwnerReference) bool { return o.UID == owner.UID }; {
		case slices.ContainsFunc(owners, known), slices.ContainsFunc(others, known): // the API server accepts each UID once
		case c.claims.Held(key, []metav1.OwnerReference{owner}) > 0:
			others = slices.Insert(others, held, owner)
			held++
		default:
			others = append(others, owner)
		}
	}
	owners = append(owners, others...)
	owners = owners[:min(len(owners), maxOwners)]
	object.SetOwnerReferences(owners)
	object.SetResourceVersion(found.ResourceVersion)
	applied, err := classes.Apply(ctx, object.GetName(), object,
		metav1.ApplyOptions{FieldManager: class.ManagedBy, Force: true})
	if err != nil {
		return "", err
	}
	if !cluster.IsIntact(applied) { // an apply keeps the fields that others added to the spec
		applied.Object["spec"] = content["spec"]
		if _, err := classes.Update(ctx, applied, metav1.UpdateOptions{FieldManager: class.ManagedBy}); err != nil {
			return "", err
		}
	}
	if !found.Intact {
		return restored, nil
	}
	return owned, nil
}
