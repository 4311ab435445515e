package certs

import (
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/internal/feed"
)

// errUnread ends the error of synced before the API server first answers.
var errUnread = errors.New("has not been read yet")

// A watcher watches one object by its name.
type watcher struct {
	*feed.Feed

	what    string // kind and name, for errors
	name    types.NamespacedName
	objects *feed.Objects[metav1.Object]
}

// newWatcher returns a watcher that lists and watches by client, which belongs to set, and calls
// changed after each change. Example is an object of the kind.
//
// The field selector limits the requests to one name, so RBAC can limit the permission to it with
// resourceNames.
func newWatcher[L runtime.Object](
	what string,
	name types.NamespacedName,
	set kubernetes.Interface,
	client feed.Client[L],
	example metav1.Object,
	changed func(),
) *watcher {
	selector := fields.OneTermEqualSelector(metav1.ObjectNameField, name.Name).String()
	objects := feed.NewObjects[metav1.Object](changed)
	return &watcher{
		Feed: feed.New(feed.Kind{
			Plural:    what,
			ListWatch: feed.ListWatch(client, func(options *metav1.ListOptions) { options.FieldSelector = selector }),
			Client:    set,
			Example:   example,
		}, objects),
		what: what, name: name, objects: objects,
	}
}

// newSecretWatcher returns a watcher of a Secret.
func newSecretWatcher(name types.NamespacedName, set kubernetes.Interface, changed func()) *watcher {
	return newWatcher("Secret "+name.String(), name, set, set.CoreV1().Secrets(name.Namespace), &corev1.Secret{}, changed)
}

// synced returns why the object has not been read yet, or nil.
func (w *watcher) synced() error {
	if w.IsFilled() {
		return nil
	}
	if err := w.Err(); err != nil {
		return fmt.Errorf("%s could not be read; it needs get, list and watch on it: %w", w.what, err)
	}
	return fmt.Errorf("%s %w", w.what, errUnread)
}

// object returns the object, or nil while it does not exist.
func (w *watcher) object() metav1.Object {
	object, _ := w.objects.Find(w.name)
	return object
}
