package explain

import (
	"maps"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

// asks reports whether the target requests something of the injector.
func (p *page) asks() bool {
	if p.subject.Pod == nil {
		return slices.ContainsFunc(p.pods, func(pod corev1.Pod) bool { return api.Asked(pod.Annotations) })
	}
	return api.Asked(p.subject.Annotations)
}

// labelNamespace returns the words of the command that sets a label of the namespace.
func (p *page) labelNamespace(label string) []string {
	return []string{"kubectl", "label", "--overwrite", "namespace", p.target.inNamespace(), label}
}

// writeNamespace writes whether the namespace opted in, and its policy.
func (p *page) writeNamespace() {
	name := p.target.inNamespace()
	s := p.report.Section("Namespace %s", name)
	if p.namespace == nil {
		if denied := p.lacks(kube.Namespaces); denied != nil {
			missing(s, denied, p.works())
		} else if p.target.Kind != "Namespace" { // else the target is reported
			s.Broken("does not exist").Run("kubectl", "create", "namespace", name)
		}
		return
	}
	namespace := facts.ReadNamespace(p.namespace)
	// Without the label, it is an error only if something asks.
	state := report.Info
	if p.asks() {
		state = report.Broken
	}
	value, labelled := namespace.Labels[api.Injection]
	enable := p.labelNamespace(api.Injection + "=" + api.InjectionEnabled)
	switch {
	case namespace.OptedIn():
		s.OK("opted in by label %s=%s", api.Injection, value)
	case value == api.InjectionDisabled:
		s.Add(state, "label %s=%s turns injection off", api.Injection, value).Run(enable...)
	case labelled:
		s.Add(state, "label %s has the unknown value %q: must be %s or %s",
			api.Injection, api.Echo(value), api.InjectionEnabled, api.InjectionAlways).Run(enable...)
	default:
		line := s.Add(state, "did not opt in: it has no label %s", api.Injection)
		for _, key := range slices.Sorted(maps.Keys(p.namespace.Labels)) {
			if nearLabel(key) {
				line.Detail("label %s=%s is another one", key, p.namespace.Labels[key])
			}
		}
		if _, annotated := namespace.Annotations[api.Injection]; annotated {
			line.Detail("it has an annotation of that name; it must be a label")
		}
		if state == report.Broken {
			line.Run(enable...)
		}
	}
	for _, key := range []string{api.Enforce, api.Warn, api.Audit} {
		if level, set := namespace.Labels[key]; set {
			s.Info("policy %s=%s", key, level)
		}
	}
	for _, key := range api.NamespaceAnnotations {
		if globs, set := namespace.Annotations[key]; set {
			s.Info("%s: %q", key, api.Cut(globs, maxValue))
		}
	}
	for _, err := range append(policy.CheckNamespace(*namespace, false), policy.UnknownLevels(*namespace)...) {
		s.Warning("%s", api.Message(err))
	}
}

// nearLabel reports whether a label may be a misspelling of [api.Injection].
func nearLabel(key string) bool {
	if api.IsOurs(key) {
		return key != api.Injection && slices.Contains(api.NearestKeys(key), api.Injection)
	}
	return slices.Contains(api.Near(key), api.Injection)
}

// entry is one webhook of a configuration.
type entry struct {
	*kube.Webhook

	validating bool
}

// entries returns the webhooks of both configurations.
func (f *found) entries() []entry {
	var list []entry
	for _, c := range []*kube.Configuration{f.mutating, f.validating} {
		for i := 0; c != nil && i < len(c.Webhooks); i++ {
			list = append(list, entry{&c.Webhooks[i], c == f.validating})
		}
	}
	return list
}

// handles reports whether the rules of a webhook include the creation of a kind.
func (e *entry) handles(resource schema.GroupVersionResource) bool {
	return slices.ContainsFunc(e.Rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		return has(r.APIGroups, resource.Group) && has(r.Resources, resource.Resource) &&
			has(r.Operations, admissionregistrationv1.Create)
	})
}

// has reports whether a list of a rule has a value, or all values.
func has[T ~string](list []T, value T) bool {
	return slices.Contains(list, value) || slices.Contains(list, "*")
}

// selects reports whether a selector selects an object with these labels. The API server accepts no
// invalid selector.
func selects(selector *metav1.LabelSelector, of map[string]string) bool {
	if selector == nil {
		return true
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(of))
}

// ownConditions are the match conditions of the chart. The values report whether they depend on what
// the object requests.
var ownConditions = map[string]bool{
	"not-a-mirror-pod": false, "not-being-deleted": false, "not-controlled": false,
	"new-or-requests": false, "new-or-relabelled": false, "new-or-changed": false, // this is about a creation
	"asks": true, "requests": true, "uses-an-identity-or-a-class": true,
}

// reviewed is an object whose creation the API server may send to webhooks.
type reviewed struct {
	kind       string
	resource   schema.GroupVersionResource
	labels     map[string]string
	controlled bool
}

// reviewed returns the target, and for a workload its pods.
func (p *page) reviewed() []reviewed {
	ofPods := reviewed{kind: "Pod", resource: kube.Pods}
	if p.subject.Pod != nil && p.subject.Meta != nil {
		ofPods.labels = p.subject.Meta.Labels
	}
	if p.target.Kind == "Pod" || p.target.Kind == "Namespace" {
		return []reviewed{ofPods}
	}
	own := reviewed{p.target.Kind, kindOf(p.target.Kind).resource, p.object.GetLabels(), len(p.owners) > 0}
	return []reviewed{own, ofPods}
}

// excludes returns why a webhook does not get the creation of an object; empty if it does. It judges
// the match conditions of the chart by what they are for, and returns the names of others.
func (p *page) excludes(e *entry, o *reviewed) (why string, others []string) {
	asks := p.asks()
	if e.validating {
		asks = len(p.allClasses()) > 0 || usesIdentity(o.labels)
	}
	switch {
	case !selects(e.NamespaceSelector, p.namespace.Labels):
		return "namespaceSelector", nil
	case !selects(e.ObjectSelector, o.labels):
		return "objectSelector", nil
	}
	for _, condition := range e.MatchConditions {
		needsRequest, known := ownConditions[condition.Name]
		switch {
		case !known:
			others = append(others, condition.Name)
		case needsRequest && !asks, condition.Name == "not-controlled" && o.controlled:
			return "match condition " + condition.Name, nil
		}
	}
	return "", others
}

func usesIdentity(of map[string]string) bool {
	return of[api.PodIdentityBinding] != "" || of[api.WorkloadIdentityUse] != ""
}

// writeWebhooks writes which webhooks review the target, and whether they work.
func (p *page) writeWebhooks() {
	s := p.report.Section("Webhooks")
	if denied := p.lacks(kube.MutatingConfigurations); denied != nil {
		missing(s, denied, p.works())
		return
	}
	if p.mutating == nil {
		s.Broken("MutatingWebhookConfiguration %s does not exist: the injector is not installed", kube.Name).
			Run(append(slices.Clip(p.command), "check", "--pre")...)
		return
	}
	if p.namespace == nil || p.object == nil {
		return
	}
	called := false
	for _, o := range p.reviewed() {
		called = p.writeEntries(s, &o) || called
	}
	p.writeAnswers(s, called)
}

// writeEntries writes which webhooks review an object. It reports whether there is one.
func (p *page) writeEntries(s *report.Section, o *reviewed) (called bool) {
	var excluded []string
	injects := false
	for _, e := range p.entries() {
		if !e.handles(o.resource) {
			continue
		}
		why, others := p.excludes(&e, o)
		if why != "" {
			if !e.validating {
				excluded = append(excluded, e.Name+": "+why)
			}
			continue
		}
		called, injects = true, injects || !e.validating
		p.writeEntry(s, &e, o, others)
	}
	if injects || o.controlled || !facts.ReadNamespace(p.namespace).OptedIn() || !p.asks() {
		return called
	}
	line := s.Broken("no webhook of the injector gets a new %s of this namespace", o.kind)
	for _, reason := range excluded {
		line.Detail("excluded by %s", reason)
	}
	line.Run("kubectl", "get", "mutatingwebhookconfiguration", kube.Name, "--output=yaml")
	return called
}

func (p *page) writeEntry(s *report.Section, e *entry, o *reviewed, others []string) {
	does := "injects"
	switch {
	case e.validating:
		does = "checks the policy of"
	case o.kind != "Pod":
		does = "hands down the annotations of"
	}
	failure := admissionregistrationv1.Fail
	if e.FailsOpen() {
		failure = admissionregistrationv1.Ignore
	}
	if len(e.ClientConfig.CABundle) == 0 {
		s.Broken("%s %s a new %s, but has no CA bundle: the API server cannot verify the injector", e.Name, does, o.kind).
			Run(append(slices.Clip(p.command), "check")...)
		return
	}
	line := s.OK("%s %s a new %s (failurePolicy %s)", e.Name, does, o.kind, failure)
	if len(others) > 0 {
		line.Detail("if its other match conditions hold: %s", strings.Join(others, ", "))
	}
}

// writeAnswers writes whether the injector answers.
func (p *page) writeAnswers(s *report.Section, called bool) {
	service := p.mutating.Service()
	switch {
	case !called || service.Name == "":
	case p.lacks(kube.EndpointSlices) != nil:
		missing(s, p.lacks(kube.EndpointSlices), p.works())
	case p.ready == 0:
		s.Broken("Service %s has no ready endpoint: no injector answers", service).
			Run("kubectl", "get", "pods", "--namespace", service.Namespace)
	case p.ready == 1:
		s.OK("1 replica of the injector is ready")
	default:
		s.OK("%d replicas of the injector are ready", p.ready)
	}
}

// writtenAt returns when the labels or annotations of an object were last written with a key;
// zero if that is not known. It reads the managed fields, which have seconds.
func writtenAt(fields []metav1.ManagedFieldsEntry, key string) time.Time {
	for _, entry := range fields {
		if entry.FieldsV1 != nil && entry.Time != nil && strings.Contains(entry.FieldsV1.GetRawString(), `"f:`+key+`"`) {
			return entry.Time.Time
		}
	}
	return time.Time{}
}
