package inject

import (
	"strconv"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
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
	Volumes []corev1.Volume
	// Containers are the changes by container, init containers first, each list in the order of the pod.
	Containers []ContainerChange
}

// ContainerChange is what one container lacks.
type ContainerChange struct {
	// Init says which list Index counts in.
	Init  bool
	Index int
	// Mounts follow those that the container has.
	Mounts []corev1.VolumeMount
	// Env precedes what the container has, so that its own env vars may refer to it by $(NAME).
	Env []corev1.EnvVar
	// Replace are env vars of the container that the request overrides, by their index.
	Replace []EnvReplacement
}

// EnvReplacement is an env var and the index of the one that it replaces.
type EnvReplacement struct {
	Index int
	Var   corev1.EnvVar
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
	var labels, annotations map[string]string
	if subject.Meta != nil {
		labels, annotations = subject.Meta.Labels, subject.Meta.Annotations
	} else if len(c.Labels)+len(c.Annotations) > 0 {
		w.op("add", root+"/metadata", struct{}{})
	}
	w.entries(root+"/metadata/labels", labels, c.Labels)
	w.entries(root+"/metadata/annotations", annotations, c.Annotations)
	spec := root + "/spec"
	if c.ServiceAccountName != "" {
		w.set(spec+"/serviceAccountName", subject.Spec.ServiceAccountName != "", c.ServiceAccountName)
	}
	appendTo(&w, spec+"/volumes", len(subject.Spec.Volumes) == 0, c.Volumes)
	for i := range c.Containers {
		c.Containers[i].operations(&w, spec, subject.Spec)
	}
	return w.ops
}

func (c *ContainerChange) operations(w *patchWriter, specPointer string, spec *corev1.PodSpec) {
	list, container := "/containers/", (*corev1.Container)(nil)
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
	appendTo(w, pointer+"/volumeMounts", len(container.VolumeMounts) == 0, c.Mounts)
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

// entries sets keys of a map. A map that is absent, null or empty is added whole, since a member can't be added to what isn't
// there.
func (w *patchWriter) entries(pointer string, existing map[string]string, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	if len(existing) == 0 {
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
