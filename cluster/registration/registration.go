// Package registration tells what in a cluster's MutatingWebhookConfigurations keeps the injector from its work: that nobody calls it, that it is
// called too late, that another injector is called as well. It only tells: it changes no configuration, and decides no review.
//
// Nothing here stops the injector. A replica that refused to start would leave those pods without a webhook that another one reaches by
// the same configuration, and with failurePolicy Fail it would block them.
//
// It knows nothing of ValidatingWebhookConfigurations, nor of selectors for namespaces: those are the choice of whoever runs the cluster, and
// AKS adds to them.
package registration

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/core/api"
)

// A ProblemType is a kind of finding. It is a label of a metric and a heading in docs/coexistence.md, so it never changes its name.
type ProblemType string

// Problems, the worst first.
const (
	// Absent means that no configuration calls an injector: nothing is injected.
	Absent ProblemType = "absent"
	// Elsewhere means that configurations call another injector's Service only: this one idles.
	Elsewhere ProblemType = "elsewhere"
	// Late means that a webhook which selects pods by what the injector sets is called before it, and so is not called for these pods.
	Late ProblemType = "late"
	// Doubled means that another configuration calls an injector too: each pod is reviewed by both.
	Doubled ProblemType = "doubled"
	// FailsOpen means that pods which ask start without what they asked for while the injector does not answer. That may be meant.
	FailsOpen ProblemType = "fails-open"
)

// problems are all of them.
var problems = []ProblemType{Absent, Elsewhere, Late, Doubled, FailsOpen}

// A Problem is one problem of one configuration.
type Problem struct {
	Type ProblemType
	// Configuration is the name of the one to change. It is empty where there is none.
	Configuration string
	// Found says what is wrong, and Fix what mends it.
	Found, Fix string
}

// webhookDomain ends the names of the injector's webhooks, whatever their configuration is called and whomever it calls.
const webhookDomain = ".akv-injector.io"

// setLabels are labels that the injector sets, so that other webhooks may select pods by them.
var setLabels = []string{api.Injected, api.PodIdentityBinding, api.WorkloadIdentityUse}

// Check says what is wrong with the configurations of a cluster, for an injector behind a Service. A webhook of the injector's that calls a URL
// counts as calling it: only who installed it knows where that leads.
func Check(service types.NamespacedName, configurations []*admissionregistrationv1.MutatingWebhookConfiguration) []Problem {
	// As the API server calls them.
	configurations = slices.SortedFunc(slices.Values(configurations), func(a, b *admissionregistrationv1.MutatingWebhookConfiguration) int {
		return cmp.Compare(a.Name, b.Name)
	})
	var ours, others, strangers []*admissionregistrationv1.MutatingWebhookConfiguration
	for _, c := range configurations {
		switch {
		case callsService(c, service):
			ours = append(ours, c)
		case !isInjector(c):
			strangers = append(strangers, c)
		case callsURL(c):
			ours = append(ours, c)
		default:
			others = append(others, c)
		}
	}
	if len(ours)+len(others) == 0 {
		return []Problem{{
			Type:  Absent,
			Found: "no MutatingWebhookConfiguration calls an injector: pods start without what they ask for",
			Fix:   "apply the one that is shipped, akv-injector",
		}}
	}
	var findings []Problem
	if len(ours) == 0 {
		findings = append(findings, Problem{
			Type: Elsewhere, Configuration: others[0].Name,
			Found: fmt.Sprintf("it calls %s and none calls %s, which is this injector", target(others[0]), describe(service)),
			Fix:   "remove this injector if it is the one too many, or run it with the --namespace and --service that are called",
		})
	}
	for _, c := range ours {
		findings = append(findings, late(c, strangers)...)
		findings = append(findings, failsOpen(c)...)
	}
	injectors := slices.Concat(ours, others)
	for _, c := range injectors[1:] {
		findings = append(findings, Problem{
			Type: Doubled, Configuration: c.Name,
			Found: fmt.Sprintf("it calls %s, and MutatingWebhookConfiguration %s calls %s: each pod is reviewed by both", target(c), injectors[0].Name, target(injectors[0])),
			Fix:   "remove one of the two installations, or the one configuration too many",
		})
	}
	return findings
}

// isInjector reports whether a configuration is an injector's, ours or that of another installation.
func isInjector(c *admissionregistrationv1.MutatingWebhookConfiguration) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool { return strings.HasSuffix(w.Name, webhookDomain) })
}

func callsService(c *admissionregistrationv1.MutatingWebhookConfiguration, service types.NamespacedName) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
		s := w.ClientConfig.Service
		return s != nil && s.Namespace == service.Namespace && s.Name == service.Name
	})
}

func callsURL(c *admissionregistrationv1.MutatingWebhookConfiguration) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool { return w.ClientConfig.URL != nil })
}

// target is whom a configuration calls, by its first webhook.
func target(c *admissionregistrationv1.MutatingWebhookConfiguration) string {
	switch to := c.Webhooks[0].ClientConfig; {
	case to.Service != nil:
		return describe(types.NamespacedName{Namespace: to.Service.Namespace, Name: to.Service.Name})
	case to.URL != nil:
		return *to.URL
	}
	return "nobody"
}

func describe(service types.NamespacedName) string { return "Service " + service.String() }

// late are the webhooks of strangers that are called before c, and pass by the pods that c gives the label which they select.
func late(c *admissionregistrationv1.MutatingWebhookConfiguration, strangers []*admissionregistrationv1.MutatingWebhookConfiguration) []Problem {
	var findings []Problem
	for _, stranger := range strangers {
		if stranger.Name > c.Name {
			break
		}
		for _, label := range setLabels {
			if slices.ContainsFunc(stranger.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
				return reviewsPods(w) && selects(w.ObjectSelector, label)
			}) {
				findings = append(findings, Problem{
					Type: Late, Configuration: c.Name,
					Found: fmt.Sprintf("it sorts after %s, which selects pods by the label %s: where the injector sets it, that webhook has already passed the pod by", stranger.Name, label),
					Fix:   "give it a name that sorts before, as akv-injector does before azure-wi-",
				})
			}
		}
	}
	return findings
}

func reviewsPods(w admissionregistrationv1.MutatingWebhook) bool {
	return slices.ContainsFunc(w.Rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		return slices.ContainsFunc(r.Resources, func(resource string) bool { return resource == "pods" || resource == "*" || resource == "*/*" })
	})
}

// selects reports whether a selector takes only objects that have the label.
func selects(selector *metav1.LabelSelector, label string) bool {
	if selector == nil {
		return false
	}
	if _, ok := selector.MatchLabels[label]; ok {
		return true
	}
	return slices.ContainsFunc(selector.MatchExpressions, func(r metav1.LabelSelectorRequirement) bool {
		return r.Key == label && (r.Operator == metav1.LabelSelectorOpIn || r.Operator == metav1.LabelSelectorOpExists)
	})
}

func failsOpen(c *admissionregistrationv1.MutatingWebhookConfiguration) []Problem {
	var names []string
	for _, w := range c.Webhooks {
		if w.FailurePolicy != nil && *w.FailurePolicy == admissionregistrationv1.Ignore {
			names = append(names, w.Name)
		}
	}
	if names == nil {
		return nil
	}
	return []Problem{{
		Type: FailsOpen, Configuration: c.Name,
		Found: "failurePolicy is Ignore in " + strings.Join(names, ", ") + ": while the injector does not answer, objects that ask are admitted as they are",
		Fix:   "set failurePolicy Fail, unless this is meant",
	}}
}
