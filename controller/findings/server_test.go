package findings_test

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/internal/corpus"
)

// apiServer stores objects, and lists, watches and gets them. It ignores selectors, and sends whole
// objects where metadata would be enough.
type apiServer struct {
	*httptest.Server

	streamed bool // whether it supports streamed lists

	mu      sync.Mutex
	objects map[string]*unstructured.Unstructured // by path
	log     []event                               // of all collections; the version of an event is its index + 1
	written chan struct{}                         // closed by the next event
	reads   int                                   // of single objects for a review
	onRead  func()                                // called before such a read is answered; may be nil
}

type event struct {
	Type   string                     `json:"type"`
	Object *unstructured.Unstructured `json:"object"`

	all string // the path of the collection
}

func startAPIServer(t *testing.T, streamed bool) *apiServer {
	t.Helper()
	s := &apiServer{streamed: streamed, objects: map[string]*unstructured.Unstructured{}, written: make(chan struct{})}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	t.Cleanup(s.CloseClientConnections)
	return s
}

func (s *apiServer) config() *rest.Config { return &rest.Config{Host: s.URL, QPS: -1} }

// pathOf returns the path of an object and the path of all objects of its kind.
func pathOf(o *unstructured.Unstructured) (path, all string) {
	resource, _ := meta.UnsafeGuessKindToResource(o.GroupVersionKind())
	root := "/apis/" + resource.Group + "/" + resource.Version + "/"
	if resource.Group == "" {
		root = "/api/" + resource.Version + "/"
	}
	path = root
	if o.GetNamespace() != "" {
		path += "namespaces/" + o.GetNamespace() + "/"
	}
	return path + resource.Resource + "/" + o.GetName(), root + resource.Resource
}

// apply adds or updates objects. The default namespace is shop.
func (s *apiServer) apply(t *testing.T, text string) {
	t.Helper()
	list, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range list {
		if o.GetNamespace() == "" && o.GetKind() != "Namespace" {
			o.SetNamespace("shop")
		}
		path, _ := pathOf(o)
		if o.GetUID() == "" {
			o.SetUID(types.UID(path))
		}
		if _, set, _ := unstructured.NestedFieldNoCopy(o.Object, "metadata", "generation"); !set {
			o.SetGeneration(int64(len(s.log)))
		}
		what := "ADDED"
		if s.objects[path] != nil {
			what = "MODIFIED"
		}
		s.objects[path] = o
		s.send(what, o)
	}
}

// delete deletes an object.
func (s *apiServer) delete(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.objects[path].DeepCopy()
	delete(s.objects, path)
	s.send("DELETED", o)
}

// lose deletes an object without an event, and ends all watches: their version has expired.
func (s *apiServer) lose(path string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.objects, path)
	s.log = append(s.log, event{Type: "ERROR"})
	close(s.written)
	s.written = make(chan struct{})
}

func (s *apiServer) send(what string, o *unstructured.Unstructured) {
	_, all := pathOf(o)
	o.SetResourceVersion(strconv.Itoa(len(s.log) + 1))
	s.log = append(s.log, event{what, o, all})
	close(s.written)
	s.written = make(chan struct{})
}

// list returns the objects of a collection, sorted by path.
func (s *apiServer) list(all string) []*unstructured.Unstructured {
	items := []*unstructured.Unstructured{}
	for _, o := range s.objects {
		if _, of := pathOf(o); of == all {
			items = append(items, o)
		}
	}
	slices.SortFunc(items, func(a, b *unstructured.Unstructured) int {
		return strings.Compare(a.GetNamespace()+"/"+a.GetName(), b.GetNamespace()+"/"+b.GetName())
	})
	return items
}

// ServeHTTP implements [http.Handler].
func (s *apiServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	query := r.URL.Query()
	if query.Get("watch") != "" && (s.streamed || query.Get("sendInitialEvents") == "") {
		s.watch(w, r)
		return
	}
	s.mu.Lock()
	object := s.objects[r.URL.Path]
	if object != nil && query.Get("resourceVersion") == "0" {
		s.reads++
		if s.onRead != nil {
			s.mu.Unlock()
			s.onRead()
			s.mu.Lock()
		}
	}
	defer s.mu.Unlock()
	switch {
	case object != nil:
		answer(w, object)
	case strings.Contains(r.URL.Path, "/namespaces/"):
		answerStatus(w, http.StatusNotFound, "NotFound")
	case query.Get("watch") != "":
		answerStatus(w, http.StatusUnprocessableEntity, "Invalid")
	default:
		answer(w, map[string]any{
			"kind": "List", "apiVersion": "v1", "metadata": map[string]any{"resourceVersion": strconv.Itoa(len(s.log))},
			"items": s.list(r.URL.Path),
		})
	}
}

func answer(w http.ResponseWriter, value any) {
	_ = json.NewEncoder(w).Encode(value) // the client may have gone away
}

func answerStatus(w http.ResponseWriter, code int, reason string) {
	w.WriteHeader(code)
	answer(w, map[string]any{"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code})
}

// watch sends the events of a collection until the client goes away.
func (s *apiServer) watch(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	next, _ := strconv.Atoi(query.Get("resourceVersion")) // empty for a streamed list
	if query.Get("sendInitialEvents") != "" {
		s.mu.Lock()
		for _, o := range s.list(r.URL.Path) {
			answer(w, event{Type: "ADDED", Object: o})
		}
		next = len(s.log)
		s.mu.Unlock()
		fmt.Fprintf(w, `{"type": "BOOKMARK", "object": {"kind": "Bookmark", "apiVersion": "v1", "metadata": {
			"resourceVersion": "%d", "annotations": {"k8s.io/initial-events-end": "true"}}}}`, next)
	}
	for {
		s.mu.Lock()
		events, written := s.log[next:], s.written
		next = len(s.log)
		s.mu.Unlock()
		for _, e := range events {
			switch {
			case e.Type == "ERROR":
				fmt.Fprint(w, `{"type": "ERROR", "object": {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": "Expired", "code": 410}}`)
				return
			case e.all == r.URL.Path:
				answer(w, e)
			}
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-written:
		case <-r.Context().Done():
			return
		}
	}
}
