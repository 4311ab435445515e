package inject

import (
	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/core/pods"
)

// Entry is one label or annotation.
type Entry struct {
	Key, Value string
}

// Change is what the injector changes in a pod. Most of it is added. It replaces or removes only:
//
//   - env vars that the request overrides;
//   - other values of the injector's own label and status annotation;
//   - the default ServiceAccount, and what the API server's ServiceAccount admission plugin added
//     for it: image pull secrets, the volume of the API token, and the mounts of that volume.
type Change struct {
	Labels, Annotations []Entry
	// ServiceAccountName is the new ServiceAccount; empty for no change.
	ServiceAccountName string
	// RemovePullSecrets removes spec.imagePullSecrets. RemoveVolumes has the indices of the volumes
	// to remove, in descending order. Both remove only what the admission plugin added for the
	// default ServiceAccount, and only with another ServiceAccountName.
	RemovePullSecrets bool
	RemoveVolumes     []int
	// Volumes are added after those of the pod.
	Volumes []Volume
	// EnvContainer is the init container that writes env files; nil for no change. If it replaces
	// none, it becomes the first.
	EnvContainer *EnvContainer
	// Containers are the changes of containers: init containers first, each list in the order of
	// the pod.
	Containers []ContainerChange
}

// ContainerChange is the change of one container.
type ContainerChange struct {
	// Index is the index in spec.initContainers if Init, else in spec.containers.
	Init  bool
	Index int
	// RemoveMounts has the indices of the mounts to remove, in descending order.
	RemoveMounts []int
	// Mounts are added after those of the container.
	Mounts []Mount
	// Env is added before the container's own env vars, so that these may refer to it by $(NAME).
	Env []EnvVar
	// Replace are the env vars that the request overrides.
	Replace []EnvReplacement
}

// EnvReplacement is a new env var and the index of the env var that it replaces.
type EnvReplacement struct {
	Index int
	Var   EnvVar
}

// Volume is an inline volume of the Secrets Store CSI driver, or the volume of env files.
type Volume struct {
	Name string
	// Class is the name of the SecretProviderClass that the volume mounts; empty for env files.
	Class string
	// SizeLimit is the size limit of the volume of env files, which is in memory.
	SizeLimit string
}

// Mount is a read-only mount of a volume.
type Mount struct {
	Volume, Path string
}

// EnvVar is an env var from a key of a Secret or, if File is not empty, from that env file.
type EnvVar struct {
	Name, Secret, Key, File string
}

// IsEmpty reports whether nothing changes.
func (c *Change) IsEmpty() bool {
	return len(c.Labels) == 0 && len(c.Annotations) == 0 && c.ServiceAccountName == "" &&
		len(c.Volumes) == 0 && len(c.Containers) == 0 && c.EnvContainer == nil
}

// Operations renders the change as a JSON Patch (RFC 6902) of the object of subject, in a fixed
// order: labels, annotations, ServiceAccount, volumes, containers, and the init container of env files,
// which moves the others. Values are strings or implement
// [Appender].
func (c *Change) Operations(subject *pods.Subject) []jsonpatch.Operation {
	if c.IsEmpty() {
		return nil
	}
	size := 4 + len(c.Labels) + len(c.Annotations) + len(c.Volumes) + len(c.RemoveVolumes)
	for i := range c.Containers {
		change := &c.Containers[i]
		size += len(change.RemoveMounts) + len(change.Mounts) + len(change.Env) + len(change.Replace)
	}
	w := newPatchWriter(size)
	root := subject.Root.Pointer
	meta := subject.Meta
	if meta == nil {
		meta = &pods.Meta{}
		if len(c.Labels)+len(c.Annotations) > 0 {
			w.op("add", root+"/metadata", object{})
		}
	}
	w.entries(root+"/metadata/labels", meta.HasLabels, meta.Labels, c.Labels)
	w.entries(root+"/metadata/annotations", meta.HasAnnotations, meta.Annotations, c.Annotations)
	spec := root + "/spec"
	if c.ServiceAccountName != "" {
		w.set(spec+"/serviceAccountName", subject.Spec.ServiceAccountName != "", c.ServiceAccountName)
	}
	if c.RemovePullSecrets {
		w.op("remove", spec+"/imagePullSecrets", nil)
	}
	for _, index := range c.RemoveVolumes {
		w.op("remove", w.pointer(spec, "/volumes/", index), nil)
	}
	appendTo(w, spec+"/volumes", len(subject.Spec.Volumes) == 0, c.Volumes)
	for i := range c.Containers {
		c.Containers[i].operations(w, spec, &subject.Spec)
	}
	if e := c.EnvContainer; e != nil {
		switch list := spec + "/initContainers"; {
		case e.Replaces >= 0:
			w.op("replace", w.pointer(list, "/", e.Replaces), e)
		case len(subject.Spec.InitContainers) == 0:
			w.op("add", list, array[EnvContainer, *EnvContainer]{*e})
		default:
			w.op("add", list+"/0", e)
		}
	}
	return w.ops
}

func (c *ContainerChange) operations(w *patchWriter, spec string, pod *pods.Spec) {
	list, container := "/containers/", (*pods.Container)(nil)
	if c.Init {
		list, container = "/initContainers/", &pod.InitContainers[c.Index]
	} else {
		container = &pod.Containers[c.Index]
	}
	pointer := w.pointer(spec, list, c.Index)
	for i := range c.Replace {
		w.op("replace", w.pointer(pointer, "/env/", c.Replace[i].Index), &c.Replace[i].Var)
	}
	if len(container.Env) == 0 && len(c.Env) > 0 {
		w.op("add", pointer+"/env", array[EnvVar, *EnvVar](c.Env))
	} else {
		for i := range c.Env {
			w.op("add", w.pointer(pointer, "/env/", i), &c.Env[i])
		}
	}
	for _, index := range c.RemoveMounts {
		w.op("remove", w.pointer(pointer, "/volumeMounts/", index), nil)
	}
	appendTo(w, pointer+"/volumeMounts", len(container.Mounts) == 0, c.Mounts)
}
