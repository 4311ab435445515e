package kube

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Owner is the workload that a pod belongs to: a Pod without a controller is its own.
type Owner struct {
	Kind, Name string
}

// String returns KIND/NAME.
func (o Owner) String() string { return o.Kind + "/" + o.Name }

// rolloutHash is the label with the hash of the template that Argo Rollouts sets
// (argo-rollouts, utils/annotations and pkg/apis/rollouts/v1alpha1: DefaultRolloutUniqueLabelKey).
const rolloutHash = "rollouts-pod-template-hash"

// OwnerOf returns the workload of a pod, from its metadata. A Deployment names its ReplicaSets after
// itself and the hash that is also a label of their pods, so the ReplicaSet need not be read. Jobs
// has the name of the CronJob of each Job that has one, by the name of the Job.
func OwnerOf(pod metav1.Object, jobs map[string]string) Owner {
	controller := metav1.GetControllerOfNoCopy(pod)
	if controller == nil {
		return Owner{"Pod", pod.GetName()}
	}
	switch controller.Kind {
	case "ReplicaSet":
		for label, kind := range map[string]string{appsv1.DefaultDeploymentUniqueLabelKey: "Deployment", rolloutHash: "Rollout"} {
			hash := pod.GetLabels()[label]
			if name, ok := strings.CutSuffix(controller.Name, "-"+hash); ok && hash != "" {
				return Owner{kind, name}
			}
		}
	case "Job":
		if cronJob := jobs[controller.Name]; cronJob != "" {
			return Owner{"CronJob", cronJob}
		}
	}
	return Owner{controller.Kind, controller.Name}
}
