package findings

import (
	"hash/maphash"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
)

// object has what the stream keeps of a workload or a pod. It has metadata because a reflector
// needs them.
type object struct {
	// ObjectMeta has the namespace, name, UID and resource version, and of a bookmark also its
	// annotation.
	metav1.ObjectMeta

	// kept is true if the object may have findings.
	kept bool
	// version is a hash of what a review reads, apart from the facts about the namespace.
	version uint64
	// asked is where the first annotation of ours is.
	asked *field.Path
	// optsOut is true if an annotation opts the pods out of injection.
	optsOut bool
	// injected and templateHash are labels of a pod.
	injected     bool
	templateHash string
	// controller is the zero value if the object has none.
	controller metav1.OwnerReference
}

// GetObjectKind implements [runtime.Object].
func (*object) GetObjectKind() schema.ObjectKind { return schema.EmptyObjectKind }

// DeepCopyObject implements [runtime.Object]. An object never changes, so its fields are shared.
func (o *object) DeepCopyObject() runtime.Object {
	other := *o
	return &other
}

// Places of annotations in an object.
var (
	ownAnnotations  = field.NewPath("metadata", "annotations")
	jobAnnotations  = field.NewPath("spec", "jobTemplate", "metadata", "annotations")
	templateOf      = pods.TemplateRoot.Child("metadata", "annotations")
	templateOfACron = pods.CronJobRoot.Child("metadata", "annotations")
)

// reading is an object while it is read.
type reading struct {
	*object
	*jsonstream.Reader
	hash maphash.Hash

	ended, mirror bool
}

var seed = maphash.MakeSeed()

// read reads an object.
func (k *kind) read(r *jsonstream.Reader) *object {
	n := reading{object: &object{}, Reader: r}
	n.hash.SetSeed(seed)
	for name := range r.Members {
		switch string(name) {
		case "metadata":
			n.readMeta()
		case "spec":
			for name := range r.Members {
				switch string(name) {
				case "template":
					n.readTemplate(templateOf)
				case "jobTemplate":
					for name := range r.Members {
						switch string(name) {
						case "metadata":
							r.Member("annotations", func() { n.readAnnotations(jobAnnotations) })
						case "spec":
							r.Member("template", func() { n.readTemplate(templateOfACron) })
						default:
							r.Skip()
						}
					}
				default:
					r.Skip()
				}
			}
		case "status":
			r.Member("conditions", n.readConditions)
		default:
			r.Skip()
		}
	}
	n.version = n.hash.Sum64()
	n.kept = n.asked != nil && !n.ended
	if k == pod {
		n.kept = n.kept && !n.mirror
	} else {
		n.kept = n.kept && n.controller.UID == ""
	}
	if n.kept { // texts of a reader share allocations
		n.Namespace, n.Name = strings.Clone(n.Namespace), strings.Clone(n.Name)
		n.UID, n.templateHash = types.UID(strings.Clone(string(n.UID))), strings.Clone(n.templateHash)
		c := &n.controller
		c.APIVersion, c.Kind, c.Name = strings.Clone(c.APIVersion), strings.Clone(c.Kind), strings.Clone(c.Name)
		c.UID = types.UID(strings.Clone(string(c.UID)))
	}
	return n.object
}

func (n *reading) readTemplate(path *field.Path) {
	n.Member("metadata", func() {
		n.Member("annotations", func() { n.readAnnotations(path) })
	})
}

func (n *reading) readMeta() {
	for name := range n.Members {
		switch string(name) {
		case "name":
			n.Name = n.Text(pods.MaxName)
		case "namespace":
			n.Namespace = n.Text(pods.MaxName)
		case "resourceVersion":
			n.ResourceVersion = n.Text(pods.MaxName)
		case "uid":
			n.UID = types.UID(n.Text(pods.MaxName))
			n.put(string(n.UID))
		case "generation": // changes with the spec
			n.put(strconv.FormatInt(n.Int(), 10))
		case "deletionTimestamp":
			n.ended = !n.Null()
			if n.ended {
				n.Skip()
			}
		case "labels":
			n.readLabels()
		case "annotations":
			n.readAnnotations(ownAnnotations)
		case "ownerReferences":
			n.controller = pods.ReadController(n.Reader)
		default:
			n.Skip()
		}
	}
}

// put adds a text to the hash.
func (n *reading) put(text string) {
	_, _ = n.hash.WriteString(text) // a hash returns no error
	_ = n.hash.WriteByte(0)
}

func (n *reading) readLabels() {
	for name := range n.Members {
		switch key := string(name); {
		case key == appsv1.DefaultDeploymentUniqueLabelKey:
			n.templateHash = n.Text(pods.MaxName)
		case api.IsOurs(key), key == api.PodIdentityBinding, key == api.WorkloadIdentityUse:
			value := n.Text(pods.MaxName)
			n.injected = n.injected || key == api.Injected && value == "true"
			n.put(key)
			n.put(value)
		default:
			n.Skip()
		}
	}
}

// readAnnotations reads the annotations at a path.
func (n *reading) readAnnotations(path *field.Path) {
	for name := range n.Members {
		switch key := string(name); {
		case key == metav1.InitialEventsAnnotationKey:
			n.Annotations = map[string]string{key: n.Text(pods.MaxName)}
		case key == api.MirrorPod:
			n.mirror = true
			n.Skip()
		case api.IsOurs(key) && key != api.Status && key != api.RestartedFor:
			value := n.Text(apivalidation.TotalAnnotationSizeLimitB)
			n.optsOut = n.optsOut || key == api.Inject && value == "false"
			if n.asked == nil {
				n.asked = path
			}
			n.put(key)
			n.put(value)
		default:
			n.Skip()
		}
	}
}

// readConditions reads whether a Job has ended. Other kinds have no such conditions.
func (n *reading) readConditions() {
	for range n.Elements {
		var of, status string
		for name := range n.Members {
			switch string(name) {
			case "type":
				of = n.Text(pods.MaxName)
			case "status":
				status = n.Text(pods.MaxName)
			default:
				n.Skip()
			}
		}
		if of == string(batchv1.JobComplete) || of == string(batchv1.JobFailed) {
			n.ended = n.ended || status == string(corev1.ConditionTrue)
		}
	}
}
