package kube_test

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/cli/kube"
)

func TestOwnerOf(t *testing.T) {
	const hash, rollout = "pod-template-hash", "rollouts-pod-template-hash"
	controlledBy := func(meta *metav1.ObjectMeta, kind, name string) *metav1.ObjectMeta {
		meta.OwnerReferences = []metav1.OwnerReference{{Kind: kind, Name: name, Controller: new(true)}}
		return meta
	}
	jobs := kube.JobOwners{}
	jobs.Add(controlledBy(&metav1.ObjectMeta{Namespace: "shop", Name: "nightly-1"}, "CronJob", "nightly"))
	jobs.Add(&metav1.ObjectMeta{Namespace: "shop", Name: "once"})
	for behaviour, test := range map[string]struct {
		kind, name string // of the controller; empty for none
		labels     map[string]string
		want       string
	}{
		"a pod without a controller":        {want: "Pod/web-0"},
		"a StatefulSet":                     {"StatefulSet", "web", nil, "StatefulSet/web"},
		"a Deployment":                      {"ReplicaSet", "web-6d8f9", map[string]string{hash: "6d8f9"}, "Deployment/web"},
		"an Argo Rollout":                   {"ReplicaSet", "web-6d8f9", map[string]string{rollout: "6d8f9"}, "Rollout/web"},
		"a ReplicaSet without a Deployment": {"ReplicaSet", "web", nil, "ReplicaSet/web"},
		"a ReplicaSet with another hash":    {"ReplicaSet", "web-1", map[string]string{hash: "6d8f9"}, "ReplicaSet/web-1"},
		"a CronJob":                         {"Job", "nightly-1", nil, "CronJob/nightly"},
		"a Job":                             {"Job", "once", nil, "Job/once"},
		"a name that would be a flag":       {"Rollout", "--server=http://192.0.2.1", nil, "Pod/web-0"},
		"a kind that would be a flag":       {"--kubeconfig=x", "web", nil, "Pod/web-0"},
		"a ReplicaSet that would be a flag": {"ReplicaSet", "--server=x-6d8f9", map[string]string{rollout: "6d8f9"}, "Pod/web-0"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := &metav1.ObjectMeta{Namespace: "shop", Name: "web-0", Labels: test.labels}
			if test.kind != "" {
				controlledBy(pod, test.kind, test.name)
			}
			if got := kube.OwnerOf(pod, jobs).String(); got != test.want {
				t.Errorf("the owner is %s, want %s", got, test.want)
			}
		})
	}
}
