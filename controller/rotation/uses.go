package rotation

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
)

// use is a Key Vault object that an env var or a mount by subPath of a pod uses.
type use struct {
	// class is the name of the class that mounts it, and id is how the status of the class names it:
	// TYPE/NAME.
	class, id string
	// object is VAULT/TYPE/NAME.
	object string
	// synced is true if env vars use it, by a Secret that the driver syncs.
	synced bool
}

// classesOf returns the names of the classes that a pod mounts, by volume.
func classesOf(pod *corev1.Pod) map[string]string {
	classes := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		if v.CSI != nil && v.CSI.Driver == class.Driver {
			classes[v.Name] = v.CSI.VolumeAttributes[class.Attribute]
		}
	}
	return classes
}

// usesOf returns what a pod uses of the classes that it mounts. A file that is not mounted by subPath
// follows its object, so it is no use.
func usesOf(pod *corev1.Pod, classes []*class.Class) []use {
	volumes, fileEnvs := classesOf(pod), inject.FileEnvs(&pod.Spec)
	var uses []use
	for _, c := range classes {
		if c.Provider != class.Provider {
			continue // the status of another provider names objects in another way
		}
		for _, o := range c.Objects {
			u := use{class: c.Name, id: o.Type + "/" + o.Name, synced: isSynced(pod, c, o.File)}
			u.object = strings.ToLower(c.Vault) + "/" + u.id
			isRead := slices.ContainsFunc(fileEnvs, func(e inject.FileEnv) bool { return volumes[e.Volume] == c.Name && e.File == o.File })
			if u.synced || isRead || isMountedAlone(pod, volumes, c.Name, o.File) {
				uses = append(uses, u)
			}
		}
	}
	return uses
}

// isSynced reports whether an env var has the content of a file of the class.
func isSynced(pod *corev1.Pod, c *class.Class, file string) bool {
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, s := range c.Synced {
			if s.File != file {
				continue
			}
			isKey := func(e corev1.EnvVar) bool {
				return e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil &&
					e.ValueFrom.SecretKeyRef.Name == s.Secret && e.ValueFrom.SecretKeyRef.Key == s.Key
			}
			isSecret := func(e corev1.EnvFromSource) bool { return e.SecretRef != nil && e.SecretRef.Name == s.Secret }
			if slices.ContainsFunc(container.Env, isKey) || slices.ContainsFunc(container.EnvFrom, isSecret) {
				return true
			}
		}
	}
	return false
}

// isMountedAlone reports whether a container mounts a file of a class, or a folder with it, by
// subPath.
func isMountedAlone(pod *corev1.Pod, classes map[string]string, name, file string) bool {
	for _, container := range slices.Concat(pod.Spec.InitContainers, pod.Spec.Containers) {
		for _, m := range container.VolumeMounts {
			if classes[m.Name] == name &&
				(m.SubPathExpr != "" || m.SubPath != "" && (m.SubPath == file || strings.HasPrefix(file, m.SubPath+"/"))) {
				return true
			}
		}
	}
	return false
}
