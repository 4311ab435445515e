package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// restarts rotates a secret that many Deployments use, each in another namespace, and measures the
// time until a pod has the new value in an env var. Nothing but the kubelet's period, the driver
// and the injector is at work.
func (s *show) restarts(ctx context.Context) error {
	s.out.Title("From a new version in the vault to the env var of a restarted pod.")
	s.out.Say(measure.Machine() + "\n")
	if err := s.openShop(ctx); err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(s.plane.Config)
	if err != nil {
		return fmt.Errorf("create a client: %w", err)
	}
	put := func(value, id string) {
		s.node.Azure.Put(vaultOf("one"), vaultWith(keyvault.Object{
			Kind: keyvault.Secrets, Name: "password", Versions: []keyvault.Version{{ID: id, Value: value}},
		}))
	}
	put("winter", version)
	var manifests strings.Builder
	for n := range *runs {
		namespace := fmt.Sprintf("restarted-%d", n)
		s.node.Federate(namespace+"/app", blobAccess)
		fmt.Fprintf(&manifests, restartedYAML, namespace, blobAccess, vaultOf("one"), tenant)
	}
	if err := s.plane.RunKubectl(ctx, manifests.String(), "apply", "--filename=-"); err != nil {
		return err
	}
	// The injector records the versions of all pods before the first rotation.
	if err := process.Within(ctx, 5*time.Minute, "the pods", func(ctx context.Context) error {
		list, err := client.AppsV1().Deployments(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "restarted=yes"})
		if err != nil {
			return err
		}
		ready := 0
		for i := range list.Items {
			if d := &list.Items[i]; d.Status.AvailableReplicas == 1 && d.Annotations[api.RestartedFor] != "" {
				ready++
			}
		}
		if ready < *runs {
			return fmt.Errorf("%d of %d are ready", ready, *runs)
		}
		return nil
	}); err != nil {
		return err
	}
	if err := process.Sleep(ctx, 10*time.Second); err != nil {
		return err
	}
	put("spring", nextVersion)
	rotated := time.Now()
	took := map[string]time.Duration{}
	if err := process.Within(ctx, rotationLimit, "the restarts", func(ctx context.Context) error {
		list, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "restarted=yes"})
		if err != nil {
			return err
		}
		for i := range list.Items {
			pod := &list.Items[i]
			isNew := strings.Contains(pod.Annotations[api.RestartedFor], nextVersion)
			if _, found := took[pod.Namespace]; isNew && !found && isReady(pod) {
				took[pod.Namespace] = time.Since(rotated)
			}
		}
		if len(took) < *runs {
			return fmt.Errorf("%d of %d have restarted", len(took), *runs)
		}
		return nil
	}); err != nil {
		return err
	}
	all := make([]time.Duration, 0, len(took))
	for namespace, d := range took {
		out, err := s.plane.Kubectl(ctx, "exec", "--namespace="+namespace, "deployment/restarted", "--", "sh", "-c", "echo $PASSWORD").Output()
		if err != nil || strings.TrimSpace(string(out)) != "spring" {
			return errors.Join(fmt.Errorf("the env var in namespace %s is %q", namespace, out), err)
		}
		all = append(all, d)
	}
	l := measure.NewLatencies(all)
	s.out.Say(fmt.Sprintf("%d Deployments with one pod, at most 10 restarts at a time: p50 %.0f s, p95 %.0f s, longest %.0f s.",
		*runs, l.Percentile(0.5)/1000, l.Percentile(0.95)/1000, l.Percentile(1)/1000))
	return s.restartsOfOthers(ctx, client)
}

// restartsOfOthers restarts a StatefulSet with two classes, one with a certificate, while the injector
// is killed; and once more after a Deployment of the same namespace whose restart fails.
func (s *show) restartsOfOthers(ctx context.Context, client kubernetes.Interface) error {
	const in, ordered, broken = "restarted-others", "ordered", "broken"
	put := func(password, token string) {
		secret := func(name, id string) keyvault.Object {
			return keyvault.Object{Kind: keyvault.Secrets, Name: name, Versions: []keyvault.Version{{ID: id, Value: id}}}
		}
		s.node.Azure.Put(vaultOf("ten"), vaultWith(secret("password", password), secret("token", token)))
	}
	defer s.node.Azure.Put(vaultOf("ten"), s.azure.Vaults[vaultOf("ten")])
	edge := s.azure.Vaults["shared-kv"]
	defer s.node.Azure.Put("shared-kv", edge)
	put(version, version)
	s.node.Federate(in+"/app", blobAccess)
	if err := s.plane.RunKubectl(ctx, fmt.Sprintf(othersYAML, in, blobAccess, vaultOf("ten"), tenant), "apply", "--filename=-"); err != nil {
		return err
	}
	statefulSets, deployments := client.AppsV1().StatefulSets(in), client.AppsV1().Deployments(in)
	if err := process.Within(ctx, 2*time.Minute, "the pods", func(ctx context.Context) error {
		set, err := statefulSets.Get(ctx, ordered, metav1.GetOptions{})
		if err != nil {
			return err
		}
		deployment, err := deployments.Get(ctx, broken, metav1.GetOptions{})
		if err != nil {
			return err
		}
		if set.Status.AvailableReplicas < 2 || deployment.Status.AvailableReplicas < 1 ||
			set.Annotations[api.RestartedFor] == "" || deployment.Annotations[api.RestartedFor] == "" {
			return errors.New("they are not ready")
		}
		return nil
	}); err != nil {
		return err
	}
	if err := process.Sleep(ctx, 10*time.Second); err != nil {
		return err
	}

	s.out.Say("\n  An object of each of two vaults gets a new version, one of them a certificate. The injector is killed\n" +
		"  when the driver has reported one of the versions, before it restarts the StatefulSet:")
	put(nextVersion, version)
	ca := edge.Objects[0]
	s.node.Azure.Put("shared-kv", vaultWith(keyvault.Object{
		Kind: ca.Kind, Name: ca.Name, Versions: []keyvault.Version{{ID: nextVersion, DER: ca.Versions[0].DER}, ca.Versions[0]},
	}))
	if err := process.Within(ctx, rotationLimit, "a new version", func(ctx context.Context) error {
		out, err := s.plane.Kubectl(ctx, "get", "secretproviderclasspodstatuses", "--namespace="+in, "--output=yaml").Output()
		if err == nil && !strings.Contains(string(out), nextVersion) {
			err = errors.New("no status has it")
		}
		return err
	}); err != nil {
		return err
	}
	if err := s.killInjector(ctx); err != nil {
		return err
	}
	once := func(ctx context.Context, generation int64) error {
		set, err := statefulSets.Get(ctx, ordered, metav1.GetOptions{})
		if err == nil && set.Generation > generation {
			err = fmt.Errorf("the StatefulSet has generation %d, want %d: it restarted too often or too early", set.Generation, generation)
		}
		return err
	}
	restarted := func(generation int64, version string) func(context.Context) error {
		return func(ctx context.Context) error {
			set, err := statefulSets.Get(ctx, ordered, metav1.GetOptions{})
			if err != nil {
				return err
			}
			if set.Generation < generation || set.Status.ObservedGeneration < generation || set.Status.UpdatedReplicas < 2 ||
				set.Status.AvailableReplicas < 2 {
				return fmt.Errorf("generation %d, %d pods updated", set.Generation, set.Status.UpdatedReplicas)
			}
			for _, pod := range []string{ordered + "-0", ordered + "-1"} {
				out, err := s.plane.Kubectl(ctx, "exec", "--namespace="+in, pod, "--", "sh", "-c", "echo $PASSWORD").Output()
				if err != nil || strings.TrimSpace(string(out)) != version {
					return errors.Join(fmt.Errorf("the env var of %s is %q", pod, out), err)
				}
			}
			return nil
		}
	}
	begin := time.Now()
	if err := cmp.Or(process.Within(ctx, rotationLimit, "the restart", restarted(2, nextVersion)), once(ctx, 2)); err != nil {
		return err
	}
	s.out.Say(fmt.Sprintf("  Both pods of the StatefulSet have the new values after one rollout, %.0f s later.", time.Since(begin).Seconds()))

	s.out.Say("\n  An object of the Deployment gets a new version, with which its container ends. Then the StatefulSet is due:")
	put(nextVersion, nextVersion)
	if err := process.Within(ctx, rotationLimit, "the restart", func(ctx context.Context) error {
		deployment, err := deployments.Get(ctx, broken, metav1.GetOptions{})
		if err == nil && deployment.Generation < 2 {
			err = errors.New("it has not begun")
		}
		return err
	}); err != nil {
		return err
	}
	const thirdVersion = "33333333333333333333333333333333"
	put(thirdVersion, nextVersion)
	begin = time.Now()
	if err := process.Within(ctx, rotationLimit, "the failure", func(ctx context.Context) error {
		events, err := client.EventsV1().Events(in).List(ctx, metav1.ListOptions{FieldSelector: "reason=" + string(api.RestartFailed)})
		if err == nil && len(events.Items) == 0 {
			err = once(ctx, 2)
		}
		if err == nil && len(events.Items) == 0 {
			err = errors.New("there is no event")
		}
		return err
	}); err != nil {
		return err
	}
	s.out.Say(fmt.Sprintf("  The restart of the Deployment has failed after %.0f s.", time.Since(begin).Seconds()))
	if err := cmp.Or(process.Within(ctx, rotationLimit, "the restart", restarted(3, thirdVersion)), once(ctx, 3)); err != nil {
		return err
	}
	s.out.Say(fmt.Sprintf("  The StatefulSet has restarted once, after %.0f s.", time.Since(begin).Seconds()))
	return nil
}

func isReady(pod *corev1.Pod) bool {
	for _, condition := range pod.Status.Conditions {
		if condition.Type == corev1.PodReady {
			return condition.Status == corev1.ConditionTrue
		}
	}
	return false
}

const restartedYAML = `---
apiVersion: v1
kind: Namespace
metadata:
  name: %[1]s
  labels: {keyvault.io/injection: enabled}
  annotations: {keyvault.io/vault: %[3]s, identity.io/tenant-id: %[4]s}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: app
  namespace: %[1]s
  annotations: {azure.workload.identity/client-id: %[2]s}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: restarted
  namespace: %[1]s
  labels: {restarted: "yes"}
  annotations: {keyvault.io/secrets: PASSWORD=password, keyvault.io/on-rotation: restart}
spec:
  selector: {matchLabels: {app: restarted}}
  template:
    metadata: {labels: {app: restarted, restarted: "yes"}}
    spec:
      serviceAccountName: app
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        command: [sh, -c, trap exit TERM; sleep 2147483647 & wait]
`

const othersYAML = `---
apiVersion: v1
kind: Namespace
metadata:
  name: %[1]s
  labels: {keyvault.io/injection: enabled}
  annotations: {keyvault.io/vault: %[3]s, identity.io/tenant-id: %[4]s, keyvault.io/on-rotation: restart}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: app
  namespace: %[1]s
  annotations: {azure.workload.identity/client-id: %[2]s}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: ordered
  namespace: %[1]s
  annotations: {keyvault.io/secrets: "PASSWORD=password, EDGE=shared-kv/cert:edge-ca"}
spec:
  replicas: 2
  serviceName: ordered
  selector: {matchLabels: {app: ordered}}
  template:
    metadata: {labels: {app: ordered}}
    spec:
      serviceAccountName: app
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        command: [sh, -c, trap exit TERM; sleep 2147483647 & wait]
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: broken
  namespace: %[1]s
  annotations: {keyvault.io/secrets: TOKEN=token}
spec:
  selector: {matchLabels: {app: broken}}
  template:
    metadata: {labels: {app: broken}}
    spec:
      serviceAccountName: app
      containers:
      - name: nginx
        image: nginx
        imagePullPolicy: IfNotPresent
        command: [sh, -c, 'trap exit TERM; [ "$TOKEN" = ` + version + ` ] || exit 1; sleep 2147483647 & wait']
`
