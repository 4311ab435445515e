package inject

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
)

// Outline has the parts of a pod that [Plan.DecideClasses] reads. It is smaller than a pod, so the
// controller can keep many. The status annotation is not part of it.
type Outline struct {
	labels, annotations  map[string]string // nil for none
	serviceAccount       string
	hostNetwork, windows bool
}

// OutlineOf returns the outline of a pod.
func OutlineOf(pod *corev1.Pod) Outline {
	account := pod.Spec.ServiceAccountName
	if account == "" {
		account = pod.Spec.DeprecatedServiceAccount
	}
	windows := pod.Spec.OS != nil && pod.Spec.OS.Name == corev1.Windows ||
		pod.Spec.NodeSelector[corev1.LabelOSStable] == string(corev1.Windows)
	return Outline{
		labels: only(pod.Labels, func(key string) bool {
			return key == api.PodIdentityBinding || key == api.WorkloadIdentityUse
		}),
		annotations: only(pod.Annotations, func(key string) bool {
			return (api.IsOurs(key) && key != api.Status) || key == api.WorkloadIdentityBinding
		}),
		serviceAccount: account,
		hostNetwork:    pod.Spec.HostNetwork,
		windows:        windows,
	}
}

// Subject returns a pod with that outline, for [Plan.DecideClasses].
func (o *Outline) Subject() pods.Subject {
	pod := &pods.Pod{
		Meta: &pods.Meta{Labels: o.labels, Annotations: o.annotations},
		Spec: pods.Spec{ServiceAccountName: o.serviceAccount, HostNetwork: o.hostNetwork},
	}
	if o.windows {
		pod.Spec.OS = string(corev1.Windows)
	}
	return pods.SubjectOf(pod)
}

// Digest returns a hash of the outline. In one namespace, pods with the same digest get the same
// classes.
func (o *Outline) Digest() [sha256.Size]byte {
	hash := sha256.New()
	put := func(text string) {
		_, _ = hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(text)))) // a hash returns no error
		_, _ = hash.Write([]byte(text))
	}
	for _, entries := range []map[string]string{o.labels, o.annotations} {
		for _, key := range slices.Sorted(maps.Keys(entries)) {
			put(key)
			put(entries[key])
		}
		put("") // ends the list, since no key is empty
	}
	put(o.serviceAccount)
	put(fmt.Sprint(o.hostNetwork, o.windows))
	return [sha256.Size]byte(hash.Sum(nil))
}

// Size returns about how many bytes of memory the outline takes.
func (o *Outline) Size() int {
	const empty, entry = 256, 64
	size := empty
	for _, entries := range []map[string]string{o.labels, o.annotations} {
		for key, value := range entries {
			size += entry + len(key) + len(value)
		}
	}
	return size
}

// only returns the entries with a wanted key; nil for none.
func only(all map[string]string, wanted func(key string) bool) map[string]string {
	var kept map[string]string
	for key, value := range all {
		if wanted(key) {
			if kept == nil {
				kept = map[string]string{}
			}
			kept[key] = value
		}
	}
	return kept
}
