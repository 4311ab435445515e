package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

// reports is where a container tells what it has read: at an address that pods can reach.
var reports = net.JoinHostPort(controlplane.ServiceIP, "8425")

// milestones are the resources of what comes to be between apply and secret. The driver writes a status when it has mounted a volume.
var milestones = []schema.GroupVersionResource{
	{Group: "apps", Version: "v1", Resource: "deployments"},
	{Version: "v1", Resource: pods},
	{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: classes},
	{Group: "secrets-store.csi.x-k8s.io", Version: "v1", Resource: "secretproviderclasspodstatuses"},
	{Version: "v1", Resource: "secrets"},
}

const (
	pods    = "pods"
	classes = "secretproviderclasses"
)

// stopwatch knows when something happens in a namespace, of one Deployment after the other.
type stopwatch struct {
	read chan report

	mu      sync.Mutex
	created map[string]time.Time
}

// report is what a container has read, and when it said so.
type report struct {
	deployment, text string
	at               time.Time
}

// startStopwatch starts one, which ends with ctx.
func startStopwatch(ctx context.Context, config *rest.Config, namespace string) (*stopwatch, error) {
	w := &stopwatch{read: make(chan report, 1), created: map[string]time.Time{}}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	informers := dynamicinformer.NewFilteredDynamicSharedInformerFactory(client, 0, namespace, nil)
	for _, milestone := range milestones {
		note := func(any) { w.note(milestone.Resource, time.Now()) }
		if _, err := informers.ForResource(milestone).Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: note}); err != nil {
			return nil, fmt.Errorf("watch %s: %w", milestone.Resource, err)
		}
	}
	informers.Start(ctx.Done())
	informers.WaitForCacheSync(ctx.Done())

	listener, err := net.Listen("tcp", reports)
	if err != nil {
		return nil, fmt.Errorf("listen to containers: %w", err)
	}
	server := &http.Server{Handler: w, ReadHeaderTimeout: patience}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }() // ends when it is closed
	return w, nil
}

// ServeHTTP takes a container's report.
func (w *stopwatch) ServeHTTP(_ http.ResponseWriter, request *http.Request) {
	at := time.Now()
	text, err := io.ReadAll(request.Body)
	if err != nil {
		text = []byte(err.Error())
	}
	w.read <- report{deployment: strings.TrimPrefix(request.URL.Path, "/"), text: string(text), at: at}
}

// note notes the first of a resource.
func (w *stopwatch) note(resource string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.created[resource]; !ok {
		w.created[resource] = at
	}
}

// reset forgets what was created, and what a container has said that nobody waits for any more.
func (w *stopwatch) reset() {
	select {
	case <-w.read:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.created)
}

// saw is an error unless one of a resource was created.
func (w *stopwatch) saw(resource string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.created[resource]; !ok {
		return errors.New("none was created")
	}
	return nil
}

// since is when the first of each resource was created, as of a time.
func (w *stopwatch) since(begin time.Time) map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	created := map[string]time.Duration{}
	for resource, at := range w.created {
		created[resource] = at.Sub(begin)
	}
	return created
}
