package webhook

import (
	"fmt"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// Audit annotations of a review; the API server puts the webhook's name before them.
const (
	auditOutcome    = "outcome"
	auditReasons    = "reasons"
	auditViolations = "violations"
)

// answer turns a verdict into the response to the API server, but for the patch.
func answer(uid types.UID, name string, kind metav1.GroupVersionKind, v *review.Verdict) *admissionv1.AdmissionResponse {
	response := &admissionv1.AdmissionResponse{
		UID:              uid,
		Allowed:          len(v.Errors) == 0,
		Warnings:         warnings(v.Warnings),
		AuditAnnotations: map[string]string{auditOutcome: string(v.Outcome)},
	}
	if len(v.Audited) > 0 {
		response.AuditAnnotations[auditViolations] = strings.Join(fit(v.Audited, maxError, maxRefusal), "\n")
	}
	if !response.Allowed {
		response.Result = refusal(name, kind, v)
		response.AuditAnnotations[auditReasons] = reasons(v.Errors)
		return response
	}
	return response
}

var jsonPatch = admissionv1.PatchTypeJSONPatch

// refusal says why an object is refused: in one text for events and logs, and cause by cause for clients such as kubectl, which
// prints them as it does the API server's own.
func refusal(name string, kind metav1.GroupVersionKind, v *review.Verdict) *metav1.Status {
	status := &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Details: &metav1.StatusDetails{Name: name, Group: kind.Group, Kind: kind.Kind},
	}
	if v.Outcome == inject.Forbidden {
		status.Code, status.Reason = http.StatusForbidden, metav1.StatusReasonForbidden
	}
	messages := fit(v.Errors[:min(len(v.Errors), maxErrors)], maxError, maxRefusal)
	for _, err := range v.Errors[:len(messages)] {
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{
			Type: metav1.CauseType(err.Type), Message: api.Cut("["+err.Origin+"] "+err.ErrorBody(), maxError), Field: api.Cut(err.Field, maxError),
		})
	}
	if rest := v.Errors[len(messages):]; len(rest) > 0 {
		more := fmt.Sprintf("and %d more; akv-injector lint shows them all", len(rest))
		messages = append(messages, more)
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{Message: more, Field: api.Cut(rest[0].Field, maxError)})
	}
	status.Message = strings.Join(messages, "\n")
	if v.Owner != "" {
		status.Message = name + " (" + v.Owner + "): " + status.Message
	}
	return status
}

// A refusal becomes part of events and, for instance, of a ReplicaSet's conditions, again with each attempt to create a pod. So it names
// this many errors, and has this many bytes, at most.
const (
	maxErrors  = 20
	maxError   = 1 << 10
	maxRefusal = 8 << 10
)

// fit prints errs, each cut to a number of bytes, as far as they fit into another, with room for a line on the rest.
func fit(errs field.ErrorList, each, all int) []string {
	const rest = 128
	printed, left := make([]string, 0, len(errs)), all-rest
	for _, err := range errs {
		text := api.Cut(api.Message(err), each)
		if left -= len(text) + len("\n"); left < 0 {
			break
		}
		printed = append(printed, text)
	}
	return printed
}

// faulty is the text of an answer of status 500. With it, the failurePolicy of the webhook decides, and the API server prints the text if that is Fail.
// An AdmissionReview with this status would reject the object in any case.
func faulty(err error) string {
	message, _, _ := strings.Cut(err.Error(), "\n")
	return "akv-injector could not review the request; it may succeed when tried again: " + api.Cut(message, maxError)
}

// The API server keeps the warnings of a response whole until they have more than 4,096 characters in all, and then cuts each to 256.
const (
	maxWarning  = 1 << 10
	maxWarnings = 4096
)

// warnings prints warnings so that the API server cuts none of them in its own way.
func warnings(errs field.ErrorList) []string {
	printed := fit(errs, maxWarning, maxWarnings)
	if more := len(errs) - len(printed); more > 0 {
		printed = append(printed, fmt.Sprintf("and %d warnings more; akv-injector lint shows them all", more))
	}
	return printed
}

// reasons lists the Reasons of errs, each once, in order.
func reasons(errs field.ErrorList) string {
	var list []string
	seen := map[string]bool{}
	for _, err := range errs {
		if !seen[err.Origin] {
			seen[err.Origin] = true
			list = append(list, err.Origin)
		}
	}
	return strings.Join(list, ",")
}

// firstReason is the Reason by which a refusal is counted.
func firstReason(v *review.Verdict) api.Reason {
	if len(v.Errors) == 0 {
		return ""
	}
	return api.ReasonOf(v.Errors[0])
}

// objectName is the object's name, or the prefix from which the API server will generate its name.
func objectName[T any, P reader[T]](r *request[T]) string {
	if meta := metaOf[T, P](r); r.Name == "" && meta != nil {
		if meta.Name == "" && meta.GenerateName != "" {
			return meta.GenerateName + "*"
		}
		return meta.Name
	}
	return r.Name
}

// metaOf is the metadata of the object; nil where there is none.
func metaOf[T any, P reader[T]](r *request[T]) *pods.Meta {
	if r.Object == nil { // as on deletion
		return nil
	}
	return P(r.Object).ObjectMeta()
}

// generatedSuffix is how many characters the API server adds to a prefix to generate a name.
const generatedSuffix = 5

// lastingName is [objectName], or the prefix from which the API server has generated the name. A controller that retries a rejected object
// does so under a new name each time, and each rejection would be a new event.
func lastingName[T any, P reader[T]](r *request[T]) string {
	name := objectName[T, P](r)
	meta := metaOf[T, P](r)
	if meta == nil || r.Operation != admissionv1.Create {
		return name
	}
	if prefix := meta.GenerateName; prefix != "" && len(name) == len(prefix)+generatedSuffix && strings.HasPrefix(name, prefix) {
		return prefix + "*"
	}
	return name
}
