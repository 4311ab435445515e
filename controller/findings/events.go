package findings

import (
	"context"
	"crypto/sha256"
	"fmt"
	"os"
	"slices"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Limits of the API server for the fields of an event.
const (
	maxNote     = 1024
	maxInstance = 128
)

// note is a finding that becomes an event.
type note struct {
	reason api.Reason
	text   string
	// name is the name of the event. It depends on the unit and the finding only, so every replica
	// writes the same event.
	name  string
	about corev1.ObjectReference
}

// instance returns the name of this replica in events.
func instance() string {
	host, _ := os.Hostname() // the name is only information
	return api.Cut(class.ManagedBy+"-"+host, maxInstance)
}

// notesOf returns the notes about the first findings of a subject; of the pods of a controller, one
// for each Reason.
func notesOf(s *subject, list field.ErrorList) []note {
	about := corev1.ObjectReference{
		APIVersion: s.kind.version.String(), Kind: s.kind.name, Namespace: s.namespace, Name: s.name, UID: s.member.uid,
	}
	var notes []note
	for i, err := range list {
		reason, text := api.ReasonOf(err), api.Message(err)
		same := func(n note) bool {
			return n.reason == reason && (s.controller.UID != "" || n.text == api.Cut(text, maxNote))
		}
		if slices.ContainsFunc(notes, same) {
			continue
		}
		more := ""
		if len(notes) == maxFindings-1 && i < len(list)-1 {
			more = fmt.Sprintf("; and %d more: akv-injector lint shows them all", len(list)-1-i)
		}
		text = api.Cut(text, maxNote-len(more)) + more
		digest := sha256.Sum256(fmt.Appendf(nil, "%s\x00%s\x00%s", s.unitKey.uid, reason, text))
		notes = append(notes, note{reason, text, fmt.Sprintf("%s.%x", class.ManagedBy, digest[:10]), about})
		if len(notes) == maxFindings {
			break
		}
	}
	return notes
}

// record stores the findings about a unit, unless the unit is gone.
func (f *Finder) record(u *unit, s *subject, list field.ErrorList) {
	var reasons []api.Reason
	for _, err := range list {
		if reason := api.ReasonOf(err); !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.namespaces[u.namespace][u.unitKey] != u {
		return
	}
	f.count(u.reasons, -1)
	f.count(reasons, 1)
	written := u.written
	u.reviewed, u.reasons, u.notes, u.written = s.changes, reasons, notesOf(s, list), map[string]bool{}
	for _, n := range u.notes {
		u.written[n.name] = written[n.name]
	}
}

// unwritten returns the notes without an event.
func (f *Finder) unwritten(u *unit) []note {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(u.notes), func(n note) bool { return u.written[n.name] })
}

// write creates the event of a note. It is no error if the event exists, or can no longer be
// created because its namespace is deleted.
func (f *Finder) write(ctx context.Context, n note) error {
	_, err := f.Client.EventsV1().Events(n.about.Namespace).Create(ctx, &eventsv1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: n.about.Namespace, Name: n.name},
		EventTime:  metav1.NowMicro(),
		Type:       corev1.EventTypeWarning, Reason: string(n.reason), Action: "Review", Note: n.text,
		Regarding:           n.about,
		ReportingController: class.ManagedBy, ReportingInstance: f.instance,
	}, metav1.CreateOptions{})
	switch {
	case err == nil, apierrors.IsAlreadyExists(err), apierrors.IsNotFound(err),
		apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		return nil
	}
	return fmt.Errorf("create event: %w", err)
}
