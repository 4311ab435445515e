package inject

import (
	"strconv"

	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// Entry is one label or annotation.
type Entry struct {
	Key, Value string
}

// Change is what a pod lacks. It can only add, but for the three things that the contract lets it replace: an env var that
// the request overrides, the injector's own label and status, and a ServiceAccount that is no more than the default.
type Change struct {
	Labels, Annotations []Entry
	// ServiceAccountName is whom the pod is to run as; empty to leave it.
	ServiceAccountName string
	// Volumes follow those that the pod has.
	Volumes []Volume
	// Containers are the changes by container, init containers first, each list in the order of the pod.
	Containers []ContainerChange
}

// ContainerChange is what one container lacks.
type ContainerChange struct {
	// Init says which list Index counts in.
	Init  bool
	Index int
	// Mounts follow those that the container has.
	Mounts []Mount
	// Env precedes what the container has, so that its own env vars may refer to it by $(NAME).
	Env []EnvVar
	// Replace are env vars of the container that the request overrides, by their index.
	Replace []EnvReplacement
}

// EnvReplacement is an env var and the index of the one that it replaces.
type EnvReplacement struct {
	Index int
	Var   EnvVar
}

// Volume is an inline volume of the Secrets Store CSI driver, in its JSON form.
type Volume struct {
	Name string `json:"name"`
	CSI  csi    `json:"csi"`
}

type csi struct {
	Driver     string     `json:"driver"`
	ReadOnly   bool       `json:"readOnly"`
	Attributes attributes `json:"volumeAttributes"`
}

type attributes struct {
	Class string `json:"secretProviderClass"`
}

// Class is the name of the SecretProviderClass that the volume mounts.
func (v *Volume) Class() string {
	return v.CSI.Attributes.Class
}

func newVolume(name, className string) Volume {
	return Volume{Name: name, CSI: csi{Driver: class.Driver, ReadOnly: true, Attributes: attributes{className}}}
}

// Mount is a read-only mount of a volume, in its JSON form.
type Mount struct {
	Volume   string `json:"name"`
	ReadOnly bool   `json:"readOnly"`
	Path     string `json:"mountPath"`
}

// EnvVar is an env var from a key of a Secret, in its JSON form.
type EnvVar struct {
	Name string    `json:"name"`
	From envSource `json:"valueFrom"`
}

type envSource struct {
	SecretKey secretKey `json:"secretKeyRef"`
}

type secretKey struct {
	Secret string `json:"name"`
	Key    string `json:"key"`
}

// IsEmpty reports whether the pod lacks nothing.
func (c *Change) IsEmpty() bool {
	return len(c.Labels) == 0 && len(c.Annotations) == 0 && c.ServiceAccountName == "" && len(c.Volumes) == 0 && len(c.Containers) == 0
}

// Operations renders the change as a JSON Patch (RFC 6902) of the object that holds subject, in a fixed order: labels,
// annotations, ServiceAccount, volumes, containers.
func (c *Change) Operations(subject *Subject) []jsonpatch.Operation {
	if c.IsEmpty() {
		return nil
	}
	w := patchWriter{ops: make([]jsonpatch.Operation, 0, 4+len(c.Labels)+len(c.Annotations)+len(c.Volumes)+2*len(c.Containers))}
	root := subject.Root.Pointer
	meta := subject.Meta
	if meta == nil {
		meta = &pods.Meta{}
		if len(c.Labels)+len(c.Annotations) > 0 {
			w.op("add", root+"/metadata", struct{}{})
		}
	}
	w.entries(root+"/metadata/labels", meta.HasLabels, meta.Labels, c.Labels)
	w.entries(root+"/metadata/annotations", meta.HasAnnotations, meta.Annotations, c.Annotations)
	spec := root + "/spec"
	if c.ServiceAccountName != "" {
		w.set(spec+"/serviceAccountName", subject.Spec.ServiceAccountName != "", c.ServiceAccountName)
	}
	appendTo(&w, spec+"/volumes", len(subject.Spec.Volumes) == 0, c.Volumes)
	for i := range c.Containers {
		c.Containers[i].operations(&w, spec, &subject.Spec)
	}
	return w.ops
}

func (c *ContainerChange) operations(w *patchWriter, specPointer string, spec *pods.Spec) {
	list, container := "/containers/", (*pods.Container)(nil)
	if c.Init {
		list, container = "/initContainers/", &spec.InitContainers[c.Index]
	} else {
		container = &spec.Containers[c.Index]
	}
	pointer := specPointer + list + strconv.Itoa(c.Index)
	for i := range c.Replace {
		w.op("replace", pointer+"/env/"+strconv.Itoa(c.Replace[i].Index), &c.Replace[i].Var)
	}
	if len(container.Env) == 0 && len(c.Env) > 0 {
		w.op("add", pointer+"/env", c.Env)
	} else {
		for i := range c.Env {
			w.op("add", pointer+"/env/"+strconv.Itoa(i), &c.Env[i])
		}
	}
	appendTo(w, pointer+"/volumeMounts", len(container.Mounts) == 0, c.Mounts)
}

// patchWriter collects operations.
type patchWriter struct {
	ops []jsonpatch.Operation
}

func (w *patchWriter) op(op, pointer string, value any) {
	w.ops = append(w.ops, jsonpatch.Operation{Operation: op, Path: pointer, Value: value})
}

// set adds a member, or replaces the one that is there.
func (w *patchWriter) set(pointer string, there bool, value any) {
	if there {
		w.op("replace", pointer, value)
		return
	}
	w.op("add", pointer, value)
}

// entries sets keys of a map, of which existing holds those that are read. A map that is absent, null or empty is added whole, since a
// member can't be added to what isn't there.
func (w *patchWriter) entries(pointer string, there bool, existing map[string]string, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	if !there {
		whole := make(map[string]string, len(entries))
		for _, e := range entries {
			whole[e.Key] = e.Value
		}
		w.op("add", pointer, whole)
		return
	}
	for _, e := range entries {
		_, there := existing[e.Key]
		w.set(pointer+"/"+escape(e.Key), there, e.Value)
	}
}

// appendTo adds values to the end of a list, or the list where there is none.
func appendTo[T any](w *patchWriter, pointer string, whole bool, values []T) {
	if len(values) == 0 {
		return
	}
	if whole {
		w.op("add", pointer, values)
		return
	}
	for i := range values {
		w.op("add", pointer+"/-", &values[i])
	}
}
