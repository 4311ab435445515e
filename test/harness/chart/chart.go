// Package chart renders deploy/chart by Helm itself, and applies what comes out, for the tests of the chart and for those that
// need another rendering than the ones in deploy/kustomize.
//
// It knows nothing of what the chart renders.
package chart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"

	"github.com/akv-injector/akv-injector/test/harness/build"
)

// Name and Namespace are what a release is called, and where it is, unless somebody wants it otherwise.
const (
	Name      = "akv-injector"
	Namespace = Name + "-system"
)

// Options says how the chart is rendered. The zero value is fine.
type Options struct {
	// Helm is the program. Empty means that of the function Helm, of version 4.
	Helm string
	// Namespace is the release's. Empty means the constant.
	Namespace string
	// Values are those of a values file. Nil means that all have their defaults.
	Values map[string]any
}

// Helm returns the program of Helm 3 or 4, at the version that tools/helm pins. It is the one that make builds into the user's
// cache folder; where there is none it builds it, with a line on progress before and after. The go command must find this
// package's module: call it from a folder inside.
func Helm(ctx context.Context, major int, progress io.Writer) (string, error) {
	dir, err := tree(ctx)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "tools", "helm")
	module := fmt.Sprintf("helm.sh/helm/v%d", major)
	list := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module)
	list.Dir = dir
	version, err := output(list)
	if err != nil {
		return "", fmt.Errorf("find the version of Helm %d: %w", major, err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	name := "helm-" + strings.TrimSpace(version) + "-" + runtime.Version()
	program := filepath.Join(cache, "akv-injector", "tools", name)
	if _, err := os.Stat(program); err == nil {
		return program, nil
	}
	fmt.Fprintf(progress, "building %s (2 to 3 minutes on 2 cores) ...\n", name)
	start := time.Now()
	built := program + fmt.Sprintf(".%d", os.Getpid())
	if err := build.Program(ctx, dir, built, "-trimpath", "-ldflags=-s -w", module+"/cmd/helm"); err != nil {
		return "", err
	}
	if err := os.Rename(built, program); err != nil {
		return "", fmt.Errorf("keep %s: %w", name, err)
	}
	fmt.Fprintf(progress, "done in %s\n", time.Since(start).Round(time.Second))
	return program, nil
}

// Render returns what the chart renders, in Helm's order of installation. What Helm complains about is in the error.
func Render(ctx context.Context, opts Options) ([]*unstructured.Unstructured, error) {
	if opts.Namespace == "" {
		opts.Namespace = Namespace
	}
	if opts.Helm == "" {
		var err error
		if opts.Helm, err = Helm(ctx, 4, os.Stderr); err != nil {
			return nil, err
		}
	}
	folder, err := Folder(ctx)
	if err != nil {
		return nil, err
	}
	values, err := json.Marshal(opts.Values)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	// Helm 3 takes the cluster for one of 2020 unless its build says otherwise.
	cmd := exec.CommandContext(ctx, opts.Helm, "template", Name, folder, "--namespace", opts.Namespace, "--kube-version=1.37", "--values=-")
	cmd.Stdin = bytes.NewReader(values)
	rendered, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	return Decode(strings.NewReader(rendered))
}

// Folder is that of the chart.
func Folder(ctx context.Context) (string, error) {
	root, err := tree(ctx)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "deploy", "chart"), nil
}

// Decode reads manifests.
func Decode(manifests io.Reader) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	for decoder := yaml.NewYAMLOrJSONDecoder(manifests, 4096); ; {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return objects, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode manifests: %w", err)
		}
		objects = append(objects, object)
	}
}

// Apply applies objects by server-side apply, in their order, and returns what the API server made of each. It refuses fields
// that a kind doesn't have.
func Apply(ctx context.Context, cfg *rest.Config, objects []*unstructured.Unstructured, opts metav1.PatchOptions) ([]*unstructured.Unstructured, error) {
	opts.FieldManager, opts.FieldValidation = Name+"-test", metav1.FieldValidationStrict
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	groups, err := restmapper.GetAPIGroupResources(kinds)
	if err != nil {
		return nil, fmt.Errorf("find the cluster's kinds: %w", err)
	}
	mapper := restmapper.NewDiscoveryRESTMapper(groups)
	applied := make([]*unstructured.Unstructured, len(objects))
	for i, object := range objects {
		kind := object.GroupVersionKind()
		mapping, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err != nil {
			return nil, fmt.Errorf("apply %s %s: %w", kind.Kind, object.GetName(), err)
		}
		resource := dynamic.ResourceInterface(client.Resource(mapping.Resource))
		if mapping.Scope.Name() == meta.RESTScopeNameNamespace {
			resource = client.Resource(mapping.Resource).Namespace(object.GetNamespace())
		}
		document, err := object.MarshalJSON()
		if err == nil {
			applied[i], err = resource.Patch(ctx, object.GetName(), types.ApplyPatchType, document, opts)
		}
		if err != nil {
			return nil, fmt.Errorf("apply %s %s: %w", kind.Kind, object.GetName(), err)
		}
	}
	return applied, nil
}

// tree is the folder of the injector's own module.
func tree(ctx context.Context) (string, error) {
	dir, err := output(exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}", "github.com/akv-injector/akv-injector"))
	if err != nil {
		return "", fmt.Errorf("find the chart: %w", err)
	}
	return strings.TrimSpace(dir), nil
}

// output returns what cmd prints, and puts what it complains about into the error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
