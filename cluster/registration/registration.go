// Package registration finds problems in a cluster's MutatingWebhookConfigurations that keep the
// injector from its work: no configuration calls it, the API server calls it too late, or another
// injector is called as well. It also finds out whether pods can reach the webhook port.
//
//	options := registration.Options{Client: client, Service: service, Log: log, Metrics: registry}
//	mgr.Add(registration.NewWatcher(options))
//	mgr.Add(registration.NewExposure(options))
//
// The package logs and counts problems. It does not change configurations, decide reviews or stop
// the injector: with failurePolicy Fail, replicas that do not start block the pods that the
// configuration selects.
//
// It does not check ValidatingWebhookConfigurations or namespace selectors. The cluster's
// administrator chooses these, and AKS adds to them.
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

// A ProblemType is a kind of problem. Its value is the label of a metric and a heading in
// docs/coexistence.md, so it is stable.
type ProblemType string

// Types of problems, the most severe first.
const (
	// Absent means that no configuration calls an injector, so nothing is injected.
	Absent ProblemType = "absent"
	// Elsewhere means that configurations call only another injector's Service, and not this one.
	Elsewhere ProblemType = "elsewhere"
	// Late means that the API server calls another webhook, which selects pods by a label that the
	// injector sets, before the injector. That webhook misses the pods that get the label from the
	// injector.
	Late ProblemType = "late"
	// Doubled means that a second configuration calls an injector, so both review each pod.
	Doubled ProblemType = "doubled"
	// FailsOpen means that, while the injector does not answer, pods are admitted without what they
	// request. This may be intended.
	FailsOpen ProblemType = "fails-open"
)

// problems has all types.
var problems = []ProblemType{Absent, Elsewhere, Late, Doubled, FailsOpen}

// A Problem is one problem of one configuration.
type Problem struct {
	Type ProblemType
	// Configuration is the name of the configuration to change. It is empty for Absent.
	Configuration string
	// Found says what is wrong, and Fix how to fix it.
	Found, Fix string
}

// webhookDomain is the suffix of the names of every injector's webhooks.
const webhookDomain = ".akv-injector.io"

// setLabels are the labels that the injector sets. Other webhooks may select pods by them.
var setLabels = []string{api.Injected, api.PodIdentityBinding, api.WorkloadIdentityUse}

// Check returns the problems in the configurations of a cluster, for an injector behind a Service.
// A webhook with the injector's domain that calls a URL counts as calling this injector, because
// Check cannot find out where the URL leads.
func Check(
	service types.NamespacedName, configurations []*admissionregistrationv1.MutatingWebhookConfiguration,
) []Problem {
	// The API server calls webhooks in the order of their configurations' names.
	byName := func(a, b *admissionregistrationv1.MutatingWebhookConfiguration) int {
		return cmp.Compare(a.Name, b.Name)
	}
	configurations = slices.SortedFunc(slices.Values(configurations), byName)
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
			Found: "no MutatingWebhookConfiguration calls an injector: pods start without what they request",
			Fix:   "apply the MutatingWebhookConfiguration akv-injector of the chart or the manifests",
		}}
	}
	var found []Problem
	if len(ours) == 0 {
		found = append(found, Problem{
			Type: Elsewhere, Configuration: others[0].Name,
			Found: fmt.Sprintf("it calls %s, and no configuration calls %s, which is this injector",
				target(others[0]), describe(service)),
			Fix: "uninstall this injector, or set its --namespace and --service to the Service that is called",
		})
	}
	for _, c := range ours {
		found = append(found, late(c, strangers)...)
		found = append(found, failsOpen(c)...)
	}
	injectors := slices.Concat(ours, others)
	for _, c := range injectors[1:] {
		found = append(found, Problem{
			Type: Doubled, Configuration: c.Name,
			Found: fmt.Sprintf("it calls %s, and MutatingWebhookConfiguration %s calls %s: both review each pod",
				target(c), injectors[0].Name, target(injectors[0])),
			Fix: "uninstall one of the two injectors, or delete one of the configurations",
		})
	}
	return found
}

// isInjector reports whether a configuration belongs to an injector: this one, or another
// installation.
func isInjector(c *admissionregistrationv1.MutatingWebhookConfiguration) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
		return strings.HasSuffix(w.Name, webhookDomain)
	})
}

func callsService(c *admissionregistrationv1.MutatingWebhookConfiguration, service types.NamespacedName) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
		s := w.ClientConfig.Service
		return s != nil && s.Namespace == service.Namespace && s.Name == service.Name
	})
}

func callsURL(c *admissionregistrationv1.MutatingWebhookConfiguration) bool {
	return slices.ContainsFunc(c.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
		return w.ClientConfig.URL != nil
	})
}

// target describes what the first webhook of a configuration calls.
func target(c *admissionregistrationv1.MutatingWebhookConfiguration) string {
	switch to := c.Webhooks[0].ClientConfig; {
	case to.Service != nil:
		return describe(types.NamespacedName{Namespace: to.Service.Namespace, Name: to.Service.Name})
	case to.URL != nil:
		return *to.URL
	}
	return "no Service or URL"
}

func describe(service types.NamespacedName) string { return "Service " + service.String() }

// late returns a problem for each webhook of strangers that is called before c, and selects pods by
// a label that c sets.
func late(
	c *admissionregistrationv1.MutatingWebhookConfiguration,
	strangers []*admissionregistrationv1.MutatingWebhookConfiguration,
) []Problem {
	var found []Problem
	for _, stranger := range strangers {
		if stranger.Name > c.Name {
			break
		}
		for _, label := range setLabels {
			if slices.ContainsFunc(stranger.Webhooks, func(w admissionregistrationv1.MutatingWebhook) bool {
				return reviewsPods(w) && selects(w.ObjectSelector, label)
			}) {
				found = append(found, Problem{
					Type: Late, Configuration: c.Name,
					Found: fmt.Sprintf("it sorts after %s, which selects pods by the label %s: "+
						"that webhook is not called for pods that get the label from the injector", stranger.Name, label),
					Fix: "rename it so that it sorts before, as akv-injector sorts before azure-wi-",
				})
			}
		}
	}
	return found
}

func reviewsPods(w admissionregistrationv1.MutatingWebhook) bool {
	return slices.ContainsFunc(w.Rules, func(r admissionregistrationv1.RuleWithOperations) bool {
		return slices.ContainsFunc(r.Resources, func(resource string) bool {
			return resource == "pods" || resource == "*" || resource == "*/*"
		})
	})
}

// selects reports whether a selector matches only objects that have the label.
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
		Found: "failurePolicy is Ignore in " + strings.Join(names, ", ") +
			": while the injector does not answer, objects are admitted without what they request",
		Fix: "set failurePolicy to Fail, unless this is intended",
	}}
}
