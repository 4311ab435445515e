package rotation

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/core/api"
)

// kind is a kind of workloads that can be restarted.
type kind string

// The kinds.
const (
	deployment  kind = "Deployment"
	statefulSet kind = "StatefulSet"
	daemonSet   kind = "DaemonSet"
)

// resource returns the API resource of the kind.
func (k kind) resource() schema.GroupVersionResource {
	return appsv1.SchemeGroupVersion.WithResource(strings.ToLower(string(k)) + "s")
}

// workload names a workload.
type workload struct {
	kind            kind
	namespace, name string
}

// workloadOf returns the workload of a pod with that controller; false for one that is never
// restarted. A Deployment names its ReplicaSets after itself and the hash of their template, which is
// also a label of their pods.
func workloadOf(namespace string, controller metav1.OwnerReference, templateHash string) (workload, bool) {
	if controller.APIVersion != appsv1.SchemeGroupVersion.String() {
		return workload{}, false
	}
	switch controller.Kind {
	case string(statefulSet), string(daemonSet):
		return workload{kind(controller.Kind), namespace, controller.Name}, true
	case "ReplicaSet":
		name, ok := strings.CutSuffix(controller.Name, "-"+templateHash)
		return workload{deployment, namespace, name}, ok && templateHash != ""
	}
	return workload{}, false
}

// object is a workload as the API server has it, with the fields that rotation reads.
type object struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Replicas       *int32 `json:"replicas"`
		Paused         bool   `json:"paused"`
		UpdateStrategy struct {
			Type          string `json:"type"`
			RollingUpdate struct {
				Partition int32 `json:"partition"`
			} `json:"rollingUpdate"`
		} `json:"updateStrategy"`
		Template struct {
			Metadata struct {
				Annotations map[string]string `json:"annotations"`
			} `json:"metadata"`
		} `json:"template"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration     int64 `json:"observedGeneration"`
		Replicas               int32 `json:"replicas"`
		UpdatedReplicas        int32 `json:"updatedReplicas"`
		AvailableReplicas      int32 `json:"availableReplicas"`
		DesiredNumberScheduled int32 `json:"desiredNumberScheduled"`
		UpdatedNumberScheduled int32 `json:"updatedNumberScheduled"`
		NumberAvailable        int32 `json:"numberAvailable"`
	} `json:"status"`
}

// held returns the versions that the pods are known to have, and the annotation of the template.
func (o *object) held() (own api.Versions, ofTemplate string) {
	return api.ParseVersions(o.Metadata.Annotations[api.RestartedFor]),
		o.Spec.Template.Metadata.Annotations[api.RestartedFor]
}

// restarted returns when rotation last wrote the workload; the zero time if the template has no
// annotation of rotation.
func (o *object) restarted() metav1.Time {
	if _, ofTemplate := o.held(); ofTemplate != "" {
		for _, entry := range o.Metadata.ManagedFields {
			if entry.Manager == fieldManager && entry.Time != nil {
				return *entry.Time
			}
		}
	}
	return metav1.Time{}
}

// isRolledOut reports whether every pod that the strategy of the workload replaces is of the present
// template, and available.
func (o *object) isRolledOut(k kind) bool {
	if o.Status.ObservedGeneration < o.Metadata.Generation {
		return false
	}
	wanted := int32(1)
	if o.Spec.Replicas != nil {
		wanted = *o.Spec.Replicas
	}
	strategy := &o.Spec.UpdateStrategy
	switch {
	case strategy.Type == string(appsv1.OnDeleteStatefulSetStrategyType): // the same text for a DaemonSet
		return true
	case k == daemonSet:
		wanted = o.Status.DesiredNumberScheduled
		return o.Status.UpdatedNumberScheduled >= wanted && o.Status.NumberAvailable >= wanted
	case k == statefulSet:
		return o.Status.UpdatedReplicas >= wanted-strategy.RollingUpdate.Partition && o.Status.AvailableReplicas >= wanted
	}
	return o.Status.UpdatedReplicas >= wanted && o.Status.AvailableReplicas >= wanted &&
		o.Status.Replicas <= o.Status.UpdatedReplicas
}

// singular returns the name of the kind in kubectl commands.
func (k kind) singular() string { return strings.ToLower(string(k)) }
