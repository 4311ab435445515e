// Package kube reads objects of a cluster for the commands that explain and check it. A read that
// the user may not do is a [*Denied], so that a command can name the missing right and go on.
//
//	r, err := kube.NewReader(config)
//	pod, err := kube.Read[corev1.Pod](ctx, r, kube.Pods, "shop", "web-0") // nil if it does not exist
//	if denied, ok := errors.AsType[*kube.Denied](err); ok { … }
//
// The package writes nothing to a cluster, and judges nothing.
package kube

import (
	"context"
	"fmt"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/dynamic"
	authorizationclient "k8s.io/client-go/kubernetes/typed/authorization/v1"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
)

// Resources that the commands read.
var (
	Pods            = resource("", "pods")
	Namespaces      = resource("", "namespaces")
	Nodes           = resource("", "nodes")
	Events          = resource("", "events")
	ServiceAccounts = resource("", "serviceaccounts")
	Secrets         = resource("", "secrets")

	Deployments  = resource("apps", "deployments")
	ReplicaSets  = resource("apps", "replicasets")
	StatefulSets = resource("apps", "statefulsets")
	DaemonSets   = resource("apps", "daemonsets")
	Jobs         = resource("batch", "jobs")
	CronJobs     = resource("batch", "cronjobs")

	MutatingConfigurations   = resource("admissionregistration.k8s.io", "mutatingwebhookconfigurations")
	ValidatingConfigurations = resource("admissionregistration.k8s.io", "validatingwebhookconfigurations")
	AccessReviews            = resource("authorization.k8s.io", "subjectaccessreviews")
	CSIDrivers               = resource("storage.k8s.io", "csidrivers")
	CSINodes                 = resource("storage.k8s.io", "csinodes")
	EndpointSlices           = resource("discovery.k8s.io", "endpointslices")

	Classes     = resource("secrets-store.csi.x-k8s.io", "secretproviderclasses")
	PodStatuses = resource("secrets-store.csi.x-k8s.io", "secretproviderclasspodstatuses")
	Bindings    = resource("aadpodidentity.k8s.io", "azureidentitybindings")
	Identities  = resource("aadpodidentity.k8s.io", "azureidentities")
)

func resource(group, plural string) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: group, Version: "v1", Resource: plural}
}

// Workloads are the kinds of workloads that create pods by themselves.
var Workloads = map[string]schema.GroupVersionResource{
	"Deployment": Deployments, "StatefulSet": StatefulSets, "DaemonSet": DaemonSets, "CronJob": CronJobs, "Job": Jobs,
}

// Denied is the error of a read for which the user has no right.
type Denied struct {
	// Verb is get, list or create.
	Verb string
	// Resource has no version.
	Resource schema.GroupResource
	// Namespace is empty for an object of the cluster, and for a list of all namespaces.
	Namespace string
	// Name is that of an object of the cluster; else empty.
	Name string
}

// Error names the missing right.
func (d *Denied) Error() string {
	where := "in all namespaces"
	switch {
	case d.Namespace != "":
		where = "in namespace " + d.Namespace
	case d.Name != "":
		where = d.Name
	}
	return fmt.Sprintf("you may not %s %s %s", d.Verb, d.Resource, where)
}

// Check returns the words of a command that shows whether the user has the right.
func (d *Denied) Check() []string {
	resource := d.Resource
	var subresource string // kubectl reads a slash as that before a name
	resource.Resource, subresource, _ = strings.Cut(resource.Resource, "/")
	what := resource.String()
	if d.Namespace == "" && d.Name != "" {
		what += "/" + d.Name
	}
	words := []string{"kubectl", "auth", "can-i", d.Verb, what}
	if subresource != "" {
		words = append(words, "--subresource", subresource)
	}
	switch {
	case d.Namespace != "":
		words = append(words, "--namespace", d.Namespace)
	case d.Name == "":
		words = append(words, "--all-namespaces")
	case d.Resource == Namespaces.GroupResource(): // rights in a namespace include the right to read it
		words = append(words, "--namespace", d.Name)
	}
	return words
}

// Reader reads a cluster. A kind that the API server does not have counts as a kind without objects,
// also for a user who may not read it.
type Reader struct {
	Dynamic       dynamic.Interface
	Metadata      metadata.Interface
	Discovery     discovery.DiscoveryInterface
	Authorization authorizationclient.AuthorizationV1Interface
}

// NewReader returns a Reader with its own clients.
func NewReader(config *rest.Config) (*Reader, error) {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("create an HTTP client: %w", err)
	}
	var r Reader
	if r.Dynamic, err = dynamic.NewForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	if r.Metadata, err = metadata.NewForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client of metadata: %w", err)
	}
	if r.Discovery, err = discovery.NewDiscoveryClientForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client of the API server's version: %w", err)
	}
	inJSON := rest.CopyConfig(config) // as the other clients
	inJSON.ContentType, inJSON.AcceptContentTypes = runtime.ContentTypeJSON, runtime.ContentTypeJSON
	if r.Authorization, err = authorizationclient.NewForConfigAndClient(inJSON, client); err != nil {
		return nil, fmt.Errorf("create a client of access reviews: %w", err)
	}
	return &r, nil
}

// Read returns an object, or nil if it does not exist. The namespace of an object of the cluster is
// empty. The error is a [*Denied] if the user may not get the object.
func Read[T any](
	ctx context.Context, r *Reader, resource schema.GroupVersionResource, namespace, name string,
) (*T, error) {
	object, err := r.Dynamic.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, r.readError(err, resource, deniedGet(resource, namespace, name))
	}
	return Decode[T](object)
}

func deniedGet(resource schema.GroupVersionResource, namespace, name string) Denied {
	if namespace != "" {
		name = ""
	}
	return Denied{Verb: "get", Resource: resource.GroupResource(), Namespace: namespace, Name: name}
}

// ReadMetadata is [Read] for the metadata of an object, such as that of a Secret, whose values it
// does not request.
func ReadMetadata(
	ctx context.Context, r *Reader, resource schema.GroupVersionResource, namespace, name string,
) (*metav1.PartialObjectMetadata, error) {
	object, err := r.Metadata.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, r.readError(err, resource, deniedGet(resource, namespace, name))
	}
	return object, nil
}

// List returns the objects of a namespace, or with an empty namespace those of all. The error is a
// [*Denied] if the user may not list them.
func List[T any](
	ctx context.Context, r *Reader, resource schema.GroupVersionResource, namespace string, o metav1.ListOptions,
) ([]T, error) {
	var all []T
	o.Limit = pageSize
	for {
		page, err := r.Dynamic.Resource(resource).Namespace(namespace).List(ctx, o)
		if err != nil {
			denied := Denied{Verb: "list", Resource: resource.GroupResource(), Namespace: namespace}
			return nil, r.readError(err, resource, denied)
		}
		for i := range page.Items {
			object, err := Decode[T](&page.Items[i])
			if err != nil {
				return nil, err
			}
			all = append(all, *object)
		}
		if o.Continue = page.GetContinue(); o.Continue == "" {
			return all, nil
		}
	}
}

// pageSize is the number of objects in one page of a list.
const pageSize = 500

// Decode converts an object.
func Decode[T any](object *unstructured.Unstructured) (*T, error) {
	if same, ok := any(object).(*T); ok {
		return same, nil
	}
	var typed T
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &typed); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", object.GetKind(), object.GetName(), err)
	}
	return &typed, nil
}

// readError returns nil if the object or its kind does not exist. The API server checks rights
// before it looks for the kind, so it answers Forbidden to a user without rights in both cases;
// discovery, which every user may read, tells them apart.
func (r *Reader) readError(err error, resource schema.GroupVersionResource, denied Denied) error {
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case !apierrors.IsForbidden(err):
		return fmt.Errorf("%s %s: %w", denied.Verb, denied.Resource, err)
	}
	if has, err := r.HasKind(resource); err == nil && !has {
		return nil
	}
	return &denied
}

// HasKind reports whether the API server has the kind of a resource.
func (r *Reader) HasKind(resource schema.GroupVersionResource) (bool, error) {
	list, err := r.Discovery.ServerResourcesForGroupVersion(resource.GroupVersion().String())
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("discover %s: %w", resource.GroupVersion(), err)
	}
	return slices.ContainsFunc(list.APIResources, func(known metav1.APIResource) bool {
		return known.Name == resource.Resource
	}), nil
}

// May reports whether the user has a right. It creates a SelfSubjectAccessReview, which every user
// may create, and which the API server does not store.
func (r *Reader) May(ctx context.Context, right authorizationv1.ResourceAttributes) (bool, error) {
	review := &authorizationv1.SelfSubjectAccessReview{
		Spec: authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &right},
	}
	review, err := r.Authorization.SelfSubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review access: %w", err)
	}
	return review.Status.Allowed, nil
}

// MayWriteSecrets reports whether a ServiceAccount may create Secrets in a namespace, as the driver
// must for its sync. It creates a SubjectAccessReview, which the API server does not store. The
// error is a [*Denied] if the user may not create such reviews.
func (r *Reader) MayWriteSecrets(ctx context.Context, account types.NamespacedName, namespace string) (bool, error) {
	review := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User:   "system:serviceaccount:" + account.Namespace + ":" + account.Name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:" + account.Namespace, "system:authenticated"},
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Verb: "create", Version: Secrets.Version, Resource: Secrets.Resource, Namespace: namespace,
		},
	}}
	review, err := r.Authorization.SubjectAccessReviews().Create(ctx, review, metav1.CreateOptions{})
	if err != nil {
		return false, r.readError(err, AccessReviews, Denied{Verb: "create", Resource: AccessReviews.GroupResource()})
	}
	return review.Status.Allowed, nil
}
