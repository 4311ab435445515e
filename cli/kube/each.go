package kube

import (
	"context"
	"fmt"
	"strconv"

	"github.com/go-json-experiment/json"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Each calls f for each object of a namespace, or with an empty namespace of all. It holds one page
// of objects in memory, and decodes only the fields of T, or with [jsontext.Value] nothing. The
// objects have no kind and no API version. The error is that of f, or a [*Denied] if the user may
// not list the objects.
func Each[T any](
	ctx context.Context, r *Reader, resource schema.GroupVersionResource, namespace string, f func(*T) error,
) error {
	segments := []string{"apis", resource.Group, resource.Version}
	if resource.Group == "" {
		segments = []string{"api", resource.Version}
	}
	if namespace != "" {
		segments = append(segments, "namespaces", namespace)
	}
	segments = append(segments, resource.Resource)
	for next := ""; ; {
		request := r.Discovery.RESTClient().Get().AbsPath(segments...).Param("limit", strconv.Itoa(pageSize))
		if next != "" {
			request.Param("continue", next)
		}
		text, err := request.SetHeader("Accept", runtime.ContentTypeJSON).DoRaw(ctx)
		if err != nil {
			denied := Denied{Verb: "list", Resource: resource.GroupResource(), Namespace: namespace}
			return r.readError(err, resource, denied)
		}
		var page struct {
			Metadata struct {
				Continue string `json:"continue"`
			} `json:"metadata"`
			Items []T `json:"items"`
		}
		if err := json.Unmarshal(text, &page); err != nil {
			return fmt.Errorf("read %s: %w", resource.Resource, err)
		}
		for i := range page.Items {
			if err := f(&page.Items[i]); err != nil {
				return err
			}
		}
		if next = page.Metadata.Continue; next == "" {
			return nil
		}
	}
}
