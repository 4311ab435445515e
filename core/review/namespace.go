package review

import (
	"slices"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// NamespaceMistakes returns what is wrong with the labels and annotations of a namespace, whether or
// not it has pods: defaults that cannot be parsed, ceilings, and labels with unknown values. The
// errors carry their Reasons, and their paths start with namespaces[NAME].
func NamespaceMistakes(namespace facts.Namespace) field.ErrorList {
	_, _, mistakes := api.ParseRequest(api.Annotations{Namespace: namespace.Annotations, NamespaceName: namespace.Name})
	mistakes = slices.Concat(mistakes, policy.CheckNamespace(namespace, false), policy.UnknownLevels(namespace))
	if !namespace.OptedIn() {
		plan := inject.NewPlan(pods.SubjectOf(&pods.Pod{}), namespace, inject.Defaults{})
		mistakes = append(mistakes, plan.Decide(facts.Answer{}).Warnings...)
	}
	return mistakes
}
