package claims

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/cluster/feed"
	"github.com/akv-injector/akv-injector/core/api"
)

// Pods that may mount managed classes: injected ones, but for those at their end, from where no pod comes back.
const (
	injected = api.Injected + "=true"
	unended  = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
)

// Follow feeds a table with the pods of a cluster. They are asked for whole, since what is needed of a pod's spec is not to be had with its
// metadata, and in the form that takes the least time to read.
func Follow(config *rest.Config, client *http.Client, table *Table) (*feed.Feed, error) {
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := corev1client.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("make a client of pods: %w", err)
	}
	table.get = func(ctx context.Context, p *Pod) (*corev1.Pod, error) {
		// No older than what the table knows, which the API server need not ask etcd for.
		return core.Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{ResourceVersion: p.ResourceVersion})
	}
	all := core.Pods(metav1.NamespaceAll)
	return feed.New(feed.Kind{
		Objects: "injected Pods",
		ListWatch: cache.ListWatch{
			ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
				options.LabelSelector, options.FieldSelector = injected, unended
				return all.List(ctx, options)
			},
			WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
				options.LabelSelector, options.FieldSelector = injected, unended
				return all.Watch(ctx, options)
			},
		},
		Client:  core,
		Example: &corev1.Pod{},
	}, table), nil
}
