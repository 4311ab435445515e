package explain

import (
	"maps"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
)

// maxValue is how much of a text from the cluster one line has, in bytes.
const maxValue = 200

// writeAnnotations writes each key of the request, its value, and where it was written.
func (p *page) writeAnnotations() {
	s := p.report.Section("%s of %s", annotations, p.target)
	for i := range api.Keys {
		key := api.Keys[i].Name
		if api.IsWritten(key) {
			continue
		}
		switch p.request.OriginOf(key) {
		case api.FromPod:
			s.Info("%s=%s (%s)", key, p.value(key, p.subject.Annotations[key]), p.writtenIn(key))
		case api.FromNamespace:
			s.Info("%s=%s (default of namespace %s)", key, p.value(key, p.namespace.Annotations[key]), p.namespace.Name)
		case api.Unset:
		}
	}
	if p.request.OptedOut {
		s.Info("opted out of injection by %s", api.Inject)
	}
	p.writeResult(s, annotations)
	p.writeNear(s)
	if len(s.Lines) == 0 {
		s.Info("none: it requests nothing of the injector")
	}
}

// writeNear writes labels and annotations that the injector does not read, but that are near its
// keys.
func (p *page) writeNear(s *report.Section) {
	state := report.Warning
	if !p.asks() {
		state = report.Broken // nothing else explains what the author expects
	}
	for _, path := range [][]string{
		{"metadata"},
		{"spec", "template", "metadata"},
		{"spec", "jobTemplate", "metadata"},
		{"spec", "jobTemplate", "spec", "template", "metadata"},
	} {
		for _, what := range []string{"annotations", "labels"} {
			entries, _, _ := unstructured.NestedStringMap(p.object.Object, append(path, what)...)
			for _, key := range slices.Sorted(maps.Keys(entries)) {
				near := api.Near(key)
				if what == "labels" && api.IsRequestKey(key) {
					near = []string{"the annotation " + key}
				}
				if len(near) > 0 {
					at := strings.Join(append(path, what), ".")
					s.Add(state, "%s[%s] is not read; did you mean %s?", at, key, strings.Join(near, " or "))
				}
			}
		}
	}
}

// value returns the value of a key for a line. A wrong item may be a secret: its error leaves it out,
// and so does the line.
func (p *page) value(key, value string) string {
	isWrong := slices.ContainsFunc(p.result.AllErrors(), func(err *field.Error) bool {
		return strings.Contains(err.Field, "["+key+"]")
	})
	if key == api.Secrets && isWrong {
		return "…"
	}
	return api.Cut(strings.TrimSpace(value), maxValue)
}

// writtenIn returns the object in which an annotation was written.
func (p *page) writtenIn(key string) string {
	path := p.subject.AnnotationPathOf(key).String()
	switch {
	case strings.HasPrefix(path, "workload."):
		return "inherited from its workload"
	case strings.Contains(path, "template."):
		return "pod template"
	}
	return p.target.Kind
}

// effective returns the identity that the subject has or gets, and where its client and tenant id
// were written.
func (p *page) effective() inject.Status {
	for _, entry := range p.result.Change.Annotations {
		if entry.Key == api.Status {
			return statusOf(map[string]string{api.Status: entry.Value})
		}
	}
	if p.pod != nil && p.target.Kind == "Pod" && p.result.Outcome == inject.Unchanged {
		return statusOf(p.pod.Annotations)
	}
	return inject.Status{}
}

// writeIdentity writes the identity of the subject, and what Azure needs to accept it.
func (p *page) writeIdentity() {
	s := p.report.Section(identity)
	p.writeResult(s, identity)
	status := p.effective()
	mode, name := p.byHand()
	why := "by its labels and classes"
	if status.Identity != nil {
		mode, name = api.Mode(status.Identity.Mode), status.Identity.Name
		why = p.why(mode, name)
	}
	if mode != api.ModeNone {
		s.Info("%s %s (%s)", mode, name, why)
	}
	switch mode {
	case api.ModePodIdentity:
		p.writeBinding(s, name)
	case api.ModeWorkloadIdentity, api.ModeIdentityBinding:
		p.writeFederation(s, mode, name, status)
	case api.ModeNone, api.ModeAuto:
		switch {
		case len(s.Lines) > 0:
		case len(p.result.AllErrors()) > 0:
			s.Info("not decided, since the request is rejected")
		default:
			s.Info("none")
		}
	}
}

// byHand returns the identity that the subject has by what its author wrote, without annotations.
func (p *page) byHand() (mode api.Mode, name string) {
	var of map[string]string
	if p.subject.Meta != nil {
		of = p.subject.Meta.Labels
	}
	if label := of[api.PodIdentityBinding]; label != "" {
		return api.ModePodIdentity, label
	}
	mode = api.ModeNone
	if of[api.WorkloadIdentityUse] == "true" {
		mode = api.ModeWorkloadIdentity
	}
	for _, name := range p.subjectClasses() {
		if c := p.class(name); c != nil && c.ClientID != "" && !c.UsesPodIdentity {
			mode = api.ModeWorkloadIdentity
			if usesTokenProxy(p.classObject(name)) {
				return api.ModeIdentityBinding, p.subject.RunsAs()
			}
		}
	}
	if mode == api.ModeNone {
		return mode, ""
	}
	return mode, p.subject.RunsAs()
}

// usesTokenProxy reports whether a class is for identity bindings.
func usesTokenProxy(class *unstructured.Unstructured) bool {
	return parameter(class, "useAzureTokenProxy") == "true"
}

// why returns why the mode was chosen; the order is that of the decision (docs/annotations.md).
func (p *page) why(mode api.Mode, name string) string {
	switch origin := p.request.OriginOf(api.IdentityMode); {
	case origin != api.Unset && p.request.Mode != api.ModeAuto:
		return "set by " + api.IdentityMode
	case origin == api.Unset && p.defaults.Mode != "" && p.defaults.Mode != api.ModeAuto:
		return "set by the injector's flag --identity-mode"
	}
	for _, class := range p.request.Classes {
		if c := p.class(class); c != nil && (c.UsesPodIdentity || c.ClientID != "") {
			return "set by class " + class
		}
	}
	if mode == api.ModePodIdentity {
		return "an AzureIdentityBinding selects it, or the namespace has others"
	}
	return "ServiceAccount " + name + " has a client id"
}

// writeBinding writes whether pod identity finds an identity by the label.
func (p *page) writeBinding(s *report.Section, label string) {
	if denied := p.lacks(kube.Bindings); denied != nil {
		missing(s, denied, p.works())
		return
	}
	var selectors []string
	for i := range p.facts.Bindings {
		binding := &p.facts.Bindings[i]
		selector := facts.ReadSelector(binding)
		if selectors = append(selectors, selector); selector != label {
			continue
		}
		name, _, _ := unstructured.NestedString(binding.Object, "spec", "azureIdentity")
		identity := named(p.identities, name)
		switch denied := p.lacks(kube.Identities); {
		case denied != nil:
			missing(s, denied, p.works())
		case identity == nil:
			s.Broken("AzureIdentity %s of AzureIdentityBinding %s does not exist", name, binding.GetName()).
				Run("kubectl", "get", "azureidentities", "--namespace", p.target.Namespace)
		default:
			client, _, _ := unstructured.NestedString(identity.Object, "spec", "clientID")
			s.OK("AzureIdentityBinding %s selects %s: AzureIdentity %s, client id %s", binding.GetName(), label, name, client)
		}
		return
	}
	available := api.Available(label, "AzureIdentityBinding", selectors)
	s.Broken("no AzureIdentityBinding has spec.selector %s%s", label, available).
		Run("kubectl", "get", "azureidentitybindings", "--namespace", p.target.Namespace,
			"--output=custom-columns=NAME:.metadata.name,SELECTOR:.spec.selector")
}

// writeFederation writes the ServiceAccount and what Microsoft Entra must accept.
func (p *page) writeFederation(s *report.Section, mode api.Mode, name string, status inject.Status) {
	sa := p.account(name)
	client := p.request.ClientID
	switch denied := p.lacks(kube.ServiceAccounts); {
	case denied != nil:
		missing(s, denied, p.works())
	case sa == nil: // the decision reported it, if the subject requests it
		if status.Identity == nil {
			s.Broken("ServiceAccount %s does not exist", name).
				Run("kubectl", "get", "serviceaccounts", "--namespace", p.target.Namespace)
		}
		return
	case client == "":
		client = sa.ClientID
	}
	for _, class := range p.allClasses() {
		c := p.class(class)
		if c == nil || c.ClientID == "" {
			continue
		}
		if client != "" && c.ClientID != client {
			s.Warning("class %s signs in with client id %s, and ServiceAccount %s has %s", class, c.ClientID, name, client)
		}
		client = c.ClientID
	}
	if client != "" {
		origin := from(status.From[api.IdentityClientID])
		s.OK("ServiceAccount %s, client id %s%s, tenant %s", name, client, origin, p.tenant(status))
	}
	if mode == api.ModeIdentityBinding {
		s.Info("the cluster's RBAC must let ServiceAccount %s use-managed-identity %s", name, client)
		return
	}
	line := s.Info("Microsoft Entra must have a federated credential for subject %s", p.subjectOf(name))
	if p.issuer != "" {
		line.Detail("issuer %s, audience %s", p.issuer, api.TokenExchangeAudience)
	} else {
		line.Detail("audience %s; the issuer is not known, since you may not get %s",
			api.TokenExchangeAudience, discoveryPath).
			Run(showIssuer...)
	}
	line.Run(p.fill(federate[1], nil)...)
}

// subjectOf returns the subject of the tokens of a ServiceAccount.
func (p *page) subjectOf(name string) string {
	return "system:serviceaccount:" + p.target.Namespace + ":" + name
}

// tenant returns the tenant of the subject's classes.
func (p *page) tenant(status inject.Status) string {
	for _, spc := range p.result.Classes {
		if tenant := spc.Spec.Parameters["tenantID"]; tenant != "" {
			return tenant + from(status.From[api.IdentityTenantID])
		}
	}
	for _, name := range p.allClasses() {
		if spc := p.classObject(name); spc != nil {
			if tenant := parameter(spc, "tenantID"); tenant != "" {
				return tenant
			}
		}
	}
	return "unknown"
}

// from returns where a value was written, as the status annotation says it.
func from(origin string) string {
	if origin == "" {
		return ""
	}
	return " (from " + strings.Replace(origin, "serviceaccount", "its annotation", 1) + ")"
}

// writeClasses writes the classes that the subject mounts or would mount.
func (p *page) writeClasses() {
	s := p.report.Section(classes)
	names := p.allClasses()
	if denied := p.lacks(kube.Classes); denied != nil && len(names) > 0 {
		missing(s, denied, p.works())
		return
	}
	if !p.hasClassKind && len(names) > 0 {
		s.Broken("the cluster does not have that kind: the Secrets Store CSI driver is not installed").Run(installDriver...)
	} else {
		for _, name := range names {
			p.writeClass(s, name)
		}
	}
	p.writeResult(s, classes)
}

func (p *page) writeClass(s *report.Section, name string) {
	object := p.classObject(name)
	if object == nil {
		switch {
		case slices.Contains(p.request.Classes, name): // the decision reported it
		case p.result.Class(name) != nil && (p.pod == nil || !slices.Contains(driverVolumes(p.pod), name)):
			s.Info("managed class %s does not exist yet: the injector creates it for the next pod", name)
		case class.IsManagedName(name):
			s.Broken("managed class %s does not exist: the injector has not created it", name).
				Run("kubectl", "get", "events", "--namespace", p.target.Namespace, "--field-selector=reason=ClassNotWritten")
		default:
			var others []string
			for i := range p.facts.Classes {
				others = append(others, p.facts.Classes[i].GetName())
			}
			s.Broken("%s does not exist%s", name, class.Available(name, others, false)).
				Run("kubectl", "get", "secretproviderclasses", "--namespace", p.target.Namespace)
		}
		return
	}
	c := p.class(name)
	managed := object.GetLabels()[class.ManagedByLabel] == class.ManagedBy
	switch {
	case c.Invalid != "":
		s.Broken("%s is invalid: %s", name, api.Cut(c.Invalid, maxValue)).
			Run("kubectl", "edit", "secretproviderclass", name, "--namespace", p.target.Namespace)
		return
	case managed && !isIntact(object):
		s.Broken("managed class %s was edited, and was not restored", name).
			Run("kubectl", "delete", "secretproviderclass", name, "--namespace", p.target.Namespace)
		return
	case class.IsManagedName(name) && !managed:
		s.Warning("%s has the name of a managed class, but was not created by the injector", name)
	}
	var objects, owners []string
	for _, o := range c.Objects {
		objects = append(objects, o.Name)
	}
	for _, owner := range object.GetOwnerReferences() {
		owners = append(owners, owner.Kind+" "+owner.Name)
	}
	by := ""
	if managed {
		by = " by the injector"
	}
	age := p.ago(object.GetCreationTimestamp().Time)
	line := s.OK("%s: %s from vault %s, created %s%s", name, report.Few(objects, maxListed), c.Vault, age, by)
	if len(owners) > 0 {
		line.Detail("owned by %s", strings.Join(owners, ", "))
	}
	if c.Provider != class.Provider {
		line.Detail("its provider is %s, not %s", c.Provider, class.Provider)
	}
}

// maxListed is how many names of a list a line has.
const maxListed = 5

func isIntact(object *unstructured.Unstructured) bool {
	spc, err := kube.Decode[class.SecretProviderClass](object)
	return err == nil && class.IsIntact(spc)
}
