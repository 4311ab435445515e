package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"
	secretsstore "sigs.k8s.io/secrets-store-csi-driver/pkg/client/clientset/versioned"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// rotated is the number of workloads whose object gets a new version.
const rotated = 500

// rotation measures the restarts for a new version that many workloads use. It writes the statuses
// that drivers would write, and stands for the Deployment controller.
type rotation struct {
	*experiment

	driver secretsstore.Interface

	mu       sync.Mutex
	restarts []restart
	recorded int // workloads whose versions are recorded
}

// restart is one restart of a workload.
type restart struct {
	namespace     string
	begin, finish time.Time
}

// measureRotation prints what rotation costs, and how it restarts workloads.
func (e *experiment) measureRotation(ctx context.Context, without *measuredStart) (err error) {
	driver, err := secretsstore.NewForConfig(e.plane.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	r := &rotation{experiment: e, driver: driver}
	if err := r.fill(ctx); err != nil {
		return err
	}
	if err := injector.AllowRotation(ctx, e.plane); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		if err := r.follow(ctx); err != nil && ctx.Err() == nil {
			cancel(err)
		}
	}()
	started, err := e.start(ctx, "--rotation", "--rotation-min-interval=0s")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, started.Stop()) }()
	begin := time.Now()
	if err := process.Within(ctx, 10*time.Minute, "the versions", func(context.Context) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if len(r.restarts) > 0 {
			return errors.New("the first look restarted a workload")
		}
		if r.recorded < e.classes {
			return fmt.Errorf("%d of %d workloads are recorded", r.recorded, e.classes)
		}
		return nil
	}); err != nil {
		return err
	}
	first := time.Since(begin)
	if err := process.Sleep(ctx, e.settle); err != nil {
		return err
	}
	usage, err := measure.UsageOf(started.PID())
	if err != nil {
		return err
	}
	fmt.Printf("\nRotation with %d workloads and %d statuses: the first look takes %.0f s and %d writes, and restarts nothing. "+
		"RSS after another %s: %.0f MiB, %.0f without rotation (goal: 25 more).\n",
		e.classes, e.pods, first.Seconds(), e.classes, e.settle, usage.RSS, without.idle.RSS)
	return r.rotate(ctx, started)
}

// rotate gives an object of many workloads a new version, and prints the restarts.
func (r *rotation) rotate(ctx context.Context, started *injector.Injector) error {
	cpuBefore, err := cpuOf([]*injector.Injector{started})
	if err != nil {
		return err
	}
	begin := time.Now()
	list, err := r.driver.SecretsstoreV1().SecretProviderClassPodStatuses(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("list the statuses: %w", err)
	}
	changed := slices.DeleteFunc(list.Items, func(s secretsstorev1.SecretProviderClassPodStatus) bool {
		var n int
		_, err := fmt.Sscanf(s.Namespace, "team-%d", &n)
		return err != nil || n >= rotated
	})
	if err := inParallel(ctx, "new versions", len(changed), func(ctx context.Context, n int) error {
		s := &changed[n]
		s.Status.Objects = versionsOf(2)
		_, err := r.driver.SecretsstoreV1().SecretProviderClassPodStatuses(s.Namespace).Update(ctx, s, metav1.UpdateOptions{})
		return err
	}); err != nil {
		return err
	}
	written := time.Since(begin)
	if err := process.Within(ctx, 20*time.Minute, "the restarts", func(context.Context) error {
		r.mu.Lock()
		defer r.mu.Unlock()
		if n := len(r.restarts); n < rotated || r.restarts[n-1].finish.IsZero() {
			return fmt.Errorf("%d of %d workloads restarted", n, rotated)
		}
		return nil
	}); err != nil {
		return err
	}
	took := time.Since(begin)
	if err := process.Sleep(ctx, r.settle); err != nil {
		return err
	}
	cpu, err := cpuOf([]*injector.Injector{started})
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	byNamespace, concurrent := map[string]int{}, 0
	for i, one := range r.restarts {
		byNamespace[one.namespace]++
		at := 0
		for _, other := range r.restarts[:i+1] {
			if !other.begin.After(one.begin) && other.finish.After(one.begin) {
				at++
			}
		}
		concurrent = max(concurrent, at)
	}
	fmt.Printf("An object of %d workloads gets a new version, which the drivers report within %.0f s: %d restarts in %.0f s, "+
		"at most %d at a time, at most %d of one workload. CPU: %.1f s.\n",
		rotated, written.Seconds(), len(r.restarts), took.Seconds(), concurrent, slices.Max(slices.Collect(maps.Values(byNamespace))),
		(cpu - cpuBefore).Seconds())
	return nil
}

// versionsOf returns the versions of the objects that the pods request, with a number for the first.
func versionsOf(version int) []secretsstorev1.SecretProviderClassObject {
	return []secretsstorev1.SecretProviderClassObject{
		{ID: "secret/db-password", Version: fmt.Sprintf("%032x", version)},
		{ID: "secret/stripe-key", Version: fmt.Sprintf("%032x", 1)},
	}
}

// fill requests restarts in all namespaces, and writes a status for each pod.
func (r *rotation) fill(ctx context.Context) error {
	patch := fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%q}}}`, api.OnRotation, api.RotationRestart)
	if err := inParallel(ctx, "annotated namespaces", r.namespaces, func(ctx context.Context, n int) error {
		_, err := r.client.CoreV1().Namespaces().Patch(ctx, r.namespace(n).Name, types.MergePatchType, patch, metav1.PatchOptions{})
		return err
	}); err != nil {
		return err
	}
	list, err := r.client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: api.Injected + "=true"})
	if err != nil {
		return fmt.Errorf("list the pods: %w", err)
	}
	return inParallel(ctx, "statuses", len(list.Items), func(ctx context.Context, n int) error {
		return r.mount(ctx, &list.Items[n], 1)
	})
}

// mount writes the status of the class of a pod.
func (r *rotation) mount(ctx context.Context, pod *corev1.Pod, version int) error {
	name := classOf(pod).Name
	_, err := r.driver.SecretsstoreV1().SecretProviderClassPodStatuses(pod.Namespace).Create(ctx, &secretsstorev1.SecretProviderClassPodStatus{
		ObjectMeta: metav1.ObjectMeta{
			Name:            pod.Name + "-" + pod.Namespace + "-" + name,
			Labels:          map[string]string{"internal.secrets-store.csi.k8s.io/node-name": "node"},
			OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID}},
		},
		Status: secretsstorev1.SecretProviderClassPodStatusStatus{
			PodName: pod.Name, SecretProviderClassName: name, Mounted: true, Objects: versionsOf(version),
			TargetPath: "/var/lib/kubelet/pods/" + string(pod.UID) + "/volumes/kubernetes.io~csi/keyvault/mount",
		},
	}, metav1.CreateOptions{})
	return err
}

// follow watches the Deployments until ctx ends. It counts those whose versions are recorded, and
// rolls out those whose template changes.
func (r *rotation) follow(ctx context.Context) error {
	events, err := r.client.AppsV1().Deployments(metav1.NamespaceAll).Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return fmt.Errorf("watch the Deployments: %w", err)
	}
	defer events.Stop()
	recorded, templates := map[types.UID]bool{}, map[types.UID]string{}
	for event := range events.ResultChan() {
		d, ok := event.Object.(*appsv1.Deployment)
		if !ok || event.Type == watch.Deleted {
			continue
		}
		template := d.Spec.Template.Annotations[api.RestartedFor]
		r.mu.Lock()
		if d.Annotations[api.RestartedFor] != "" && !recorded[d.UID] {
			recorded[d.UID] = true
			r.recorded++
		}
		at := -1
		if template != templates[d.UID] {
			templates[d.UID] = template
			at = len(r.restarts)
			r.restarts = append(r.restarts, restart{namespace: d.Namespace, begin: time.Now()})
		}
		r.mu.Unlock()
		if at >= 0 {
			go func() {
				if err := r.rollOut(ctx, d, at); err != nil && ctx.Err() == nil {
					progress("roll out %s/%s: %v", d.Namespace, d.Name, err)
				}
			}()
		}
	}
	return errors.New("the watch of the Deployments has ended")
}

// rollOut replaces the pods of a Deployment.
func (r *rotation) rollOut(ctx context.Context, d *appsv1.Deployment, at int) error {
	pods := r.client.CoreV1().Pods(d.Namespace)
	list, err := pods.List(ctx, metav1.ListOptions{LabelSelector: metav1.FormatLabelSelector(d.Spec.Selector)})
	if err != nil {
		return err
	}
	for i := range list.Items {
		old := &list.Items[i]
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			GenerateName: old.GenerateName, Namespace: old.Namespace, Labels: old.Labels,
			Annotations: maps.Clone(old.Annotations), OwnerReferences: old.OwnerReferences,
		}, Spec: old.Spec}
		pod.Annotations[api.RestartedFor] = d.Spec.Template.Annotations[api.RestartedFor]
		if pod, err = pods.Create(ctx, pod, metav1.CreateOptions{}); err != nil {
			return err
		}
		if err := r.mount(ctx, pod, 2); err != nil {
			return err
		}
		if err := pods.Delete(ctx, old.Name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
			return err
		}
		_ = r.driver.SecretsstoreV1().SecretProviderClassPodStatuses(old.Namespace).
			Delete(ctx, old.Name+"-"+old.Namespace+"-"+classOf(old).Name, metav1.DeleteOptions{}) // as the garbage collector would
	}
	n := int32(len(list.Items))
	d.Status = appsv1.DeploymentStatus{ObservedGeneration: d.Generation, Replicas: n, UpdatedReplicas: n, AvailableReplicas: n, ReadyReplicas: n}
	if _, err := r.client.AppsV1().Deployments(d.Namespace).UpdateStatus(ctx, d, metav1.UpdateOptions{}); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.restarts[at].finish = time.Now()
	return nil
}
