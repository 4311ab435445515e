package check

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
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

// problem is a kind of problem in a namespace.
type problem int

// The kinds, in the order of the report.
const (
	mistaken problem = iota
	rejected
	forbidden
	notInjected
	lacksClass
	notOptedIn
	notInherited
	stale
	warned
	onPodIdentity
	numProblems
)

// problems describe the kinds: what is wrong with a number of subjects, and what to run next.
var problems = [numProblems]struct {
	state      report.State
	noun, text string
	next       func(c *cluster, namespace string, first kube.Owner) []string
}{
	mistaken: {
		report.Warning, "mistake", "in labels or annotations of the namespace",
		func(_ *cluster, namespace string, _ kube.Owner) []string {
			return []string{"kubectl", "get", "namespace", namespace, "--output=yaml"}
		},
	},
	rejected: {report.Broken, "workload", "that the injector rejects: no new pod can be created", explain},
	forbidden: {
		report.Broken, "workload", "that the policy of the namespace rejects: no new pod can be created", explain,
	},
	notInjected: {
		report.Broken, "workload",
		"with pods that request injection and were not injected, for example because no replica answered", restart,
	},
	lacksClass: {report.Broken, "workload", "with pods that mount a SecretProviderClass that does not exist", explain},
	notOptedIn: {
		report.Warning, "workload", "with annotations without effect, since the namespace did not opt in",
		func(_ *cluster, namespace string, _ kube.Owner) []string {
			label := api.Injection + "=" + api.InjectionEnabled
			return []string{"kubectl", "label", "namespace", namespace, "--overwrite", label}
		},
	},
	notInherited: {report.Warning, "workload", "with annotations that the pod template does not inherit yet", restart},
	stale:        {report.Warning, "workload", "with pods that would be injected in another way today", restart},
	warned:       {report.Warning, "workload", "with warnings", explain},
	onPodIdentity: {
		report.Warning, "workload", "with pods on AAD pod identity, which was retired in September 2025",
		func(_ *cluster, namespace string, _ kube.Owner) []string {
			return []string{"kubectl", "get", "pods", "--namespace", namespace, "--selector", api.PodIdentityBinding}
		},
	},
}

// explain returns the words of the command that explains a workload.
func explain(c *cluster, namespace string, owner kube.Owner) []string {
	return c.command("explain", strings.ToLower(owner.Kind)+"/"+owner.Name, "--namespace", namespace)
}

// restart returns the words of the command that replaces the pods of a workload.
func restart(c *cluster, namespace string, owner kube.Owner) []string {
	switch owner.Kind {
	case "Deployment", "StatefulSet", "DaemonSet":
		name := strings.ToLower(owner.Kind) + "/" + owner.Name
		return []string{"kubectl", "rollout", "restart", "--namespace", namespace, name}
	}
	return explain(c, namespace, owner)
}

// finding is a problem of one workload.
type finding struct {
	pods   int
	detail string
}

// place is what was found in a namespace.
type place struct {
	namespace facts.Namespace
	// excluded is true if the webhook configurations exclude the namespace.
	excluded bool
	// workloads and pods request something.
	workloads, pods int
	found           [numProblems]map[kube.Owner]*finding
}

func (p *place) add(kind problem, owner kube.Owner, pods int, format string, args ...any) {
	if p.found[kind] == nil {
		p.found[kind] = map[kube.Owner]*finding{}
	}
	f := p.found[kind][owner]
	if f == nil {
		f = &finding{detail: fmt.Sprintf(format, args...)}
		p.found[kind][owner] = f
	}
	f.pods += pods
}

// survey is what was found in all namespaces.
type survey struct {
	reviewer review.Reviewer
	// uncertain are the Reasons of errors that what the user may not read could correct.
	uncertain []api.Reason
	places    map[string]*place
	classes   map[types.NamespacedName]*class.Class
	jobs      kube.JobOwners
	judged    map[[sha256.Size]byte]verdict
	vaults    map[string]*load
}

// checkNamespaces checks the workloads and pods of namespaces. It reads facts into memory, then
// workloads and pods page by page, and decides once for all pods of a template.
func (c *cluster) checkNamespaces(ctx context.Context, r *report.Report) error {
	s := r.Section("Namespaces")
	survey, ok := c.readFacts(ctx, s)
	if !ok {
		return nil
	}
	scopes := c.Namespaces
	if c.AllNamespaces {
		scopes = []string{""}
	}
	for _, scope := range scopes {
		if err := survey.readWorkloads(ctx, c, s, scope); err != nil {
			return err
		}
		err := kube.Each(ctx, c.Reader, kube.Pods, scope, func(text *jsontext.Value) error { return survey.pod(ctx, *text) })
		if !denied(s, "the pods", err) && err != nil {
			return err
		}
	}
	survey.summarize(s)
	survey.write(c, r)
	survey.writeVaults(c, r.Section("Key Vault requests"))
	return nil
}

// denied adds a line if err is the lack of a right.
func denied(s *report.Section, what string, err error) bool {
	_, ok := errors.AsType[*kube.Denied](err)
	return ok && unknown(s, what, err)
}

// readFacts reads namespaces, classes, ServiceAccounts and bindings. It reports false if a decision
// needs more than the user may read.
func (c *cluster) readFacts(ctx context.Context, s *report.Section) (*survey, bool) {
	v := &survey{
		places:  map[string]*place{},
		classes: map[types.NamespacedName]*class.Class{}, jobs: kube.JobOwners{},
		judged: map[[sha256.Size]byte]verdict{}, vaults: map[string]*load{},
	}
	objects := &facts.Objects{}
	v.reviewer.Source = objects
	if injector := c.injector(); injector != nil {
		defaults, err := c.Defaults(injector.Args)
		if unknown(s, "the defaults of the injector", err) {
			return nil, false
		}
		v.reviewer.Defaults = defaults
	} else {
		v.uncertain = append(v.uncertain, api.TenantIDRequired)
		unknown(s, "the defaults of the injector, such as its tenant", c.deployments.err)
	}
	excluded := c.excluded()
	scopes := c.Namespaces
	if c.AllNamespaces {
		scopes = []string{""}
	}
	for _, scope := range scopes {
		found, err := kube.ReadFacts(ctx, c.Reader, scope)
		if unknown(s, "what pods need", err) {
			return nil, false
		}
		for _, denied := range found.Denied {
			unknown(s, "what pods need", denied)
			if denied.Resource != kube.Bindings.GroupResource() {
				return nil, false
			}
			v.uncertain = append(v.uncertain, bindingReasons...)
		}
		if scope != "" && len(found.Namespaces) == 0 {
			s.Broken("namespace %s does not exist", scope).Run("kubectl", "get", "namespaces", "--selector", api.Injection)
		}
		found.AddTo(objects)
		for i := range found.Namespaces {
			v.addNamespace(&found.Namespaces[i], excluded)
		}
		for i := range found.Classes {
			read, _ := facts.ReadClass(&found.Classes[i]) // an invalid class is a fact, too
			v.classes[types.NamespacedName{Namespace: found.Classes[i].GetNamespace(), Name: read.Name}] = read
		}
	}
	return v, true
}

// addNamespace adds a namespace, with the mistakes in its labels and annotations.
func (v *survey) addNamespace(n *unstructured.Unstructured, excluded []string) {
	place := &place{namespace: *facts.ReadNamespace(n), excluded: slices.Contains(excluded, n.GetName())}
	v.places[n.GetName()] = place
	mistake := func(key, format string, args ...any) {
		place.add(mistaken, kube.Owner{Kind: "Namespace", Name: key}, 0, format, args...)
	}
	for _, keys := range []map[string]string{n.GetLabels(), n.GetAnnotations()} {
		for key := range keys {
			if near := api.Near(key); len(near) > 0 {
				mistake(key, "%s has no effect; did you mean %s?", key, strings.Join(near, " or "))
			}
		}
	}
	if !api.Governed(place.namespace.Labels) {
		return
	}
	for _, wrong := range review.NamespaceMistakes(place.namespace) {
		mistake(wrong.Field, "%s", api.Message(wrong))
	}
	if place.excluded {
		mistake(api.Injection, "the webhook configurations exclude the namespace, so its labels have no effect")
	}
}

// excluded returns the namespaces that the webhook configuration excludes by name.
func (c *cluster) excluded() []string {
	var names []string
	found := of(c.mutating.value, name)
	if found == nil || len(found.Webhooks) == 0 || found.Webhooks[0].NamespaceSelector == nil {
		return nil
	}
	for _, r := range found.Webhooks[0].NamespaceSelector.MatchExpressions {
		if r.Key == corev1.LabelMetadataName && r.Operator == metav1.LabelSelectorOpNotIn {
			names = append(names, r.Values...)
		}
	}
	return names
}

func (v *survey) readWorkloads(ctx context.Context, c *cluster, s *report.Section, scope string) error {
	for _, kind := range sortedKeys(kube.Workloads) { // Jobs come before the pods, which get their CronJobs
		judge := func(text *jsontext.Value) error { return v.workload(ctx, kind, *text) }
		err := kube.Each(ctx, c.Reader, kube.Workloads[kind], scope, judge)
		if !denied(s, "the workloads", err) && err != nil {
			return err
		}
	}
	return nil
}

// head has the fields of a workload that are read before it is judged.
type head struct {
	metav1.ObjectMeta `json:"metadata"`

	Status struct {
		Conditions []batchv1.JobCondition `json:"conditions"` // those of other kinds have the same fields
	} `json:"status"`
}

// workload judges a workload: what would become of its next pod.
func (v *survey) workload(ctx context.Context, kind string, text jsontext.Value) error {
	var h head
	if err := json.Unmarshal(text, &h); err != nil {
		return fmt.Errorf("read a %s: %w", kind, err)
	}
	in := h.Namespace
	if kind == "Job" {
		if v.jobs.Add(&h); kube.IsFinished(h.Status.Conditions) {
			return nil
		}
	}
	place := v.places[in]
	var w pods.Workload
	if place == nil || place.excluded || !decoded(text, &w) {
		return nil // without a place, the namespace was created after the list of namespaces
	}
	w.Kind = kind // a list omits it
	handover, ok := inject.HandDown(&w)
	if !ok {
		return nil
	}
	owner := kube.Owner{Kind: kind, Name: h.Name}
	if !place.namespace.OptedIn() && handover.Requested {
		place.add(notOptedIn, owner, 0, "%s", owner)
	}
	result, err := v.reviewer.Inject(ctx, handover.Subject, in)
	if err != nil {
		return err
	}
	if result.Outcome != inject.NotRequested {
		place.workloads++
	}
	if errs := result.AllErrors(); len(errs) > 0 {
		if !v.isUncertain(errs) {
			place.add(rejected, owner, 0, "%s: %s", owner, api.Message(errs[0]))
		}
		return nil
	}
	if place.namespace.OptedIn() && !handover.IsInherited() {
		place.add(notInherited, owner, 0, "%s", owner)
	}
	warnings := slices.Concat(handover.Warnings, result.Warnings)
	if api.Governed(place.namespace.Labels) {
		policy, err := v.reviewer.Policy(ctx, handover.Subject, &result, in)
		if err != nil {
			return err
		}
		if len(policy.Errors) > 0 && !v.isUncertain(policy.Errors) {
			place.add(forbidden, owner, 0, "%s: %s", owner, api.Message(policy.Errors[0]))
		}
		warnings = append(warnings, policy.Warnings...)
	}
	warnings = slices.DeleteFunc(warnings, func(warning *field.Error) bool {
		// Those are reported once for the namespace, and for the pods.
		return strings.HasPrefix(warning.Field, "namespaces[") || api.ReasonOf(warning) == api.PodIdentityRetired
	})
	if len(warnings) > 0 {
		place.add(warned, owner, 0, "%s: %s", owner, api.Message(warnings[0]))
	}
	return nil
}

// bindingReasons are the Reasons of errors that an AzureIdentityBinding may correct.
var bindingReasons = []api.Reason{
	api.IdentityNotBound, api.ServiceAccountNotFound, api.ClientIDRequired, api.MountPathConflict,
}

// decoded decodes a pod or a workload. It reports false for one that is too large to be reviewed.
func decoded(text []byte, into interface{ Read(r *jsonstream.Reader) }) bool {
	return pods.Decode(text, into) == nil
}

// isUncertain reports whether the user may not read something that could correct the errors.
func (v *survey) isUncertain(errs field.ErrorList) bool {
	return slices.ContainsFunc(errs, func(err *field.Error) bool {
		return slices.Contains(v.uncertain, api.ReasonOf(err))
	})
}

// podHead has the fields of a pod that are read before it is judged.
type podHead struct {
	metav1.ObjectMeta `json:"metadata"`

	Spec struct {
		Volumes []struct {
			CSI *corev1.CSIVolumeSource `json:"csi"`
		} `json:"volumes"`
	} `json:"spec"`
	Status struct {
		Phase corev1.PodPhase `json:"phase"`
	} `json:"status"`
}

// pod judges a pod.
func (v *survey) pod(ctx context.Context, text jsontext.Value) error {
	var h podHead
	if err := json.Unmarshal(text, &h); err != nil {
		return fmt.Errorf("read a pod: %w", err)
	}
	place := v.places[h.Namespace]
	hasEnded := h.Status.Phase == corev1.PodSucceeded || h.Status.Phase == corev1.PodFailed
	if place == nil || hasEnded || h.DeletionTimestamp != nil {
		return nil
	}
	owner := kube.OwnerOf(&h, v.jobs)
	for _, volume := range h.Spec.Volumes {
		if volume.CSI == nil || volume.CSI.Driver != class.Driver {
			continue
		}
		mounted := volume.CSI.VolumeAttributes[class.Attribute]
		if found := v.classes[types.NamespacedName{Namespace: h.Namespace, Name: mounted}]; found != nil {
			v.addLoad(found)
		} else {
			place.add(lacksClass, owner, 1, "%s: class %s", owner, mounted)
		}
	}
	if h.Labels[api.PodIdentityBinding] != "" {
		place.add(onPodIdentity, owner, 1, "%s: identity %s", owner, h.Labels[api.PodIdentityBinding])
	}
	asks := api.Asked(h.Annotations)
	switch {
	case place.excluded, !asks && place.namespace.Labels[api.Injection] != api.InjectionAlways:
		return nil
	case !place.namespace.OptedIn():
		place.add(notOptedIn, owner, 1, "%s", owner)
		return nil
	}
	verdict, err := v.judge(ctx, &h, owner, text)
	if err != nil || verdict.fine && !verdict.requests {
		return err
	}
	place.pods++
	if !verdict.fine {
		place.add(verdict.problem, owner, 1, "%s: %s", owner, verdict.detail)
	}
	return nil
}

// verdict is what is wrong with the pods of one template.
type verdict struct {
	fine, requests bool
	problem        problem
	detail         string
}

// judge returns the verdict about a pod. Pods of one owner with the same template and annotations
// have the same verdict.
func (v *survey) judge(ctx context.Context, h *podHead, owner kube.Owner, text jsontext.Value) (verdict, error) {
	digest := h.digest(owner)
	if known, ok := v.judged[digest]; ok {
		return known, nil
	}
	var pod pods.Pod
	if !decoded(text, &pod) {
		return verdict{fine: true}, nil
	}
	subject := pods.SubjectOf(&pod)
	subject.ByNode = owner.Kind == "Node"
	result, err := v.reviewer.Inject(ctx, subject, h.Namespace)
	if err != nil {
		return verdict{}, err
	}
	found := verdict{fine: true, requests: true}
	mayBeBound := h.Labels[api.PodIdentityBinding] != "" && slices.Contains(v.uncertain, api.IdentityNotBound)
	if !mayBeBound && !v.isUncertain(result.AllErrors()) {
		found = judgement(&subject, &result, h.Labels[api.Injected] == "true")
	}
	v.judged[digest] = found
	return found, nil
}

// judgement returns the verdict about a pod that exists, from what it would get today.
func judgement(subject *pods.Subject, result *inject.Result, injected bool) verdict {
	errs := result.AllErrors()
	requests := result.Outcome != inject.NotRequested
	was := subject.Annotations[api.Status]
	now, differs := was, len(result.Change.Operations(subject)) > len(result.Change.Annotations)
	for _, entry := range result.Change.Annotations {
		if entry.Key == api.Status {
			now = entry.Value
		} else {
			differs = true
		}
	}
	switch {
	case injected && len(errs) > 0:
		return verdict{problem: stale, requests: true, detail: api.Message(errs[0])}
	case len(errs) > 0:
		return verdict{problem: rejected, requests: true, detail: api.Message(errs[0])}
	case injected && differs:
		return verdict{problem: stale, requests: true, detail: changes(&result.Change)}
	case !injected && requests && differs:
		return verdict{problem: notInjected, requests: true, detail: changes(&result.Change)}
	case injected && !requests && was != "":
		return verdict{problem: stale, requests: true, detail: "the annotations request nothing any more"}
	case injected && requests:
		if detail := outdated(was, now); detail != "" {
			return verdict{problem: stale, requests: true, detail: detail}
		}
	}
	return verdict{fine: true, requests: requests}
}

// outdated compares the status of a pod with that which it would get today. What the pod has of an
// earlier injection counts as written by its author, so only the status shows it. It returns "" if
// the pod has what it would get.
func outdated(was, now string) string {
	var before, after inject.Status
	if json.Unmarshal([]byte(was), &before) != nil || json.Unmarshal([]byte(now), &after) != nil {
		return "" // a user or another version wrote it
	}
	var parts []string
	for _, env := range before.Env {
		if !slices.Contains(after.Env, env) {
			parts = append(parts, "env var "+env.Name+" from Secret "+env.Secret+", key "+env.Key)
		}
	}
	for i := range before.Volumes {
		name := before.Volumes[i].Class
		if !slices.ContainsFunc(after.Volumes, func(v inject.StatusVolume) bool { return v.Class == name }) {
			parts = append(parts, "class "+name)
		}
	}
	if before.Identity != nil && (after.Identity == nil || *before.Identity != *after.Identity) {
		parts = append(parts, "identity "+before.Identity.Mode+" "+before.Identity.Name)
	}
	if len(parts) == 0 {
		return ""
	}
	return "has of an earlier injection: " + strings.Join(parts, ", ")
}

// changes describes what a pod would get that it does not have.
func changes(change *inject.Change) string {
	var parts []string
	for i := range change.Volumes {
		parts = append(parts, "class "+change.Volumes[i].Class)
	}
	mounts, env := 0, 0
	for i := range change.Containers {
		mounts += len(change.Containers[i].Mounts)
		env += len(change.Containers[i].Env) + len(change.Containers[i].Replace)
	}
	if mounts > 0 {
		parts = append(parts, report.Count(mounts, "mount"))
	}
	if env > 0 {
		parts = append(parts, report.Count(env, "env var"))
	}
	if change.ServiceAccountName != "" {
		parts = append(parts, "ServiceAccount "+change.ServiceAccountName)
	}
	for _, label := range change.Labels {
		if label.Key != api.Injected {
			parts = append(parts, "label "+label.Key+"="+label.Value)
		}
	}
	if len(parts) == 0 {
		return "lacks a label or an annotation"
	}
	return "lacks " + strings.Join(parts, ", ")
}

// digest identifies the pods that get the same verdict: the owner and the hash of its template,
// what the pod requests and what it has.
func (h *podHead) digest(owner kube.Owner) [sha256.Size]byte {
	hash := sha256.New()
	put := func(texts ...string) {
		for _, text := range texts {
			fmt.Fprintf(hash, "%d %s", len(text), text)
		}
	}
	labels := h.Labels
	put(h.Namespace, owner.Kind, owner.Name,
		labels[appsv1.DefaultDeploymentUniqueLabelKey], labels[appsv1.ControllerRevisionHashLabelKey])
	for _, reference := range h.OwnerReferences {
		put(reference.Name)
	}
	for _, key := range []string{api.Injected, api.PodIdentityBinding, api.WorkloadIdentityUse} {
		put(key, labels[key])
	}
	for _, key := range sortedKeys(h.Annotations) {
		if api.IsOurs(key) || key == api.WorkloadIdentityBinding {
			put(key, h.Annotations[key])
		}
	}
	for _, volume := range h.Spec.Volumes {
		if volume.CSI != nil {
			put(volume.CSI.VolumeAttributes[class.Attribute])
		}
	}
	return [sha256.Size]byte(hash.Sum(nil))
}

// summarize adds how many namespaces opted in, and which have no problem.
func (v *survey) summarize(s *report.Section) {
	var fine []string
	optedIn, workloads, pods := 0, 0, 0
	for _, in := range sortedKeys(v.places) {
		place := v.places[in]
		workloads += place.workloads
		pods += place.pods
		if !place.namespace.OptedIn() || place.excluded {
			continue
		}
		optedIn++
		if !slices.ContainsFunc(place.found[:], func(found map[kube.Owner]*finding) bool { return len(found) > 0 }) {
			fine = append(fine, in)
		}
	}
	s.Info("%s opted in; %s and %s request something",
		report.Count(optedIn, "namespace"), report.Count(workloads, "workload"), report.Count(pods, "pod"))
	if len(fine) > 0 {
		s.OK("%s without a problem: %s", report.Count(len(fine), "namespace"), report.Few(fine, maxLines))
	}
}

// write adds a section for each namespace with a problem.
func (v *survey) write(c *cluster, r *report.Report) {
	for _, in := range sortedKeys(v.places) {
		s := r.Section("Namespace %s", in)
		for kind, found := range v.places[in].found {
			if len(found) == 0 {
				continue
			}
			byName := func(a, b kube.Owner) int { return cmp.Compare(a.String(), b.String()) }
			owners := slices.SortedFunc(maps.Keys(found), byName)
			p := problems[kind]
			line := s.Add(p.state, "%s %s", report.Count(len(found), p.noun), p.text)
			for _, owner := range owners[:min(len(owners), maxLines)] {
				detail := found[owner].detail
				if n := found[owner].pods; n > 0 {
					detail += " (" + report.Count(n, "pod") + ")"
				}
				line.Detail("%s", detail)
			}
			if len(owners) > maxLines {
				line.Detail("and %d more", len(owners)-maxLines)
			}
			line.Run(p.next(c, in, owners[0])...)
		}
	}
}

// sortedKeys returns the keys of a map, sorted.
func sortedKeys[V any](m map[string]V) []string {
	return slices.Sorted(maps.Keys(m))
}
