package claims

import (
	"context"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	corev1client "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// Selectors of the pods that may mount managed classes: injected pods that have not ended.
const (
	injected = api.Injected + "=true"
	running  = "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed)
)

// Follow returns a feed that writes the pods of a cluster to a table. It requests whole pods,
// because the table needs parts of a pod's spec, and as Protobuf, which takes the least time to
// decode.
func Follow(config *rest.Config, client *http.Client, table *Table) (*feed.Feed, error) {
	config = rest.CopyConfig(config)
	config.ContentType = runtime.ContentTypeProtobuf
	config.AcceptContentTypes = runtime.ContentTypeProtobuf + "," + runtime.ContentTypeJSON
	core, err := corev1client.NewForConfigAndClient(config, client)
	if err != nil {
		return nil, fmt.Errorf("create a client of pods: %w", err)
	}
	table.get = func(ctx context.Context, p *Claimant) (*corev1.Pod, error) {
		// A pod at least as new as the table's. The API server can answer this from its cache.
		return core.Pods(p.Namespace).Get(ctx, p.Name, metav1.GetOptions{ResourceVersion: p.ResourceVersion})
	}
	return feed.New(feed.Kind{
		Plural: "injected Pods",
		ListWatch: feed.ListWatch(core.Pods(metav1.NamespaceAll), func(options *metav1.ListOptions) {
			options.LabelSelector, options.FieldSelector = injected, running
		}),
		Client:  core,
		Example: &corev1.Pod{},
	}, table), nil
}
