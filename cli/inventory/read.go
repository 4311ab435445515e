package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// reading is an inventory that is being read.
type reading struct {
	ctx       context.Context
	reader    *kube.Reader
	namespace string // empty for all
	tables
	builder

	reviewer review.Reviewer
	// namespacesKnown is true if the user may read the namespaces. Without them, it is not known what
	// the injector gives the next pods.
	namespacesKnown bool
	denied          []*kube.Denied
}

// Read reads the inventory of a namespace, or with an empty namespace that of all. What the user may
// not read is in denied, and the rest is in the inventory. A namespace that does not exist is an
// error.
func Read(
	ctx context.Context, reader *kube.Reader, namespace string,
) (found *Inventory, denied []*kube.Denied, err error) {
	r := &reading{
		ctx: ctx, reader: reader, namespace: namespace,
		tables: tables{
			classes: map[string]*class.SecretProviderClass{},
			read:    map[*class.SecretProviderClass]*class.Class{},
			secrets: map[string][]synced{}, clients: map[string]string{},
			namespaces: map[string]map[string]string{}, jobs: kube.JobOwners{}, versions: map[string]map[string]string{},
		},
		builder: builder{workloads: map[workloadID]*building{}},
	}
	for _, step := range []func() error{r.readFacts, r.readVersions, r.readJobs, r.readPods, r.readTemplates} {
		if err := step(); err != nil {
			return nil, nil, err
		}
	}
	return r.inventory(), r.denied, nil
}

// permit keeps the lack of a right, and returns every other error.
func (r *reading) permit(err error) error {
	denied, ok := errors.AsType[*kube.Denied](err)
	if !ok {
		return err
	}
	if !slices.ContainsFunc(r.denied, func(d *kube.Denied) bool { return *d == *denied }) {
		r.denied = append(r.denied, denied)
	}
	return nil
}

// Missing returns what an inventory lacks without a right.
func Missing(denied *kube.Denied) string {
	switch denied.Resource {
	case kube.Pods.GroupResource():
		return "the list has only what the next pods of workloads get"
	case kube.PodStatuses.GroupResource():
		return "the list has no versions"
	case kube.Classes.GroupResource():
		return "the list has no objects of existing classes"
	case kube.ServiceAccounts.GroupResource():
		return "the list may lack client ids, and what the next pods of workloads get"
	}
	return "the list may lack workloads without pods"
}

// anyTenant stands for the tenant of the injector, on which the objects of a managed class do not
// depend.
const anyTenant = "00000000-0000-0000-0000-000000000000"

func (r *reading) readFacts() error {
	found, err := kube.ReadFacts(r.ctx, r.reader, r.namespace)
	if err != nil {
		return err
	}
	for _, denied := range found.Denied {
		_ = r.permit(denied) // it is the lack of a right
	}
	r.namespacesKnown = !slices.ContainsFunc(found.Denied, func(d *kube.Denied) bool {
		return d.Resource == kube.Namespaces.GroupResource()
	})
	if r.namespace != "" && r.namespacesKnown && len(found.Namespaces) == 0 {
		return fmt.Errorf("namespace %s does not exist", r.namespace)
	}
	objects := &facts.Objects{}
	found.AddTo(objects)
	r.reviewer = review.Reviewer{Source: objects, Defaults: inject.Defaults{TenantID: anyTenant}}
	for i := range found.Namespaces {
		if n := facts.ReadNamespace(&found.Namespaces[i]); n.OptedIn() {
			r.namespaces[found.Namespaces[i].GetName()] = n.Annotations
		}
	}
	for i := range found.Classes {
		var spc class.SecretProviderClass
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(found.Classes[i].Object, &spc); err != nil {
			continue // a field has another type than the driver reads there
		}
		r.addClass(found.Classes[i].GetNamespace(), &spc)
	}
	for i := range found.ServiceAccounts {
		account := facts.ReadServiceAccount(&found.ServiceAccounts[i])
		r.clients[found.ServiceAccounts[i].GetNamespace()+"/"+account.Name] = account.ClientID
	}
	return nil
}

// readVersions reads the versions that pods have mounted (secrets-store-csi-driver, apis/v1:
// SecretProviderClassPodStatus).
func (r *reading) readVersions() error {
	type status struct {
		Metadata struct {
			Namespace string `json:"namespace"`
		} `json:"metadata"`
		Status struct {
			PodName string `json:"podName"`
			Class   string `json:"secretProviderClassName"`
			Objects []struct {
				ID      string `json:"id"`
				Version string `json:"version"`
			} `json:"objects"`
		} `json:"status"`
	}
	return r.permit(kube.Each(r.ctx, r.reader, kube.PodStatuses, r.namespace, func(s *status) error {
		versions := map[string]string{}
		for _, object := range s.Status.Objects {
			versions[object.ID] = object.Version
		}
		r.versions[s.Metadata.Namespace+"/"+s.Status.PodName+"/"+s.Status.Class] = versions
		return nil
	}))
}

// readJobs reads which CronJobs the Jobs belong to.
func (r *reading) readJobs() error {
	return r.permit(kube.Each(r.ctx, r.reader, kube.Jobs, r.namespace, func(job *metav1.PartialObjectMetadata) error {
		r.jobs.Add(job)
		return nil
	}))
}

func (r *reading) readPods() error {
	return r.permit(kube.Each(r.ctx, r.reader, kube.Pods, r.namespace, func(pod *corev1.Pod) error {
		if pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
			return nil
		}
		if u := r.useOf(pod.Namespace, &pod.ObjectMeta, &pod.Spec); u != nil {
			r.add(pod.Namespace, kube.OwnerOf(pod, r.jobs), pod.Name, u)
		}
		return nil
	}))
}

// readTemplates adds the workloads without pods, with what their next pod gets.
func (r *reading) readTemplates() error {
	for _, kind := range slices.Sorted(maps.Keys(kube.Workloads)) {
		add := func(text *jsontext.Value) error { return r.template(kind, *text) }
		if err := r.permit(kube.Each(r.ctx, r.reader, kube.Workloads[kind], r.namespace, add)); err != nil {
			return err
		}
	}
	return nil
}

// template adds a workload without pods.
func (r *reading) template(kind string, text jsontext.Value) error {
	var w templated
	if err := json.Unmarshal(text, &w); err != nil {
		return fmt.Errorf("read a %s: %w", kind, err)
	}
	owner := kube.Owner{Kind: kind, Name: w.Name}
	_, known := r.workloads[workloadID{w.Namespace, owner}]
	if known || metav1.GetControllerOfNoCopy(&w) != nil || kube.IsFinished(w.Status.Conditions) {
		return nil
	}
	patched, managed, err := r.inject(kind, text, w.Namespace)
	if err != nil {
		return err
	}
	if patched != nil {
		w = templated{}
		if err := json.Unmarshal(patched, &w); err != nil {
			return fmt.Errorf("read a %s: %w", kind, err)
		}
	}
	template := w.template()
	if template == nil {
		return nil
	}
	for _, spc := range managed {
		if r.classes[w.Namespace+"/"+spc.Name] == nil {
			r.addClass(w.Namespace, spc)
		}
	}
	if u := r.useOf(w.Namespace, &template.ObjectMeta, &template.Spec); u != nil {
		for _, spc := range managed {
			u.forget(spc.Name)
		}
		r.add(w.Namespace, owner, "", u)
	}
	return nil
}

// forget removes the name of a managed class, which depends on the tenant of the injector.
func (u *use) forget(name string) {
	for key, object := range u.objects {
		if object.Class != name {
			continue
		}
		object.Class = ""
		for i := range object.Env {
			object.Env[i].Secret = ""
		}
		delete(u.objects, key)
		key.class = ""
		u.objects[key] = object
	}
}

// inject returns a workload with what the injector gives its pods, and the managed classes that they
// get; nil if it gives nothing.
func (r *reading) inject(
	kind string, text jsontext.Value, namespace string,
) (patched []byte, managed []*class.SecretProviderClass, err error) {
	var w pods.Workload
	readable := pods.Decode(text, &w) == nil // else it is too large to be reviewed
	w.Kind = kind                            // a list omits it
	handover, ok := inject.HandDown(&w)
	if !ok || !readable || !r.namespacesKnown {
		return nil, nil, nil
	}
	result, err := r.reviewer.Inject(r.ctx, handover.Subject, namespace)
	if err != nil || result.Change.IsEmpty() {
		return nil, nil, err
	}
	operations, err := json.Marshal(result.Change.Operations(&handover.Subject))
	if err != nil {
		return nil, nil, fmt.Errorf("print a patch: %w", err)
	}
	patch, err := jsonpatch.DecodePatch(operations)
	if err == nil {
		patched, err = patch.Apply(text)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("inject a %s: %w", kind, err)
	}
	return patched, result.Classes, nil
}

// templated is a workload of any kind.
type templated struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Template    *corev1.PodTemplateSpec  `json:"template"`
		JobTemplate *batchv1.JobTemplateSpec `json:"jobTemplate"`
	} `json:"spec"`
	Status struct {
		Conditions []batchv1.JobCondition `json:"conditions"` // those of other kinds have the same fields
	} `json:"status"`
}

func (w *templated) template() *corev1.PodTemplateSpec {
	if w.Spec.JobTemplate != nil {
		return &w.Spec.JobTemplate.Spec.Template
	}
	return w.Spec.Template
}
