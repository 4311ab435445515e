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

// Audit annotations of a review. The API server adds the webhook's name as a prefix.
const (
	auditOutcome    = "outcome"
	auditReasons    = "reasons"
	auditViolations = "violations"
)

// answer returns the response for a verdict, without the patch.
func answer(
	uid types.UID, name string, kind metav1.GroupVersionKind, v *review.Verdict,
) *admissionv1.AdmissionResponse {
	response := &admissionv1.AdmissionResponse{
		UID:              uid,
		Allowed:          len(v.Errors) == 0,
		Warnings:         warnings(v.Warnings),
		AuditAnnotations: map[string]string{auditOutcome: string(v.Outcome)},
	}
	if len(v.Audited) > 0 {
		response.AuditAnnotations[auditViolations] = strings.Join(fit(v.Audited, maxError, maxRejection), "\n")
	}
	if !response.Allowed {
		response.Result = rejection(name, kind, v)
		response.AuditAnnotations[auditReasons] = reasons(v.Errors)
		return response
	}
	return response
}

var jsonPatch = admissionv1.PatchTypeJSONPatch

// rejection returns the status of a rejected object. Its message has all errors, for events and
// logs. Its causes have one error each, for clients such as kubectl, which prints them like those
// of the API server.
func rejection(name string, kind metav1.GroupVersionKind, v *review.Verdict) *metav1.Status {
	status := &metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusUnprocessableEntity, Reason: metav1.StatusReasonInvalid,
		Details: &metav1.StatusDetails{Name: name, Group: kind.Group, Kind: kind.Kind},
	}
	if v.Outcome == inject.Forbidden {
		status.Code, status.Reason = http.StatusForbidden, metav1.StatusReasonForbidden
	}
	messages := fit(v.Errors[:min(len(v.Errors), maxErrors)], maxError, maxRejection)
	for _, err := range v.Errors[:len(messages)] {
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{
			Type:    metav1.CauseType(err.Type),
			Message: api.Cut("["+err.Origin+"] "+err.ErrorBody(), maxError),
			Field:   api.Cut(err.Field, maxError),
		})
	}
	if rest := v.Errors[len(messages):]; len(rest) > 0 {
		more := fmt.Sprintf("and %d more; akv-injector lint shows them all", len(rest))
		messages = append(messages, more)
		status.Details.Causes = append(status.Details.Causes, metav1.StatusCause{
			Message: more,
			Field:   api.Cut(rest[0].Field, maxError),
		})
	}
	status.Message = strings.Join(messages, "\n")
	if v.Owner != "" {
		status.Message = name + " (" + v.Owner + "): " + status.Message
	}
	return status
}

// Limits of the message of a rejection, in errors and bytes. Each attempt to create a pod copies
// the message to events, and for example to the conditions of a ReplicaSet.
const (
	maxErrors    = 20
	maxError     = 1 << 10
	maxRejection = 8 << 10
)

// fit returns the messages of the first errors that fit into all bytes, each cut to a number of
// bytes. It leaves room for a line about the rest.
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

// failure returns the text of a response with status 500. For that status, the API server applies
// the failurePolicy of the webhook, and shows the text if the policy is Fail. An AdmissionReview
// with this status would always reject the object.
func failure(err error) string {
	message, _, _ := strings.Cut(err.Error(), "\n")
	return "akv-injector could not review the request; a retry may succeed: " + api.Cut(message, maxError)
}

// The API server cuts each warning of a response to 256 characters once all of them together exceed
// 4,096.
const (
	maxWarning  = 1 << 10
	maxWarnings = 4096
)

// warnings returns the messages of warnings, cut so that the API server does not cut them.
func warnings(errs field.ErrorList) []string {
	printed := fit(errs, maxWarning, maxWarnings)
	if more := len(errs) - len(printed); more > 0 {
		printed = append(printed, fmt.Sprintf("and %d more warnings; akv-injector lint shows them all", more))
	}
	return printed
}

// reasons returns the Reasons of errs, in order and without duplicates, separated by commas.
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

// firstReason returns the Reason of a rejection in metrics and logs: that of the first error, or
// "".
func firstReason(v *review.Verdict) api.Reason {
	if len(v.Errors) == 0 {
		return ""
	}
	return api.ReasonOf(v.Errors[0])
}

// objectName returns the object's name, or the prefix from which the API server will generate its
// name, with *.
func objectName[T any, P reader[T]](r *request[T]) string {
	if meta := metaOf[T, P](r); r.Name == "" && meta != nil {
		if meta.Name == "" && meta.GenerateName != "" {
			return meta.GenerateName + "*"
		}
		return meta.Name
	}
	return r.Name
}

// metaOf returns the metadata of the object; nil for none.
func metaOf[T any, P reader[T]](r *request[T]) *pods.Meta {
	if r.Object == nil { // for example on DELETE
		return nil
	}
	return P(r.Object).ObjectMeta()
}

// generatedSuffix is how many characters the API server adds to a prefix to generate a name.
const generatedSuffix = 5

// lastingName returns [objectName], or the prefix with * if the API server generated the name. A
// controller that retries a rejected object uses a new name each time, and each name would be a new
// event.
func lastingName[T any, P reader[T]](r *request[T]) string {
	name := objectName[T, P](r)
	meta := metaOf[T, P](r)
	if meta == nil || r.Operation != admissionv1.Create {
		return name
	}
	prefix := meta.GenerateName
	if prefix != "" && len(name) == len(prefix)+generatedSuffix && strings.HasPrefix(name, prefix) {
		return prefix + "*"
	}
	return name
}
