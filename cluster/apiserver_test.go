package cluster_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// apiServer answers GET, LIST and WATCH as an API server does, streamed lists included, so that
// tests use the real clients. Calls of apply, remove and similar methods change objects and send
// events.
type apiServer struct {
	t      testing.TB
	config *rest.Config

	mu       sync.Mutex
	objects  map[string]*unstructured.Unstructured // by key
	log      []event
	more     chan struct{}  // closed by the next change
	absent   map[string]int // resources that the server does not have; it ends their watches
	failing  map[string]int // status by resource, or by name
	mute     bool           // watches send no events
	plain    bool           // no streamed lists
	requests []string

	disconnect func() // closes all connections, and so all watches
}

type event struct {
	Type   string                     `json:"type"`
	Object *unstructured.Unstructured `json:"object"`
}

const (
	namespaces      = "namespaces"
	serviceAccounts = "serviceaccounts"
	classes         = "secretproviderclasses"
	bindings        = "azureidentitybindings"
	definitions     = "customresourcedefinitions"
)

var resources = map[string]string{
	"Namespace": namespaces, "ServiceAccount": serviceAccounts, "SecretProviderClass": classes, "AzureIdentityBinding": bindings,
	"CustomResourceDefinition": definitions,
}

// startAPIServer serves the objects of manifests, which are YAML documents, and the definitions of the
// custom kinds.
func startAPIServer(tb testing.TB, manifests ...string) *apiServer {
	tb.Helper()
	s := &apiServer{t: tb, objects: map[string]*unstructured.Unstructured{}, more: make(chan struct{}), absent: map[string]int{}, failing: map[string]int{}}
	s.learn(classes, class.GroupVersion.Group)
	s.learn(bindings, facts.BindingResource.Group)
	s.apply(manifests...)
	server := httptest.NewServer(s)
	tb.Cleanup(server.Close)
	tb.Cleanup(server.CloseClientConnections)
	s.disconnect = server.CloseClientConnections
	s.config = &rest.Config{Host: server.URL, QPS: 0.001, Burst: 1}
	return s
}

func (s *apiServer) apply(manifests ...string) {
	s.t.Helper()
	for _, manifest := range manifests {
		s.put(decode(s.t, manifest))
	}
}

func decode(tb testing.TB, manifest string) *unstructured.Unstructured {
	tb.Helper()
	object := &unstructured.Unstructured{}
	if err := yaml.Unmarshal([]byte(manifest), &object.Object); err != nil {
		tb.Fatal(err)
	}
	return object
}

func (s *apiServer) put(object *unstructured.Unstructured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	object.SetResourceVersion(strconv.Itoa(len(s.log) + 1))
	kind, at := "ADDED", key(resources[object.GetKind()], object.GetNamespace(), object.GetName())
	if s.objects[at] != nil {
		kind = "MODIFIED"
	}
	s.objects[at] = object
	s.notify(kind, object)
}

func (s *apiServer) remove(resource, namespace, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	gone := s.objects[key(resource, namespace, name)].DeepCopy()
	gone.SetResourceVersion(strconv.Itoa(len(s.log) + 1))
	delete(s.objects, key(resource, namespace, name))
	s.notify("DELETED", gone)
}

// forget removes a resource: the server answers 404, ends its watches and drops its objects without
// events.
func (s *apiServer) forget(resource string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.absent[resource]++
	maps.DeleteFunc(s.objects, func(at string, _ *unstructured.Unstructured) bool { return strings.HasPrefix(at, resource+"/") })
	s.notify("", nil)
}

// learn adds a resource, with a CustomResourceDefinition.
func (s *apiServer) learn(resource, group string) {
	s.t.Helper()
	s.mu.Lock()
	delete(s.absent, resource)
	s.mu.Unlock()
	s.apply("{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: " + resource + "." + group + "}}")
}

// fail makes the server answer requests for a resource with a status; 0 ends it.
func (s *apiServer) fail(resource string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failing[resource] = status
}

// silence stops the events of all watches.
func (s *apiServer) silence() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mute = true
}

// takeRequests returns the requests since its last call, without watches, requests for definitions,
// and the probes of a Cache.
func (s *apiServer) takeRequests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	defer func() { s.requests = nil }()
	return slices.DeleteFunc(s.requests, func(request string) bool { return request == "/api/v1/namespaces/kube-system" })
}

func key(resource, namespace, name string) string {
	return resource + "/" + namespace + "/" + name
}

// inOrder returns the objects that match a list or watch, in the order of an API server.
func (s *apiServer) inOrder(r *http.Request, q query) []*unstructured.Unstructured {
	var found []*unstructured.Unstructured
	for _, at := range slices.Sorted(maps.Keys(s.objects)) {
		if o := s.objects[at]; q.matches(r, o) {
			found = append(found, o)
		}
	}
	return found
}

func (s *apiServer) notify(kind string, object *unstructured.Unstructured) {
	s.log = append(s.log, event{kind, object})
	close(s.more)
	s.more = make(chan struct{})
}

// query is the content of a request.
type query struct {
	resource, namespace, name string
	metadataOnly              bool
}

func parse(r *http.Request) query {
	var q query
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")[2:]
	if strings.HasPrefix(r.URL.Path, "/apis/") {
		parts = parts[1:]
	}
	if len(parts) > 2 && parts[0] == namespaces {
		q.namespace, parts = parts[1], parts[2:]
	}
	if len(parts) == 0 { // discovery
		return q
	}
	q.resource = parts[0]
	if len(parts) > 1 {
		q.name = parts[1]
	}
	q.metadataOnly = strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata")
	return q
}

// matches reports whether an object matches a list or watch.
func (q query) matches(r *http.Request, o *unstructured.Unstructured) bool {
	selector := r.URL.Query().Get("fieldSelector")
	return resources[o.GetKind()] == q.resource && (q.namespace == "" || q.namespace == o.GetNamespace()) &&
		(selector == "" || selector == "metadata.name="+o.GetName())
}

// shape returns the object in the form that the client accepts.
func (q query) shape(o *unstructured.Unstructured) map[string]any {
	if !q.metadataOnly {
		return o.Object
	}
	return map[string]any{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata", "metadata": o.Object["metadata"]}
}

func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := parse(r)
	watch := r.URL.Query().Get("watch") != ""
	s.mu.Lock()
	defer s.mu.Unlock()
	if q.resource == "" {
		s.discover(w, r)
		return
	}
	if !watch && q.resource != definitions {
		s.requests = append(s.requests, strings.TrimSpace(fmt.Sprint(r.URL.Path, " ", r.URL.RawQuery)))
	}
	switch status := max(s.failing[q.resource], s.failing[q.name]); {
	case status != 0:
		refuse(w, status)
	case s.absent[q.resource] > 0:
		refuse(w, http.StatusNotFound)
	case watch && s.plain && r.URL.Query().Get("sendInitialEvents") != "":
		refuse(w, http.StatusUnprocessableEntity)
	case watch:
		s.watch(w, r, q)
	case q.name != "":
		o := s.objects[key(q.resource, q.namespace, q.name)]
		if o == nil {
			refuse(w, http.StatusNotFound)
			return
		}
		reply(w, q.shape(o))
	default:
		items := []any{}
		for _, o := range s.inOrder(r, q) {
			items = append(items, q.shape(o))
		}
		list := map[string]any{"apiVersion": "v1", "kind": "List", "items": items, "metadata": map[string]any{"resourceVersion": strconv.Itoa(len(s.log))}}
		if q.metadataOnly {
			list["apiVersion"], list["kind"] = "meta.k8s.io/v1", "PartialObjectMetadataList"
		}
		reply(w, list)
	}
}

// discover answers a request for the resources of an API group, which has one resource besides those
// of the tests.
func (s *apiServer) discover(w http.ResponseWriter, r *http.Request) {
	known := metav1.APIResourceList{
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "APIResourceList"}, APIResources: []metav1.APIResource{{Name: "others"}},
	}
	for _, resource := range []string{classes, bindings} {
		if s.absent[resource] == 0 {
			known.APIResources = append(known.APIResources, metav1.APIResource{Name: resource})
		} else if s.absent[classes] > 0 && strings.Contains(r.URL.Path, "secrets-store") {
			refuse(w, http.StatusNotFound) // the group has no resource
			return
		}
	}
	reply(w, known)
}

func reply(w http.ResponseWriter, body any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(body) // the client may have closed the connection
}

func refuse(w http.ResponseWriter, status int) {
	reasons := map[int]metav1.StatusReason{http.StatusNotFound: metav1.StatusReasonNotFound, http.StatusForbidden: metav1.StatusReasonForbidden}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(metav1.Status{ // as above
		TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Status"},
		Status:   metav1.StatusFailure, Code: int32(status), Reason: reasons[status], Message: "the server says " + http.StatusText(status),
	})
}

// watch must be called with the lock held. It releases the lock while it waits.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request, q query) {
	w.Header().Set("Content-Type", "application/json")
	stream := json.NewEncoder(w)
	send := func(kind string, object map[string]any) {
		_ = stream.Encode(map[string]any{"type": kind, "object": object}) // if the client has closed the connection, the request's context has ended
	}
	next, err := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	if err != nil || r.URL.Query().Get("sendInitialEvents") != "" {
		next = len(s.log)
	}
	if r.URL.Query().Get("sendInitialEvents") != "" {
		for _, o := range s.inOrder(r, q) {
			send("ADDED", q.shape(o))
		}
		bookmark := &unstructured.Unstructured{Object: map[string]any{"apiVersion": "v1", "kind": "Bookmark"}}
		bookmark.SetResourceVersion(strconv.Itoa(len(s.log)))
		bookmark.SetAnnotations(map[string]string{metav1.InitialEventsAnnotationKey: "true"})
		send("BOOKMARK", q.shape(bookmark))
	}
	for {
		for ; next < len(s.log); next++ {
			if e := s.log[next]; e.Object != nil && !s.mute && q.matches(r, e.Object) {
				send(e.Type, q.shape(e.Object))
			}
		}
		if s.absent[q.resource] > 0 {
			return
		}
		_ = http.NewResponseController(w).Flush() // as above
		more := s.more
		s.mu.Unlock()
		select {
		case <-more:
		case <-r.Context().Done():
		}
		s.mu.Lock()
		if r.Context().Err() != nil {
			return
		}
	}
}

// eventually waits until wrong returns "".
func eventually(t *testing.T, wrong func() string) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for {
		what := wrong()
		if what == "" {
			return
		}
		select {
		case <-deadline:
			t.Fatalf("timed out: %s", what)
		case <-tick.C:
		}
	}
}
