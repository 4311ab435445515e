package findings

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
	"github.com/akv-injector/akv-injector/core/pods"
)

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

// listWatch returns functions that list and watch the objects of a kind. They decode each object
// while it arrives, so that memory depends only on the objects that are kept.
func (k *kind) listWatch(client rest.Interface) cache.ListWatch {
	stream := func(ctx context.Context, options metav1.ListOptions, partial string) (*jsonstream.Reader, io.Closer, error) {
		options.LabelSelector, options.FieldSelector = k.labels, k.fields
		body, err := client.Get().AbsPath(k.path("", "")...).SetHeader("Accept", k.accept(partial)).
			SpecificallyVersionedParams(&options, metav1.ParameterCodec, schema.GroupVersion{Version: "v1"}).Stream(ctx)
		if err != nil {
			return nil, nil, err
		}
		var r jsonstream.Reader
		r.Reset(body, math.MaxInt) // each object has limits of its own
		return &r, body, nil
	}
	return cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, options metav1.ListOptions) (runtime.Object, error) {
			r, body, err := stream(ctx, options, "PartialObjectMetadataList")
			if err != nil {
				return nil, err
			}
			var l list
			l.read(k, r)
			if err := errors.Join(r.Close(), body.Close()); err != nil {
				return nil, fmt.Errorf("decode: %w", err)
			}
			return &l, nil
		},
		WatchFuncWithContext: func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
			options.Watch = true
			r, body, err := stream(ctx, options, "PartialObjectMetadata")
			if err != nil {
				return nil, err
			}
			return watch.NewStreamWatcherWithLogger(logr.FromContextOrDiscard(ctx), &decoder{k, r, body}, reporter{}), nil
		},
	}
}

// read reads the list of a kind.
func (l *list) read(k *kind, r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			for name := range r.Members {
				switch string(name) {
				case "resourceVersion":
					l.ResourceVersion = r.Text(pods.MaxName)
				case "continue":
					l.Continue = r.Text(4 << 10)
				default:
					r.Skip()
				}
			}
		case "items":
			for range r.Elements {
				if o := k.read(r); o.kept {
					l.Items = append(l.Items, o)
				}
			}
		default:
			r.Skip()
		}
	}
}

// decoder decodes the events of a watch. It implements [watch.Decoder].
type decoder struct {
	kind *kind
	r    *jsonstream.Reader
	body io.Closer
}

// Close implements [watch.Decoder].
func (d *decoder) Close() { _ = d.body.Close() }

// Decode implements [watch.Decoder]. It skips objects that appear and are not kept.
func (d *decoder) Decode() (watch.EventType, runtime.Object, error) {
	for {
		var of watch.EventType
		var o *object
		var status metav1.Status
		for name := range d.r.Members {
			switch {
			case string(name) == "type":
				of = watch.EventType(d.r.Text(pods.MaxName))
			case string(name) == "object" && of == watch.Error: // the API server writes the type first
				readStatus(&status, d.r)
			case string(name) == "object":
				o = d.kind.read(d.r)
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
		case o == nil:
			return "", nil, errors.New("event: must have an object")
		case of != watch.Added || o.kept:
			return of, o, nil
		}
	}
}

func readStatus(s *metav1.Status, r *jsonstream.Reader) {
	s.Status = metav1.StatusFailure
	for name := range r.Members {
		switch string(name) {
		case "message":
			s.Message = r.Text(pods.MaxName)
		case "reason":
			s.Reason = metav1.StatusReason(r.Text(pods.MaxName))
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
