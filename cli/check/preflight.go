package check

import (
	"context"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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

// certManager is a kind of cert-manager, which the chart uses by default.
var certManager = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}

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
	if namespace, err := kube.Read[metav1.PartialObjectMetadata](ctx, c.Reader, kube.Namespaces, "", in); err == nil && namespace != nil {
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
		attributes := authorizationv1.ResourceAttributes{Verb: "create", Group: resource.Group, Resource: resource.Resource, Namespace: in}
		if resource.Resource == "namespaces" || strings.HasPrefix(resource.Resource, "cluster") || strings.HasPrefix(resource.Group, "admissionregistration") {
			attributes.Namespace = ""
		}
		allowed, err := c.may(ctx, attributes)
		if unknown(s, "whether you may create "+resource.String(), err) {
			return
		}
		if !allowed {
			missing = append(missing, "create "+resource.String())
		}
	}
	escalates, err := c.may(ctx, authorizationv1.ResourceAttributes{Verb: "escalate", Group: rbacv1.GroupName, Resource: "clusterroles"})
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
					allowed, err := c.may(ctx, authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource})
					if err != nil {
						return nil, err
					}
					if right := verb + " " + (schema.GroupResource{Group: group, Resource: resource}).String(); !allowed && !slices.Contains(missing, right) {
						missing = append(missing, right)
					}
				}
			}
		}
	}
	return missing, nil
}

// may reports whether the user has a right. It creates a SelfSubjectAccessReview, which every user
// may create, and which the API server does not store.
func (c *cluster) may(ctx context.Context, attributes authorizationv1.ResourceAttributes) (bool, error) {
	object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(&authorizationv1.SelfSubjectAccessReview{
		TypeMeta: metav1.TypeMeta{APIVersion: authorizationv1.SchemeGroupVersion.String(), Kind: "SelfSubjectAccessReview"},
		Spec:     authorizationv1.SelfSubjectAccessReviewSpec{ResourceAttributes: &attributes},
	})
	if err != nil {
		return false, fmt.Errorf("review access: %w", err)
	}
	resource := authorizationv1.SchemeGroupVersion.WithResource("selfsubjectaccessreviews")
	answer, err := c.Reader.Dynamic.Resource(resource).Create(ctx, &unstructured.Unstructured{Object: object}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("review access: %w", err)
	}
	allowed, _, err := unstructured.NestedBool(answer.Object, "status", "allowed")
	return allowed, err
}

// checkCertManager checks that cert-manager can issue the serving certificate.
func (c *cluster) checkCertManager(ctx context.Context, s *report.Section) {
	has, err := c.Reader.HasKind(certManager)
	if unknown(s, "the kinds of cert-manager", err) {
		return
	}
	if !has {
		s.Warning("cert-manager is not installed; install it, or let the injector create its certificate").
			Run("helm", "install", name, "deploy/chart", "--namespace", c.installed, "--create-namespace", "--set", "certs.mode=self-signed")
		return
	}
	if c.validating.unknown(s, "the webhook of cert-manager") {
		return
	}
	for _, found := range c.validating.value {
		for i := range found.Webhooks {
			to := found.Webhooks[i].ClientConfig.Service
			if to == nil || !strings.HasSuffix(found.Webhooks[i].Name, "cert-manager.io") {
				continue
			}
			service := types.NamespacedName{Namespace: to.Namespace, Name: to.Name}
			ready := c.endpoints(ctx, service)
			switch {
			case ready.unknown(s, "the endpoints of cert-manager's webhook"):
			case ready.value == 0:
				s.Broken("the webhook of cert-manager has no ready endpoint: it cannot accept a Certificate").
					Run("kubectl", "get", "pods", "--namespace", service.Namespace)
			default:
				s.OK("cert-manager is installed, and its webhook has %s", count(ready.value, "ready endpoint"))
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
	if slices.ContainsFunc(c.validating.value, func(found configuration) bool { return strings.HasPrefix(found.Metadata.Name, "aks-") }) {
		s.Info("the cluster is AKS: the chart sets %s=true, so that the admission enforcer does not change its selectors", enforcerDisabled)
	}
}

// isInjector reports whether a configuration is that of an injector.
func isInjector(found configuration) bool {
	return found.Metadata.Name == name || slices.ContainsFunc(found.Webhooks, func(w webhook) bool {
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
		namespace := ""
		for i := range found.Webhooks {
			if to := found.Webhooks[i].ClientConfig.Service; to != nil {
				namespace = to.Namespace
			}
		}
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
