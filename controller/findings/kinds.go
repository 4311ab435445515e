package findings

import (
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/internal/feed"
)

// A kind is a kind of objects that are reviewed.
type kind struct {
	name, resource string
	version        schema.GroupVersion
	// labels and fields are the selectors of the watch.
	labels, fields string
	// onlyMetadata is true if the watch needs no more than the metadata.
	onlyMetadata bool
}

// The kinds. The ReplicaSets of Deployments have a controller, and are left out by a label that the
// Deployment controller sets: there are many of them.
var (
	deployment  = &kind{name: "Deployment", resource: "deployments", version: appsv1.SchemeGroupVersion}
	statefulSet = &kind{name: "StatefulSet", resource: "statefulsets", version: appsv1.SchemeGroupVersion}
	daemonSet   = &kind{name: "DaemonSet", resource: "daemonsets", version: appsv1.SchemeGroupVersion}
	replicaSet  = &kind{
		name: "ReplicaSet", resource: "replicasets", version: appsv1.SchemeGroupVersion,
		labels: "!" + appsv1.DefaultDeploymentUniqueLabelKey,
	}
	job     = &kind{name: "Job", resource: "jobs", version: batchv1.SchemeGroupVersion}
	cronJob = &kind{name: "CronJob", resource: "cronjobs", version: batchv1.SchemeGroupVersion}
	pod     = &kind{
		name: "Pod", resource: "pods", version: corev1.SchemeGroupVersion, onlyMetadata: true,
		fields: "status.phase!=" + string(corev1.PodSucceeded) + ",status.phase!=" + string(corev1.PodFailed),
	}
)

var (
	workloads = [...]*kind{deployment, statefulSet, daemonSet, replicaSet, job, cronJob}
	kinds     = append(workloads[:], pod)
)

// singular returns the name of the kind in kubectl commands.
func (k *kind) singular() string { return strings.ToLower(k.name) }

// path returns the path of an object; with an empty namespace and name, that of all objects.
func (k *kind) path(namespace, name string) []string {
	path := []string{"apis", k.version.Group, k.version.Version}
	if k.version.Group == "" {
		path = []string{"api", k.version.Version}
	}
	if namespace != "" {
		path = append(path, "namespaces", namespace)
	}
	path = append(path, k.resource)
	if name != "" {
		path = append(path, name)
	}
	return path
}

// stream returns the stream of the kind's objects.
func (k *kind) stream(client rest.Interface) *feed.Stream {
	return &feed.Stream{
		Client: client, Path: k.path("", ""), Labels: k.labels, Fields: k.fields, OnlyMetadata: k.onlyMetadata,
		Read: func(r *jsonstream.Reader) (runtime.Object, bool) {
			o := k.read(r)
			return o, o.kept
		},
	}
}
