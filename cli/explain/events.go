package explain

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
)

// symptom is a warning about the target: an event, or the state of a container.
type symptom struct {
	object, reason, message, source string
	at                              time.Time
	// past is true if the target has recovered from it.
	past bool
	// cause is nil if it is not known, and values are those in the message.
	cause  *Cause
	values map[string]string
}

// maxSymptoms is how many causes a page lists.
const maxSymptoms = 5

// symptoms returns the warnings about the target: the states of containers, then the events: those of the
// injector, which say what to do, before others, and the newest first.
func (p *page) symptoms() []symptom {
	var list []symptom
	add := func(s symptom) {
		s.cause, s.values = causeOf(s.reason+" "+s.message, p.needsSecret)
		list = append(list, s)
	}
	if p.pod != nil && !isHealthy(p.pod) {
		for _, status := range slices.Concat(p.pod.Status.InitContainerStatuses, p.pod.Status.ContainerStatuses) {
			if t := terminated(&status); status.Name == inject.EnvFilesName && t != nil && t.ExitCode != 0 {
				add(symptom{
					object: "container " + status.Name, reason: t.Reason, message: t.Message, source: "its state", at: t.FinishedAt.Time,
				})
			} else if w := status.State.Waiting; w != nil && !isStarting(w.Reason) {
				add(symptom{
					object: "container " + status.Name, reason: w.Reason, message: w.Message, source: "its state", at: p.now,
				})
			}
		}
	}
	states := len(list)
	lacking := map[types.UID]bool{} // the controllers, and whether they lack pods
	if p.object != nil && p.target.Kind != "Pod" {
		lacking[p.object.GetUID()] = lacksPods(p.object)
	}
	for i := range p.below {
		lacking[p.below[i].GetUID()] = lacksPods(&p.below[i])
	}
	for i := range p.events {
		e := &p.events[i]
		ofPod := p.pod != nil && e.InvolvedObject.UID == p.pod.UID
		lacks, ofController := lacking[e.InvolvedObject.UID]
		// The state of the init container that writes env files says why it ends.
		isEnvFiles := e.Reason == "BackOff" && strings.Contains(e.Message, "container "+inject.EnvFilesName+" in pod")
		if !ofPod && !ofController || isEnvFiles {
			continue
		}
		add(symptom{
			object: e.InvolvedObject.Kind + " " + e.InvolvedObject.Name, reason: e.Reason, message: e.Message,
			source: cmp.Or(e.Source.Component, e.ReportingController), at: lastSeen(e),
			past: ofPod && p.recovered(e.Reason) || !ofPod && !lacks,
		})
	}
	ofInjector := func(s symptom) int {
		if s.source == class.ManagedBy {
			return 1
		}
		return 0
	}
	slices.SortStableFunc(list[states:], func(a, b symptom) int {
		return cmp.Or(ofInjector(b)-ofInjector(a), b.at.Compare(a.at))
	})
	return list
}

// terminated returns how a container ended last; nil if it never did.
func terminated(status *corev1.ContainerStatus) *corev1.ContainerStateTerminated {
	return cmp.Or(status.State.Terminated, status.LastTerminationState.Terminated)
}

// lastSeen returns when an event happened last.
func lastSeen(e *corev1.Event) time.Time {
	at := e.CreationTimestamp.Time
	for _, other := range []time.Time{e.FirstTimestamp.Time, e.EventTime.Time, e.LastTimestamp.Time} {
		if other.After(at) {
			at = other
		}
	}
	if e.Series != nil && e.Series.LastObservedTime.After(at) {
		at = e.Series.LastObservedTime.Time
	}
	return at
}

// recovered reports whether the explained pod has recovered from an event with that reason.
func (p *page) recovered(reason string) bool {
	return isHealthy(p.pod) || reason == "FailedMount" && p.mounted()
}

// podsOf returns how many pods a controller has and wants; equal numbers for other kinds.
func podsOf(object *unstructured.Unstructured) (has, wants int64) {
	count := func(fields ...string) int64 {
		n, _, _ := unstructured.NestedInt64(object.Object, fields...)
		return n
	}
	switch object.GetKind() {
	case "Deployment", "StatefulSet", "ReplicaSet":
		has, wants = count("status", "replicas"), 1
		if replicas, found, _ := unstructured.NestedInt64(object.Object, "spec", "replicas"); found {
			wants = replicas
		}
		if object.GetKind() == "Deployment" {
			has = count("status", "updatedReplicas") // a rollout may hang
		}
	case "DaemonSet":
		has, wants = count("status", "currentNumberScheduled"), count("status", "desiredNumberScheduled")
	case "Job":
		has, wants = count("status", "active")+count("status", "succeeded")+count("status", "failed"), 1
	}
	return has, wants
}

// lacksPods reports whether a controller has fewer pods than it wants, so that an event about a
// creation still matters.
func lacksPods(object *unstructured.Unstructured) bool {
	has, wants := podsOf(object)
	return has < wants
}

// writeEvents writes what the warnings about the target mean.
func (p *page) writeEvents() {
	s := p.report.Section("Events")
	if denied := p.lacks(kube.Events); denied != nil {
		missing(s, denied, p.works())
	}
	list, seen := p.symptoms(), map[string]bool{}
	decoded := slices.ContainsFunc(list, func(s symptom) bool { return !s.past && s.cause != nil && !s.cause.vague })
	for _, symptom := range list {
		cause := symptom.cause
		says := cause != nil && !cause.vague || reasonOf(symptom.reason) != nil
		isOver := symptom.past && (!says || cause != nil && cause.foreign || symptom.reason == string(api.ClassNotWritten))
		if isOver || !says && decoded || len(seen) == maxSymptoms {
			continue
		}
		key := symptom.reason
		if cause != nil {
			key = cause.Means
		}
		if !seen[key] {
			seen[key] = true
			p.writeSymptom(s, &symptom)
		}
	}
	unhealthy := p.pod != nil && !isHealthy(p.pod) || p.object != nil && lacksPods(p.object)
	if unhealthy && p.report.State() == report.OK {
		object := p.target
		if p.pod != nil {
			object = Target{"Pod", p.pod.Namespace, p.pod.Name}
		}
		s.Unknown("nothing says why %s is not ready", object).
			Run("kubectl", "describe", strings.ToLower(object.Kind), object.Name, "--namespace", object.inNamespace())
	}
}

// writeSymptom writes one warning with its cause and its fix.
func (p *page) writeSymptom(s *report.Section, symptom *symptom) {
	cause, state, when := symptom.cause, report.Broken, ""
	if symptom.past {
		state, when = report.Info, "earlier: "
	}
	doc := reasonOf(symptom.reason)
	var line *report.Line
	value := p.valueOf(symptom.values)
	switch {
	case doc != nil: // an event of the injector: it matters also if the pod works
		if state = report.Warning; p.pod != nil && !isHealthy(p.pod) {
			state = report.Broken
		}
		line = s.Add(state, "[%s] %s", symptom.reason, api.Cut(oneLine(symptom.message), 2*maxValue))
		line.Detail("%s", plain(link.ReplaceAllString(doc.Fix, "$1"), value))
	case cause == nil:
		line = s.Unknown("%s: %s", symptom.reason, api.Cut(oneLine(symptom.message), 2*maxValue))
	default:
		foreign := ""
		if cause.foreign {
			foreign = ", which is not about identities or Key Vault"
		}
		line = s.Add(state, "%s%s: %s%s", when, symptom.reason, plain(cause.Means, value), foreign)
		line.Detail("%s", excerpt(cause, symptom.message))
		if !symptom.past {
			line.Detail("to repair it: %s", plain(cause.Fix, value))
			for _, command := range cause.Commands {
				line.Run(p.fill(command, symptom.values)...)
			}
		}
	}
	line.Detail("from %s, about %s, %s", symptom.source, symptom.object, p.ago(symptom.at))
}

// reasonOf returns the documentation of the Reason of an event of the injector; nil for other events.
func reasonOf(reason string) *api.ReasonDoc {
	at := slices.IndexFunc(api.Reasons[:], func(doc api.ReasonDoc) bool { return string(doc.Reason) == reason })
	if at < 0 {
		return nil
	}
	return &api.Reasons[at]
}

// link matches a Markdown link.
var link = regexp.MustCompile(`\[([^\]]*)\]\([^)]*\)`)

// rule matches the lines with which Azure's client separates the parts of an error.
var rule = regexp.MustCompile(`-{4,}`)

// oneLine returns a text with single spaces.
func oneLine(text string) string {
	return strings.Join(strings.Fields(rule.ReplaceAllString(text, "")), " ")
}

// excerpt returns the part of a message that its cause was found in.
func excerpt(cause *Cause, message string) string {
	at := cause.pattern.FindStringIndex(message)
	if at == nil {
		at = []int{0}
	}
	before := ""
	if at[0] > 0 {
		before = "… "
	}
	return before + api.Cut(oneLine(message[at[0]:]), 2*maxValue)
}

// needsSecret reports whether the driver must sync a Secret for the explained pod.
func (p *page) needsSecret(name string) bool {
	_, needed := p.secrets[name]
	return needed
}

// fill returns a command with values. A value that would be a flag is left out: a client that may
// create events or classes could otherwise add flags, such as the address of another API server.
func (p *page) fill(command []string, values map[string]string) []string {
	value := p.valueOf(values)
	filled := make([]string, len(command))
	for i, word := range command {
		filled[i] = expand(word, value)
		if strings.HasPrefix(filled[i], "-") && !strings.HasPrefix(word, "-") {
			filled[i] = unset(word)
		}
	}
	return filled
}

// valueOf returns the values of placeholders: those in the cluster's objects, and of a text only
// those that it shares with them. A client that may create events could otherwise get its own client
// id or issuer into a command that grants a right.
func (p *page) valueOf(values map[string]string) func(string) string {
	candidates := p.candidates()
	kinds := map[string][3]string{ // the words of az for the types of objects
		api.TypeSecret: {"secret", "Key Vault Secrets User"}, api.TypeKey: {"key", "Key Vault Crypto User"},
		api.TypeCert: {"certificate", "Key Vault Certificate User"},
	}
	kind, known := kinds[values["TYPE"]]
	if !known {
		kind = kinds[api.TypeSecret]
	}
	return func(name string) string {
		switch known, closed := candidates[name]; {
		case name == "TYPE":
			return kind[0]
		case name == "ROLE":
			return kind[1]
		case !closed, slices.Contains(known, values[name]):
			return values[name]
		case values[name] == "" && len(known) > 0:
			return known[0]
		}
		return ""
	}
}

// candidates returns the values that placeholders may have, the most likely first.
func (p *page) candidates() map[string][]string {
	c := map[string][]string{
		"NAMESPACE":          {p.target.inNamespace()},
		"INJECTOR_NAMESPACE": {cmp.Or(p.mutating.Service().Namespace, "akv-injector-system")},
		"CLASS":              p.allClasses(),
		"ISSUER":             nil, "SUBJECT": nil, "SERVICE_ACCOUNT": nil, "CLIENT_ID": nil, "TENANT": nil,
		"VAULT": nil, "OBJECT": nil, "POD": nil, "NODE": nil,
	}
	if p.pod != nil {
		c["CLASS"] = append(driverVolumes(p.pod), c["CLASS"]...)
	}
	add := func(name, value string) {
		if value != "" {
			c[name] = append(c[name], value)
		}
	}
	add("ISSUER", p.issuer)
	if p.pod != nil {
		add("POD", p.pod.Name)
		add("NODE", p.pod.Spec.NodeName)
	}
	if p.subject.Pod != nil {
		add("SERVICE_ACCOUNT", p.subjectAccount())
		add("SUBJECT", p.subjectOf(p.subjectAccount()))
	}
	for _, name := range c["CLASS"] {
		object := p.classObject(name)
		if object == nil {
			continue
		}
		read, _ := facts.ReadClass(object)
		add("VAULT", read.Vault)
		add("CLIENT_ID", read.ClientID)
		for _, o := range read.Objects {
			add("OBJECT", o.Name)
		}
		add("TENANT", parameter(object, "tenantID"))
	}
	for _, spc := range p.result.Classes {
		read := class.ReadParameters(spc)
		add("VAULT", read.Vault)
		add("CLIENT_ID", read.ClientID)
	}
	if sa := p.account(p.subjectAccount()); sa != nil {
		add("CLIENT_ID", sa.ClientID)
	}
	for i := range p.identities {
		client, _, _ := unstructured.NestedString(p.identities[i].Object, "spec", "clientID")
		add("CLIENT_ID", client)
	}
	return c
}

// subjectAccount returns the ServiceAccount that the subject runs as after injection; empty for
// none.
func (p *page) subjectAccount() string {
	switch {
	case p.subject.Pod == nil:
		return ""
	case p.result.Change.ServiceAccountName != "":
		return p.result.Change.ServiceAccountName
	}
	return p.subject.RunsAs()
}
