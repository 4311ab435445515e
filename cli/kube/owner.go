package kube

import (
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Owner is the workload that a pod belongs to: a Pod without a controller is its own.
type Owner struct {
	Kind, Name string
}

// String returns KIND/NAME.
func (o Owner) String() string { return o.Kind + "/" + o.Name }

// IsRestartable reports whether kubectl and rotation can restart workloads of a kind.
func IsRestartable(kind string) bool {
	return kind == "Deployment" || kind == "StatefulSet" || kind == "DaemonSet"
}

// rolloutHash is the label with the hash of the template that Argo Rollouts sets
// (argo-rollouts, utils/annotations and pkg/apis/rollouts/v1alpha1: DefaultRolloutUniqueLabelKey).
const rolloutHash = "rollouts-pod-template-hash"

// JobOwners have the name of the CronJob of each Job that has one.
type JobOwners map[types.NamespacedName]string

// Add adds a Job.
func (j JobOwners) Add(job metav1.Object) {
	if controller := metav1.GetControllerOfNoCopy(job); controller != nil && controller.Kind == "CronJob" {
		j[types.NamespacedName{Namespace: job.GetNamespace(), Name: job.GetName()}] = controller.Name
	}
}

// IsFinished reports whether a Job with these conditions creates no more pods.
func IsFinished(conditions []batchv1.JobCondition) bool {
	return slices.ContainsFunc(conditions, func(c batchv1.JobCondition) bool {
		return c.Status == corev1.ConditionTrue && (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed)
	})
}

// OwnerOf returns the workload of a pod, from its metadata. A Deployment names its ReplicaSets after
// itself and the hash that is also a label of their pods, so the ReplicaSet need not be read. The API
// server does not check the names of owners: one that would be a flag of a suggested command is
// ignored.
func OwnerOf(pod metav1.Object, jobs JobOwners) Owner {
	controller := metav1.GetControllerOfNoCopy(pod)
	if controller == nil || strings.HasPrefix(controller.Kind, "-") || strings.HasPrefix(controller.Name, "-") {
		return Owner{"Pod", pod.GetName()}
	}
	switch controller.Kind {
	case "ReplicaSet":
		for kind, label := range map[string]string{
			"Deployment": appsv1.DefaultDeploymentUniqueLabelKey, "Rollout": rolloutHash,
		} {
			hash := pod.GetLabels()[label]
			if name, ok := strings.CutSuffix(controller.Name, "-"+hash); ok && hash != "" {
				return Owner{kind, name}
			}
		}
	case "Job":
		job := types.NamespacedName{Namespace: pod.GetNamespace(), Name: controller.Name}
		if cronJob := jobs[job]; cronJob != "" {
			return Owner{"CronJob", cronJob}
		}
	}
	return Owner{controller.Kind, controller.Name}
}
