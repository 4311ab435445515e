package facts

import (
	"context"
	"net/http"
	"sync"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/feed"
	"github.com/akv-injector/akv-injector/webhook/inject"
)

// Cluster is a Source that follows a whole cluster, so that a review need not wait for the API server: it asks only with fresh, and
// as long as it is not Ready. SecretProviderClasses and AzureIdentityBindings come and go with their CustomResourceDefinitions,
// which may be missing.
//
// What it answers is shared by all callers, who must not change it.
type Cluster struct {
	live *Live
	log  logr.Logger

	namespaces      table[*inject.Namespace]
	serviceAccounts table[*inject.ServiceAccount]
	classes         table[existingClass]
	selectors       table[string]

	feeds []*feed.Feed // Ready once each of them is
	bells []*feed.Feed // tell of CustomResourceDefinitions
}

// NewCluster follows the cluster that live asks, from Start on.
func NewCluster(live *Live, log logr.Logger) *Cluster {
	c := &Cluster{live: live, log: log}
	c.namespaces.read = func(object metav1.Object) (*inject.Namespace, bool) { return namespaceOf(object), true }
	c.serviceAccounts.read = func(object metav1.Object) (*inject.ServiceAccount, bool) { return serviceAccount(object), true }
	c.classes.read = func(object metav1.Object) (existingClass, bool) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return existingClass{}, false
		}
		return existingClass{classOf(o), managedClassOf(o)}, true
	}
	c.selectors.read = func(object metav1.Object) (string, bool) {
		o, ok := object.(*unstructured.Unstructured)
		if !ok {
			return "", false
		}
		selector := bindingSelector(o)
		return selector, selector != ""
	}
	c.feeds = []*feed.Feed{
		c.followMetadata("Namespaces", namespaceResource, fields.Everything(), &c.namespaces),
		c.followMetadata("ServiceAccounts", serviceAccountResource, fields.Everything(), &c.serviceAccounts),
		c.followCustom("SecretProviderClasses", class.Resource, &c.classes),
		c.followCustom("AzureIdentityBindings", bindingResource, &c.selectors),
	}
	return c
}

// Register adds the feeds' gauges to a registry.
func (c *Cluster) Register(registry prometheus.Registerer) {
	for _, f := range c.feeds {
		f.Register(registry)
	}
}

// followMetadata feeds store with the metadata of a kind's objects.
func (c *Cluster) followMetadata(objects string, resource schema.GroupVersionResource, selector fields.Selector, store cache.TransformingStore) *feed.Feed {
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
	return feed.New(feed.Source{Objects: objects, ListWatch: source, Client: c.live.Metadata, Example: &metav1.PartialObjectMetadata{}}, store)
}

// followCustom feeds store with the objects of a kind that the cluster need not know. As it learns of it, objects are asked for at
// once; without a permission to see that, half a minute later at most.
func (c *Cluster) followCustom(objects string, resource schema.GroupVersionResource, store cache.TransformingStore) *feed.Feed {
	defined := newBell()
	name := resource.GroupResource().String()
	c.bells = append(c.bells, c.followMetadata("CustomResourceDefinition "+name, definitionResource, fields.OneTermEqualSelector("metadata.name", name), defined))

	client := c.live.Dynamic.Resource(resource)
	source := cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			return client.List(ctx, options)
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			return client.Watch(ctx, options)
		},
	}
	return feed.New(feed.Source{Objects: objects, ListWatch: source, Client: c.live.Dynamic, Example: &unstructured.Unstructured{}, Wake: defined}, store)
}

// Start implements controller-runtime's Runnable: it follows the cluster until ctx ends, through whatever trouble.
func (c *Cluster) Start(ctx context.Context) error {
	ctx = logr.NewContext(ctx, c.log)
	var running sync.WaitGroup
	for _, f := range c.feeds {
		running.Go(func() { f.Run(ctx) })
	}
	for _, f := range c.bells {
		running.Go(func() { f.Run(ctx) })
	}
	running.Wait()
	return nil
}

// NeedLeaderElection implements controller-runtime's LeaderElectionRunnable: every replica answers reviews.
func (c *Cluster) NeedLeaderElection() bool {
	return false
}

// Ready is a healthz.Checker. It says what was not read yet, and why. Once everything was, it stays ready: a fact that is out of
// date is asked for again before anything is refused for it.
func (c *Cluster) Ready(*http.Request) error {
	for _, f := range c.feeds {
		if err := f.Ready(); err != nil {
			return err
		}
	}
	return nil
}

// Namespace implements [Source].
func (c *Cluster) Namespace(ctx context.Context, name string, fresh bool) (inject.Namespace, error) {
	if fresh || c.Ready(nil) != nil {
		return c.live.Namespace(ctx, name, fresh)
	}
	if namespace, ok := c.namespaces.in("").find(name); ok {
		return *namespace, nil
	}
	return inject.Namespace{}, nil
}

// Facts implements [Source].
func (c *Cluster) Facts(ctx context.Context, namespace string, needs inject.Needs, fresh bool) (inject.Facts, error) {
	if fresh || c.Ready(nil) != nil {
		return c.live.Facts(ctx, namespace, needs, fresh)
	}
	classes, serviceAccounts, selectors := c.classes.in(namespace), c.serviceAccounts.in(namespace), c.selectors.in(namespace)
	facts := inject.Facts{
		Bound: binds(selectors.values, needs.Selector),
		Available: inject.Available{
			Classes:         classes.names,
			ServiceAccounts: serviceAccounts.names,
			Selectors:       selectors.values,
		},
	}
	if len(needs.Classes) > 0 {
		facts.Classes = make([]*class.Class, 0, len(needs.Classes))
	}
	for _, name := range needs.Classes {
		if found, ok := classes.find(name); ok {
			facts.Classes = append(facts.Classes, found.Class)
		}
	}
	if needs.Identities {
		facts.Available.Clients = clients(serviceAccounts.values)
	}
	facts.ServiceAccount, _ = serviceAccounts.find(needs.ServiceAccount)
	facts.NamedServiceAccount, _ = serviceAccounts.find(needs.NamedServiceAccount)
	return facts, nil
}
