package controller

import (
	"fmt"
	"hash/crc32"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/controller/claims"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
)

// What came of a class, as the metric has it.
const (
	created  = "created"  // the class
	owned    = "owned"    // an existing class, by somebody more
	restored = "restored" // an edited class
	outdated = "outdated" // pods don't ask for the class that they mount
	taken    = "taken"    // somebody else's class has the name
	failed   = "failed"   // the API server did not take it
)

func newTotal(registry prometheus.Registerer) *prometheus.CounterVec {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "akv_injector_classes_total",
		Help: "Managed classes that pods needed and that were not there as needed, by what came of it.",
	}, []string{"result"})
	for _, result := range []string{created, owned, restored, outdated, taken, failed} {
		total.WithLabelValues(result) // a rate is to be had from the first one on
	}
	registry.MustRegister(total)
	return total
}

// told is a pod, and what its events are to say.
type told struct {
	pod  *claims.Pod
	note string
}

// notesTo is the same note about a class for the pods of claims that get events about it.
func notesTo(granted []claims.Claim, name, note string) []told {
	var list []told
	for _, claim := range granted {
		for _, p := range claim.Pods {
			if getsEvents(p, name) {
				list = append(list, told{p, note})
			}
		}
	}
	return list
}

// getsEvents reports whether a pod gets events about a class that it mounts: about the first few only.
func getsEvents(p *claims.Pod, name string) bool {
	return slices.Index(p.Classes, name) < maxToldOf
}

const (
	// maxTold is how many pods hear of one class: an event for each of thousands would tell nobody more.
	maxTold = 50
	// maxToldOf is the number of classes that one pod gets events about.
	maxToldOf = 5
	// maxNote is the most bytes that the API server takes for the note of an event.
	maxNote = 1024
)

// tell leaves an event with pods. It is related to the class, so that a pod hears of each of its classes: of events that differ in nothing
// but their note the recorder writes one.
func (c *controller) tell(reason api.Reason, key types.NamespacedName, list []told) {
	related := &corev1.ObjectReference{APIVersion: class.GroupVersion.String(), Kind: class.Kind, Namespace: key.Namespace, Name: key.Name}
	for _, t := range list[:min(len(list), maxTold)] {
		regarding := &corev1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: t.pod.Namespace, Name: t.pod.Name, UID: t.pod.UID}
		c.events.Eventf(regarding, related, corev1.EventTypeWarning, string(reason), action(t.note), "%s", api.Cut(t.note, maxNote))
	}
}

// action is what failed, with a mark of the note: client-go's recorder takes events that differ in their notes alone for one, and keeps the
// first note.
func action(note string) string {
	return fmt.Sprintf("KeepClass-%08x", crc32.ChecksumIEEE([]byte(note)))
}

// outdatedNote says that a pod asks for something else than the class of that name, which is there as found says.
func outdatedNote(name string, found *cluster.ManagedClass, result *inject.Result) string {
	state := "is missing and is not made"
	switch {
	case found != nil && found.Intact:
		state = "is not kept for this pod"
	case found != nil:
		state = "was edited and is not put back"
	}
	why := "the annotations of the pod and its namespace ask for no managed class"
	switch errs := result.AllErrors(); {
	case result.NotOptedIn:
		why = fmt.Sprintf("its namespace has no label %s: %s", api.Injection, api.InjectionEnabled)
	case len(errs) > 0:
		why = "what the pod asks for is refused by now: " + api.Message(errs[0])
	case len(result.Classes) > 0:
		why = "the pod, its namespace and its ServiceAccount by now ask for " + result.Classes[0].Name
	}
	return fmt.Sprintf("SecretProviderClass %s %s, since %s; change that back, or replace the pod, for example by kubectl rollout restart", name, state, why)
}

func takenNote(name string) string {
	return fmt.Sprintf("SecretProviderClass %s is another than the pod asks for, and the injector did not make it, so it was left alone; delete it, and the right one is made", name)
}

// notWrittenNote says why the API server did not take a class, and what helps.
func notWrittenNote(name string, err error) string {
	fix := "it is tried again"
	switch {
	case apierrors.IsNotFound(err):
		fix = "install the Secrets Store CSI driver, whose CustomResourceDefinition is missing"
	case apierrors.IsForbidden(err):
		fix = "raise the quota, or give the injector's ServiceAccount the rights of its ClusterRole"
	}
	return fmt.Sprintf("SecretProviderClass %s could not be written: %s; %s", name, api.Cut(err.Error(), maxNote/2), fix)
}
