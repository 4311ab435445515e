package webhook

import (
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
)

// maxBody is the size of the largest review that is read, in bytes. An API server accepts objects
// of at most 3 MiB and stores 1.5 MiB, and JSON may escape a byte as six: an update with both
// objects has at most 27 MiB.
const maxBody = 32 << 20

// maxUnread is how many bytes of a larger review are read and discarded, so that its sender reads
// the response.
const maxUnread = 256 << 20

// request has the fields of an AdmissionRequest that a review needs. Names are cut to
// [pods.MaxName] bytes.
type request[T any] struct {
	UID       types.UID
	Kind      metav1.GroupVersionKind
	Name      string
	Namespace string
	Operation admissionv1.Operation
	// ByNode is true if a node sent the request.
	ByNode bool
	// Object and OldObject are nil if the request has none.
	Object, OldObject *T
	DryRun            bool
	// TooLarge is true if the objects are too large to be read. Object and OldObject are then
	// incomplete.
	TooLarge bool
}

// writes reports whether the request creates or updates its object.
func (r *request[T]) writes() bool {
	return r.Operation == admissionv1.Create || r.Operation == admissionv1.Update
}

// reader is the constraint of the types of reviewed objects.
type reader[T any] interface {
	*T
	Read(r *jsonstream.Reader)
	ObjectMeta() *pods.Meta
}

// readers is a pool of readers with their buffers.
var readers = sync.Pool{New: func() any { return new(jsonstream.Reader) }}

// readRequest reads the AdmissionReview in the body of an HTTP request. With an error, it returns
// the HTTP status of the response.
func readRequest[T any, P reader[T]](w http.ResponseWriter, r *http.Request) (*request[T], int, error) {
	if r.Method != http.MethodPost {
		return nil, http.StatusMethodNotAllowed, errors.New("must be a POST request with an AdmissionReview")
	}
	if mediaType := r.Header.Get("Content-Type"); mediaType != "application/json" {
		if parsed, _, err := mime.ParseMediaType(mediaType); err != nil || parsed != "application/json" {
			return nil, http.StatusUnsupportedMediaType, errors.New("must have Content-Type application/json")
		}
	}
	reader := readers.Get().(*jsonstream.Reader) //nolint:forcetypeassert // the pool holds nothing else
	defer readers.Put(reader)
	body := &body{io.LimitedReader{R: r.Body, N: maxBody + 1}}
	reader.Reset(body, pods.MaxKept)
	var review admissionReview[T, P]
	review.read(reader)
	err := reader.Close()
	tooLarge := errors.Is(err, jsonstream.ErrTooLarge) || body.N <= 0
	switch {
	case tooLarge && review.request != nil && review.request.UID != "" && review.request.Operation != "":
		if _, err := io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, maxUnread)); err != nil {
			return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("must be at most %d bytes", maxBody)
		}
		review.request.TooLarge = true
	case tooLarge:
		return nil, http.StatusRequestEntityTooLarge, fmt.Errorf("must be at most %d bytes", maxBody)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, http.StatusRequestTimeout, errors.New("must arrive within the time that a review may take")
	case err != nil:
		return nil, http.StatusBadRequest, fmt.Errorf("decode review: %w", err)
	}
	if err := review.check(); err != nil {
		return nil, http.StatusBadRequest, err
	}
	if review.request.Operation == admissionv1.Create {
		review.request.OldObject = nil
	}
	return review.request, http.StatusOK, nil
}

// body reads a request's body up to its limit. After yieldAfter bytes it yields to other goroutines
// before each read, so that small reviews do not wait for large ones.
type body struct{ io.LimitedReader }

const yieldAfter = 64 << 10

// Read implements [io.Reader].
func (b *body) Read(p []byte) (int, error) {
	if b.N < maxBody-yieldAfter {
		runtime.Gosched()
	}
	return b.LimitedReader.Read(p)
}

// admissionReview is an AdmissionReview about objects of type T.
type admissionReview[T any, P reader[T]] struct {
	apiVersion, kind string
	request          *request[T]
}

func (a *admissionReview[T, P]) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "apiVersion":
			a.apiVersion = r.Text(pods.MaxName)
		case "kind":
			a.kind = r.Text(pods.MaxName)
		case "request":
			if a.request = nil; !r.Null() {
				a.request = &request[T]{}
				a.readRequest(r)
			}
		default:
			r.Skip()
		}
	}
}

func (a *admissionReview[T, P]) readRequest(r *jsonstream.Reader) {
	request := a.request
	for name := range r.Members {
		switch string(name) {
		case "uid":
			request.UID = types.UID(r.Text(pods.MaxName))
		case "kind":
			for name := range r.Members {
				switch string(name) {
				case "group":
					request.Kind.Group = r.Text(pods.MaxName)
				case "version":
					request.Kind.Version = r.Text(pods.MaxName)
				case "kind":
					request.Kind.Kind = r.Text(pods.MaxName)
				default:
					r.Skip()
				}
			}
		case "name":
			request.Name = r.Text(pods.MaxName)
		case "namespace":
			request.Namespace = r.Text(pods.MaxName)
		case "operation":
			request.Operation = admissionv1.Operation(r.Text(pods.MaxName))
		case "userInfo":
			request.ByNode = isNode(r)
		case "object":
			request.Object = readObject[T, P](r)
		case "oldObject":
			request.OldObject = readObject[T, P](r)
		case "dryRun":
			request.DryRun = r.Bool()
		default:
			r.Skip()
		}
	}
}

// isNode reads the user of a request and reports whether it is a node.
func isNode(r *jsonstream.Reader) bool {
	named, grouped := false, false
	for name := range r.Members {
		switch string(name) {
		case "username":
			named = strings.HasPrefix(r.Text(pods.MaxName), "system:node:")
		case "groups":
			for range r.Elements {
				grouped = r.Text(pods.MaxName) == "system:nodes" || grouped
			}
		default:
			r.Skip()
		}
	}
	return named && grouped
}

func readObject[T any, P reader[T]](r *jsonstream.Reader) *T {
	if r.Null() {
		return nil
	}
	o := new(T)
	P(o).Read(r)
	return o
}

// check returns an error if the AdmissionReview is not valid.
func (a *admissionReview[T, P]) check() error {
	switch r := a.request; {
	case a.apiVersion != admissionv1.SchemeGroupVersion.String() || a.kind != "AdmissionReview":
		return fmt.Errorf("must be an AdmissionReview of %s, is %q of %q",
			admissionv1.SchemeGroupVersion, api.Echo(a.kind), api.Echo(a.apiVersion))
	case r == nil:
		return errors.New("request: must be set")
	case r.UID == "":
		return errors.New("request.uid: must be set")
	case r.Object == nil && !r.TooLarge && (r.Operation == admissionv1.Create || r.Operation == admissionv1.Update):
		return fmt.Errorf("request.object: must be set on %s", r.Operation)
	}
	return nil
}
