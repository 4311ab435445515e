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

// Values of the metric's label result.
const (
	created  = "created"  // the class was created
	owned    = "owned"    // owners were added to an existing class
	restored = "restored" // an edited class was restored
	outdated = "outdated" // pods do not request the class that they mount
	taken    = "taken"    // a class of another client has the name
	failed   = "failed"   // the API server rejected the write
)

func newTotal(registry prometheus.Registerer) *prometheus.CounterVec {
	total := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "akv_injector_classes_total",
		Help: "Managed classes created, repaired or failed, by result.",
	}, []string{"result"})
	for _, result := range []string{created, owned, restored, outdated, taken, failed} {
		total.WithLabelValues(result) // so that the first one is an increase
	}
	registry.MustRegister(total)
	return total
}

const (
	// maxNotes is the number of pods that get an event about one class. Events for thousands of
	// pods would add no information.
	maxNotes = 50
	// maxNotedClasses is the number of classes that one pod gets events about.
	maxNotedClasses = 5
	// maxNoteSize is the number of bytes that the API server accepts as the note of an event.
	maxNoteSize = 1024
)

// note is the text of an event for a pod.
type note struct {
	pod  *claims.Claimant
	text string
}

// notesTo returns the same note about a class for each pod of some claims that gets events about
// it.
func notesTo(claimed []claims.Claim, name, text string) []note {
	var notes []note
	for _, claim := range claimed {
		for _, p := range claim.Pods {
			if getsEvents(p, name) {
				notes = append(notes, note{p, text})
			}
		}
	}
	return notes
}

// getsEvents reports whether a pod gets events about a class: about the first few that it mounts
// only.
func getsEvents(p *claims.Claimant, name string) bool {
	return slices.Index(p.Classes, name) < maxNotedClasses
}

// record creates an event for each pod. The event is related to the class, so that a pod gets one
// for each of its classes: the recorder merges events that differ only in their notes.
func (c *controller) record(reason api.Reason, key types.NamespacedName, notes []note) {
	related := &corev1.ObjectReference{
		APIVersion: class.GroupVersion.String(), Kind: class.Kind, Namespace: key.Namespace, Name: key.Name,
	}
	for _, n := range notes[:min(len(notes), maxNotes)] {
		regarding := &corev1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: n.pod.Namespace, Name: n.pod.Name, UID: n.pod.UID,
		}
		c.events.Eventf(regarding, related, corev1.EventTypeWarning, string(reason), action(n.text),
			"%s", api.Cut(n.text, maxNoteSize))
	}
}

// action returns an event's action with a checksum of its note: client-go's recorder merges events
// that differ only in their notes, and keeps the first note.
func action(text string) string {
	return fmt.Sprintf("KeepClass-%08x", crc32.ChecksumIEEE([]byte(text)))
}

// outdatedNote says that a pod does not request the class of that name. Found is the class as it
// exists; nil if it does not.
func outdatedNote(name string, found *cluster.ManagedClass, result *inject.Result) string {
	state := "is missing and was not created"
	switch {
	case found != nil && found.Intact:
		state = "is not kept for this pod"
	case found != nil:
		state = "was edited and is not restored"
	}
	why := "the annotations of the pod and its namespace request no managed class"
	switch errs := result.AllErrors(); {
	case result.NotOptedIn:
		why = fmt.Sprintf("its namespace has no label %s: %s", api.Injection, api.InjectionEnabled)
	case len(errs) > 0:
		why = "what the pod requests is now rejected: " + api.Message(errs[0])
	case len(result.Classes) > 0:
		why = "the pod, its namespace and its ServiceAccount now request " + result.Classes[0].Name
	}
	return fmt.Sprintf("SecretProviderClass %s %s, since %s; "+
		"change that back, or replace the pod, for example by kubectl rollout restart", name, state, why)
}

// takenNote says that a class of another client has the name.
func takenNote(name string) string {
	return fmt.Sprintf("SecretProviderClass %s is not the class that the pod requests, "+
		"and was not created by akv-injector; delete it to have it recreated", name)
}

// notWrittenNote says why the API server rejected a class, and how to fix it.
func notWrittenNote(name string, err error) string {
	fix := "it is tried again"
	switch {
	case apierrors.IsNotFound(err):
		fix = "install the Secrets Store CSI driver, whose CustomResourceDefinition is missing"
	case apierrors.IsForbidden(err):
		fix = "raise the quota, or give the injector's ServiceAccount the rights of its ClusterRole"
	}
	return fmt.Sprintf("SecretProviderClass %s could not be written: %s; %s",
		name, api.Cut(err.Error(), maxNoteSize/2), fix)
}
