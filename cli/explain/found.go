package explain

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/go-json-experiment/json"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
)

// found is what a user may read about a target. What is nil or empty does not exist, or is in
// denied.
type found struct {
	now    time.Time
	denied map[schema.GroupResource]*kube.Denied

	object *unstructured.Unstructured // the target
	names  []string                   // of the target's kind, if it does not exist
	// owners are the controllers above the target, the nearest first.
	owners []pods.Owner
	// below are the ReplicaSets and Jobs that the target controls, and pods those of the target: for
	// a Pod the pod itself, for a Namespace those that request something; the newest first.
	below []unstructured.Unstructured
	pods  []corev1.Pod

	namespace            *corev1.Namespace
	mutating, validating *kube.Configuration
	// ready is how many endpoints of the injector's Service are ready.
	ready int
	// serverArgs are the arguments of the injector's Deployment; nil if they are not known.
	serverArgs []string

	facts        *kube.Facts // of the namespace
	identities   []unstructured.Unstructured
	hasClassKind bool
	issuer       string // empty if it may not be read
	driver       *storagev1.CSIDriver

	events []corev1.Event

	// pod is the pod that is explained to the end. The rest is about it.
	pod      *corev1.Pod
	csiNode  *storagev1.CSINode
	nodePods []corev1.Pod // of the driver and its provider, on the pod's node
	// nodePodsDenied is the right that the user lacks to read them.
	nodePodsDenied *kube.Denied
	// syncs is whether the driver may write Secrets; nil if that is not known.
	syncs    *bool
	statuses map[string]*podStatus                    // by class
	secrets  map[string]*metav1.PartialObjectMetadata // those that the pod's env vars need, nil for a missing one
}

// podStatus is a SecretProviderClassPodStatus: what the driver mounted for one class of one pod
// (secrets-store-csi-driver/apis/v1).
type podStatus struct {
	metav1.ObjectMeta `json:"metadata"`

	Status struct {
		Mounted bool `json:"mounted"`
		Objects []struct {
			ID      string `json:"id"`
			Version string `json:"version"`
		} `json:"objects"`
	} `json:"status"`
}

// gather reads what there is to know about a target. A read that the user may not do is in the
// result; every other failed read is an error.
func gather(ctx context.Context, r *kube.Reader, target Target) (*found, error) {
	g := &gatherer{ctx: ctx, r: r, target: target, found: &found{
		denied:   map[schema.GroupResource]*kube.Denied{},
		statuses: map[string]*podStatus{}, secrets: map[string]*metav1.PartialObjectMetadata{},
	}}
	for _, read := range []func() error{
		g.readTarget, g.readOwners, g.readPods, g.readInstallation, g.readNamespace, g.readDriver, g.readPod,
	} {
		if err := read(); err != nil {
			return nil, err
		}
	}
	return g.found, nil
}

type gatherer struct {
	*found

	ctx    context.Context //nolint:containedctx // it gathers once
	r      *kube.Reader
	target Target
}

// inNamespace returns the namespace of the target, or the target itself.
func (t Target) inNamespace() string {
	if t.Namespace == "" {
		return t.Name
	}
	return t.Namespace
}

// one reads an object, and lists all of a namespace.
func one[T any](g *gatherer, into **T, resource schema.GroupVersionResource, namespace, name string) error {
	object, err := kube.Read[T](g.ctx, g.r, resource, namespace, name)
	*into = object
	return g.permit(err)
}

func all[T any](
	g *gatherer, into *[]T, resource schema.GroupVersionResource, namespace string, o metav1.ListOptions,
) error {
	list, err := kube.List[T](g.ctx, g.r, resource, namespace, o)
	*into = list
	return g.permit(err)
}

// permit records the first right to a resource that the user lacks. It returns every other error.
func (g *gatherer) permit(err error) error {
	denied, ok := errors.AsType[*kube.Denied](err)
	if !ok {
		return err
	}
	if g.denied[denied.Resource] == nil {
		g.denied[denied.Resource] = denied
	}
	return nil
}

// lacks returns the right to a resource that the user lacks; nil for none.
func (f *found) lacks(resource schema.GroupVersionResource) *kube.Denied {
	return f.denied[resource.GroupResource()]
}

func (g *gatherer) readTarget() error {
	resource := kindOf(g.target.Kind).resource
	if err := one(g, &g.object, resource, g.target.Namespace, g.target.Name); err != nil {
		return err
	}
	if _, denied := g.denied[resource.GroupResource()]; denied || g.object != nil {
		return nil
	}
	var others []unstructured.Unstructured
	if err := all(g, &others, resource, g.target.Namespace, metav1.ListOptions{}); err != nil {
		return err
	}
	for i := range others {
		g.names = append(g.names, others[i].GetName())
	}
	return nil
}

// maxOwners is how many controllers above the target are read: a user may have written a cycle.
const maxOwners = 5

// readOwners reads the controllers above the target.
func (g *gatherer) readOwners() error {
	for object := g.object; object != nil && len(g.owners) < maxOwners; {
		owner := metav1.GetControllerOf(object)
		if owner == nil {
			return nil
		}
		g.owners = append(g.owners, pods.Owner{Kind: owner.Kind, Name: owner.Name})
		k := kindOf(owner.Kind)
		if k == nil {
			return nil
		}
		object = nil
		if err := one(g, &object, k.resource, g.target.Namespace, owner.Name); err != nil {
			return err
		}
	}
	return nil
}

// readPods reads the pods of the target.
func (g *gatherer) readPods() error {
	switch {
	case g.object == nil:
		return nil
	case g.target.Kind == "Pod":
		pod, err := kube.Decode[corev1.Pod](g.object)
		if err != nil {
			return err
		}
		g.pods = []corev1.Pod{*pod}
		return nil
	case g.target.Kind == "Namespace": // may have thousands of pods
		return g.permit(kube.Each(g.ctx, g.r, kube.Pods, g.target.Name, func(pod *corev1.Pod) error {
			if pod.Labels[api.Injected] != "" || api.Asked(pod.Annotations) || len(driverVolumes(pod)) > 0 {
				g.pods = append(g.pods, *pod)
			}
			return nil
		}))
	}
	var o metav1.ListOptions
	if selector, found, _ := unstructured.NestedMap(g.object.Object, "spec", "selector"); found {
		var typed metav1.LabelSelector
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(selector, &typed); err != nil {
			return fmt.Errorf("read the selector of %s: %w", g.target, err)
		}
		o.LabelSelector = metav1.FormatLabelSelector(&typed)
	}
	between := map[string]schema.GroupVersionResource{"Deployment": kube.ReplicaSets, "CronJob": kube.Jobs}[g.target.Kind]
	owners := map[types.UID]bool{g.object.GetUID(): true}
	owned := func(object metav1.Object) bool {
		owner := metav1.GetControllerOf(object)
		return owner != nil && owners[owner.UID]
	}
	if between.Resource != "" {
		if err := all(g, &g.below, between, g.target.Namespace, o); err != nil {
			return err
		}
		g.below = slices.DeleteFunc(g.below, func(object unstructured.Unstructured) bool { return !owned(&object) })
		for i := range g.below {
			owners[g.below[i].GetUID()] = true
		}
	}
	if err := all(g, &g.pods, kube.Pods, g.target.Namespace, o); err != nil {
		return err
	}
	g.pods = slices.DeleteFunc(g.pods, func(pod corev1.Pod) bool { return !owned(&pod) })
	return nil
}

// readInstallation reads the webhook configurations and, through them, the injector.
func (g *gatherer) readInstallation() error {
	if err := errors.Join(
		one(g, &g.mutating, kube.MutatingConfigurations, "", kube.Name),
		one(g, &g.validating, kube.ValidatingConfigurations, "", kube.Name),
	); err != nil {
		return err
	}
	service := g.mutating.Service()
	if service.Name == "" {
		return nil
	}
	ready, err := kube.ReadyEndpoints(g.ctx, g.r, service)
	if g.ready = ready; g.permit(err) != nil {
		return err
	}
	injector, err := kube.ReadInjector(g.ctx, g.r, service.Namespace)
	if injector != nil {
		g.serverArgs = append([]string{}, injector.Args...)
	}
	return g.permit(err)
}

// readNamespace reads the namespace and the objects in it.
func (g *gatherer) readNamespace() (err error) {
	namespace := g.target.inNamespace()
	if g.facts, err = kube.ReadFacts(g.ctx, g.r, namespace); err != nil {
		return err
	}
	for _, denied := range g.facts.Denied {
		_ = g.permit(denied) // it is the lack of a right
	}
	if len(g.facts.Namespaces) > 0 {
		if g.namespace, err = kube.Decode[corev1.Namespace](&g.facts.Namespaces[0]); err != nil {
			return err
		}
	}
	has, err := g.r.HasKind(kube.Classes)
	g.hasClassKind = has || err != nil // the reads of classes show whether they work
	return errors.Join(
		all(g, &g.identities, kube.Identities, namespace, metav1.ListOptions{}),
		all(g, &g.events, kube.Events, namespace, metav1.ListOptions{FieldSelector: "type=" + corev1.EventTypeWarning}),
	)
}

// discoveryPath is the path of the document with the issuer of ServiceAccount tokens (OpenID Connect
// Discovery 1.0, section 4).
const discoveryPath = "/.well-known/openid-configuration"

// readDriver reads what the cluster has for all pods.
func (g *gatherer) readDriver() error {
	if err := one(g, &g.driver, kube.CSIDrivers, "", class.Driver); err != nil {
		return err
	}
	text, err := g.r.Discovery.RESTClient().Get().AbsPath(discoveryPath).DoRaw(g.ctx)
	if apierrors.IsForbidden(err) || apierrors.IsNotFound(err) {
		return nil
	}
	var document struct {
		Issuer string `json:"issuer"`
	}
	if err == nil {
		err = json.Unmarshal(text, &document)
	}
	if err != nil {
		return fmt.Errorf("read the issuer of ServiceAccount tokens: %w", err)
	}
	g.issuer = document.Issuer
	return nil
}

// readPod reads what there is about one of the pods: the worst.
func (g *gatherer) readPod() error {
	slices.SortStableFunc(g.pods, func(a, b corev1.Pod) int {
		return b.CreationTimestamp.Compare(a.CreationTimestamp.Time)
	})
	g.pod = worst(g.pods)
	if g.pod == nil {
		return nil
	}
	volumes := driverVolumes(g.pod)
	if len(volumes) == 0 {
		return nil
	}
	if name := g.pod.Spec.NodeName; name != "" {
		o := metav1.ListOptions{FieldSelector: "spec.nodeName=" + name}
		if err := errors.Join(one(g, &g.csiNode, kube.CSINodes, "", name), g.readNodePods(o)); err != nil {
			return err
		}
	}
	for _, name := range volumes {
		var status *podStatus
		// The driver names it so (its pkg/secrets-store/utils.go).
		if err := one(g, &status, kube.PodStatuses, g.pod.Namespace, g.pod.Name+"-"+g.pod.Namespace+"-"+name); err != nil {
			return err
		}
		g.statuses[name] = status
	}
	for name := range g.envSecrets() {
		secret, err := kube.ReadMetadata(g.ctx, g.r, kube.Secrets, g.pod.Namespace, name)
		if err := g.permit(err); err != nil {
			return err
		}
		g.secrets[name] = secret
	}
	return nil
}

// readNodePods reads the pods of the driver and its provider on a node, and whether the driver may
// write Secrets.
func (g *gatherer) readNodePods(o metav1.ListOptions) error {
	list, err := kube.List[corev1.Pod](g.ctx, g.r, kube.Pods, "", o)
	if denied, ok := errors.AsType[*kube.Denied](err); ok {
		g.nodePodsDenied = denied
		return nil
	}
	if err != nil {
		return err
	}
	g.nodePods = slices.DeleteFunc(list, func(pod corev1.Pod) bool {
		return kube.Driver(&pod.Spec) == nil && kube.Provider(&pod.Spec) == nil
	})
	at := slices.IndexFunc(g.nodePods, func(pod corev1.Pod) bool { return kube.Driver(&pod.Spec) != nil })
	if at < 0 {
		return nil
	}
	account := types.NamespacedName{Namespace: g.nodePods[at].Namespace, Name: g.nodePods[at].Spec.ServiceAccountName}
	syncs, err := g.r.MayWriteSecrets(g.ctx, account, g.pod.Namespace)
	if err == nil {
		g.syncs = &syncs
	}
	return g.permit(err)
}

// driverVolumes returns the classes that a pod mounts, in the order of its volumes.
func driverVolumes(pod *corev1.Pod) []string {
	var names []string
	for i := range pod.Spec.Volumes {
		if csi := pod.Spec.Volumes[i].CSI; csi != nil && csi.Driver == class.Driver {
			names = append(names, csi.VolumeAttributes[class.Attribute])
		}
	}
	return names
}

// envSecrets returns the Secrets that the driver must sync for the pod's env vars, with the env vars
// by container: those of the pod's classes, and those that the injector wrote.
func (f *found) envSecrets() map[string]map[string][]string {
	synced := map[string]bool{}
	for _, name := range driverVolumes(f.pod) {
		synced[name] = class.IsManagedName(name)
		if c := f.class(name); c != nil {
			for _, s := range c.Synced {
				synced[s.Secret] = true
			}
		}
	}
	for _, env := range statusOf(f.pod.Annotations).Env {
		synced[env.Secret] = true
	}
	secrets := map[string]map[string][]string{}
	for _, container := range slices.Concat(f.pod.Spec.InitContainers, f.pod.Spec.Containers) {
		for _, env := range container.Env {
			if env.ValueFrom == nil || env.ValueFrom.SecretKeyRef == nil || !synced[env.ValueFrom.SecretKeyRef.Name] {
				continue
			}
			name := env.ValueFrom.SecretKeyRef.Name
			if secrets[name] == nil {
				secrets[name] = map[string][]string{}
			}
			secrets[name][container.Name] = append(secrets[name][container.Name], env.Name)
		}
	}
	return secrets
}

// statusOf returns the injector's status in the annotations of a pod; empty if there is none.
func statusOf(annotations map[string]string) (status inject.Status) {
	if json.Unmarshal([]byte(annotations[api.Status]), &status) != nil {
		return inject.Status{} // a user wrote it
	}
	return status
}
