package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// checkNamespace reports the mistakes in a Namespace, even if it has no pod.
func (r *run) checkNamespace(o *object) {
	namespace := facts.Namespace{Name: o.GetName(), Labels: o.GetLabels(), Annotations: o.GetAnnotations()}
	_, _, warnings := api.ParseRequest(api.Annotations{Namespace: namespace.Annotations, NamespaceName: namespace.Name})
	r.report(o, Warning, slices.Concat(warnings, policy.CheckNamespace(namespace, false)))
	if !namespace.OptedIn() {
		r.report(o, Warning, inject.NewPlan(pods.SubjectOf(&pods.Pod{}), namespace, inject.Defaults{}).Decide(facts.Answer{}).Warnings)
	}
}

// checkKeys reports keys under our prefixes where they have no effect. The API server does not send
// most of these objects to the webhook, so only the command line can report them.
func (r *run) checkKeys(o *object) {
	kind := o.GroupVersionKind().GroupKind()
	switch {
	case kind == namespaceKind:
		r.reportKeys(o, namespaceLabel, "metadata", "labels")
	case kind == podKind || workloadKinds[kind]:
		for _, path := range [][]string{{}, {"spec", "template"}, {"spec", "jobTemplate", "spec", "template"}} {
			r.reportKeys(o, podLabel, append(path, "metadata", "labels")...)
		}
	default:
		r.reportKeys(o, func(key string) string { return foreignAnnotation(o.Unstructured, key) }, "metadata", "annotations")
	}
}

// versions are the API versions of the kinds that the injector reads.
var versions = map[string]string{
	"Pod": "v1", "Namespace": "v1", "ServiceAccount": "v1", "Deployment": "apps/v1", "StatefulSet": "apps/v1", "DaemonSet": "apps/v1", "ReplicaSet": "apps/v1",
	"Job": "batch/v1", "CronJob": "batch/v1",
}

// checkVersion reports an object with one of our annotations whose kind or API version no API
// server serves. It returns false for such an object.
func (r *run) checkVersion(o *object) bool {
	fine := true
	report := func(name, detail string) {
		fine = false
		r.find(o, Finding{Severity: Error, Field: o.path + name, Message: name + ": " + detail})
	}
	for kind, version := range versions {
		if !strings.EqualFold(o.GetKind(), kind) || o.GetKind() == kind && o.GetAPIVersion() == version {
			continue
		}
		group, _, _ := strings.Cut(o.GetAPIVersion(), "/")
		switch {
		case len(annotated(o.Object)) == 0:
		case o.GetAPIVersion() == "":
			report("apiVersion", fmt.Sprintf("Required value: must be %s for a %s", version, kind))
		case o.GetKind() != kind && o.GetAPIVersion() == version:
			report("kind", fmt.Sprintf("Invalid value: %q: must be %s", api.Echo(o.GetKind()), kind))
		case group == "extensions" || group == "v1" || strings.HasPrefix(version, group+"/"):
			report("apiVersion", fmt.Sprintf("Invalid value: %q: must be %s for a %s: no API server serves this version", api.Echo(o.GetAPIVersion()), version, kind))
		}
	}
	return fine
}

// templates are the paths of the metadata of an object and its templates.
var templates = [][]string{{}, {"spec", "jobTemplate"}, {"spec", "template"}, {"spec", "jobTemplate", "spec", "template"}}

// annotated returns the annotations of an object and its templates by their path. It returns none
// unless one of them has one of our prefixes.
func annotated(object map[string]any) map[string]map[string]any {
	found, ours := map[string]map[string]any{}, false
	for _, template := range templates {
		path := slices.Concat(template, []string{"metadata", "annotations"})
		value, _, err := unstructured.NestedFieldNoCopy(object, path...)
		annotations, ok := value.(map[string]any)
		if err != nil || !ok {
			continue
		}
		found[strings.Join(path, ".")] = annotations
		for key := range annotations {
			ours = ours || api.IsOurs(key)
		}
	}
	if !ours {
		return nil
	}
	return found
}

// checkNulls reports annotations with a null: kubectl apply then drops all annotations of the
// object. It returns false if there is one.
func (r *run) checkNulls(o *object) bool {
	fine := true
	found := annotated(o.Object)
	for _, path := range slices.Sorted(maps.Keys(found)) {
		for _, key := range slices.Sorted(maps.Keys(found[path])) {
			if found[path][key] != nil {
				continue
			}
			fine = false
			err := api.Because(api.InvalidValue, field.Required(field.NewPath(path).Key(key),
				"must not be null: kubectl apply would drop all annotations of the object; write a value or \"\", or remove the line"))
			r.report(o, Error, field.ErrorList{err})
		}
	}
	return fine
}

// reportKeys reports keys under our prefixes in a mapping of the object. The check returns what is
// wrong with a key, or "".
func (r *run) reportKeys(o *object, check func(key string) string, path ...string) {
	keys, _, err := unstructured.NestedStringMap(o.Object, path...)
	if err != nil {
		return // a wrong type is reported where the object is decoded
	}
	for _, key := range slices.Sorted(maps.Keys(keys)) {
		if !strings.HasPrefix(key, api.KeyVaultPrefix) && !strings.HasPrefix(key, api.IdentityPrefix) {
			continue
		}
		if detail := check(key); detail != "" {
			r.report(o, Warning, field.ErrorList{api.Because(api.NoEffect, field.Forbidden(field.NewPath(path[0], path[1:]...).Key(key), detail))})
		}
	}
}

const notALabel = "must be an annotation, not a label"

// namespaceLabel returns what is wrong with a label of a Namespace, or "".
func namespaceLabel(key string) string {
	switch {
	case slices.Contains(api.NamespaceLabels[:], key):
		return ""
	case slices.Contains(api.NamespaceAnnotations[:], key), api.IsRequestKey(key) && key != api.Inject: // a label api.Inject is more likely a misspelt api.Injection
		return notALabel
	}
	names := api.Nearest(key, api.NamespaceLabels[:])
	if len(names) == 0 {
		return "must be a label of akv-injector; known: " + strings.Join(api.NamespaceLabels[:], ", ")
	}
	return "must be a label of akv-injector; did you mean " + strings.Join(names, " or ") + "?"
}

// podLabel returns what is wrong with a label of a pod, a template or a workload, or "".
func podLabel(key string) string {
	switch {
	case key == api.Injected:
		return ""
	case slices.Contains(api.NamespaceLabels[:], key):
		return "must be a label of the Namespace"
	}
	return notALabel
}

// foreignAnnotation returns what is wrong with an annotation of an object that is not a pod, a
// workload or a Namespace.
func foreignAnnotation(o *unstructured.Unstructured, key string) string {
	article := "a "
	if strings.ContainsAny(o.GetKind()[:1], "AEIO") {
		article = "an "
	}
	detail := "has no effect on " + article + o.GetKind()
	_, hasTemplate, _ := unstructured.NestedMap(o.Object, "spec", "template", "spec")
	switch {
	case slices.Contains(api.NamespaceAnnotations[:], key):
		return detail + "; write it on the Namespace"
	case o.GetKind() == serviceAccountKind.Kind && key == api.IdentityClientID:
		return detail + "; write " + api.WorkloadIdentityClientID
	case o.GetKind() == serviceAccountKind.Kind && key == api.IdentityTenantID:
		return detail + "; write " + api.WorkloadIdentityTenantID
	case hasTemplate:
		return detail + "; write it in its pod template"
	}
	return detail + "; write it on the pod, its workload or its Namespace"
}
