// Package explain finds out why a pod has, or does not have, its identity and its Key Vault secrets.
// [Explain] follows every link from the namespace's label to the mounted object, in this order, and
// the report marks the first broken one:
//
//	reader, err := kube.NewReader(config)
//	target, err := explain.ParseTarget([]string{"deployment/web"}, "shop")
//	r, err := explain.Explain(ctx, reader, explain.Options{Target: target})
//	err = r.Print(os.Stdout, report.Text)
//
// [Causes] is the table by which events of the kubelet, the driver, the provider and Azure are
// decoded. docs/troubleshooting.md is generated from it.
//
// The package reads a cluster with the rights of its user and says which rights are missing. It
// never reads the value of a Secret, and it decides like the webhook: by package review.
package explain

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/duration"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// Options are the options of [Explain].
type Options struct {
	Target Target
	// Defaults returns the values of the injector's flags from the arguments of its container, which
	// are nil if the user may not read them; nil for no defaults.
	Defaults func(args []string) (inject.Defaults, error)
	// Command is the name of the program in the commands to run next; nil for akv-injector.
	Command []string
	// Now is the time that ages are measured from; zero for the current time.
	Now time.Time
}

// Explain returns the page about a target. The error is about a read that failed for another reason
// than a missing right.
func Explain(ctx context.Context, r *kube.Reader, o Options) (*report.Report, error) {
	found, err := gather(ctx, r, o.Target)
	if err != nil {
		return nil, err
	}
	if found.now = o.Now; o.Now.IsZero() {
		found.now = time.Now()
	}
	p := &page{found: found, target: o.Target, report: &report.Report{}, command: o.Command}
	if len(p.command) == 0 {
		p.command = []string{"akv-injector"}
	}
	if err := p.setDefaults(o.Defaults); err != nil {
		return nil, err
	}
	if err := p.decide(ctx); err != nil {
		return nil, err
	}
	p.write()
	return p.report, nil
}

// page is the page about a target while it is written.
type page struct {
	*found

	target  Target
	report  *report.Report
	command []string

	// subject is the target if it is a pod, or the pod template of a workload. Its Pod is nil for
	// other targets.
	subject pods.Subject
	// handover is what the template inherits; nil for a pod, and for a template that a controller
	// wrote.
	handover *inject.Handover
	request  api.Request
	// result and verdict are those that a pod would get now.
	result   inject.Result
	verdict  review.Verdict
	defaults inject.Defaults
	// podResult is what the explained pod would get now; the same as result if it is the target.
	podResult inject.Result
	// outdated says how the managed classes of the explained pod differ from those that it would get
	// now; empty if they do not.
	outdated string
}

// decide decides about the subject, and about the explained pod, as the webhooks would do now.
func (p *page) decide(ctx context.Context) error {
	objects := &facts.Objects{}
	p.facts.AddTo(objects)
	reviewer := review.Reviewer{Source: objects, Defaults: p.defaults}
	namespace := p.target.inNamespace()
	if p.object != nil {
		if err := p.setSubject(); err != nil {
			return err
		}
	}
	var err error
	if p.subject.Pod != nil {
		in := api.Annotations{Pod: p.subject.Annotations}
		if p.namespace != nil {
			in.Namespace, in.NamespaceName = p.namespace.Annotations, p.namespace.Name
		}
		p.request, _, _ = api.ParseRequest(in)
		if p.result, err = reviewer.Inject(ctx, p.subject, namespace); err != nil {
			return err
		}
		if p.verdict, err = reviewer.Policy(ctx, p.subject, &p.result, namespace); err != nil {
			return err
		}
	}
	p.podResult = p.result
	if p.pod == nil {
		return nil
	}
	pod := &pods.Pod{}
	if err := reread(p.pod, pod); err != nil {
		return err
	}
	if p.target.Kind != "Pod" {
		if p.podResult, err = reviewer.Inject(ctx, pods.SubjectOf(pod), namespace); err != nil {
			return err
		}
	}
	now, err := reviewer.Classes(ctx, pods.SubjectOf(pod), namespace, false)
	if err == nil && len(now.AllErrors()) == 0 && !now.NotOptedIn {
		p.outdated = outdated(statusOf(p.pod.Annotations), &now)
	}
	return err
}

// outdated says how the managed classes that a pod got differ from those that it would get now;
// empty if they do not.
func outdated(got inject.Status, now *inject.Result) string {
	for _, v := range got.Volumes {
		if !v.Managed || now.Class(v.Class) != nil {
			continue
		}
		if len(now.Classes) == 0 {
			return "it has managed class " + v.Class + ", and would get none now"
		}
		return "it has managed class " + v.Class + ", and would get " + now.Classes[0].Name + " now"
	}
	return ""
}

// reread decodes an object as the core reads it.
func reread(object any, into interface{ Read(r *jsonstream.Reader) }) error {
	text, err := json.Marshal(object)
	if err == nil {
		err = pods.Decode(text, into)
	}
	if err != nil {
		return fmt.Errorf("read the target or its pod: %w", err)
	}
	return nil
}

func (p *page) setSubject() error {
	switch p.target.Kind {
	case "Namespace":
		return nil
	case "Pod":
		pod := &pods.Pod{}
		err := reread(p.object.Object, pod)
		p.subject = pods.SubjectOf(pod)
		return err
	}
	workload := &pods.Workload{}
	if err := reread(p.object.Object, workload); err != nil {
		return err
	}
	if handover, ok := inject.HandDown(workload); ok {
		p.handover, p.subject = &handover, handover.Subject
	} else if workload.Template != nil {
		p.subject = pods.SubjectOf(workload.Template)
		p.subject.Root = pods.TemplateRoot
	}
	return nil
}

// setDefaults sets the defaults. Without the injector's arguments, a tenant that the injector wrote
// into the pod's class is that of its flag.
func (p *page) setDefaults(of func(args []string) (inject.Defaults, error)) (err error) {
	if of != nil {
		if p.defaults, err = of(p.serverArgs); err != nil {
			return err
		}
	}
	if p.pod == nil || p.defaults.TenantID != "" {
		return nil
	}
	status := statusOf(p.pod.Annotations)
	for i := range status.Volumes {
		if spc := p.classObject(status.Volumes[i].Class); spc != nil && status.From[api.IdentityTenantID] == "flag" {
			p.defaults.TenantID = parameter(spc, "tenantID")
		}
	}
	return nil
}

// classObject returns a class of the namespace; nil if it does not exist or may not be read.
func (f *found) classObject(name string) *unstructured.Unstructured {
	return named(f.facts.Classes, name)
}

// named returns the object of that name; nil if there is none.
func named(objects []unstructured.Unstructured, name string) *unstructured.Unstructured {
	for i := range objects {
		if objects[i].GetName() == name {
			return &objects[i]
		}
	}
	return nil
}

// parameter returns a parameter of a class; empty for none.
func parameter(object *unstructured.Unstructured, name string) string {
	value, _, _ := unstructured.NestedString(object.Object, "spec", "parameters", name)
	return value
}

// class is [found.classObject] as the decisions read it.
func (f *found) class(name string) *class.Class {
	object := f.classObject(name)
	if object == nil {
		return nil
	}
	c, _ := facts.ReadClass(object) // an invalid class is a fact, too
	return c
}

// account returns a ServiceAccount of the namespace; nil if it does not exist or may not be read.
func (f *found) account(name string) *facts.ServiceAccount {
	if object := named(f.facts.ServiceAccounts, name); object != nil {
		return facts.ReadServiceAccount(object)
	}
	return nil
}

// write writes the page, top down.
func (p *page) write() {
	p.writeTarget()
	p.writeNamespace()
	p.writeWebhooks()
	if p.subject.Pod != nil {
		p.writeAnnotations()
		p.writeIdentity()
		p.writeClasses()
		p.writeTemplate()
	}
	if p.target.Kind != "Pod" {
		p.writePolicy()
		p.writePods()
	}
	if p.pod != nil {
		p.writeVolumes()
		p.writeDriver()
		p.writeMounted()
	}
	if p.target.Kind == "Pod" {
		p.writePolicy()
	}
	p.writeEvents()
}

// writeTarget writes why there is no target.
func (p *page) writeTarget() {
	s := p.report.Section("%s", p.target)
	resource := kindOf(p.target.Kind).resource
	switch denied := p.lacks(resource); {
	case p.object != nil && p.target.Kind == "Namespace": // its own section follows
	case p.object != nil:
		line := s.Info("created %s", p.ago(p.object.GetCreationTimestamp().Time))
		for _, owner := range p.owners {
			line.Detail("controlled by %s %s", owner.Kind, owner.Name)
		}
	case denied != nil && denied.Verb == "get": // a list is of other objects
		s.Unknown("%s", denied).Run(denied.Check()...)
	default:
		words := []string{"kubectl", "get", resource.Resource}
		if p.target.Namespace != "" {
			words = append(words, "--namespace", p.target.Namespace)
		}
		available := ""
		if denied == nil || len(p.names) > 0 { // else the names are not known
			available = api.Available(p.target.Name, p.target.Kind, p.names)
		}
		s.Broken("does not exist%s", available).Run(words...)
	}
}

// ago says how long ago a time is.
func (p *page) ago(at time.Time) string { return duration.HumanDuration(p.now.Sub(at)) + " ago" }

// missing writes that the user lacks a right. It makes the state of the target unknown, unless the
// pod shows that the link works.
func missing(s *report.Section, denied *kube.Denied, works bool) {
	state := report.Unknown
	if works {
		state = report.Info
	}
	s.Add(state, "%s", denied).Run(denied.Check()...)
}

// sections are the sections of errors and warnings about a request, by Reason. Others are about
// volumes, mounts and env vars.
var sections = map[api.Reason]string{
	api.UnknownKey: annotations, api.InvalidValue: annotations, api.InvalidItem: annotations, api.NoEffect: annotations,
	api.NamespaceDefaultInvalid: annotations, api.TemplateDiffers: annotations, api.VaultRequired: annotations,

	api.TenantIDRequired: identity, api.ClientIDRequired: identity, api.IdentityRequired: identity,
	api.IdentityNotBound: identity, api.IdentityConflict: identity, api.IdentityMismatch: identity,
	api.IdentityUnsupported: identity, api.IdentityNotAllowed: identity, api.ServiceAccountNotFound: identity,
	api.ServiceAccountConflict: identity, api.LabelValueInvalid: identity, api.PodIdentityRetired: identity,

	api.ClassNotFound: classes, api.ClassInvalid: classes, api.ObjectNotInClass: classes, api.ObjectAmbiguous: classes,
	api.EnvNotSynced: classes, api.EnvAmbiguous: classes, api.VaultNotAllowed: classes,

	// The section of the namespace has these.
	api.UnknownInjection: "", api.CeilingNotEnforced: "", api.GlobInvalid: "", api.UnknownLevel: "",
}

// The titles of sections.
const (
	annotations = "Annotations"
	identity    = "Identity"
	classes     = "SecretProviderClasses"
	volumes     = "Volumes, mounts and env vars"
)

// writeResult writes the errors and warnings of the decision that belong to a section.
func (p *page) writeResult(s *report.Section, title string) {
	write := func(list field.ErrorList, state report.State) {
		for _, err := range list {
			section, known := sections[api.ReasonOf(err)]
			if !known {
				section = volumes
			}
			if section == title {
				s.Add(state, "%s", api.Message(err))
			}
		}
	}
	write(p.result.Errors, report.Broken)
	switch {
	case p.lacking() != nil: // what seems to be missing may exist
	case p.lacksTenant():
		if title == identity {
			s.Unknown("no annotation sets a tenant, and you may not read the flags of the injector").
				Detail("set --tenant-id of this command to the injector's value, if it has that flag")
		}
	default:
		write(p.result.Unresolved, report.Broken)
	}
	write(p.result.Warnings, report.Warning)
}

// lacksTenant reports whether only a flag of the injector that is not known could give the tenant.
func (p *page) lacksTenant() bool {
	needed := slices.ContainsFunc(p.result.Unresolved, func(err *field.Error) bool {
		return api.ReasonOf(err) == api.TenantIDRequired
	})
	return needed && p.serverArgs == nil && p.defaults.TenantID == ""
}

// lacking returns a right that the user lacks and the decision depends on; nil for none. For a
// namespace, whose pods may request anything, that is each of the rights.
func (p *page) lacking() *kube.Denied {
	all := p.subject.Pod == nil
	byBinding := p.request.Mode == api.ModeAuto || p.request.Mode == api.ModePodIdentity
	for _, resource := range [...]struct {
		denied *kube.Denied
		needed bool
	}{
		{p.lacks(kube.Namespaces), true},
		{p.lacks(kube.Classes), all || len(p.request.Classes) > 0 || len(p.subjectClasses()) > 0},
		{p.lacks(kube.ServiceAccounts), all || p.request.AsksIdentity()},
		{p.lacks(kube.Bindings), all || p.request.Identity != "" && byBinding},
	} {
		if resource.needed && resource.denied != nil {
			return resource.denied
		}
	}
	return nil
}

// subjectClasses returns the classes that the subject mounts by itself.
func (p *page) subjectClasses() []string {
	if p.subject.Pod == nil {
		return nil
	}
	var names []string
	for i := range p.subject.Spec.Volumes {
		if csi := p.subject.Spec.Volumes[i].CSI; csi != nil && csi.Driver == class.Driver {
			names = append(names, csi.Attributes[class.Attribute])
		}
	}
	return names
}

// allClasses returns the classes of the subject: those that it mounts, and those that it would get.
func (p *page) allClasses() []string {
	names := append(p.subjectClasses(), p.request.Classes...)
	for _, spc := range p.result.Classes {
		names = append(names, spc.Name)
	}
	for i := range p.result.Change.Volumes {
		names = append(names, p.result.Change.Volumes[i].Class)
	}
	var distinct []string
	for _, name := range names {
		if name != "" && !slices.Contains(distinct, name) {
			distinct = append(distinct, name)
		}
	}
	return distinct
}
