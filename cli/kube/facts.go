package kube

import (
	"context"
	"errors"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/facts"
)

// Facts are the objects that decisions about pods depend on, of one namespace or of all. A kind that
// the user may not read is in Denied, and has no objects.
type Facts struct {
	Namespaces, Classes, ServiceAccounts, Bindings []unstructured.Unstructured

	Denied []*Denied
}

// ReadFacts reads the facts of a namespace, or with an empty namespace those of all.
func ReadFacts(ctx context.Context, r *Reader, namespace string) (*Facts, error) {
	var f Facts
	kinds := []struct {
		resource schema.GroupVersionResource
		into     *[]unstructured.Unstructured
	}{{Namespaces, &f.Namespaces}, {Classes, &f.Classes}, {ServiceAccounts, &f.ServiceAccounts}, {Bindings, &f.Bindings}}
	if namespace != "" { // a user with rights in the namespace may get it, and not list all
		kinds = kinds[1:]
		object, err := Read[unstructured.Unstructured](ctx, r, Namespaces, "", namespace)
		if !f.denied(err) && err != nil {
			return nil, err
		}
		if object != nil {
			f.Namespaces = append(f.Namespaces, *object)
		}
	}
	for _, kind := range kinds {
		var err error
		*kind.into, err = List[unstructured.Unstructured](ctx, r, kind.resource, namespace, metav1.ListOptions{})
		if !f.denied(err) && err != nil {
			return nil, err
		}
	}
	return &f, nil
}

// denied reports whether err is the lack of a right, and keeps it.
func (f *Facts) denied(err error) bool {
	denied, ok := errors.AsType[*Denied](err)
	if ok {
		f.Denied = append(f.Denied, denied)
	}
	return ok
}

// AddTo adds the facts to objects. An invalid class is a fact, too.
func (f *Facts) AddTo(objects *facts.Objects) {
	for _, list := range [][]unstructured.Unstructured{f.Namespaces, f.Classes, f.ServiceAccounts, f.Bindings} {
		for i := range list {
			_ = objects.Add(&list[i], "")
		}
	}
}
