package rotation

import (
	"strings"
	"time"
	"unique"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
)

// podObject is what the stream decodes of a pod.
type podObject struct {
	metav1.ObjectMeta
	pod
}

// statusObject is what the stream decodes of a SecretProviderClassPodStatus.
type statusObject struct {
	metav1.ObjectMeta

	pod       string
	isMounted bool
	status    status
}

func (o *podObject) podName() (namespace, name string)    { return o.Namespace, o.Name }
func (o *statusObject) podName() (namespace, name string) { return o.Namespace, o.pod }

// GetObjectKind implements [runtime.Object].
func (*podObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// GetObjectKind implements [runtime.Object].
func (*statusObject) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements [runtime.Object]. An object never changes, so its fields are shared.
func (o *podObject) DeepCopyObject() runtime.Object {
	other := *o
	return &other
}

// DeepCopyObject implements [runtime.Object]. An object never changes, so its fields are shared.
func (o *statusObject) DeepCopyObject() runtime.Object {
	other := *o
	return &other
}

// readMeta reads the metadata that a reflector needs. Other reads a member; it reports false for one that
// it does not know.
func readMeta(r *jsonstream.Reader, m *metav1.ObjectMeta, other func(name string) bool) {
	for name := range r.Members {
		switch string(name) {
		case "name":
			m.Name = strings.Clone(r.Text(pods.MaxName)) // texts of a reader share allocations
		case "namespace":
			m.Namespace = strings.Clone(r.Text(pods.MaxName))
		case "resourceVersion":
			m.ResourceVersion = r.Text(pods.MaxName)
		default:
			if !other(string(name)) {
				r.Skip()
			}
		}
	}
}

// share returns a text that other objects are likely to have too.
func share(s string) text { return unique.Make(s) }

// requestsRestart is in the annotation [api.Inherited] of a pod whose workload requests restarts.
const requestsRestart = api.OnRotation + `="` + string(api.RotationRestart) + `"`

// readPod reads a pod. It keeps those that belong to a workload of the kinds.
func (k kinds) readPod(r *jsonstream.Reader) (runtime.Object, bool) {
	o := &podObject{pod: pod{isKnown: true, restartedFor: share("")}}
	var controller metav1.OwnerReference
	hashes := map[string]string{}
	readAnnotation := func(key, value string) {
		switch key {
		case metav1.InitialEventsAnnotationKey:
			o.Annotations = map[string]string{key: value}
		case api.OnRotation:
			o.requests = o.requests || value == string(api.RotationRestart)
		case api.Inherited:
			o.requests = o.requests || strings.Contains(value, requestsRestart)
		case api.RestartedFor:
			o.restartedFor = share(value)
		}
	}
	r.Member("metadata", func() {
		readMeta(r, &o.ObjectMeta, func(name string) bool {
			switch name {
			case "labels":
				for key := range r.Members {
					if _, found := creators[string(key)]; found {
						label := string(key)
						hashes[label] = r.Text(pods.MaxName)
					} else {
						r.Skip()
					}
				}
			case "annotations":
				for key := range r.Members {
					switch key := string(key); key {
					case metav1.InitialEventsAnnotationKey, api.OnRotation, api.Inherited, api.RestartedFor:
						readAnnotation(key, r.Text(apivalidation.TotalAnnotationSizeLimitB))
					default:
						r.Skip()
					}
				}
			case "ownerReferences":
				controller = pods.ReadController(r)
			default:
				return false
			}
			return true
		})
	})
	var keep bool
	o.workload, keep = k.workloadOf(o.Namespace, controller, hashes)
	o.workload.name = strings.Clone(o.workload.name)
	return o, keep
}

// readStatus reads a SecretProviderClassPodStatus.
func readStatus(r *jsonstream.Reader) (runtime.Object, bool) {
	o := &statusObject{status: status{class: share("")}}
	seconds := func() int64 {
		at, _ := time.Parse(time.RFC3339, r.Text(pods.MaxName)) // the API server wrote it
		return at.Unix()
	}
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			readMeta(r, &o.ObjectMeta, func(name string) bool {
				switch name {
				case "annotations":
					r.Member(metav1.InitialEventsAnnotationKey, func() {
						o.Annotations = map[string]string{metav1.InitialEventsAnnotationKey: r.Text(pods.MaxName)}
					})
				case "creationTimestamp":
					o.status.created = seconds()
				case "managedFields":
					for range r.Elements {
						r.Member("time", func() { o.status.changed = max(o.status.changed, seconds()) })
					}
				default:
					return false
				}
				return true
			})
		case "status":
			o.readStatus(r)
		default:
			r.Skip()
		}
	}
	o.status.changed = max(o.status.changed, o.status.created)
	return o, o.pod != ""
}

func (o *statusObject) readStatus(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "podName":
			o.pod = strings.Clone(r.Text(pods.MaxName))
		case "secretProviderClassName":
			o.status.class = share(r.Text(pods.MaxName))
		case "mounted":
			o.isMounted = r.Bool()
		case "objects":
			o.status.versions = jsonstream.List(r, func(v *objectVersion, r *jsonstream.Reader) {
				v.id, v.version = share(""), share("")
				for name := range r.Members {
					switch string(name) {
					case "id":
						v.id = share(r.Text(pods.MaxName))
					case "version":
						v.version = share(r.Text(pods.MaxName))
					default:
						r.Skip()
					}
				}
			})
		default:
			r.Skip()
		}
	}
}
