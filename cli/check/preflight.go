package check

import (
	"context"
	"io/fs"
	"maps"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/cluster/registration"
	"github.com/akv-injector/akv-injector/deploy"
)

// shippedObjects returns the objects that this version installs by default.
func shippedObjects() []*unstructured.Unstructured {
	var objects []*unstructured.Unstructured
	paths, err := fs.Glob(deploy.Kustomize, "kustomize/*.yaml")
	if err != nil {
		panic(err) // the pattern is correct
	}
	for _, path := range paths {
		text, err := deploy.Kustomize.ReadFile(path)
		if err != nil {
			panic(err) // it is part of the program
		}
		decoder := yaml.NewYAMLOrJSONDecoder(strings.NewReader(string(text)), len(text))
		for {
			object := &unstructured.Unstructured{}
			if err := decoder.Decode(&object.Object); err != nil {
				break
			}
			if object.GetKind() != "" && object.GetKind() != "Kustomization" {
				objects = append(objects, object)
			}
		}
	}
	return objects
}

// checkRights checks whether the user may install the chart. To grant rights, a user needs them, or
// the right to escalate.
func (c *cluster) checkRights(ctx context.Context, s *report.Section) {
	in := c.installed
	needed := map[schema.GroupResource]bool{
		{Resource: "namespaces"}: true,
		{Resource: "secrets"}:    true, // in which Helm keeps the release
	}
	namespace, err := kube.ReadMetadata(ctx, c.Reader, kube.Namespaces, "", in)
	if err == nil && namespace != nil {
		delete(needed, schema.GroupResource{Resource: "namespaces"})
	}
	var rules []rbacv1.PolicyRule
	for _, object := range shippedObjects() {
		plural, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
		needed[plural.GroupResource()] = true
		if object.GroupVersionKind().Group == rbacv1.GroupName && strings.HasSuffix(object.GetKind(), "Role") {
			var role rbacv1.ClusterRole // a Role has the same rules
			if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, &role); err != nil {
				panic(err) // it is part of the program
			}
			rules = append(rules, role.Rules...)
		}
	}
	byName := func(a, b schema.GroupResource) int { return strings.Compare(a.String(), b.String()) }
	var missing []string
	for _, resource := range slices.SortedFunc(maps.Keys(needed), byName) {
		right := authorizationv1.ResourceAttributes{
			Verb: "create", Group: resource.Group, Resource: resource.Resource, Namespace: in,
		}
		if resource.Resource == "namespaces" || strings.HasPrefix(resource.Resource, "cluster") ||
			strings.HasPrefix(resource.Group, "admissionregistration") {
			right.Namespace = ""
		}
		allowed, err := c.Reader.May(ctx, right)
		if unknown(s, "whether you may create "+resource.String(), err) {
			return
		}
		if !allowed {
			missing = append(missing, "create "+resource.String())
		}
	}
	escalates, err := c.Reader.May(ctx, authorizationv1.ResourceAttributes{
		Verb: "escalate", Group: rbacv1.GroupName, Resource: "clusterroles",
	})
	if err == nil && !escalates {
		missing, err = c.missingRules(ctx, rules, missing)
	}
	switch {
	case unknown(s, "whether you may grant the rights of the injector", err):
	case len(missing) > 0:
		line := s.Broken("you lack rights to install the chart in namespace %s; a cluster administrator has them", in)
		for _, right := range missing[:min(len(missing), maxLines)] {
			line.Detail("%s", right)
		}
		if len(missing) > maxLines {
			line.Detail("and %d more", len(missing)-maxLines)
		}
		line.Run("kubectl", "auth", "can-i", "--list", "--namespace", in)
	default:
		s.OK("you may create the objects of the chart, and grant the rights of the injector")
	}
}

// missingRules adds to missing the rights in rules that the user lacks.
func (c *cluster) missingRules(ctx context.Context, rules []rbacv1.PolicyRule, missing []string) ([]string, error) {
	for _, rule := range rules {
		for _, group := range rule.APIGroups {
			for _, resource := range rule.Resources {
				for _, verb := range rule.Verbs {
					allowed, err := c.Reader.May(ctx, authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource})
					if err != nil {
						return nil, err
					}
					right := verb + " " + (schema.GroupResource{Group: group, Resource: resource}).String()
					if !allowed && !slices.Contains(missing, right) {
						missing = append(missing, right)
					}
				}
			}
		}
	}
	return missing, nil
}

// checkCertManager checks that cert-manager can issue the serving certificate.
func (c *cluster) checkCertManager(ctx context.Context, s *report.Section) {
	has, err := c.Reader.HasKind(certificates)
	if unknown(s, "the kinds of cert-manager", err) {
		return
	}
	if !has {
		s.Warning("cert-manager is not installed; install it, or let the injector create its certificate").
			Run("helm", "install", name, "deploy/chart", "--namespace", c.installed, "--create-namespace",
				"--set", "certs.mode=self-signed")
		return
	}
	if c.validating.unknown(s, "the webhook of cert-manager") {
		return
	}
	for _, found := range c.validating.value {
		for i := range found.Webhooks {
			service := found.Webhooks[i].Service()
			if service.Name == "" || !strings.HasSuffix(found.Webhooks[i].Name, "cert-manager.io") {
				continue
			}
			ready := c.endpoints(ctx, service)
			switch {
			case ready.unknown(s, "the endpoints of cert-manager's webhook"):
			case ready.value == 0:
				s.Broken("the webhook of cert-manager has no ready endpoint: it cannot accept a Certificate").
					Run("kubectl", "get", "pods", "--namespace", service.Namespace)
			default:
				s.OK("cert-manager is installed, and its webhook has %s", report.Count(ready.value, "ready endpoint"))
			}
			return
		}
	}
	s.OK("cert-manager is installed, without a webhook")
}

// checkOthers checks the webhook configurations of others before the installation.
func (c *cluster) checkOthers(s *report.Section) {
	if c.mutating.unknown(s, "other installations") || c.validating.unknown(s, "other installations") {
		return
	}
	c.checkNoInstallation(s)
	ours := shipped(mutatingKind)
	planned := *c
	planned.service = types.NamespacedName{Namespace: defaultNamespace, Name: name}
	planned.mutating.value = append(slices.DeleteFunc(slices.Clone(c.mutating.value), isInjector), ours)
	fine := true
	for _, problem := range registration.Check(planned.service, planned.typed()) {
		if problem.Type == registration.Late {
			fine = false
			s.Broken("%s %s will be called too late: %s", mutatingKind, problem.Configuration, problem.Found).
				Run("kubectl", "get", "mutatingwebhookconfigurations")
		}
	}
	if fine {
		s.OK("%s sorts before all webhooks that select pods by what it sets", name)
	}
	if slices.ContainsFunc(c.validating.value, func(found kube.Configuration) bool {
		return strings.HasPrefix(found.Metadata.Name, "aks-")
	}) {
		s.Info("the cluster is AKS: the chart sets %s=true, so that the admission enforcer does not change its selectors",
			enforcerDisabled)
	}
}

// isInjector reports whether a configuration is that of an injector.
func isInjector(found kube.Configuration) bool {
	return found.Metadata.Name == name || slices.ContainsFunc(found.Webhooks, func(w kube.Webhook) bool {
		return strings.HasSuffix(w.Name, webhookDomain)
	})
}

// checkNoInstallation checks that the names of the chart are free, and that no injector is called.
func (c *cluster) checkNoInstallation(s *report.Section) {
	in := c.installed
	for _, found := range slices.Concat(c.mutating.value, c.validating.value) {
		if !isInjector(found) {
			continue
		}
		namespace := found.Service().Namespace
		if namespace == in && found.Metadata.Name == name {
			s.Warning("akv-injector is already installed in namespace %s", in).Run(c.command("check")...).Run(c.upgrade()...)
		} else {
			s.Broken("another installation has webhook configuration %s: the cluster can have one", found.Metadata.Name).
				Detail("it calls namespace %s", namespace).
				Run("kubectl", "get", "mutatingwebhookconfigurations,validatingwebhookconfigurations")
		}
		return
	}
	s.OK("there is no other installation")
}
