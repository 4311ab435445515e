package corpus

import (
	"fmt"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"

	"github.com/akv-injector/akv-injector/core/pods"
)

// fieldsRead are the fields of a pod that a decision may depend on, as paths without the indices of
// lists. An object in the list includes all its fields. Package pods must read these fields and no
// others.
var fieldsRead = []string{
	"metadata.name", "metadata.generateName", "metadata.labels", "metadata.annotations", "metadata.deletionTimestamp",
	"metadata.ownerReferences.kind", "metadata.ownerReferences.name", "metadata.ownerReferences.controller",
	"spec.serviceAccountName", "spec.serviceAccount", "spec.automountServiceAccountToken",
	"spec.imagePullSecrets.name", "spec.hostNetwork", "spec.os.name", "spec.nodeSelector.kubernetes.io/os",
	"spec.securityContext.runAsUser", "spec.securityContext.runAsNonRoot",
	"spec.volumes.name", "spec.volumes.csi.driver", "spec.volumes.csi.readOnly", "spec.volumes.csi.volumeAttributes",
	"spec.volumes.csi.nodePublishSecretRef",
	"spec.volumeClaimTemplates.metadata.name", "spec.jobTemplate.metadata.annotations",
	"spec.volumes.configMap", "spec.volumes.secret", "spec.volumes.projected",
	"spec.volumes.downwardAPI", "spec.volumes.image",
	"spec.containers.name", "spec.containers.command", "spec.containers.args",
	"spec.containers.env.name", "spec.containers.env.value",
	"spec.containers.env.valueFrom.secretKeyRef.name", "spec.containers.env.valueFrom.secretKeyRef.key",
	"spec.containers.env.valueFrom.fileKeyRef.volumeName", "spec.containers.env.valueFrom.fileKeyRef.path",
	"spec.containers.env.valueFrom.fileKeyRef.key",
	"spec.containers.envFrom.prefix",
	"spec.containers.envFrom.secretRef.name", "spec.containers.envFrom.configMapRef.name",
	"spec.containers.volumeMounts.name", "spec.containers.volumeMounts.mountPath",
	"spec.containers.volumeMounts.readOnly",
	"spec.containers.volumeMounts.subPath", "spec.containers.volumeMounts.subPathExpr",
	"spec.containers.volumeDevices.name", "spec.containers.volumeDevices.devicePath",
	"spec.containers.securityContext.runAsUser", "spec.containers.securityContext.runAsNonRoot",
}

// Read returns a pod as the injector decodes it.
func Read(pod *corev1.Pod) *pods.Pod {
	text, err := json.Marshal(pod)
	if err != nil {
		panic(err) // a pod always has a JSON form
	}
	var read pods.Pod
	if err := pods.Decode(text, &read); err != nil {
		panic(err)
	}
	return &read
}

// Prune removes the fields of a pod or workload that the injector does not read.
func Prune(object []byte) ([]byte, error) {
	var tree map[string]any
	if err := json.Unmarshal(object, &tree); err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	prune(tree, "")
	return json.Marshal(tree, json.Deterministic(true))
}

// prune removes the fields of the value at path that the injector does not read.
func prune(value any, path string) {
	switch value := value.(type) {
	case map[string]any:
		for name, member := range value {
			switch at := strings.TrimPrefix(path+"."+name, "."); {
			case IsRead(at):
			case isAboveRead(at):
				prune(member, at)
			default:
				delete(value, name)
			}
		}
	case []any:
		for _, element := range value {
			prune(element, path)
		}
	}
}

// inPod returns a path relative to the pod of an object that may be a workload, and whether the
// path is in the pod.
func inPod(path string) (string, bool) {
	for _, template := range []string{"spec.template.", "spec.jobTemplate.spec.template."} {
		if below, ok := strings.CutPrefix(path, template); ok {
			path = below
		}
	}
	path = strings.Replace(path, "spec.initContainers", "spec.containers", 1)
	return path, path != "spec.template" && !strings.HasPrefix("spec.jobTemplate.spec.template", path)
}

// IsRead reports whether the injector reads the field of a pod or a workload at a path without
// indices.
func IsRead(path string) bool {
	below, _ := inPod(path)
	return path == "kind" || slices.Contains(fieldsRead, below)
}

func isAboveRead(path string) bool {
	below, ok := inPod(path)
	return !ok || slices.ContainsFunc(fieldsRead, func(r string) bool { return strings.HasPrefix(r, below+".") })
}
