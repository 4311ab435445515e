package rotation

import (
	"cmp"
	"encoding/json"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/akv-injector/akv-injector/core/api"
)

// Kind is a kind of workloads that can be restarted.
type Kind struct {
	// Name is the kind, such as Rollout, and Resource its API resource, which is namespaced.
	Name     string
	Resource schema.GroupVersionResource
	// Template is the path of the pod template, such as spec, template.
	Template []string
}

// kindForm is the form of [ParseKind]. The policy of the chart needs a path below spec.
var kindForm = regexp.MustCompile(
	`^([A-Za-z0-9]+)=([a-z0-9-]+)\.(v[0-9][a-z0-9]*)\.([a-z0-9.-]+)(?::(spec(?:\.[A-Za-z0-9]+)+))?$`)

// ParseKind parses KIND=RESOURCE.VERSION.GROUP[:PATH], such as
// Rollout=rollouts.v1alpha1.argoproj.io:spec.template. The default path is spec.template.
func ParseKind(text string) (Kind, error) {
	parts := kindForm.FindStringSubmatch(text)
	if parts == nil {
		return Kind{}, fmt.Errorf("must be KIND=RESOURCE.VERSION.GROUP[:PATH] with a PATH below spec, "+
			"such as Rollout=rollouts.v1alpha1.argoproj.io:spec.template, is %q", text)
	}
	return Kind{
		Name:     parts[1],
		Resource: schema.GroupVersionResource{Group: parts[4], Version: parts[3], Resource: parts[2]},
		Template: strings.Split(cmp.Or(parts[5], "spec.template"), "."),
	}, nil
}

// The kinds that are always restarted.
var (
	deployment  = appsKind("Deployment")
	statefulSet = appsKind("StatefulSet")
	daemonSet   = appsKind("DaemonSet")
)

func appsKind(name string) *Kind {
	return &Kind{
		Name: name, Resource: appsv1.SchemeGroupVersion.WithResource(strings.ToLower(name) + "s"),
		Template: []string{"spec", "template"},
	}
}

// inTemplate returns the path of a field of the pod template.
func (k *Kind) inTemplate(path ...string) []string { return slices.Concat(k.Template, path) }

// kinds are all kinds that can be restarted.
type kinds []*Kind

// kindsWith returns the kinds that are always restarted, and extra.
func kindsWith(extra []Kind) kinds {
	all := kinds{deployment, statefulSet, daemonSet}
	for i := range extra {
		all = append(all, &extra[i])
	}
	return all
}

// workload names a workload.
type workload struct {
	kind            *Kind // one of kinds
	namespace, name string
}

// creators has the kinds that create pods through ReplicaSets, by the label of the pods with the hash
// of their template. That of Argo Rollouts is DefaultRolloutUniqueLabelKey in argo-rollouts,
// pkg/apis/rollouts/v1alpha1.
var creators = map[string]schema.GroupKind{
	appsv1.DefaultDeploymentUniqueLabelKey: {Group: appsv1.GroupName, Kind: "Deployment"},
	"rollouts-pod-template-hash":           {Group: "argoproj.io", Kind: "Rollout"},
}

// workloadOf returns the workload of a pod with that controller; false for one that is never
// restarted. A workload that creates pods through ReplicaSets names these after itself and the hash of
// their template. Hashes has the labels of the pod that are in creators.
func (k kinds) workloadOf(namespace string, controller metav1.OwnerReference, hashes map[string]string) (workload, bool) {
	of := schema.FromAPIVersionAndKind(controller.APIVersion, controller.Kind).GroupKind()
	name := controller.Name
	if (of == schema.GroupKind{Group: appsv1.GroupName, Kind: "ReplicaSet"}) {
		for label, hash := range hashes {
			if before, ok := strings.CutSuffix(controller.Name, "-"+hash); ok && hash != "" {
				of, name = creators[label], before
			}
		}
	}
	for _, kind := range k {
		if kind.Name == of.Kind && kind.Resource.Group == of.Group {
			return workload{kind, namespace, name}, true
		}
	}
	return workload{}, false
}

// object is a workload as the API server has it, with the fields that rotation reads. Kinds differ in
// which of them they have.
type object struct {
	Metadata metav1.ObjectMeta `json:"metadata"`
	Spec     struct {
		Replicas       *int `json:"replicas"`
		Paused         bool `json:"paused"`
		UpdateStrategy struct {
			strategy

			RollingUpdate strategy `json:"rollingUpdate"`
		} `json:"updateStrategy"`
	} `json:"spec"`
	Status struct {
		ObservedGeneration     *intstr.IntOrString `json:"observedGeneration"` // a text in an Argo Rollout
		Replicas               *int                `json:"replicas"`
		UpdatedReplicas        *int                `json:"updatedReplicas"`
		ReadyReplicas          *int                `json:"readyReplicas"`
		AvailableReplicas      *int                `json:"availableReplicas"`
		DesiredNumberScheduled *int                `json:"desiredNumberScheduled"`
		UpdatedNumberScheduled int                 `json:"updatedNumberScheduled"`
		NumberAvailable        int                 `json:"numberAvailable"`
	} `json:"status"`

	// hasTemplate is true if it has a pod template. An Argo Rollout may refer to that of a Deployment
	// instead, and must not have one then.
	hasTemplate bool
	// ofTemplate is the annotation of the template.
	ofTemplate string
}

// strategy has fields of an update strategy. The kinds of OpenKruise, and their versions, have them in
// different places.
type strategy struct {
	Type              string              `json:"type"`
	PodUpdatePolicy   string              `json:"podUpdatePolicy"`
	RollingUpdateType string              `json:"rollingUpdateType"`
	Partition         *intstr.IntOrString `json:"partition"`
	Paused            bool                `json:"paused"`
}

// read decodes a workload of the kind.
func (k *Kind) read(body []byte) (*object, error) {
	var o object
	var fields map[string]any
	if err := json.Unmarshal(body, &o); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(body, &fields); err != nil {
		return nil, err
	}
	containers, _, _ := unstructured.NestedSlice(fields, k.inTemplate("spec", "containers")...)
	o.hasTemplate = len(containers) > 0
	o.ofTemplate, _, _ = unstructured.NestedString(fields, k.inTemplate("metadata", "annotations", api.RestartedFor)...)
	return &o, nil
}

// held returns the versions that the pods are known to have.
func (o *object) held() api.Versions {
	return api.ParseVersions(o.Metadata.Annotations[api.RestartedFor])
}

// restarted returns when rotation last wrote the workload; the zero time if the template has no
// annotation of rotation.
func (o *object) restarted() metav1.Time {
	if o.ofTemplate != "" {
		for _, entry := range o.Metadata.ManagedFields {
			if entry.Manager == fieldManager && entry.Time != nil {
				return *entry.Time
			}
		}
	}
	return metav1.Time{}
}

// isPaused reports whether the controller of the workload replaces no pods for now.
func (o *object) isPaused() bool {
	s := &o.Spec.UpdateStrategy
	return o.Spec.Paused || s.Paused || s.RollingUpdate.Paused
}

// isInPlace reports whether a new annotation of the template changes the pods without a restart of
// their containers (DefaultCalculateInPlaceUpdateSpec in OpenKruise).
func (o *object) isInPlace() bool {
	s := &o.Spec.UpdateStrategy
	return slices.ContainsFunc([]string{s.Type, s.RollingUpdate.PodUpdatePolicy, s.RollingUpdate.RollingUpdateType},
		func(how string) bool { return strings.HasPrefix(how, "InPlace") })
}

// isRolledOut reports whether every pod that the strategy of the workload replaces is of the present
// template, and available. Updated is the number of pods with the annotation of the template. It
// stands for what the status does not count.
func (o *object) isRolledOut(updated int) bool {
	status, s := &o.Status, &o.Spec.UpdateStrategy
	observed, err := strconv.ParseInt(status.ObservedGeneration.String(), 10, 64) // an error if it is absent
	if err == nil && observed < o.Metadata.Generation {
		return false
	}
	if s.Type == string(appsv1.OnDeleteStatefulSetStrategyType) { // the same text for other kinds
		return true
	}
	wanted := ptr.Deref(cmp.Or(status.DesiredNumberScheduled, o.Spec.Replicas), 1)
	partition, _ := intstr.GetScaledValueFromIntOrPercent( // 0 if it is no number
		cmp.Or(s.Partition, s.RollingUpdate.Partition, &intstr.IntOrString{}), wanted, true)
	if status.DesiredNumberScheduled != nil {
		return status.UpdatedNumberScheduled >= wanted-partition && status.NumberAvailable >= wanted
	}
	available := 0 // some kinds omit a 0
	if status.UpdatedReplicas == nil {
		available = updated
	} else {
		updated = *status.UpdatedReplicas
	}
	available = ptr.Deref(cmp.Or(status.AvailableReplicas, status.ReadyReplicas), available)
	return updated >= wanted-partition && available >= wanted && ptr.Deref(status.Replicas, 0)-updated <= partition
}
