// Package fakeapi serves objects over HTTP as an API server does, for tests of the commands that read
// a cluster:
//
//	server := fakeapi.Start(t, manifests)
//	server.Deny("list secrets")
//	reader, err := kube.NewReader(server.Config)
//
// It answers gets, lists by pages, by label and by field, discovery, access reviews, and the answers that a
// test sets. It stores what is created by nothing but Apply, and watches nothing. A kind that is not
// built into Kubernetes exists if its CustomResourceDefinition was applied. The package is only for
// tests.
package fakeapi

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	authorizationv1 "k8s.io/api/authorization/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

// Server is a running server. It stops when the test ends.
type Server struct {
	// Config reaches the server.
	Config *rest.Config
	// Version is the gitVersion of the server.
	Version string

	mu      sync.Mutex
	objects map[string]*unstructured.Unstructured // by path
	denied  map[string]bool
	answers map[string]answer
	calls   map[string]int
}

type answer struct {
	status int
	body   string
}

// Start starts a server with the objects of manifests, which are YAML documents.
func Start(tb testing.TB, manifests string) *Server {
	tb.Helper()
	s := &Server{
		Version: "v1.37.2", objects: map[string]*unstructured.Unstructured{}, denied: map[string]bool{},
		answers: map[string]answer{}, calls: map[string]int{},
	}
	server := httptest.NewServer(s)
	tb.Cleanup(server.Close)
	s.Config = &rest.Config{Host: server.URL, QPS: -1}
	s.Apply(tb, manifests)
	return s
}

// Apply adds or replaces the objects of manifests.
func (s *Server) Apply(tb testing.TB, manifests string) {
	tb.Helper()
	decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(manifests), 4096)
	for {
		var object unstructured.Unstructured
		if err := decoder.Decode(&object.Object); err != nil {
			if err.Error() != "EOF" {
				tb.Fatalf("%v in\n%s", err, manifests)
			}
			return
		}
		if object.Object != nil {
			s.Put(&object)
		}
	}
}

// Put adds or replaces an object.
func (s *Server) Put(object *unstructured.Unstructured) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.objects[pathOf(object)] = object
}

// Edit changes an object that exists.
func (s *Server) Edit(tb testing.TB, path string, change func(object map[string]any)) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	object := s.objects[path]
	if object == nil {
		tb.Fatalf("there is no object %s; there are %v", path, slices.Sorted(maps.Keys(s.objects)))
	}
	change(object.Object)
}

// Delete removes the objects whose path starts with prefix, at least one.
func (s *Server) Delete(tb testing.TB, prefix string) {
	tb.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	before := len(s.objects)
	maps.DeleteFunc(s.objects, func(path string, _ *unstructured.Unstructured) bool { return strings.HasPrefix(path, prefix) })
	if len(s.objects) == before {
		tb.Fatalf("there is no object %s", prefix)
	}
}

// Map returns the mapping at a path in an object: names of members, and indices of elements, from the
// end if they are negative. It is nil if there is no mapping.
func Map(value any, path ...any) map[string]any {
	found, _ := at(value, path).(map[string]any)
	return found
}

// Items returns the list at a path in an object, as [Map].
func Items(value any, path ...any) []any {
	found, _ := at(value, path).([]any)
	return found
}

func at(value any, path []any) any {
	for _, step := range path {
		switch step := step.(type) {
		case string:
			value = Map(value)[step]
		case int:
			items := Items(value)
			if step < 0 {
				step += len(items)
			}
			value = items[step]
		}
	}
	return value
}

// Deny makes the server answer 403 to a verb and a resource, such as "list pods", "get pods/proxy"
// or "create clusterroles.rbac.authorization.k8s.io". With a user as third word it is about that
// user, and only about access reviews. A star stands for every resource.
func (s *Server) Deny(rights ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, right := range rights {
		s.denied[right] = true
	}
}

// Answer sets the answer to a method and path, such as "POST /api/v1/namespaces/shop/pods".
func (s *Server) Answer(request string, status int, body string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answers[request] = answer{status, body}
}

// Calls returns how often a method and path was requested.
func (s *Server) Calls(request string) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls[request]
}

// pathOf returns the path of an object in the API.
func pathOf(object *unstructured.Unstructured) string {
	plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
	path := "/apis/" + object.GetAPIVersion()
	if !strings.Contains(object.GetAPIVersion(), "/") {
		path = "/api/" + object.GetAPIVersion()
	}
	if object.GetNamespace() != "" {
		path += "/namespaces/" + object.GetNamespace()
	}
	return path + "/" + plural.Resource + "/" + object.GetName()
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	request := r.Method + " " + r.URL.Path
	s.calls[request]++
	w.Header().Set("Content-Type", "application/json")
	if a, ok := s.answers[request]; ok {
		if !strings.HasPrefix(a.body, "{") {
			w.Header().Set("Content-Type", "text/plain")
		}
		w.WriteHeader(a.status)
		fmt.Fprint(w, a.body)
		return
	}
	if r.URL.Path == "/version" {
		fmt.Fprintf(w, `{"gitVersion": %q, "major": "1", "minor": "37"}`, s.Version)
		return
	}
	at := parse(r.URL.Path)
	switch {
	case at.resource == "" && s.serves(at.group):
		s.discover(w, at)
	case at.resource == "":
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	case r.Method == http.MethodPost && strings.HasSuffix(at.resource, "subjectaccessreviews"):
		s.reviewAccess(w, r, at)
	case s.isDenied(at.verb(r.Method), at.qualified()):
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden,
			fmt.Sprintf("%s is forbidden: User \"me\" cannot %s resource %q", at.qualified(), at.verb(r.Method), at.resource))
	case !s.has(at):
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, "the server could not find the requested resource")
	case at.name == "":
		s.list(w, r, at)
	case s.objects[r.URL.Path] == nil:
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound, fmt.Sprintf("%s %q not found", at.qualified(), at.name))
	default:
		print(w, s.objects[r.URL.Path].Object)
	}
}

// address is a parsed path.
type address struct {
	group, version, namespace, resource, name, subresource string
}

func parse(path string) address {
	var a address
	segments := strings.Split(strings.Trim(path, "/"), "/")
	next := func() (segment string) {
		if len(segments) > 0 {
			segment, segments = segments[0], segments[1:]
		}
		return segment
	}
	if next() == "apis" {
		a.group = next()
	}
	a.version = next()
	if len(segments) > 2 && segments[0] == "namespaces" {
		next()
		a.namespace = next()
	}
	a.resource, a.name, a.subresource = next(), next(), next()
	return a
}

func (a address) qualified() string {
	resource := a.resource
	if a.subresource != "" {
		resource += "/" + a.subresource
	}
	if a.group != "" {
		resource += "." + a.group
	}
	return resource
}

func (a address) verb(method string) string {
	switch {
	case method == http.MethodPost:
		return "create"
	case a.name == "":
		return "list"
	}
	return "get"
}

func (s *Server) isDenied(verb, resource string) bool {
	return s.denied[verb+" "+resource] || s.denied[verb+" *"]
}

func (s *Server) serves(group string) bool {
	return scheme.Scheme.IsGroupRegistered(group) || len(s.definitions(group)) > 0
}

// definitions returns the plural names of the custom kinds of a group.
func (s *Server) definitions(group string) []string {
	var plurals []string
	for path, object := range s.objects {
		if !strings.HasPrefix(path, "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/") {
			continue
		}
		if plural, of, _ := strings.Cut(object.GetName(), "."); of == group {
			plurals = append(plurals, plural)
		}
	}
	return plurals
}

func (s *Server) has(a address) bool {
	return scheme.Scheme.IsGroupRegistered(a.group) || slices.Contains(s.definitions(a.group), a.resource)
}

func (s *Server) discover(w http.ResponseWriter, a address) {
	list := metav1.APIResourceList{
		TypeMeta:     metav1.TypeMeta{Kind: "APIResourceList", APIVersion: "v1"},
		GroupVersion: strings.TrimPrefix(a.group+"/"+a.version, "/"),
	}
	plurals := s.definitions(a.group)
	for kind := range scheme.Scheme.KnownTypes(schema.GroupVersion{Group: a.group, Version: a.version}) {
		plural, _ := meta.UnsafeGuessKindToResource(schema.GroupVersionKind{Kind: kind})
		plurals = append(plurals, plural.Resource)
	}
	for _, plural := range plurals {
		list.APIResources = append(list.APIResources, metav1.APIResource{Name: plural})
	}
	print(w, list)
}

// list answers with a page of the objects of a kind, sorted by their paths. As from the API server,
// objects of built-in kinds have no kind in a list.
func (s *Server) list(w http.ResponseWriter, r *http.Request, a address) {
	query := r.URL.Query()
	selector, err := labels.Parse(query.Get("labelSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error())
		return
	}
	kind := ""
	var found []any
	for _, path := range slices.Sorted(maps.Keys(s.objects)) {
		at, object := parse(path), s.objects[path]
		if at.group != a.group || at.version != a.version || at.resource != a.resource || a.namespace != "" && at.namespace != a.namespace {
			continue
		}
		kind = object.GetKind()
		if !selector.Matches(labels.Set(object.GetLabels())) || !hasField(object, query.Get("fieldSelector")) {
			continue
		}
		item := object.Object
		if scheme.Scheme.IsGroupRegistered(a.group) {
			item = maps.Clone(item)
			delete(item, "kind")
			delete(item, "apiVersion")
		}
		found = append(found, item)
	}
	start, _ := strconv.Atoi(query.Get("continue"))
	end := len(found)
	if limit, _ := strconv.Atoi(query.Get("limit")); limit > 0 {
		end = min(end, start+limit)
	}
	next := ""
	if end < len(found) {
		next = strconv.Itoa(end)
	}
	print(w, map[string]any{
		"kind": kind + "List", "apiVersion": strings.TrimPrefix(a.group+"/"+a.version, "/"),
		"metadata": map[string]any{"resourceVersion": "1", "continue": next}, "items": append([]any{}, found[start:end]...),
	})
}

// hasField reports whether a field selector of the form PATH=VALUE selects an object.
func hasField(object *unstructured.Unstructured, selector string) bool {
	path, want, ok := strings.Cut(selector, "=")
	got, _, _ := unstructured.NestedString(object.Object, strings.Split(path, ".")...)
	return !ok || got == want
}

// reviewAccess answers SelfSubjectAccessReviews and SubjectAccessReviews.
func (s *Server) reviewAccess(w http.ResponseWriter, r *http.Request, a address) {
	if s.isDenied("create", a.qualified()) {
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden, a.qualified()+" is forbidden")
		return
	}
	var review authorizationv1.SubjectAccessReview // the self review has the same fields, without user and groups
	if err := json.UnmarshalRead(r.Body, &review); err != nil || review.Spec.ResourceAttributes == nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, "a review must have resourceAttributes")
		return
	}
	asked := review.Spec.ResourceAttributes
	of := address{group: asked.Group, resource: asked.Resource, subresource: asked.Subresource}
	right := asked.Verb + " " + of.qualified()
	if review.Spec.User != "" {
		review.Status.Allowed = !s.denied[right+" "+review.Spec.User]
	} else {
		review.Status.Allowed = !s.isDenied(asked.Verb, of.qualified())
	}
	w.WriteHeader(http.StatusCreated)
	print(w, review)
}

func fail(w http.ResponseWriter, code int32, reason metav1.StatusReason, message string) {
	w.WriteHeader(int(code))
	print(w, metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
		Status:   metav1.StatusFailure, Reason: reason, Message: message, Code: code,
	})
}

func print(w http.ResponseWriter, value any) {
	var b bytes.Buffer
	if err := json.MarshalWrite(&b, value, jsontext.AllowDuplicateNames(true)); err != nil {
		panic(err) // a mistake in a test
	}
	_, _ = w.Write(b.Bytes()) // the client may be gone
}
