// Command flux does with one manifest what Flux's kustomize-controller does in a reconciliation: it
// compares the manifest with the object in the cluster by a dry run, and applies it if necessary.
// It prints the result that Flux reports.
//
//	flux KUBECONFIG NAMESPACE FILE
package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/fluxcd/pkg/ssa"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	log.SetLogger(logr.Discard())
	entry, err := reconcile(ctx, os.Args[1], os.Args[2], os.Args[3])
	if err != nil {
		fmt.Fprintln(os.Stderr, "flux:", err)
		os.Exit(1)
	}
	fmt.Println(entry)
}

func reconcile(ctx context.Context, kubeconfig, namespace, file string) (*ssa.ChangeSetEntry, error) {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, err
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &object.Object); err != nil {
		return nil, err
	}
	object.SetNamespace(namespace)
	c, err := client.New(config, client.Options{})
	if err != nil {
		return nil, err
	}
	manager := ssa.NewResourceManager(c, nil, ssa.Owner{Field: "kustomize-controller", Group: "kustomize.toolkit.fluxcd.io"})
	options := ssa.DefaultApplyOptions()
	options.Cleanup = ssa.ApplyCleanupOptions{ // Flux takes over the fields that kubectl owns
		Annotations:   []string{"kubectl.kubernetes.io/last-applied-configuration"},
		FieldManagers: []ssa.FieldManager{{Name: "kubectl", OperationType: "Apply"}, {Name: "kubectl", OperationType: "Update"}, {Name: "before-first-apply", OperationType: "Update"}},
	}
	return manager.Apply(ctx, object, options)
}
