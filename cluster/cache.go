// Package cluster reads the facts for reviews from a cluster. It has two implementations of
// [facts.Source]: [Cache] watches the whole cluster and answers from memory, and [Live] reads the
// API server.
//
//	live, err := cluster.NewLive(config)
//	cached := cluster.NewCache(live, log)
//	go cached.Start(ctx)
//	reviewer := review.Reviewer{Source: cached, Defaults: defaults}
//
// The package does not decide anything about pods, and does not write to the cluster. Package
// controller writes classes with the client [Live.Dynamic].
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
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// Cache is a [facts.Source] that watches a whole cluster, so that reviews do not wait for the API
// server. It sends requests only if fresh is set, and while a kind cannot be watched. The
// CustomResourceDefinitions of SecretProviderClasses and AzureIdentityBindings may be missing, and
// may be created or deleted at any time.
//
// If the API server has not answered for 25 s, lookups return an error, because the facts may be
// out of date. All callers share the returned values and must not change them.
type Cache struct {
	live *Live
	log  logr.Logger

	namespaces      table[*facts.Namespace]
	serviceAccounts table[*facts.ServiceAccount]
	classes         table[existingClass]
	selectors       table[string]

	feeds           []*feed.Feed // Ready waits for each of them
	hasNoDriver     func() bool
	definitionFeeds []*feed.Feed // of CustomResourceDefinitions; Ready does not wait for them

	limits limits
	// answered is the start of the latest probe that the API server answered; nil before the first.
	answered atomic.Pointer[time.Time]
}

// limits are the intervals and timeouts of a Cache.
type limits struct {
	// probe is the interval between probes of the API server, and the timeout of a probe.
	probe time.Duration
	// age is the time after the latest answered probe for which lookups use the tables.
	age time.Duration
	// failing is the time for which a kind cannot be watched before lookups read single objects
	// instead.
	failing time.Duration
	// label is how long a review waits for the label of a namespace that has none of the injector's
	// labels. The API server sends no reviews of such namespaces, so it has the label already.
	label time.Duration
}

var cacheLimits = limits{probe: 5 * time.Second, age: 25 * time.Second, failing: 20 * time.Second, label: time.Second}

// NewCache returns a Cache of the cluster that live reads. It is empty until Start runs. It has its
// own Live, which shares and limits the requests that reviews cause.
func NewCache(live *Live, log logr.Logger) *Cache {
	own := &Live{Metadata: live.Metadata, Dynamic: live.Dynamic, Raw: live.Raw, EnvFiles: live.EnvFiles, reads: newReads()}
	c := &Cache{live: own, log: log, limits: cacheLimits}
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
	classes, hasNoDriver := c.followCustom("SecretProviderClasses", class.Resource, &c.classes)
	bindings, _ := c.followCustom("AzureIdentityBindings", facts.BindingResource, &c.selectors)
	c.hasNoDriver = hasNoDriver
	c.feeds = []*feed.Feed{
		c.followMetadata("Namespaces", namespaceResource, fields.Everything(), &c.namespaces),
		c.live.follow("ServiceAccounts", serviceAccountResource, nil, &c.serviceAccounts),
		classes,
		bindings,
	}
	return c
}

// Register adds the gauges of the Cache to a registry.
func (c *Cache) Register(registry prometheus.Registerer) {
	for _, f := range c.feeds {
		f.Register(registry)
	}
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "akv_injector_facts_age_seconds",
		Help: "Seconds since the API server last answered a probe. Beyond 25, reviews end with an error.",
	}, func() float64 { return c.age().Seconds() }))
}

// followMetadata returns a feed that writes the metadata of a kind's objects to store.
func (c *Cache) followMetadata(
	objects string, resource schema.GroupVersionResource, selector fields.Selector, store cache.TransformingStore,
) *feed.Feed {
	return feed.New(feed.Kind{
		Plural: objects,
		ListWatch: feed.ListWatch(c.live.Metadata.Resource(resource), func(options *metav1.ListOptions) {
			options.FieldSelector = selector.String()
		}),
		Client:  c.live.Metadata,
		Example: &metav1.PartialObjectMetadata{},
	}, store)
}

// followCustom returns a feed of a kind that the cluster may not have, and a function that reports
// whether the cluster does not have it. The feed lists the objects as soon as the
// CustomResourceDefinition is created; without the permission to watch that, at most half a minute
// later. Without the definition, the API server may end the watch of the objects some seconds later.
func (c *Cache) followCustom(
	objects string, resource schema.GroupVersionResource, store cache.TransformingStore,
) (f *feed.Feed, isAbsent func() bool) {
	defined := make(chan struct{}, 1)
	var definition *feed.Objects[*metav1.PartialObjectMetadata]
	definition = feed.NewObjects[*metav1.PartialObjectMetadata](func() {
		if len(definition.All()) == 0 {
			return
		}
		select {
		case defined <- struct{}{}:
		default: // the feed of the objects has not read the previous one yet
		}
	})
	name := resource.GroupResource().String()
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name)
	definitions := c.followMetadata("CustomResourceDefinition "+name, definitionResource, selector, definition)
	c.definitionFeeds = append(c.definitionFeeds, definitions)
	f = c.live.follow(objects, resource, defined, store)
	return f, func() bool { return f.Absent() || definitions.IsFilled() && len(definition.All()) == 0 }
}

// follow returns a feed that writes the objects of a kind to store. Wake is nil for a built-in
// kind.
func (l *Live) follow(
	objects string, resource schema.GroupVersionResource, wake <-chan struct{}, store cache.TransformingStore,
) *feed.Feed {
	return feed.New(feed.Kind{
		Plural:    objects,
		ListWatch: feed.ListWatch(l.Dynamic.Resource(resource), nil),
		Client:    l.Dynamic,
		Example:   &unstructured.Unstructured{},
		Wake:      wake,
	}, store)
}

// Start implements controller-runtime's Runnable. It watches the cluster until ctx ends, and
// retries after errors.
func (c *Cache) Start(ctx context.Context) error {
	ctx = logr.NewContext(ctx, c.log)
	var running sync.WaitGroup
	for _, f := range c.feeds {
		running.Go(func() { f.Run(ctx) })
	}
	for _, f := range c.definitionFeeds {
		running.Go(func() { f.Run(ctx) })
	}
	running.Go(func() { c.probe(ctx) })
	running.Wait()
	return nil
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable. It returns false:
// every replica answers reviews.
func (c *Cache) NeedLeaderElection() bool {
	return false
}

// probe checks at intervals whether the API server answers, because a watch without events looks
// like a broken one.
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

// age returns the time since the start of the latest answered probe, or since Start if there was
// none; 0 before Start.
func (c *Cache) age() time.Duration {
	if answered := c.answered.Load(); answered != nil {
		return time.Since(*answered)
	}
	return 0
}

// fresh returns an error if the facts may be too old for a verdict.
func (c *Cache) fresh() error {
	if age := c.age(); age > c.limits.age {
		return fmt.Errorf("the API server has not answered for %.0f s, so the facts about the cluster may be out of date",
			age.Seconds())
	}
	return nil
}

// Ready is a healthz.Checker. Its error says which objects have not been read yet and why, or that
// the API server has stopped answering.
func (c *Cache) Ready(*http.Request) error {
	for _, f := range c.feeds {
		if err := f.Ready(); err != nil {
			return err
		}
	}
	return c.fresh()
}

// watched reports whether the tables hold the cluster's objects.
func (c *Cache) watched() bool {
	for _, f := range c.feeds {
		if f.Ready() != nil || f.Failing() > c.limits.failing {
			return false
		}
	}
	return true
}

// Namespace implements [facts.Source].
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

// labelled waits until a namespace has one of the injector's labels, or until the timeout. It sends
// no requests: anyone can send reviews of namespaces that did not opt in.
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

// Facts implements [facts.Source].
func (c *Cache) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	if err := c.fresh(); err != nil {
		return facts.Answer{}, err
	}
	classes := c.classes.in(namespace)
	serviceAccounts := c.serviceAccounts.in(namespace)
	selectors := c.selectors.in(namespace)
	available := facts.Available{
		Classes:         classes.names,
		ServiceAccounts: serviceAccounts.names,
		Selectors:       selectors.values,
		NoDriver:        c.hasNoDriver(),
	}
	if needs.Identities || fresh {
		available.Clients = facts.ClientServiceAccounts(serviceAccounts.values)
	}
	if fresh || !c.watched() {
		answer, err := c.live.needed(ctx, namespace, needs)
		if answer.Available.Selectors != nil {
			available.Selectors = answer.Available.Selectors
		}
		answer.Available = available // messages only suggest these names, so they may be slightly old
		return answer, err
	}
	answer := facts.Answer{
		Bound: facts.Binds(selectors.values, needs.Selector), EnvFilesUnsupported: c.live.envFilesUnsupported(needs),
		Available: available,
	}
	if len(needs.Classes) > 0 {
		answer.Classes = make([]*class.Class, 0, len(needs.Classes))
	}
	if needs.Secret != "" {
		for _, c := range classes.values {
			if of, syncs := c.Syncs(needs.Secret); syncs {
				answer.Syncing = append(answer.Syncing, facts.Syncing{Class: c.Name, Type: of, Workloads: c.managed.workloads()})
			}
		}
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
