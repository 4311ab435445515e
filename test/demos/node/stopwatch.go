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

// reports is the address to which a container sends what it has read. Pods can reach it.
var reports = net.JoinHostPort(controlplane.ServiceIP, "8425")

// milestones are the resources that are created between apply and secret. The driver creates a
// status when it has mounted a volume.
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

// stopwatch records when resources in a namespace are created, for one Deployment at a time.
type stopwatch struct {
	read chan report

	mu      sync.Mutex
	created map[string]time.Time
}

// report is what a container has read, and the time of its report.
type report struct {
	deployment, text string
	at               time.Time
}

// startStopwatch starts a stopwatch, which ends with ctx.
func startStopwatch(ctx context.Context, config *rest.Config, namespace string) (*stopwatch, error) {
	w := &stopwatch{read: make(chan report, 1), created: map[string]time.Time{}}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
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
		return nil, fmt.Errorf("listen for reports: %w", err)
	}
	server := &http.Server{Handler: w, ReadHeaderTimeout: patience}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	go func() { _ = server.Serve(listener) }() // ends when the server is closed
	return w, nil
}

// ServeHTTP receives a container's report.
func (w *stopwatch) ServeHTTP(_ http.ResponseWriter, request *http.Request) {
	at := time.Now()
	text, err := io.ReadAll(request.Body)
	if err != nil {
		text = []byte(err.Error())
	}
	w.read <- report{deployment: strings.TrimPrefix(request.URL.Path, "/"), text: string(text), at: at}
}

// note records the time of the first object of a resource.
func (w *stopwatch) note(resource string, at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.created[resource]; !ok {
		w.created[resource] = at
	}
}

// reset discards the recorded times, and a report that was not awaited.
func (w *stopwatch) reset() {
	select {
	case <-w.read:
	default:
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.created)
}

// saw returns an error unless an object of a resource was created.
func (w *stopwatch) saw(resource string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.created[resource]; !ok {
		return errors.New("none was created")
	}
	return nil
}

// since returns when the first object of each resource was created, relative to begin.
func (w *stopwatch) since(begin time.Time) map[string]time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	created := map[string]time.Duration{}
	for resource, at := range w.created {
		created[resource] = at.Sub(begin)
	}
	return created
}
