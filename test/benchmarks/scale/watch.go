package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// classWatch records when the API server's watch reported each new class.
type classWatch struct {
	classes metadata.Getter

	mu      sync.Mutex
	created map[types.NamespacedName]time.Time
	err     error // why the watch has ended
}

// watchClasses watches the classes of all namespaces until ctx ends.
func watchClasses(ctx context.Context, cfg *rest.Config) (*classWatch, error) {
	// A separate connection, so that the creations of pods do not delay the events.
	cfg = rest.CopyConfig(cfg)
	cfg.Dial = (&net.Dialer{}).DialContext
	client, err := metadata.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	w := &classWatch{
		classes: client.Resource(class.GroupVersion.WithResource("secretproviderclasses")),
		created: map[types.NamespacedName]time.Time{},
	}
	there, err := w.classes.List(ctx, metav1.ListOptions{Limit: 1})
	if err != nil {
		return nil, fmt.Errorf("list the classes: %w", err)
	}
	go w.run(ctx, there.ResourceVersion)
	return w, nil
}

func (w *classWatch) run(ctx context.Context, version string) {
	for {
		var err error
		version, err = w.follow(ctx, version)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.err = fmt.Errorf("watch the classes: %w", err)
			return
		}
		progress("the API server has ended the watch of the classes: classes created meanwhile are counted as late")
	}
}

// follow watches from a version on. When the API server ends the watch, as it does with slow
// watchers, follow returns the last version that it has seen.
func (w *classWatch) follow(ctx context.Context, version string) (string, error) {
	events, err := w.classes.Watch(ctx, metav1.ListOptions{ResourceVersion: version})
	if err != nil {
		return version, err
	}
	defer events.Stop()
	for event := range events.ResultChan() {
		now := time.Now()
		object, ok := event.Object.(*metav1.PartialObjectMetadata)
		if !ok {
			return version, apierrors.FromObject(event.Object)
		}
		version = object.ResourceVersion
		if event.Type == watch.Added {
			w.mu.Lock()
			w.created[types.NamespacedName{Namespace: object.Namespace, Name: object.Name}] = now
			w.mu.Unlock()
		}
	}
	return version, nil
}

// await waits until the classes exist. It returns when each was created, in the order of keys.
func (w *classWatch) await(ctx context.Context, keys []types.NamespacedName) ([]time.Time, error) {
	times := make([]time.Time, 0, len(keys))
	err := process.Within(ctx, time.Minute, "the classes", func(context.Context) error {
		w.mu.Lock()
		defer w.mu.Unlock()
		for len(times) < len(keys) {
			key := keys[len(times)]
			at, ok := w.created[key]
			if !ok {
				return errors.Join(fmt.Errorf("%s does not exist, %d others do", key, len(w.created)), w.err)
			}
			times = append(times, at)
		}
		return nil
	})
	return times, err
}
