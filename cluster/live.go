package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// Resources of the objects with facts, and of the CustomResourceDefinitions of such objects.
var (
	namespaceResource      = schema.GroupVersionResource{Version: "v1", Resource: "namespaces"}
	nodeResource           = schema.GroupVersionResource{Version: "v1", Resource: "nodes"}
	serviceAccountResource = schema.GroupVersionResource{Version: "v1", Resource: "serviceaccounts"}
	definitionResource     = schema.GroupVersionResource{
		Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions",
	}
)

const (
	// maxNames is the number of names of a kind that are read to suggest them in errors.
	maxNames = 500
	// pageSize is the number of objects in one page of a list. The API server holds a page in
	// memory.
	pageSize = 20
)

// Live is a [facts.Source] that reads the API server at every lookup. An object or a kind that does
// not exist is not an error; every other failed request is.
type Live struct {
	// Metadata reads the metadata of objects. Dynamic reads whole objects; package controller
	// also writes classes with it.
	Metadata metadata.Interface
	Dynamic  dynamic.Interface
	// Raw reads objects as a stream of JSON. Its paths are absolute.
	Raw rest.Interface
	// EnvFiles returns why the cluster does not support env vars from files; see
	// [EnvFiles.Unsupported]. If it is nil, the cluster supports them. A [Cache] takes it over.
	EnvFiles func() string

	reads *reads // nil if requests are not shared
}

// NewLive returns a Live with its own clients. They ignore the rate limits of config: reviews wait
// for their answers, and the API server has limits itself.
func NewLive(config *rest.Config) (*Live, error) {
	config = rest.CopyConfig(config)
	config.QPS, config.RateLimiter = -1, nil
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return nil, fmt.Errorf("create an HTTP client: %w", err)
	}
	var l Live
	if l.Metadata, err = metadata.NewForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client of metadata: %w", err)
	}
	if l.Dynamic, err = dynamic.NewForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client of custom resources: %w", err)
	}
	errorTypes := runtime.NewScheme()
	metav1.AddToGroupVersion(errorTypes, schema.GroupVersion{Version: "v1"})
	config.NegotiatedSerializer = serializer.NewCodecFactory(errorTypes).WithoutConversion()
	if l.Raw, err = rest.UnversionedRESTClientForConfigAndClient(config, client); err != nil {
		return nil, fmt.Errorf("create a client of custom resources: %w", err)
	}
	return &l, nil
}

// Namespace implements [facts.Source].
func (l *Live) Namespace(ctx context.Context, name string, _ bool) (facts.Namespace, error) {
	wanted := target{name, namespaceResource.Resource, ""}
	return share(ctx, l.reads, wanted, func(ctx context.Context) (facts.Namespace, error) {
		object, err := l.metadata(ctx, namespaceResource, "", name)
		if err != nil || object == nil {
			return facts.Namespace{}, err
		}
		return *facts.ReadNamespace(object), nil
	})
}

// Facts implements [facts.Source]. If not fresh, Available has only selectors, and only if needs
// has a Selector or Identities. If fresh, it has no managed classes, and at most 500 names of each
// other kind.
func (l *Live) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	answer, err := l.needed(ctx, namespace, needs)
	if err != nil || !fresh {
		return answer, err
	}
	if len(answer.Classes) < len(needs.Classes) {
		classes, known, err := l.list(ctx, class.Resource, namespace)
		if err != nil {
			return facts.Answer{}, err
		}
		answer.Available.NoDriver = !known
		for i := range classes {
			answer.Available.Classes = append(answer.Available.Classes, classes[i].Name)
		}
	}
	nameless := lacksClient(needs.ServiceAccount, answer.ServiceAccount) ||
		lacksClient(needs.NamedServiceAccount, answer.NamedServiceAccount)
	if nameless && needs.Selector == "" {
		if answer.Available.Selectors, err = l.selectors(ctx, namespace); err != nil {
			return facts.Answer{}, err
		}
	}
	if nameless || needs.Identities || needs.Selector != "" && !answer.Bound {
		accounts, _, err := l.list(ctx, serviceAccountResource, namespace)
		if err != nil {
			return facts.Answer{}, err
		}
		for i := range accounts {
			answer.Available.ServiceAccounts = append(answer.Available.ServiceAccounts, accounts[i].Name)
			if id, _ := facts.ReadClientID(accounts[i].GetAnnotations()); id != "" {
				answer.Available.Clients = append(answer.Available.Clients, accounts[i].Name)
			}
		}
	}
	return answer, nil
}

// needed returns the needed objects of a namespace, without the names of available objects, apart
// from selectors.
func (l *Live) needed(ctx context.Context, namespace string, needs facts.Needs) (answer facts.Answer, err error) {
	for _, name := range needs.Classes {
		c, err := l.class(ctx, namespace, name)
		if err != nil {
			return facts.Answer{}, err
		}
		if c != nil {
			answer.Classes = append(answer.Classes, c)
		}
	}
	if answer.ServiceAccount, err = l.serviceAccount(ctx, namespace, needs.ServiceAccount); err != nil {
		return facts.Answer{}, err
	}
	if answer.NamedServiceAccount, err = l.serviceAccount(ctx, namespace, needs.NamedServiceAccount); err != nil {
		return facts.Answer{}, err
	}
	if needs.Selector != "" || needs.Identities {
		if answer.Available.Selectors, err = l.selectors(ctx, namespace); err != nil {
			return facts.Answer{}, err
		}
		answer.Bound = facts.Binds(answer.Available.Selectors, needs.Selector)
	}
	if answer.Syncing, err = l.syncing(ctx, namespace, needs.Secret); err != nil {
		return facts.Answer{}, err
	}
	answer.EnvFilesUnsupported = l.envFilesUnsupported(needs)
	return answer, nil
}

// syncing returns the classes that sync the Secret of that name; none for an empty name.
func (l *Live) syncing(ctx context.Context, namespace, secret string) ([]facts.Syncing, error) {
	if secret == "" {
		return nil, nil
	}
	wanted := target{namespace, class.Resource.Resource, "syncing " + secret}
	return share(ctx, l.reads, wanted, func(ctx context.Context) ([]facts.Syncing, error) {
		page := syncingPage{secret: secret}
		for {
			next := page.next
			page.next = ""
			if _, err := l.read(ctx, class.Resource, namespace, "", next, page.decode); err != nil || page.next == "" {
				return page.found, err
			}
		}
	})
}

func (l *Live) envFilesUnsupported(needs facts.Needs) string {
	if !needs.EnvFiles || l.EnvFiles == nil {
		return ""
	}
	return l.EnvFiles()
}

// lacksClient reports whether a needed ServiceAccount does not exist or has no client id.
func lacksClient(name string, sa *facts.ServiceAccount) bool {
	return name != "" && (sa == nil || sa.ClientID == "")
}

// class returns the class of that name; nil if it does not exist.
func (l *Live) class(ctx context.Context, namespace, name string) (*class.Class, error) {
	if !canExist(name) {
		return nil, nil
	}
	wanted := target{namespace, class.Resource.Resource, name}
	return share(ctx, l.reads, wanted, func(ctx context.Context) (*class.Class, error) {
		spc := class.SecretProviderClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
		decode := func(r *jsonstream.Reader) { decodeClass(r, &spc) }
		switch found, err := l.read(ctx, class.Resource, namespace, name, "", decode); {
		case errors.Is(err, jsonstream.ErrTooLarge):
			return &class.Class{Name: name, Provider: class.Provider, Invalid: "must have fewer values"}, nil
		case err != nil || !found:
			return nil, err
		}
		return class.Read(&spc), nil
	})
}

// read decodes an object, or with an empty name a page of a list, while it arrives, because a
// tenant can create objects as large as the API server accepts. It reports whether the object or
// kind exists.
func (l *Live) read(
	ctx context.Context,
	resource schema.GroupVersionResource,
	namespace, name, next string,
	decode func(*jsonstream.Reader),
) (bool, error) {
	request := l.Raw.Get().
		AbsPath("apis", resource.Group, resource.Version, "namespaces", namespace, resource.Resource, name).
		SetHeader("Accept", runtime.ContentTypeJSON)
	if name == "" {
		request.Param("limit", strconv.Itoa(pageSize))
	}
	if next != "" {
		request.Param("continue", next)
	}
	body, err := request.Stream(ctx)
	if apierrors.IsNotFound(err) || l.isUnknown(ctx, resource, err) {
		return false, nil
	}
	if err == nil {
		var r jsonstream.Reader
		r.Reset(body, maxDecoded)
		decode(&r)
		err = errors.Join(r.Close(), body.Close())
	}
	if err != nil {
		what := strings.TrimSuffix(resource.Resource+"/"+name, "/")
		return false, fmt.Errorf("read %s of namespace %s: %w", what, namespace, err)
	}
	return true, nil
}

// isUnknown reports whether a request is forbidden and the cluster does not have the resource. The
// API server checks rights first, so its answer to a user without rights does not depend on the
// resource. Discovery, which every user may read, does.
func (l *Live) isUnknown(ctx context.Context, resource schema.GroupVersionResource, err error) bool {
	if !apierrors.IsForbidden(err) || resource.Group == "" {
		return false
	}
	text, discoverErr := l.Raw.Get().AbsPath("apis", resource.Group, resource.Version).SetHeader("Accept", runtime.ContentTypeJSON).DoRaw(ctx)
	if discoverErr != nil {
		return apierrors.IsNotFound(discoverErr)
	}
	var known metav1.APIResourceList
	return json.Unmarshal(text, &known) == nil &&
		!slices.ContainsFunc(known.APIResources, func(r metav1.APIResource) bool { return r.Name == resource.Resource })
}

// classObject returns the class of that name as the API server has it; nil if it does not exist.
func (l *Live) classObject(ctx context.Context, namespace, name string) (*unstructured.Unstructured, error) {
	if !canExist(name) {
		return nil, nil
	}
	return l.Object(ctx, class.Resource, namespace, name)
}

// Object returns an object as the API server has it; nil if it or its kind does not exist.
func (l *Live) Object(ctx context.Context, resource schema.GroupVersionResource, namespace, name string) (*unstructured.Unstructured, error) {
	object, err := l.Dynamic.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) || l.isUnknown(ctx, resource, err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read %s/%s: %w", resource.Resource, name, err)
	}
	return object, nil
}

// serviceAccount returns the ServiceAccount of that name; nil for an empty name, or if it does not
// exist.
func (l *Live) serviceAccount(ctx context.Context, namespace, name string) (*facts.ServiceAccount, error) {
	if name == "" {
		return nil, nil
	}
	wanted := target{namespace, serviceAccountResource.Resource, name}
	return share(ctx, l.reads, wanted, func(ctx context.Context) (*facts.ServiceAccount, error) {
		if !canExist(name) {
			return nil, nil
		}
		object, err := l.Dynamic.Resource(serviceAccountResource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read ServiceAccount %s: %w", name, err)
		}
		return facts.ReadServiceAccount(object), nil
	})
}

// metadata returns the metadata of an object; nil if it does not exist.
func (l *Live) metadata(
	ctx context.Context, resource schema.GroupVersionResource, namespace, name string,
) (*metav1.PartialObjectMetadata, error) {
	if !canExist(name) {
		return nil, nil
	}
	object, err := l.Metadata.Resource(resource).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read metadata of %s/%s: %w", resource.Resource, name, err)
	}
	return object, nil
}

// canExist reports whether an object can have that name. Names come from pods that are not
// validated yet, and become part of a URL path.
func canExist(name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0
}

// list returns the metadata of up to maxNames objects of a kind, and whether the cluster has the
// kind.
func (l *Live) list(
	ctx context.Context, resource schema.GroupVersionResource, namespace string,
) (objects []metav1.PartialObjectMetadata, known bool, err error) {
	options := metav1.ListOptions{Limit: maxNames}
	if resource == class.Resource {
		options.LabelSelector = class.ManagedByLabel + "!=" + class.ManagedBy // messages never suggest managed classes
	}
	list, err := l.Metadata.Resource(resource).Namespace(namespace).List(ctx, options)
	if apierrors.IsNotFound(err) || l.isUnknown(ctx, resource, err) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("list names of %s: %w", resource.Resource, err)
	}
	return list.Items, true, nil
}

// selectors returns the selectors of the namespace's AzureIdentityBindings.
func (l *Live) selectors(ctx context.Context, namespace string) ([]string, error) {
	wanted := target{namespace, facts.BindingResource.Resource, ""}
	return share(ctx, l.reads, wanted, func(ctx context.Context) (selectors []string, err error) {
		for next := ""; ; {
			var page bindings
			found, err := l.read(ctx, facts.BindingResource, namespace, "", next, page.decode)
			if err != nil || !found {
				return nil, err
			}
			selectors = append(selectors, page.selectors...)
			if next = page.next; next == "" {
				return selectors, nil
			}
		}
	})
}
