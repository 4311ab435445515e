// Package snapshot writes what lint needs to know of the namespaces of a cluster to a file, so that
// a user without rights to these objects can lint:
//
//	err := snapshot.Write(ctx, reader, []string{"shop"}, os.Stdout)
//
// The file has Namespaces, ServiceAccounts, SecretProviderClasses and AzureIdentityBindings as
// manifests, with only the fields that decisions depend on. It has no secret: the package reads no
// Secrets.
package snapshot

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// Write writes the objects of namespaces; of all namespaces if there are none in the list. Of a
// namespace that has no label or annotation of the injector, it then writes only the Namespace. The
// text depends only on the objects. It returns an error, and writes nothing, if a namespace does not
// exist or an object cannot be read: the error is a [*kube.Denied] if the user lacks a right.
func Write(ctx context.Context, r *kube.Reader, namespaces []string, w io.Writer) error {
	objects, err := read(ctx, r, namespaces)
	if err != nil {
		return err
	}
	of := "all namespaces"
	if len(namespaces) > 0 {
		of = "namespaces " + strings.Join(namespaces, ", ")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# What akv-injector lint --facts needs to know of %s, written by akv-injector facts.\n"+
		"# There are no secrets in this file.\n", of)
	for i := range objects {
		text, err := yaml.Marshal(objects[i].Object)
		if err != nil {
			return fmt.Errorf("print %s %s: %w", objects[i].GetKind(), objects[i].GetName(), err)
		}
		b.WriteString("---\n")
		b.Write(text)
	}
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("write facts: %w", err)
	}
	return nil
}

// kinds are the kinds that are written, apart from Namespaces. Managed classes are left
// out: no request names one.
var kinds = []struct {
	resource schema.GroupVersionResource
	options  metav1.ListOptions
}{
	{kube.ServiceAccounts, metav1.ListOptions{}},
	{class.Resource, metav1.ListOptions{LabelSelector: class.ManagedByLabel + "!=" + class.ManagedBy}},
	{facts.BindingResource, metav1.ListOptions{}},
}

// read returns the reduced objects of namespaces, sorted by namespace.
func read(ctx context.Context, r *kube.Reader, names []string) ([]*unstructured.Unstructured, error) {
	var objects []*unstructured.Unstructured
	lists := names // of objects in namespaces
	wanted := map[string]bool{}
	add := func(found []unstructured.Unstructured) {
		for i := range found {
			if namespace := found[i].GetNamespace(); namespace == "" || wanted[namespace] {
				objects = append(objects, facts.Reduce(&found[i]))
			}
		}
	}
	if len(names) == 0 {
		found, err := kube.List[unstructured.Unstructured](ctx, r, kube.Namespaces, "", metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		add(found)
		for i := range found {
			ours := facts.ReadNamespace(&found[i])
			wanted[ours.Name] = len(ours.Labels)+len(ours.Annotations) > 0
		}
		lists = []string{metav1.NamespaceAll}
	}
	for _, name := range names {
		namespace, err := kube.Read[unstructured.Unstructured](ctx, r, kube.Namespaces, "", name)
		if err != nil {
			return nil, err
		}
		if namespace == nil {
			return nil, fmt.Errorf("namespace %s does not exist", name)
		}
		wanted[name] = true
		add([]unstructured.Unstructured{*namespace})
	}
	for _, kind := range kinds {
		for _, namespace := range lists {
			found, err := kube.List[unstructured.Unstructured](ctx, r, kind.resource, namespace, kind.options)
			if err != nil {
				return nil, err
			}
			add(found)
		}
	}
	slices.SortStableFunc(objects, func(a, b *unstructured.Unstructured) int {
		return cmp.Or(strings.Compare(namespaceOf(a), namespaceOf(b)),
			slices.Index(order, a.GetKind())-slices.Index(order, b.GetKind()), strings.Compare(a.GetName(), b.GetName()))
	})
	return objects, nil
}

// order is the order of the kinds in a namespace.
var order = []string{"Namespace", "ServiceAccount", class.Kind, "AzureIdentityBinding"}

// namespaceOf returns the namespace of an object, and for a Namespace its name.
func namespaceOf(object *unstructured.Unstructured) string {
	return cmp.Or(object.GetNamespace(), object.GetName())
}
