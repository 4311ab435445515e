package e2e_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// class is a handwritten SecretProviderClass for AAD pod identity.
const class = `
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: key-vault-secret}
spec:
  provider: azure
  parameters:
    usePodIdentity: "true"
    keyvaultName: team-kv
    tenantId: 72f988bf-86f1-41af-91ab-2d7cd011db47
    objects: |
      array:
      - |
        objectName: secret-425
        objectType: secret
  secretObjects:
  - {secretName: key-vault-secret, type: Opaque, data: [{objectName: secret-425, key: secret-content}]}
`

const binding = `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: access-blob-binding}
spec: {azureIdentity: access-blob, selector: access-blob}
`

// annotations request everything in class and binding.
const annotations = `{identity.io/name: access-blob, keyvault.io/class: key-vault-secret, keyvault.io/secrets: KEYVAULT_SECRET=secret-425}`

const template = `{metadata: {labels: {app: app}}, spec: {containers: [{name: app, image: nginx}]}}`

const deployment = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, annotations: ` + annotations + `}
spec: {selector: {matchLabels: {app: app}}, template: ` + template + `}
`

const pod = `
apiVersion: v1
kind: Pod
metadata: {name: app, annotations: ` + annotations + `}
spec: {containers: [{name: app, image: nginx}]}
`

// surroundings returns the objects that annotations refer to.
func surroundings() []*unstructured.Unstructured {
	return documents(class + "---" + binding)
}

// injected returns an error unless the pod has everything that annotations request.
func injected(pod *corev1.Pod) error {
	var mounted, set bool
	for _, c := range pod.Spec.Containers {
		mounted = slices.ContainsFunc(c.VolumeMounts, func(m corev1.VolumeMount) bool {
			return m.Name == "keyvault" && m.MountPath == "/mnt/secrets-store" && m.ReadOnly
		})
		set = slices.ContainsFunc(c.Env, func(e corev1.EnvVar) bool {
			return e.Name == "KEYVAULT_SECRET" && e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil &&
				e.ValueFrom.SecretKeyRef.Name == "key-vault-secret" && e.ValueFrom.SecretKeyRef.Key == "secret-content"
		})
	}
	volume := slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool {
		return v.Name == "keyvault" && v.CSI != nil && v.CSI.VolumeAttributes["secretProviderClass"] == "key-vault-secret"
	})
	if mounted && set && volume && labelled(pod) && pod.Labels["aadpodidbinding"] == "access-blob" && pod.Annotations["keyvault.io/status"] != "" {
		return nil
	}
	return fmt.Errorf("pod %s/%s is not injected: labels %v, volumes %v, containers %v", pod.Namespace, pod.Name, pod.Labels, pod.Spec.Volumes, pod.Spec.Containers)
}

// waitForPods waits until n pods of a namespace match, and returns them.
func waitForPods(t *testing.T, namespace string, n int, match func(*corev1.Pod) bool) []corev1.Pod {
	t.Helper()
	var pods []corev1.Pod
	waitFor(t, fmt.Sprintf("%d pods in %s", n, namespace), func(ctx context.Context) error {
		list, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err != nil {
			return err
		}
		pods = slices.DeleteFunc(list.Items, func(p corev1.Pod) bool { return !match(&p) })
		if len(pods) != n {
			return fmt.Errorf("found %d", len(pods))
		}
		return nil
	})
	return pods
}

func anyPod(*corev1.Pod) bool { return true }

func labelled(pod *corev1.Pod) bool { return pod.Labels["keyvault.io/injected"] == "true" }

// TestWorkloads applies an annotated workload of every kind. The cluster's controllers must create
// injected pods.
func TestWorkloads(t *testing.T) {
	// A DaemonSet needs a node without taints. A new node has the taint not-ready.
	if err := apply(t.Context(), "", document(`{apiVersion: v1, kind: Node, metadata: {name: node}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Patch(t.Context(), "node", types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	const selected = `{selector: {matchLabels: {app: app}}, template: ` + template + `}`
	const job = `{template: {metadata: {labels: {app: app}}, spec: {restartPolicy: Never, containers: [{name: app, image: nginx}]}}}`
	for kind, test := range map[string]struct{ version, spec, owner string }{
		"Deployment":  {"apps/v1", selected, "ReplicaSet"},
		"ReplicaSet":  {"apps/v1", selected, "ReplicaSet"},
		"StatefulSet": {"apps/v1", selected, "StatefulSet"},
		"DaemonSet":   {"apps/v1", selected, "DaemonSet"},
		"Job":         {"batch/v1", job, "Job"},
		"CronJob":     {"batch/v1", `{schedule: "* * * * *", jobTemplate: {spec: ` + job + `}}`, "Job"},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			namespace := "workload-" + strings.ToLower(kind)
			newNamespace(t, namespace, "enabled", surroundings()...)
			workload := document(`{apiVersion: ` + test.version + `, kind: ` + kind + `, metadata: {name: app, annotations: ` + annotations + `}, spec: ` + test.spec + `}`)
			if err := apply(t.Context(), namespace, workload); err != nil {
				t.Fatal(err)
			}
			if kind == "CronJob" {
				trigger(t, namespace, "app")
			}
			for _, pod := range waitForPods(t, namespace, 1, anyPod) {
				if err := injected(&pod); err != nil {
					t.Error(err)
				}
				if owner := metav1.GetControllerOf(&pod); owner == nil || owner.Kind != test.owner {
					t.Errorf("the pod's controller is %v, want a %s", owner, test.owner)
				}
			}
		})
	}
}

// trigger does what `kubectl create job --from=cronjob/NAME` does, since the schedule takes a
// minute.
func trigger(t *testing.T, namespace, name string) {
	t.Helper()
	out, err := plane.Kubectl(t.Context(), "--namespace="+namespace, "create", "job", "--from=cronjob/"+name, name).CombinedOutput()
	if err != nil {
		t.Fatalf("kubectl create job: %v\n%s", err, out)
	}
}

// replicaSets waits until the Deployment's rollout is complete, and returns all its ReplicaSets,
// oldest first.
func replicaSets(t *testing.T, namespace string) []appsv1.ReplicaSet {
	t.Helper()
	waitFor(t, "the rollout in "+namespace, func(ctx context.Context) error {
		if _, err := makeAllReady(ctx, namespace); err != nil {
			return err
		}
		d, err := client.AppsV1().Deployments(namespace).Get(ctx, "app", metav1.GetOptions{})
		if err != nil {
			return err
		}
		if s := d.Status; s.ObservedGeneration != d.Generation || s.UpdatedReplicas != *d.Spec.Replicas || s.Replicas != *d.Spec.Replicas {
			return fmt.Errorf("the Deployment is at generation %d, its status is %+v", d.Generation, s)
		}
		return nil
	})
	list, err := client.AppsV1().ReplicaSets(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	slices.SortFunc(list.Items, func(a, b appsv1.ReplicaSet) int { return revision(&a) - revision(&b) })
	return list.Items
}

func revision(set *appsv1.ReplicaSet) int {
	n, err := strconv.Atoi(set.Annotations["deployment.kubernetes.io/revision"])
	if err != nil {
		return 0
	}
	return n
}

// makeAllReady makes all pods of a namespace ready, and returns them. No kubelet runs, and rollouts
// wait for ready pods.
func makeAllReady(ctx context.Context, namespace string) ([]corev1.Pod, error) {
	pods, err := client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, err
	}
	for i := range pods.Items {
		if err := makeReady(ctx, &pods.Items[i]); err != nil {
			return nil, err
		}
	}
	return pods.Items, nil
}

// makeReady sets a pod's status to ready, as a kubelet does. It may return NotFound: without a
// kubelet a deleted pod is removed at once.
func makeReady(ctx context.Context, pod *corev1.Pod) error {
	if pod.Status.Phase == corev1.PodRunning {
		return nil
	}
	status := `{"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}`
	_, err := client.CoreV1().Pods(pod.Namespace).Patch(ctx, pod.Name, types.StrategicMergePatchType, []byte(status), metav1.PatchOptions{}, "status")
	return err
}

// TestRollout changes an annotation of a Deployment, which must reach its pods with one rollout.
func TestRollout(t *testing.T) {
	t.Parallel()
	const namespace = "rollout"
	newNamespace(t, namespace, "enabled", surroundings()...)
	if err := apply(t.Context(), namespace, document(deployment)); err != nil {
		t.Fatal(err)
	}
	if sets := replicaSets(t, namespace); len(sets) != 1 {
		t.Fatalf("%d ReplicaSets after the first rollout, want 1", len(sets))
	}
	if err := apply(t.Context(), namespace, document(strings.Replace(deployment, "KEYVAULT_SECRET", "PASSWORD", 1))); err != nil {
		t.Fatal(err)
	}
	if sets := replicaSets(t, namespace); len(sets) != 2 {
		t.Fatalf("%d ReplicaSets after an annotation changed, want 2", len(sets))
	}
	for _, pod := range waitForPods(t, namespace, 1, anyPod) {
		if env := pod.Spec.Containers[0].Env; len(env) != 1 || env[0].Name != "PASSWORD" {
			t.Errorf("the pod has env %v, want PASSWORD", env)
		}
	}
	withoutOurs := document(strings.Replace(deployment, "annotations: "+annotations, "annotations: {}", 1))
	if err := apply(t.Context(), namespace, withoutOurs); err != nil {
		t.Fatal(err)
	}
	if sets := replicaSets(t, namespace); len(sets) != 3 {
		t.Fatalf("%d ReplicaSets after the annotations were removed, want 3", len(sets))
	}
	for _, pod := range waitForPods(t, namespace, 1, anyPod) {
		if len(pod.Spec.Containers[0].Env) != 0 || pod.Labels["keyvault.io/injected"] != "" {
			t.Errorf("the pod is still injected: labels %v, env %v", pod.Labels, pod.Spec.Containers[0].Env)
		}
	}
}

// TestOptInLater opts in a namespace that has a Deployment. From then on the updates by the
// cluster's controllers reach the injector. They may cause one rollout, and must not change the
// template repeatedly.
func TestOptInLater(t *testing.T) {
	t.Parallel()
	const namespace = "opt-in-later"
	newNamespace(t, namespace, "", surroundings()...)
	if err := apply(t.Context(), namespace, document(deployment)); err != nil {
		t.Fatal(err)
	}
	if len(replicaSets(t, namespace)) != 1 || injected(&waitForPods(t, namespace, 1, anyPod)[0]) == nil {
		t.Fatal("the injector acts in a namespace that has not opted in")
	}
	if err := apply(t.Context(), "", document(`{apiVersion: v1, kind: Namespace, metadata: {name: `+namespace+`, labels: {keyvault.io/injection: enabled}}}`)); err != nil {
		t.Fatal(err)
	}
	if err := injector.WaitUntilCalled(t.Context(), plane.Config, namespace); err != nil {
		t.Fatal(err)
	}
	for replicas := range int32(3) {
		scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: "app", Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: 2 + replicas}}
		if _, err := client.AppsV1().Deployments(namespace).UpdateScale(t.Context(), "app", scale, metav1.UpdateOptions{}); err != nil {
			t.Fatal(err)
		}
		if sets := replicaSets(t, namespace); len(sets) > 2 {
			t.Fatalf("%d ReplicaSets after scaling to %d, want at most one more", len(sets), 2+replicas)
		}
	}
	// After an update of the Deployment itself, its template inherits the annotations. This happens
	// once.
	for _, color := range []string{"red", "blue"} {
		patch := []byte(`{"metadata":{"labels":{"color":"` + color + `"}}}`)
		if _, err := client.AppsV1().Deployments(namespace).Patch(t.Context(), "app", types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
		if sets := replicaSets(t, namespace); len(sets) != 2 {
			t.Errorf("%d ReplicaSets after an update, want 2", len(sets))
		}
	}
	for _, pod := range waitForPods(t, namespace, 4, anyPod) {
		if err := injected(&pod); err != nil {
			t.Error(err)
		}
	}
}

// TestLateClass applies the objects that a Deployment needs after its pods were rejected. Its
// ReplicaSet must succeed on a retry.
func TestLateClass(t *testing.T) {
	t.Parallel()
	const namespace = "late-class"
	newNamespace(t, namespace, "enabled")
	if err := apply(t.Context(), namespace, document(deployment)); err != nil {
		t.Fatal(err)
	}
	if want, got := `ReplicaSet: Error creating: admission webhook "pods.akv-injector.io" denied the request: [ClassNotFound]`, failedCreate(t, namespace); !strings.HasPrefix(got, want) {
		t.Errorf("the event says %q, want %q", got, want)
	}
	if err := apply(t.Context(), namespace, surroundings()...); err != nil {
		t.Fatal(err)
	}
	for _, pod := range waitForPods(t, namespace, 1, anyPod) {
		if err := injected(&pod); err != nil {
			t.Error(err)
		}
	}
}

// TestCacheRace applies a namespace, its objects and an annotated Deployment as fast as possible,
// in many namespaces at the same time.
func TestCacheRace(t *testing.T) {
	t.Parallel()
	const times, atOnce = 200, 8
	for name, test := range map[string]struct {
		order   []string
		refused bool // the needed objects come last, so pods may be rejected at first
	}{
		"the-class-first":      {order: []string{class, binding, deployment}},
		"the-deployment-first": {order: []string{deployment, class, binding}, refused: true},
	} {
		t.Run(name, func(t *testing.T) {
			namespaces := make(chan string)
			var running sync.WaitGroup
			for range atOnce {
				running.Go(func() {
					for namespace := range namespaces {
						if err := race(t.Context(), namespace, test.order); err != nil {
							t.Error(err)
						}
					}
				})
			}
			for i := range times {
				namespaces <- fmt.Sprintf("race-%s-%d", name, i)
			}
			close(namespaces)
			running.Wait()

			outcomes := map[string]int{}
			for i := range times {
				for _, review := range logged(t, fmt.Sprintf("race-%s-%d", name, i)) {
					if strings.HasPrefix(fmt.Sprint(review["path"]), "/validate/") {
						continue
					}
					outcome := fmt.Sprint(review["kind"], " ", review["outcome"])
					outcomes[outcome]++
					allowed := outcome == "Pod injected" || outcome == "Deployment injected" || outcome == "Deployment unchanged" ||
						test.refused && outcome == "Pod invalid"
					if !allowed {
						t.Errorf("unexpected outcome of a review: %v", review)
					}
				}
			}
			t.Log(outcomes)
			if outcomes["Pod injected"] < times {
				t.Errorf("%d pods injected, want %d", outcomes["Pod injected"], times)
			}
		})
	}
}

// race applies objects to a new namespace, and waits for the Deployment's pod. Every pod must be
// injected.
func race(ctx context.Context, namespace string, order []string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	list := documents(`{apiVersion: v1, kind: Namespace, metadata: {name: ` + namespace + `, labels: {keyvault.io/injection: enabled}}}` + "\n---" + strings.Join(order, "---"))
	if err := apply(ctx, namespace, list...); err != nil {
		return err
	}
	var pods *corev1.PodList
	err := process.Until(ctx, func(ctx context.Context) (err error) {
		pods, err = client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{})
		if err == nil && len(pods.Items) == 0 {
			err = errors.New(namespace + " has no pod")
		}
		return err
	})
	if err != nil {
		return err
	}
	for _, pod := range pods.Items {
		err = errors.Join(err, injected(&pod))
	}
	return err
}
