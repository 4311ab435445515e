package check

import (
	"bytes"
	"cmp"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/version"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/cluster/registration"
	"github.com/akv-injector/akv-injector/deploy"
)

// minVersion is the first version of Kubernetes in which match conditions of webhooks are v1
// (KEP-3716).
const minVersion = "1.30.0"

func (c *cluster) checkVersion(s *report.Section) {
	v, err := version.ParseGeneric(c.version)
	switch {
	case err != nil:
		s.Unknown("the API server has version %s, which cannot be compared with %s", c.version, minVersion)
	case v.LessThan(version.MustParseGeneric(minVersion)):
		s.Broken("the API server has version %s; akv-injector needs %s or later, for the match conditions of its webhooks",
			c.version, minVersion)
	default:
		s.OK("the API server has version %s", c.version)
	}
}

// kinds of configurations, with the file that this version is installed from.
const (
	mutatingKind   = "MutatingWebhookConfiguration"
	validatingKind = "ValidatingWebhookConfiguration"
)

var files = map[string]string{
	mutatingKind:   "kustomize/mutating-webhook-configuration.yaml",
	validatingKind: "kustomize/validating-webhook-configuration.yaml",
}

// shipped returns a configuration as the chart renders it for this version.
func shipped(kind string) kube.Configuration {
	var c kube.Configuration
	text, err := deploy.Kustomize.ReadFile(files[kind])
	if err == nil {
		err = yaml.Unmarshal(text, &c)
	}
	if err != nil {
		panic(fmt.Sprintf("check: read the shipped %s: %v", kind, err)) // it is part of the program
	}
	return c
}

// checkConfigurations checks the webhook configurations. It reports whether there may be an
// installation.
func (c *cluster) checkConfigurations(s *report.Section) bool {
	if c.mutating.unknown(s, "the webhooks that inject") {
		c.validating.unknown(s, "the webhooks that enforce policy")
		return true
	}
	mutating, validating := of(c.mutating.value, name), of(c.validating.value, name)
	if mutating == nil && validating == nil && len(c.otherInjectors()) == 0 && c.deployment() == nil {
		s.Broken("akv-injector is not installed: the cluster has none of its webhook configurations").
			Run(c.command("check", "--pre")...)
		return false
	}
	c.checkConfiguration(s, mutatingKind, mutating)
	if !c.validating.unknown(s, "the webhooks that enforce policy") {
		c.checkConfiguration(s, validatingKind, validating)
	}
	c.checkOrder(s)
	return true
}

// locate finds the Service of the installation: the one that most webhooks call.
func (c *cluster) locate() {
	calls := map[types.NamespacedName]int{}
	for _, found := range []*kube.Configuration{of(c.mutating.value, name), of(c.validating.value, name)} {
		if found == nil {
			continue
		}
		for i := range found.Webhooks {
			service := found.Webhooks[i].Service()
			if calls[service]++; calls[service] > calls[c.service] {
				c.service = service
			}
		}
	}
	c.installed = c.Namespace
	switch {
	case c.installed != "" && len(calls) > 0 && c.service.Name == "": // a URL
	case c.installed != "" && c.installed != c.service.Namespace, len(calls) == 0:
		c.service = types.NamespacedName{Namespace: cmp.Or(c.installed, defaultNamespace), Name: name}
	}
	c.installed = cmp.Or(c.installed, c.service.Namespace, defaultNamespace)
}

// upgrade returns the words of the command that restores what the installation has by default, with
// values of the chart to set. Helm marks the objects of a release
// (helm.sh/helm/v4/pkg/action: setMetadataVisitor).
func (c *cluster) upgrade(values ...string) []string {
	release, byHelm, folder := name, true, "deploy/kustomize"
	for _, found := range []*kube.Configuration{of(c.mutating.value, name), of(c.validating.value, name)} {
		if found != nil {
			release = found.Metadata.Annotations["meta.helm.sh/release-name"]
			byHelm = found.Metadata.Labels["app.kubernetes.io/managed-by"] == "Helm"
			if found.Metadata.Annotations[injectCAFrom] == "" {
				folder = "deploy/kustomize/self-signed"
			}
			break
		}
	}
	if !byHelm {
		return []string{"kubectl", "apply", "--kustomize", folder}
	}
	words := []string{
		"helm", "upgrade", cmp.Or(release, name), "deploy/chart", "--namespace", c.installed, "--reset-then-reuse-values",
	}
	for _, value := range values {
		words = append(words, "--set", value)
	}
	return words
}

// checkConfiguration checks one configuration; nil if it does not exist.
func (c *cluster) checkConfiguration(s *report.Section, kind string, found *kube.Configuration) {
	if found == nil || len(found.Webhooks) == 0 {
		effect := "pods start without what they request"
		if kind == validatingKind {
			effect = "policy is not enforced"
		}
		s.Broken("no %s %s calls the injector: %s", kind, name, effect).Run(c.upgrade()...)
		return
	}
	c.checkTarget(s, kind, found)
	checkBundles(s, kind, found)
	want := shipped(kind)
	state, differences := report.Broken, differences(&want, found, c.installed)
	reason := "edited"
	if !c.isThisVersion() {
		state, reason = report.Warning, "edited, or installed by another version than "+c.Version
	}
	if len(differences) == 0 {
		s.OK("%s %s selects what this version installs", kind, name)
	} else {
		line := s.Add(state, "%s %s differs from what this version installs: it was %s", kind, name, reason)
		for _, difference := range differences {
			line.Detail("%s", difference)
		}
		line.Run(c.upgrade()...)
	}
	c.checkOutage(s, kind, &want, found)
	if extra := enforcerAdded(found); extra != "" {
		s.Warning("the admission enforcer of AKS added %s to the selectors of %s %s: "+
			"the next helm upgrade fails with a conflict", extra, kind, name).
			Run("kubectl", "annotate", strings.ToLower(kind), name, enforcerDisabled+"=true")
	}
}

// isThisVersion reports whether the configurations may be expected to be those of this version:
// the replicas run it, or their version is not known.
func (c *cluster) isThisVersion() bool {
	installed := c.installedVersion()
	return installed == "" || installed == strings.TrimPrefix(c.Version, "v")
}

// checkTarget checks what the webhooks of a configuration call.
func (c *cluster) checkTarget(s *report.Section, kind string, found *kube.Configuration) {
	targets := map[string]bool{}
	for i := range found.Webhooks {
		switch to := found.Webhooks[i].ClientConfig; {
		case to.Service != nil:
			targets["Service "+found.Webhooks[i].Service().String()] = true
		case to.URL != nil:
			url := *to.URL
			if at := strings.Index(url, "://"); at >= 0 { // without the path, which differs between webhooks
				host, _, _ := strings.Cut(url[at+3:], "/")
				url = url[:at+3] + host
			}
			targets[url] = true
		}
	}
	want := "Service " + c.service.String()
	switch {
	case len(targets) == 1 && (targets[want] || c.service.Name == ""):
		for target := range targets {
			s.OK("%s %s calls %s", kind, name, target)
		}
	default:
		line := s.Broken("%s %s must call %s in all of its webhooks", kind, name, want)
		for _, target := range sortedKeys(targets) {
			line.Detail("calls %s", target)
		}
		line.Run(c.upgrade()...)
	}
}

// checkBundles checks the CA bundles of a configuration. Whether they verify the serving certificate
// is part of the readiness of the replicas.
func checkBundles(s *report.Section, kind string, found *kube.Configuration) {
	soonest := time.Time{}
	wrong := map[string][]string{}
	for i := range found.Webhooks {
		expiry, err := bundleExpiry(found.Webhooks[i].ClientConfig.CABundle)
		if err != nil {
			wrong[err.Error()] = append(wrong[err.Error()], found.Webhooks[i].Name)
		} else if soonest.IsZero() || expiry.Before(soonest) {
			soonest = expiry
		}
	}
	if len(wrong) == 0 {
		s.OK("%s %s has a CA bundle, which is valid until %s", kind, name, soonest.UTC().Format(time.DateOnly))
		return
	}
	for _, problem := range sortedKeys(wrong) {
		line := s.Broken("the CA bundle of %s %s %s: the API server cannot call the injector", kind, name, problem).
			Detail("webhooks: %s", report.Few(wrong[problem], maxLines))
		if from := found.Metadata.Annotations[injectCAFrom]; from != "" {
			line.Detail("cert-manager's cainjector writes it from Certificate %s", from).
				Run("kubectl", "logs", "--all-containers", "--namespace", "cert-manager", "deployment/cert-manager-cainjector")
		} else {
			line.Detail("the injector writes it with certs.mode=self-signed; with files, set webhook.caBundle").
				Run("kubectl", "get", "deployments,pods", "--all-namespaces", "--selector", selector)
		}
	}
}

// injectCAFrom is the annotation by which cert-manager's cainjector finds the Certificate.
const injectCAFrom = "cert-manager.io/inject-ca-from"

// bundleExpiry returns when the last certificate of a CA bundle expires.
func bundleExpiry(bundle []byte) (last time.Time, err error) {
	if len(bytes.TrimSpace(bundle)) == 0 {
		return last, errors.New("is empty")
	}
	for block, rest := pem.Decode(bundle); block != nil; block, rest = pem.Decode(rest) {
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return last, errors.New("has a certificate that cannot be parsed")
		}
		if certificate.NotAfter.After(last) {
			last = certificate.NotAfter
		}
	}
	switch {
	case last.IsZero():
		return last, errors.New("has no certificate in PEM")
	case last.Before(time.Now()):
		return last, fmt.Errorf("expired on %s", last.UTC().Format(time.DateOnly))
	}
	return last, nil
}

// differences returns how a configuration differs from the shipped one in what the API server sends
// to the injector. Values of the chart may add rules and excluded namespaces.
func differences(want, found *kube.Configuration, namespace string) []string {
	var all []string
	for i := range want.Webhooks {
		w := &want.Webhooks[i]
		at := slices.IndexFunc(found.Webhooks, func(f kube.Webhook) bool { return f.Name == w.Name })
		if at < 0 {
			all = append(all, "webhook "+w.Name+" is missing")
			continue
		}
		f := &found.Webhooks[at]
		add := func(format string, args ...any) {
			all = append(all, "webhook "+w.Name+": "+fmt.Sprintf(format, args...))
		}
		if wanted, got := path(w.ClientConfig), path(f.ClientConfig); !strings.HasSuffix(got, wanted) {
			add("calls path %s, not %s", got, wanted)
		}
		for _, rule := range w.Rules {
			if !slices.ContainsFunc(f.Rules, func(r admissionregistrationv1.RuleWithOperations) bool {
				return covers(r, rule)
			}) {
				operations := strings.ToLower(strings.Join(texts(rule.Operations), ", "))
				add("has no rule for %s of %s", operations, strings.Join(rule.Resources, ", "))
			}
		}
		for _, difference := range selectorDifferences(w.NamespaceSelector, f.NamespaceSelector, namespace) {
			add("%s", difference)
		}
		if selector := f.ObjectSelector; selector != nil && len(selector.MatchLabels)+len(selector.MatchExpressions) > 0 {
			add("has an objectSelector, so that other objects are not reviewed")
		}
		for _, difference := range conditionDifferences(w.MatchConditions, f.MatchConditions) {
			add("%s", difference)
		}
	}
	for i := range found.Webhooks {
		if !slices.ContainsFunc(want.Webhooks, func(w kube.Webhook) bool { return w.Name == found.Webhooks[i].Name }) {
			all = append(all, "webhook "+found.Webhooks[i].Name+" does not exist in this version")
		}
	}
	return all
}

// path returns the path of the URL that a webhook calls, or with a URL the whole URL.
func path(to admissionregistrationv1.WebhookClientConfig) string {
	switch {
	case to.URL != nil:
		return *to.URL
	case to.Service != nil && to.Service.Path != nil:
		return *to.Service.Path
	}
	return "/"
}

// covers reports whether a rule includes another one.
func covers(rule, other admissionregistrationv1.RuleWithOperations) bool {
	includes := func(all, some []string) bool {
		lacks := func(s string) bool { return !slices.Contains(all, s) }
		return slices.Contains(all, "*") || !slices.ContainsFunc(some, lacks)
	}
	return includes(texts(rule.Operations), texts(other.Operations)) && includes(rule.APIGroups, other.APIGroups) &&
		includes(rule.APIVersions, other.APIVersions) && includes(rule.Resources, other.Resources)
}

func texts[T ~string](list []T) []string {
	all := make([]string, len(list))
	for i := range list {
		all[i] = string(list[i])
	}
	return all
}

// enforcerDisabled is the annotation that keeps the admission enforcer of AKS from adding selectors.
const enforcerDisabled = "admissions.enforcer/disabled"

// enforcerKeys are the keys that the admission enforcer of AKS adds to namespace selectors
// (https://learn.microsoft.com/azure/aks/faq).
var enforcerKeys = []string{"control-plane", "kubernetes.azure.com/managedby"}

// enforcerAdded returns the keys that the admission enforcer added to a configuration without the
// annotation.
func enforcerAdded(found *kube.Configuration) string {
	added := map[string]bool{}
	if found.Metadata.Annotations[enforcerDisabled] != "" {
		return ""
	}
	for i := range found.Webhooks {
		if selector := found.Webhooks[i].NamespaceSelector; selector != nil {
			for _, r := range selector.MatchExpressions {
				if slices.Contains(enforcerKeys, r.Key) {
					added[r.Key] = true
				}
			}
		}
	}
	return strings.Join(sortedKeys(added), " and ")
}

// selectorDifferences compares namespace selectors. The shipped one names the default namespace of
// the installation.
func selectorDifferences(want, found *metav1.LabelSelector, namespace string) (all []string) {
	if found == nil {
		found = &metav1.LabelSelector{}
	}
	const system = "kube-system"
	for _, w := range want.MatchExpressions {
		if w.Key == corev1.LabelMetadataName && w.Operator == metav1.LabelSelectorOpNotIn {
			if !slices.ContainsFunc(found.MatchExpressions, func(f metav1.LabelSelectorRequirement) bool {
				return f.Key == w.Key && f.Operator == w.Operator &&
					slices.Contains(f.Values, system) && slices.Contains(f.Values, namespace)
			}) {
				all = append(all, "the namespaceSelector must exclude the namespaces "+system+" and "+namespace)
			}
		} else if !hasRequirement(found, w) {
			all = append(all, "the namespaceSelector lacks "+formatRequirement(w))
		}
	}
	for _, key := range sortedKeys(found.MatchLabels) {
		all = append(all, "the namespaceSelector also requires "+key+"="+found.MatchLabels[key])
	}
	for _, f := range found.MatchExpressions {
		mayDiffer := f.Key == corev1.LabelMetadataName || slices.Contains(enforcerKeys, f.Key)
		if !mayDiffer && !hasRequirement(want, f) {
			all = append(all, "the namespaceSelector also requires "+formatRequirement(f))
		}
	}
	return all
}

func hasRequirement(selector *metav1.LabelSelector, r metav1.LabelSelectorRequirement) bool {
	return slices.ContainsFunc(selector.MatchExpressions, func(other metav1.LabelSelectorRequirement) bool {
		return equality.Semantic.DeepEqual(other, r)
	})
}

func formatRequirement(r metav1.LabelSelectorRequirement) string {
	return metav1.FormatLabelSelector(&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{r}})
}

// conditionDifferences compares match conditions.
func conditionDifferences(want, found []admissionregistrationv1.MatchCondition) (all []string) {
	for _, w := range want {
		at := slices.IndexFunc(found, func(f admissionregistrationv1.MatchCondition) bool { return f.Name == w.Name })
		switch {
		case at < 0:
			all = append(all, "match condition "+w.Name+" is missing")
		case strings.Join(strings.Fields(found[at].Expression), " ") != strings.Join(strings.Fields(w.Expression), " "):
			all = append(all, "match condition "+w.Name+" has another expression")
		}
	}
	for _, f := range found {
		if !slices.ContainsFunc(want, func(w admissionregistrationv1.MatchCondition) bool { return w.Name == f.Name }) {
			all = append(all, "match condition "+f.Name+" does not exist in this version")
		}
	}
	return all
}

// slowTimeout is how many seconds a review may take before a replica that hangs delays pods for too
// long. The default of the chart is 5.
const slowTimeout = 10

// checkOutage checks what the API server does while no replica answers.
func (c *cluster) checkOutage(s *report.Section, kind string, want, found *kube.Configuration) {
	var open, slow []string
	seconds := int32(0)
	for i := range found.Webhooks {
		f := &found.Webhooks[i]
		fails := slices.ContainsFunc(want.Webhooks, func(w kube.Webhook) bool {
			return w.Name == f.Name && !w.FailsOpen()
		})
		if fails && f.FailsOpen() {
			open = append(open, f.Name)
		}
		if f.TimeoutSeconds != nil {
			seconds = max(seconds, *f.TimeoutSeconds)
			if *f.TimeoutSeconds > slowTimeout {
				slow = append(slow, f.Name)
			}
		}
	}
	effect := "without what they request"
	if kind == validatingKind {
		effect = "without a check of policy"
	}
	if len(open) > 0 {
		s.Warning("failurePolicy of %s %s is Ignore: while no replica answers, pods are admitted %s", kind, name, effect).
			Detail("webhooks: %s", report.Few(open, maxLines)).
			Run(c.upgrade("webhook.failurePolicy=Fail")...)
	}
	if len(slow) > 0 {
		s.Warning("timeoutSeconds of %s %s is up to %d: a replica that hangs delays each pod by this time",
			kind, name, seconds).
			Detail("webhooks: %s", report.Few(slow, maxLines)).
			Run(c.upgrade("webhook.timeoutSeconds=5")...)
	}
	if len(open)+len(slow) == 0 {
		s.OK("%s %s fails closed, after %d s", kind, name, seconds)
	}
}

// typed returns the MutatingWebhookConfigurations as package registration reads them.
func (c *cluster) typed() []*admissionregistrationv1.MutatingWebhookConfiguration {
	var all []*admissionregistrationv1.MutatingWebhookConfiguration
	for i := range c.mutating.value {
		typed := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: c.mutating.value[i].Metadata}
		for _, w := range c.mutating.value[i].Webhooks {
			typed.Webhooks = append(typed.Webhooks, admissionregistrationv1.MutatingWebhook{
				Name: w.Name, ClientConfig: w.ClientConfig, Rules: w.Rules,
				FailurePolicy: w.FailurePolicy, ObjectSelector: w.ObjectSelector,
			})
		}
		all = append(all, typed)
	}
	return all
}

// checkOrder checks that no other configuration keeps the API server from calling the injector in
// time, and that there is no second installation.
func (c *cluster) checkOrder(s *report.Section) {
	fine := true
	for _, problem := range registration.Check(c.service, c.typed()) {
		if problem.Type != registration.Late && problem.Type != registration.Doubled {
			continue // checkConfiguration reports them, also for the validating webhooks
		}
		fine = false
		s.Broken("%s %s: %s", mutatingKind, problem.Configuration, problem.Found).Detail("%s", problem.Fix).
			Run("kubectl", "get", "mutatingwebhookconfiguration", problem.Configuration, "--output=yaml")
	}
	if others := otherInjectors(c.validating.value, c.service); len(others) > 0 {
		fine = false
		s.Broken("another installation checks pods too: %s %s", validatingKind, report.Few(others, maxLines)).
			Run("kubectl", "get", "validatingwebhookconfiguration", others[0], "--output=yaml")
	}
	if fine {
		s.OK("the API server calls %s before the webhooks that depend on it, and no other injector", name)
	}
}

// otherInjectors returns the names of the configurations of other installations.
func (c *cluster) otherInjectors() []string {
	return slices.Concat(otherInjectors(c.mutating.value, c.service), otherInjectors(c.validating.value, c.service))
}

// webhookDomain is the suffix of the names of every injector's webhooks.
const webhookDomain = ".akv-injector.io"

func otherInjectors(configurations []kube.Configuration, service types.NamespacedName) []string {
	var others []string
	for _, found := range configurations {
		if found.Metadata.Name != name && slices.ContainsFunc(found.Webhooks, func(w kube.Webhook) bool {
			return strings.HasSuffix(w.Name, webhookDomain) && w.ClientConfig.Service != nil && w.Service() != service
		}) {
			others = append(others, found.Metadata.Name)
		}
	}
	return others
}
