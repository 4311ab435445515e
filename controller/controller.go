// Package controller makes the managed SecretProviderClasses that injected pods mount, and keeps them as they have to be while a pod
// mounts them. Nothing else in this program writes to a cluster but what serves its certificate.
//
// A class is made only for a pod that mounts it and whose annotations, in its namespace as it now is, amount to exactly that class: what a
// pod or its labels, status or volumes claim by themselves makes none. A class goes when its last owner does, by Kubernetes' own garbage
// collector; the controller deletes nothing.
//
// It knows nothing of reviews. Every replica runs it, without a leader: names are hashes of contents, so replicas can only agree.
package controller

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
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
	"github.com/akv-injector/akv-injector/cluster/feed"
	"github.com/akv-injector/akv-injector/controller/claims"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/review"
)

// name is the controller's in logs and metrics.
const name = "managed-classes"

const (
	// atOnce is how many classes are looked at at the same time. Writing one takes some milliseconds of waiting.
	atOnce = 16
	// patience is how long a deleted class stays so before it is put back. Whoever deletes a workload deletes the class a moment before its
	// pods; a new pod that mounts it does not wait for this.
	patience = 500 * time.Millisecond
	// firstRetry and lastRetry are how long a class that could not be kept is left alone: the first time, and at most.
	firstRetry, lastRetry = 250 * time.Millisecond, time.Minute
	// A pod that does not ask for its class is not asked again for the time of respite, and the API server not on its behalf for that of trust:
	// there may be thousands of its kind.
	respite, trust = time.Second, time.Minute
	// maxAsked is how many different pods are asked in one go, so that no class keeps others waiting.
	maxAsked = 10
	// conflicts is how often a class that others write to is read again in one go.
	conflicts = 5
	// A class gets owners, up to maxOwners, when fewer than minOwners of them have pods that mount it: thousands of pods may share a class, and each write
	// repeats all owners.
	minOwners, maxOwners = 8, 16
)

// Options say what the controller works with. Every field is needed.
type Options struct {
	// Live reads a class that another replica or somebody else has just written, and writes classes by its client.
	Live *cluster.Live
	// Cache is where the requests of pods are looked up.
	Cache *cluster.Cache
	// Defaults must be those of the webhook.
	Defaults inject.Defaults
	Log      logr.Logger
	Metrics  prometheus.Registerer
}

// controller keeps the managed classes.
type controller struct {
	live     *cluster.Live
	cache    *cluster.Cache
	reviewer review.Reviewer
	events   events.EventRecorder
	log      logr.Logger
	total    *prometheus.CounterVec

	claims    *claims.Table
	following *feed.Feed
	asking    singleflight.Group
	refused   *expiring.Expiring // a *refusal by *claims.Pod
	retries   workqueue.TypedRateLimiter[types.NamespacedName]
	// queue is nil until all is known that a decision needs.
	queue atomic.Pointer[workqueue.TypedRateLimitingInterface[types.NamespacedName]]
}

// AddTo adds the controller to a manager, which runs it beside whatever else it has.
func AddTo(mgr manager.Manager, o Options) error {
	c := &controller{
		live:     o.Live,
		cache:    o.Cache,
		reviewer: review.Reviewer{Source: o.Cache, Defaults: o.Defaults},
		events:   mgr.GetEventRecorder(class.ManagedBy),
		log:      o.Log,
		total:    newTotal(o.Metrics),
		refused:  expiring.NewExpiring(),
		retries:  workqueue.NewTypedItemExponentialFailureRateLimiter[types.NamespacedName](firstRetry, lastRetry),
	}
	var err error
	c.claims = claims.NewTable(c.look)
	if c.following, err = claims.Follow(mgr.GetConfig(), mgr.GetHTTPClient(), c.claims); err != nil {
		return err
	}
	c.following.Register(o.Metrics)
	c.cache.OnClass(c.classChanged)
	c.cache.OnNamespace(c.namespaceChanged)
	never := false
	keeper, err := ctrlcontroller.NewTyped(name, mgr, ctrlcontroller.TypedOptions[types.NamespacedName]{
		Reconciler:              c,
		MaxConcurrentReconciles: atOnce,
		NeedLeaderElection:      &never,
		LogConstructor:          func(*types.NamespacedName) logr.Logger { return o.Log },
	})
	if err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	if err := keeper.Watch(source.TypedFunc[types.NamespacedName](c.start)); err != nil {
		return fmt.Errorf("set up the controller: %w", err)
	}
	return nil
}

// start follows the cluster, and fills the queue once all is known.
func (c *controller) start(ctx context.Context, queue workqueue.TypedRateLimitingInterface[types.NamespacedName]) error {
	go c.following.Run(logr.NewContext(ctx, c.log))
	go func() {
		if c.cache.AwaitFilled(ctx) != nil {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-c.following.Filled():
		}
		c.queue.Store(&queue)
		classes := c.lookAtAll()
		c.log.Info("Following injected pods", "pods", c.claims.Pods(), "classes", classes)
	}()
	return nil
}

// look has a class looked at, at once unless it is in trouble already.
func (c *controller) look(key types.NamespacedName) {
	queue := c.queue.Load()
	switch {
	case queue == nil:
	case c.retries.NumRequeues(key) > 0:
		(*queue).AddAfter(key, firstRetry)
	default:
		(*queue).Add(key)
	}
}

// lookAtAll has every class looked at that a pod mounts, and counts them.
func (c *controller) lookAtAll() int {
	keys := c.claims.Classes()
	for _, key := range keys {
		c.look(key)
	}
	return len(keys)
}

// classChanged has a class looked at that came, changed or went; all of them where it has no name.
func (c *controller) classChanged(namespace, name string) {
	queue := c.queue.Load()
	switch {
	case queue == nil || (name != "" && !class.IsManagedName(name)):
	case name == "":
		c.lookAtAll()
	case c.cache.ManagedClass(namespace, name) == nil:
		(*queue).AddAfter(types.NamespacedName{Namespace: namespace, Name: name}, patience)
	default:
		(*queue).Add(types.NamespacedName{Namespace: namespace, Name: name})
	}
}

// namespaceChanged has the classes of a namespace looked at, whose label may have changed; all classes where it has no name.
func (c *controller) namespaceChanged(namespace string) {
	if c.queue.Load() == nil {
		return
	}
	for _, key := range c.claims.Classes() {
		if namespace == "" || key.Namespace == namespace {
			c.look(key)
		}
	}
}

// Reconcile implements reconcile.TypedReconciler: it sees to it that the class of that name is what the pods that mount it need.
func (c *controller) Reconcile(ctx context.Context, key types.NamespacedName) (reconcile.Result, error) {
	return reconcile.Result{RequeueAfter: c.attend(ctx, key)}, nil
}

// attend sees to a class, and says when to look again; 0 for not before something changes.
func (c *controller) attend(ctx context.Context, key types.NamespacedName) time.Duration {
	err := c.keep(ctx, key, c.cache.ManagedClass(key.Namespace, key.Name))
	for range conflicts {
		if !contested(err) {
			break
		}
		var found *cluster.ManagedClass
		if found, err = c.live.ManagedClass(ctx, key.Namespace, key.Name); err == nil {
			err = c.keep(ctx, key, found)
		}
	}
	switch {
	case err == nil, ctx.Err() != nil:
		c.retries.Forget(key)
		return 0
	case errors.Is(err, errMore):
		c.retries.Forget(key)
		return time.Millisecond
	case errors.Is(err, errPutOff):
	case c.retries.NumRequeues(key) == 0: // once is enough: it is tried again for as long as it takes
		c.log.Info("Class is not as its pods need it", "namespace", key.Namespace, "class", key.Name, "why", err.Error())
	}
	return c.retries.When(key)
}

// errPutOff says that there are pods that were not asked, and errMore that there are, and that of those which were, some asked for the class.
var (
	errPutOff = errors.New("put off")
	errMore   = errors.New("more")
)

// keep sees to it that the class of that name, which is there as found says or not at all, is what the pods that mount it need.
func (c *controller) keep(ctx context.Context, key types.NamespacedName, found *cluster.ManagedClass) error {
	var owners []metav1.OwnerReference
	held := 0
	if found != nil && found.Intact {
		if !found.Ours {
			return nil // somebody made exactly that class, and may keep it
		}
		owners = found.Owners
		if held = c.claims.Held(key, owners); held >= minOwners {
			return nil
		}
	}
	open := c.claims.Of(key, owners)
	if len(open) == 0 {
		return nil
	}
	switch namespace, err := c.cache.Namespace(ctx, key.Namespace, false); {
	case err != nil:
		return err
	case !namespace.OptedIn() && c.retries.NumRequeues(key) == 0:
		return errPutOff // the label of a new namespace may arrive after its pods
	case !namespace.OptedIn():
		if found == nil || found.Ours {
			c.tell(api.ClassOutdated, key, notesTo(open, key.Name, outdatedNote(key.Name, found, &inject.Result{NotOptedIn: true})))
			c.total.WithLabelValues(outdated).Inc()
		}
		return nil
	}
	d, err := c.derive(ctx, key, open, found, maxOwners-held)
	if err != nil {
		return err
	}
	if d.wanted == nil && found != nil && !found.Ours {
		d.outdated = nil // they have nothing to do with the injector
	}
	if d.wanted != nil {
		err = c.write(ctx, key, d, found)
	}
	if len(d.outdated) > 0 && !contested(err) {
		c.tell(api.ClassOutdated, key, d.outdated)
		c.total.WithLabelValues(outdated).Inc()
		if err == nil {
			err = errors.New(d.outdated[0].note)
		}
	}
	switch {
	case err != nil || !d.putOff:
		return err
	case d.wanted != nil:
		return errMore
	}
	return errPutOff
}

// contested reports whether a class was written by somebody else since it was read.
func contested(err error) bool {
	return apierrors.IsConflict(err) || apierrors.IsAlreadyExists(err)
}

// derivation is what the pods of some claims amount to.
type derivation struct {
	// wanted is the class that the pods of granted claims ask for; nil where no claim is.
	wanted  *class.SecretProviderClass
	granted []claims.Claim
	// outdated are pods of the other claims, as many as are told; those that were told a moment ago are put off.
	outdated []told
	putOff   bool
}

// derive works out anew what the pods ask for, and grants up to most claims. An owner may have the class if one of its pods asks for it.
func (c *controller) derive(ctx context.Context, key types.NamespacedName, open []claims.Claim, found *cluster.ManagedClass, most int) (*derivation, error) {
	var d derivation
	type question struct {
		claim claims.Claim
		pod   *claims.Pod
		last  *refusal
	}
	var first, again []question
	for _, claim := range open {
		for _, p := range claim.Pods {
			if last := c.lastRefusal(p, key.Name); last == nil {
				first = append(first, question{claim, p, nil})
			} else if time.Since(last.at) < respite {
				d.putOff = true
			} else {
				again = append(again, question{claim, p, last})
			}
		}
	}
	type answer struct {
		digest [sha256.Size]byte
		result *inject.Result
	}
	var answers []answer // to the different questions, of which there is seldom more than one
	for _, q := range append(first, again...) {
		if len(d.granted) == most {
			break
		}
		if d.grants(q.claim.Owner) {
			continue
		}
		at := slices.IndexFunc(answers, func(a answer) bool { return a.digest == q.pod.Digest })
		if at < 0 && len(answers) == maxAsked {
			d.putOff = true
			continue
		}
		if at < 0 {
			result, err := c.ask(ctx, q.pod, false)
			if err == nil && result.Class(key.Name) == nil && q.last == nil {
				result, err = c.ask(ctx, q.pod, true)
			}
			if errors.Is(err, claims.ErrChanged) {
				d.putOff = true
				continue
			}
			if err != nil {
				return nil, err
			}
			at = len(answers)
			answers = append(answers, answer{q.pod.Digest, result})
		}
		result := answers[at].result
		if wanted := result.Class(key.Name); wanted != nil {
			d.wanted, d.granted = wanted, append(d.granted, q.claim)
			continue
		}
		c.refuse(q.pod, result, q.last)
		if len(d.outdated) < maxTold && getsEvents(q.pod, key.Name) {
			d.outdated = append(d.outdated, told{q.pod, outdatedNote(key.Name, found, result)})
		}
	}
	// Where one of an owner's pods has the class for it, none of its others misses it.
	d.outdated = slices.DeleteFunc(d.outdated, func(t told) bool { return d.grants(t.pod.Owner) })
	return &d, nil
}

// grants reports whether an owner may have the class.
func (d *derivation) grants(owner metav1.OwnerReference) bool {
	return slices.ContainsFunc(d.granted, func(claim claims.Claim) bool { return claim.Owner == owner })
}

// ask works out which classes a pod asks for, once for all of them where they are looked at together.
func (c *controller) ask(ctx context.Context, p *claims.Pod, fresh bool) (*inject.Result, error) {
	answer, err, _ := c.asking.Do(fmt.Sprintf("%p %t", p, fresh), func() (any, error) {
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
	result, ok := answer.(*inject.Result)
	if !ok {
		return nil, fmt.Errorf("ask a pod: got %T", answer)
	}
	return result, nil
}

// refusal is that a pod did not ask for a class that it mounts.
type refusal struct {
	classes []string // that it asks for
	// at is when the pod was asked last, asked when the API server was on its behalf.
	at, asked time.Time
}

// lastRefusal is what is remembered of a pod that does not ask for the class of that name; nil where nothing is.
func (c *controller) lastRefusal(p *claims.Pod, name string) *refusal {
	remembered, ok := c.refused.Get(p)
	if !ok {
		return nil
	}
	last, ok := remembered.(*refusal)
	if !ok || slices.Contains(last.classes, name) {
		return nil
	}
	return last
}

// refuse remembers that a pod did not ask for a class.
func (c *controller) refuse(p *claims.Pod, result *inject.Result, last *refusal) {
	now := time.Now()
	r := &refusal{at: now, asked: now}
	if len(result.AllErrors()) == 0 {
		for _, spc := range result.Classes {
			r.classes = append(r.classes, spc.Name)
		}
	}
	if last != nil {
		r.asked = last.asked
	}
	c.refused.Set(p, r, trust-now.Sub(r.asked))
}

// write makes the class, or adds owners to it and puts its spec back.
func (c *controller) write(ctx context.Context, key types.NamespacedName, d *derivation, found *cluster.ManagedClass) error {
	if found != nil && !found.Ours {
		c.tell(api.ClassNameTaken, key, notesTo(d.granted, key.Name, takenNote(key.Name)))
		c.total.WithLabelValues(taken).Inc()
		return errors.New("somebody else made another class of that name")
	}
	result, err := c.apply(ctx, key.Namespace, d, found)
	switch {
	case err == nil:
		c.total.WithLabelValues(result).Inc()
		c.log.V(1).Info("Class written", "namespace", key.Namespace, "class", key.Name, "result", result)
		return nil
	case contested(err), ctx.Err() != nil:
		return err
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil // its pods go too
	}
	c.tell(api.ClassNotWritten, key, notesTo(d.granted, key.Name, notWrittenNote(key.Name, err)))
	c.total.WithLabelValues(failed).Inc()
	return fmt.Errorf("write: %w", err)
}

// ownersOf are the owners of claims, with the UIDs of revisions. A revision that does not exist is replaced by one of its pods.
func (c *controller) ownersOf(ctx context.Context, namespace string, granted []claims.Claim) ([]metav1.OwnerReference, error) {
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
		// A pod's author may write the UID of another object, and the API server takes each UID once.
		if !slices.ContainsFunc(owners, func(o metav1.OwnerReference) bool { return o.UID == owner.UID }) {
			owners = append(owners, owner)
		}
	}
	return owners, nil
}

var revisions = appsv1.SchemeGroupVersion.WithResource("controllerrevisions")

// apply writes the class to the API server, and says what came of it.
func (c *controller) apply(ctx context.Context, namespace string, d *derivation, found *cluster.ManagedClass) (result string, err error) {
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
		// An apply can't be told to make a class only where there is none: it would add to one that somebody else has just made, and take away
		// the owners that another replica has just given it.
		object.SetOwnerReferences(owners)
		_, err := classes.Create(ctx, object, metav1.CreateOptions{FieldManager: class.ManagedBy})
		return created, err
	}
	// The API server removes the owners that this apply leaves out. The ones without pods are last, and are left out if there are too many.
	held, others := 0, make([]metav1.OwnerReference, 0, len(found.Owners))
	for _, owner := range found.Owners {
		switch known := func(o metav1.OwnerReference) bool { return o.UID == owner.UID }; {
		case slices.ContainsFunc(owners, known), slices.ContainsFunc(others, known): // the API server takes each UID once
		case c.claims.Held(types.NamespacedName{Namespace: namespace, Name: object.GetName()}, []metav1.OwnerReference{owner}) > 0:
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
	applied, err := classes.Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: class.ManagedBy, Force: true})
	if err != nil {
		return "", err
	}
	if !cluster.IsIntact(applied) { // what others added to the spec, an apply leaves there
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
