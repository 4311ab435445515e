package feed

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"

	"github.com/go-logr/logr"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"

	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// Stream lists and watches the objects of a kind, and decodes each object while it arrives, so that
// memory depends only on what is kept of them.
type Stream struct {
	// Client requests absolute paths.
	Client rest.Interface
	// Path is that of all objects, such as apis, apps, v1, deployments.
	Path []string
	// Labels and Fields are selectors.
	Labels, Fields string
	// OnlyMetadata requests only the type and metadata of objects.
	OnlyMetadata bool
	// Read reads an object. The object has at least its namespace, name and resource version, and the
	// annotation of a bookmark. Read reports whether to keep the object; its type may vary if not.
	Read func(r *jsonstream.Reader) (object runtime.Object, keep bool)
}

// list is a list of those objects that are kept.
type list struct {
	metav1.TypeMeta
	metav1.ListMeta

	Items []runtime.Object
}

// DeepCopyObject implements [runtime.Object]. A list never changes, so its fields are shared.
func (l *list) DeepCopyObject() runtime.Object {
	other := *l
	return &other
}

// ListWatch returns functions that list and watch.
func (s *Stream) ListWatch() cache.ListWatch {
	return cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			r, body, err := s.open(ctx, options, "PartialObjectMetadataList")
			if err != nil {
				return nil, err
			}
			l := s.readList(r)
			if err := errors.Join(r.Close(), body.Close()); err != nil {
				return nil, fmt.Errorf("decode: %w", err)
			}
			return l, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			r, body, err := s.open(ctx, options, "PartialObjectMetadata")
			if err != nil {
				return nil, err
			}
			return watch.NewStreamWatcherWithLogger(logr.FromContextOrDiscard(ctx), &decoder{s, r, body}, reporter{}), nil
		},
	}
}

// open sends a request. Partial is the kind of the answer if it has only metadata.
func (s *Stream) open(
	ctx context.Context, options metav1.ListOptions, partial string,
) (*jsonstream.Reader, io.Closer, error) {
	options.LabelSelector, options.FieldSelector = s.Labels, s.Fields
	accept := runtime.ContentTypeJSON
	if s.OnlyMetadata {
		accept += ";as=" + partial + ";g=meta.k8s.io;v=v1," + runtime.ContentTypeJSON
	}
	body, err := s.Client.Get().AbsPath(s.Path...).SetHeader("Accept", accept).
		SpecificallyVersionedParams(&options, metav1.ParameterCodec, schema.GroupVersion{Version: "v1"}).Stream(ctx)
	if err != nil {
		return nil, nil, err
	}
	var r jsonstream.Reader
	r.Reset(body, math.MaxInt) // what reads an object limits its texts
	return &r, body, nil
}

// Limits of texts in bytes.
const (
	maxText     = 253
	maxContinue = 4 << 10
)

func (s *Stream) readList(r *jsonstream.Reader) *list {
	var l list
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			for name := range r.Members {
				switch string(name) {
				case "resourceVersion":
					l.ResourceVersion = r.Text(maxText)
				case "continue":
					l.Continue = r.Text(maxContinue)
				default:
					r.Skip()
				}
			}
		case "items":
			for range r.Elements {
				if object, keep := s.Read(r); keep {
					l.Items = append(l.Items, object)
				}
			}
		default:
			r.Skip()
		}
	}
	return &l
}

// decoder decodes the events of a watch. It implements [watch.Decoder].
type decoder struct {
	*Stream

	r    *jsonstream.Reader
	body io.Closer
}

// Close implements [watch.Decoder].
func (d *decoder) Close() { _ = d.body.Close() }

// Decode implements [watch.Decoder]. It skips objects that appear and are not kept.
func (d *decoder) Decode() (watch.EventType, runtime.Object, error) {
	for {
		var of watch.EventType
		var object runtime.Object
		keep := false
		var status metav1.Status
		for name := range d.r.Members {
			switch {
			case string(name) == "type":
				of = watch.EventType(d.r.Text(maxText))
			case string(name) == "object" && of == watch.Error: // the API server writes the type first
				readStatus(&status, d.r)
			case string(name) == "object":
				object, keep = d.Read(d.r)
			default:
				d.r.Skip()
			}
		}
		switch err := d.r.Err(); {
		case errors.Is(err, io.ErrUnexpectedEOF):
			return "", nil, io.EOF
		case err != nil:
			return "", nil, err
		case of == watch.Error:
			return of, &status, nil
		case object == nil:
			return "", nil, errors.New("event: must have an object")
		case of != watch.Added || keep:
			return of, object, nil
		}
	}
}

func readStatus(s *metav1.Status, r *jsonstream.Reader) {
	s.Status = metav1.StatusFailure
	for name := range r.Members {
		switch string(name) {
		case "message":
			s.Message = r.Text(maxText)
		case "reason":
			s.Reason = metav1.StatusReason(r.Text(maxText))
		case "code":
			s.Code = int32(r.Int()) //nolint:gosec // an HTTP status
		default:
			r.Skip()
		}
	}
}

// reporter makes a status of an error. It implements [watch.Reporter].
type reporter struct{}

// AsObject implements [watch.Reporter].
func (reporter) AsObject(err error) runtime.Object {
	return &metav1.Status{Status: metav1.StatusFailure, Message: err.Error(), Code: http.StatusInternalServerError}
}
