package injector

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/test/harness/build"
)

// Shipped reads one of the files in deploy/kustomize/self-signed, which are rendered from the
// chart, for example "mutating-webhook-configuration.yaml". If url is not empty, the webhooks call
// url instead of a Service, with the same paths. Shipped changes nothing else.
func Shipped(ctx context.Context, file, url string) ([]*unstructured.Unstructured, error) {
	root, err := build.ModuleFolder(ctx, build.Module)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(filepath.Join(root, "deploy", "kustomize", "self-signed", file))
	if err != nil {
		return nil, fmt.Errorf("read a shipped manifest: %w", err)
	}
	defer f.Close()
	var objects []*unstructured.Unstructured
	for decoder := yaml.NewYAMLOrJSONDecoder(f, 4096); ; {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err == nil && url != "" {
			err = callByURL(object, url)
		}
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		objects = append(objects, object)
	}
}

// callByURL makes the webhooks of a webhook configuration call url instead of a Service.
func callByURL(object *unstructured.Unstructured, url string) error {
	webhooks, found, err := unstructured.NestedSlice(object.Object, "webhooks")
	if err != nil || !found {
		return err
	}
	for _, w := range webhooks {
		webhook, ok := w.(map[string]any)
		if !ok {
			return fmt.Errorf("webhooks: must be objects, one is %T", w)
		}
		path, found, err := unstructured.NestedString(webhook, "clientConfig", "service", "path")
		if err != nil {
			return err
		}
		if !found {
			return fmt.Errorf("webhook %v: must call a Service by a path", webhook["name"])
		}
		webhook["clientConfig"] = map[string]any{"url": url + path}
	}
	return unstructured.SetNestedSlice(object.Object, webhooks, "webhooks")
}

// apply applies the shipped manifests that the injector needs. route changes how the API server
// reaches the webhooks.
func apply(ctx context.Context, cfg *rest.Config, route func(*unstructured.Unstructured) error) error {
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	for _, file := range []string{
		"../namespace/namespace.yaml", "rbac.yaml", "service-account-policy.yaml", "advice.yaml",
		"mutating-webhook-configuration.yaml", "validating-webhook-configuration.yaml",
	} {
		objects, err := Shipped(ctx, file, "")
		if err != nil {
			return err
		}
		for _, object := range objects {
			if err := route(object); err != nil {
				return fmt.Errorf("route %s: %w", file, err)
			}
			resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
			_, err := client.Resource(resource).Namespace(object.GetNamespace()).
				Apply(ctx, object.GetName(), object, metav1.ApplyOptions{FieldManager: name + "-test", Force: true})
			if err != nil {
				return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
			}
		}
	}
	return nil
}
