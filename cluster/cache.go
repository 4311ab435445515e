package cluster

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/cluster/feed"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// Cache is a Source that watches a whole cluster, so that a review need not wait for the API server: it sends requests only with fresh, and
// while a kind can't be watched. SecretProviderClasses and AzureIdentityBindings come and go with their CustomResourceDefinitions,
// which may be missing. When the API server does not answer any more, the Cluster returns errors instead of facts that may be out of date.
//
// What it answers is shared by all callers, which must not change it.
type Cache struct {
	live *Live
	log  logr.Logger

	namespaces      table[*facts.Namespace]
	serviceAccounts table[*facts.ServiceAccount]
	classes         table[existingClass]
	selectors       table[string]

	feeds     []*feed.Feed // Ready once each of them is
	classFeed *feed.Feed
	bells     []*feed.Feed // tell of CustomResourceDefinitions

	limits limits
	// answered is when the latest request began that the API server answered; nil before the first.
	answered atomic.Pointer[time.Time]
}

// limits are how long the Cluster waits for what.
type limits struct {
	// probe is how often the API server is asked whether it answers.
	probe time.Duration
	// age is how old an answer may be on which facts rest. A probe that is under way when it is exceeded may take as long as an interval.
	age time.Duration
	// failing is how long the objects of a kind can be watched no more before they are read one by one instead.
	failing time.Duration
	// label is how long a review waits for the label of a namespace that has none of the injector's. The API server, which does not send
	// reviews of such namespaces, has seen the label already.
	label time.Duration
}

var clusterLimits = limits{probe: 5 * time.Second, age: 25 * time.Second, failing: 20 * time.Second, label: time.Second}

// NewCache follows the cluster that live asks, from Start on. Requests that reviews cause are shared and limited.
func NewCache(live *Live, log logr.Logger) *Cache {
	c := &Cache{live: &Live{Metadata: live.Metadata, Dynamic: live.Dynamic, raw: live.raw, reads: newReads()}, log: log, limits: clusterLimits}
	c.namespaces.read = func(object metav1.Object) (*facts.Namespace, bool) { return facts.ReadNamespace(object), true }
	c.serviceAccounts.read = func(object metav1.Object) (*facts.ServiceAccount, bool) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return nil, false
		}
		return facts.ReadServiceAccount(o), true
	}
	c.classes.read = func(object metav1.Object) (existingClass, bool) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return existingClass{}, false
		}
		read, _ := facts.ReadClass(o) // the API server accepts no class that cannot be decoded
		return existingClass{read, managedClassOf(o)}, true
	}
	c.selectors.read = func(object metav1.Object) (string, bool) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return "", false
		}
		selector := facts.ReadSelector(o)
		return selector, selector != ""
	}
	c.classFeed = c.followCustom("SecretProviderClasses", class.Resource, &c.classes)
	c.feeds = []*feed.Feed{
		c.followMetadata("Namespaces", namespaceResource, fields.Everything(), &c.namespaces),
		c.follow("ServiceAccounts", serviceAccountResource, nil, &c.serviceAccounts),
		c.classFeed,
		c.followCustom("AzureIdentityBindings", facts.BindingResource, &c.selectors),
	}
	return c
}

// Register adds the gauges of the Cluster to a registry.
func (c *Cache) Register(registry prometheus.Registerer) {
	for _, f := range c.feeds {
		f.Register(registry)
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "akv_injector_facts_age_seconds",
		Help: "Seconds since the API server last answered a probe. Beyond 25, reviews end with an error.",
	}, func() float64 { return c.age().Seconds() }))
}

// followMetadata feeds store with the metadata of a kind's objects.
func (c *Cache) followMetadata(objects string, resource schema.GroupVersionResource, selector fields.Selector, store cache.TransformingStore) *feed.Feed {
	client := c.live.Metadata.Resource(resource)
	source := cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			options.FieldSelector = selector.String()
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.FieldSelector = selector.String()
			return client.Watch(ctx, options)
		},
	}
	return feed.New(feed.Kind{Objects: objects, ListWatch: source, Client: c.live.Metadata, Example: &metav1.PartialObjectMetadata{}}, store)
}

// followCustom feeds store with the objects of a kind that the cluster need not know. As it learns of it, objects are asked for at
// once; without a permission to see that, half a minute later at most.
func (c *Cache) followCustom(objects string, resource schema.GroupVersionResource, store cache.TransformingStore) *feed.Feed {
	defined := newBell()
	name := resource.GroupResource().String()
	c.bells = append(c.bells, c.followMetadata("CustomResourceDefinition "+name, definitionResource, fields.OneTermEqualSelector("metadata.name", name), defined))
	return c.follow(objects, resource, defined, store)
}

// follow feeds store with the objects of a kind. Wake is nil for a kind that every cluster knows.
func (c *Cache) follow(objects string, resource schema.GroupVersionResource, wake <-chan struct{}, store cache.TransformingStore) *feed.Feed {
	client := c.live.Dynamic.Resource(resource)
	source := cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, options)
		},
	}
	return feed.New(feed.Kind{Objects: objects, ListWatch: source, Client: c.live.Dynamic, Example: &unstructured.Unstructured{}, Wake: wake}, store)
}

// Start implements controller-runtime's Runnable: it follows the cluster until ctx ends, through whatever trouble.
func (c *Cache) Start(ctx context.Context) error {
	ctx = logr.NewContext(ctx, c.log)
	var running sync.WaitGroup
	for _, f := range c.feeds {
		running.Go(func() { f.Run(ctx) })
	}
	for _, f := range c.bells {
		running.Go(func() { f.Run(ctx) })
	}
	running.Go(func() { c.probe(ctx) })
	running.Wait()
	return nil
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable: every replica answers reviews.
func (c *Cache) NeedLeaderElection() bool {
	return false
}

// probe asks the API server at intervals whether it answers. A watch that is quiet looks the same as one that is dead.
func (c *Cache) probe(ctx context.Context) {
	started := time.Now()
	c.answered.CompareAndSwap(nil, &started)
	ticker := time.NewTicker(c.limits.probe)
	defer ticker.Stop()
	for failed := false; ; {
		start := time.Now()
		limited, cancel := context.WithTimeout(ctx, c.limits.probe)
		_, err := c.live.Metadata.Resource(namespaceResource).Get(limited, metav1.NamespaceSystem, metav1.GetOptions{})
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err == nil, apierrors.IsNotFound(err), apierrors.IsForbidden(err):
			c.answered.Store(&start)
			if failed {
				c.log.Info("The API server answers again")
			}
			failed = false
		case !failed:
			c.log.Error(err, "The API server does not answer")
			failed = true
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// age is how long ago the API server was last known to answer; since the start where it never did.
func (c *Cache) age() time.Duration {
	if answered := c.answered.Load(); answered != nil {
		return time.Since(*answered)
	}
	return 0
}

// fresh is an error where facts may be too old to rest a verdict on.
func (c *Cache) fresh() error {
	if age := c.age(); age > c.limits.age {
		return fmt.Errorf("the API server has not answered for %.0f s, so the facts about the cluster may be out of date", age.Seconds())
	}
	return nil
}

// Ready is a healthz.Checker. It says what was not read yet, and why, or that the API server does not answer any more.
func (c *Cache) Ready(*http.Request) error {
	for _, f := range c.feeds {
		if err := f.Ready(); err != nil {
			return err
		}
	}
	return c.fresh()
}

// watched reports whether the tables hold what the cluster does.
func (c *Cache) watched() bool {
	for _, f := range c.feeds {
		if f.Ready() != nil || f.Failing() > c.limits.failing {
			return false
		}
	}
	return true
}

// Namespace implements [Source].
func (c *Cache) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	if err := c.fresh(); err != nil {
		return facts.Namespace{}, err
	}
	if !c.watched() {
		return c.live.Namespace(ctx, name, fresh)
	}
	known, ok := c.namespaces.in("").find(name)
	switch {
	case fresh && (!ok || !api.Governed(known.Labels)):
		return c.labelled(ctx, name)
	case fresh:
		return c.live.Namespace(ctx, name, fresh)
	case !ok:
		return facts.Namespace{}, nil
	}
	return *known, nil
}

// labelled waits for a namespace to have one of the injector's labels. It asks nothing of the API server, so that reviews of namespaces that
// did not opt in, which anyone can make up, cause no requests.
func (c *Cache) labelled(ctx context.Context, name string) (facts.Namespace, error) {
	timeout := time.NewTimer(c.limits.label)
	defer timeout.Stop()
	for {
		next := c.namespaces.next()
		known, ok := c.namespaces.in("").find(name)
		if ok && api.Governed(known.Labels) {
			return *known, nil
		}
		select {
		case <-next:
		case <-timeout.C:
			if ok {
				return *known, nil
			}
			return facts.Namespace{}, nil
		case <-ctx.Done():
			return facts.Namespace{}, ctx.Err()
		}
	}
}

// Facts implements [Source].
func (c *Cache) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	if err := c.fresh(); err != nil {
		return facts.Answer{}, err
	}
	classes, serviceAccounts, selectors := c.classes.in(namespace), c.serviceAccounts.in(namespace), c.selectors.in(namespace)
	available := facts.Available{
		Classes:         classes.names,
		ServiceAccounts: serviceAccounts.names,
		Selectors:       selectors.values,
		NoDriver:        c.classFeed.Absent(),
	}
	if needs.Identities || fresh {
		available.Clients = facts.Clients(serviceAccounts.values)
	}
	if fresh || !c.watched() {
		answer, err := c.live.needed(ctx, namespace, needs)
		if answer.Available.Selectors != nil {
			available.Selectors = answer.Available.Selectors
		}
		answer.Available = available // names are only offered, so they may be a moment old
		return answer, err
	}
	answer := facts.Answer{Bound: facts.Binds(selectors.values, needs.Selector), Available: available}
	if len(needs.Classes) > 0 {
		answer.Classes = make([]*class.Class, 0, len(needs.Classes))
	}
	for _, name := range needs.Classes {
		if found, ok := classes.find(name); ok {
			answer.Classes = append(answer.Classes, found.Class)
		}
	}
	answer.ServiceAccount, _ = serviceAccounts.find(needs.ServiceAccount)
	answer.NamedServiceAccount, _ = serviceAccounts.find(needs.NamedServiceAccount)
	return answer, nil
}
