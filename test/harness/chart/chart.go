// Package chart renders deploy/chart with Helm and applies the result, for tests of the chart and
// for tests that need another rendering than those in deploy/kustomize.
//
//	objects, err := chart.Render(ctx, chart.Options{Values: map[string]any{"replicaCount": 1}})
//	applied, err := chart.Apply(ctx, plane.Config, objects, metav1.PatchOptions{})
//
// The package does not know what the chart renders.
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

// Name is the name of a release. Namespace is the default of Options.Namespace.
const (
	Name      = "akv-injector"
	Namespace = Name + "-system"
)

// Options are the options of [Render]. The zero value renders the chart's defaults.
type Options struct {
	// Helm is the path of the program. Empty means the result of the function [Helm] for version 4.
	Helm string
	// Namespace is the namespace of the release. Empty means the constant [Namespace].
	Namespace string
	// Values are the values, as in a values file. Nil means the defaults.
	Values map[string]any
}

// Helm returns the path of Helm 3 or 4, at the version that tools/helm pins. make builds the
// program into the user's cache folder. If it is missing there, Helm builds it, and prints a line
// to progress before and after. The current folder must be inside this package's module.
func Helm(ctx context.Context, major int, progress io.Writer) (string, error) {
	dir, err := build.ModuleFolder(ctx, build.Module)
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

// Render returns the objects that the chart renders, in Helm's order of installation. Errors
// contain what Helm prints.
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
	// Without the flag, Helm 3 assumes a cluster of 2020.
	cmd := exec.CommandContext(ctx, opts.Helm, "template", Name, folder, "--namespace", opts.Namespace, "--kube-version=1.37", "--values=-")
	cmd.Stdin = bytes.NewReader(values)
	rendered, err := output(cmd)
	if err != nil {
		return nil, fmt.Errorf("render the chart: %w", err)
	}
	return Decode(strings.NewReader(rendered))
}

// Folder returns the folder of the chart.
func Folder(ctx context.Context) (string, error) {
	root, err := build.ModuleFolder(ctx, build.Module)
	if err != nil {
		return "", err
	}
	return filepath.Join(root, "deploy", "chart"), nil
}

// Decode decodes manifests in YAML or JSON.
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

// Apply applies objects with server-side apply, in their order, and returns the objects as the API
// server has stored them. It rejects fields that a kind does not have.
func Apply(ctx context.Context, cfg *rest.Config, objects []*unstructured.Unstructured, opts metav1.PatchOptions) ([]*unstructured.Unstructured, error) {
	opts.FieldManager, opts.FieldValidation = Name+"-test", metav1.FieldValidationStrict
	client, err := dynamic.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	kinds, err := discovery.NewDiscoveryClientForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
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

// output returns the standard output of cmd. Errors contain its standard error.
func output(cmd *exec.Cmd) (string, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, bytes.TrimSpace(stderr.Bytes()))
	}
	return string(out), nil
}
