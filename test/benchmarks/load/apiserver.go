package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// The namespaces, by what happens to a pod in them.
const (
	plain    = "plain"    // nothing
	injected = "payments" // the injector injects; this is the namespace of the recorded cluster
	patched  = "policy"   // a MutatingAdmissionPolicy makes the same changes
	enforced = "enforced" // the injector injects and checks policy
)

// way is a way to create a pod.
type way struct {
	namespace string
	asks      bool // the pod has annotations
}

// ways are used in turns.
var ways = []way{{plain, true}, {injected, true}, {patched, true}, {enforced, true}, {plain, false}, {injected, false}}

// policyLabel is the label of the namespace that the policy selects.
const policyLabel = "load.akv-injector.io/policy"

// atAPIServer measures the creation of pods. In each run it creates count pods in each of the ways,
// in turns, and prints the latencies.
func atAPIServer(ctx context.Context, runs, count int) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{BeforeControllers: controlplane.InstallCRDs})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	started, err := injector.Start(ctx, plane, injector.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, started.Stop()) }()
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		return err
	}
	pod, operations, err := recordedPod(ctx)
	if err != nil {
		return err
	}
	if err := prepare(ctx, plane, client, operations); err != nil {
		return err
	}
	bystander := pod.DeepCopy()
	bystander.Annotations = nil
	c := &creator{client: client.CoreV1().RESTClient(), pods: map[bool]*corev1.Pod{true: pod, false: bystander}}
	if err := c.awaitEqual(ctx); err != nil {
		return err
	}

	fmt.Printf("\nCreation of the pod of the review of %s, one after the other, %d each way in turns, p50 / p99 in ms:\n\n",
		reviews.Medium.Size, count)
	fmt.Println("| run | neither | akv-injector adds | the policy adds | akv-injector compared with the policy | " +
		"with `identity.io/enforce` compared with the policy | a pod that requests nothing, in a namespace with injection: adds |")
	fmt.Println("|--:|--:|--:|--:|--:|--:|--:|")
	for run := range runs {
		latencies := map[way][]time.Duration{}
		for n := -warmUp / 10; n < count; n++ {
			for _, w := range ways {
				begin := time.Now()
				if _, err := c.create(ctx, w, ""); err != nil {
					return fmt.Errorf("create a pod in namespace %s: %w", w.namespace, err)
				}
				if n >= 0 {
					latencies[w] = append(latencies[w], time.Since(begin))
				}
			}
		}
		beyond := func(w, base way) string {
			f, b := figuresOf(latencies[w]), figuresOf(latencies[base])
			return fmt.Sprintf("%.2f / %.2f", f.p50-b.p50, f.p99-b.p99)
		}
		neither, policy := way{plain, true}, way{patched, true}
		alone := figuresOf(latencies[neither])
		fmt.Printf("| %d | %.2f / %.2f | %s | %s | %s | %s | %s |\n", run+1, alone.p50, alone.p99,
			beyond(way{injected, true}, neither), beyond(policy, neither), beyond(way{injected, true}, policy),
			beyond(way{enforced, true}, policy), beyond(way{injected, false}, way{plain, false}))
	}
	return nil
}

// recordedPod returns the pod of the recorded review as its author would create it, and the patch
// that the injector returns for it.
func recordedPod(ctx context.Context) (*corev1.Pod, []jsonpatch.Operation, error) {
	source, err := reviews.Facts()
	if err != nil {
		return nil, nil, err
	}
	request, err := reviews.Medium.Request()
	if err != nil {
		return nil, nil, err
	}
	subject := pods.SubjectOf(&request.Pod)
	result, err := review.Reviewer{Source: source}.Inject(ctx, subject, request.Namespace)
	if err != nil {
		return nil, nil, err
	}
	pod := request.Object.DeepCopy()
	pod.ObjectMeta = metav1.ObjectMeta{GenerateName: pod.GenerateName, Labels: pod.Labels, Annotations: pod.Annotations}
	pod.Status = corev1.PodStatus{}
	// The API server adds the token again.
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Projected != nil })
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			containers[i].VolumeMounts = slices.DeleteFunc(containers[i].VolumeMounts, func(m corev1.VolumeMount) bool {
				return strings.HasPrefix(m.MountPath, "/var/run/secrets/kubernetes.io/")
			})
		}
	}
	return pod, result.Change.Operations(&subject), nil
}

// prepare creates the namespaces with their objects, and the policy.
func prepare(ctx context.Context, plane *controlplane.ControlPlane, client kubernetes.Interface, operations []jsonpatch.Operation) error {
	cluster := string(reviews.Cluster)
	for _, objects := range []string{cluster, strings.ReplaceAll(cluster, injected, enforced)} {
		if err := plane.RunKubectl(ctx, objects, "apply", "--filename=-"); err != nil {
			return err
		}
	}
	if err := plane.RunKubectl(ctx, "", "label", "namespace", enforced, api.Enforce+"=bound"); err != nil {
		return err
	}
	for name, labels := range map[string]map[string]string{plain: nil, patched: {policyLabel: "true"}} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "checkout"}}
		if _, err := client.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	expression, err := celPatch(operations)
	if err != nil {
		return err
	}
	policies := client.AdmissionregistrationV1()
	policy := &admissionregistrationv1.MutatingAdmissionPolicy{
		ObjectMeta: metav1.ObjectMeta{Name: "load"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicySpec{
			MatchConstraints: &admissionregistrationv1.MatchResources{ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{
				RuleWithOperations: admissionregistrationv1.RuleWithOperations{
					Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Create},
					Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
				},
			}}},
			// The same conditions as in the shipped webhook configuration.
			MatchConditions: []admissionregistrationv1.MatchCondition{
				{Name: "not-a-mirror-pod", Expression: "!('kubernetes.io/config.mirror' in object.metadata.?annotations.orValue({}))"},
				{Name: "asks", Expression: "object.metadata.?annotations.orValue({}).exists(key, key.startsWith('keyvault.io/') || key.startsWith('identity.io/'))"},
			},
			ReinvocationPolicy: admissionregistrationv1.IfNeededReinvocationPolicy,
			Mutations: []admissionregistrationv1.Mutation{{
				PatchType: admissionregistrationv1.PatchTypeJSONPatch,
				JSONPatch: &admissionregistrationv1.JSONPatch{Expression: expression},
			}},
		},
	}
	if _, err := policies.MutatingAdmissionPolicies().Create(ctx, policy, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create the policy: %w", err)
	}
	binding := &admissionregistrationv1.MutatingAdmissionPolicyBinding{
		ObjectMeta: metav1.ObjectMeta{Name: "load"},
		Spec: admissionregistrationv1.MutatingAdmissionPolicyBindingSpec{
			PolicyName:     "load",
			MatchResources: &admissionregistrationv1.MatchResources{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{policyLabel: "true"}}},
		},
	}
	if _, err := policies.MutatingAdmissionPolicyBindings().Create(ctx, binding, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("bind the policy: %w", err)
	}
	// The advice is part of what the injector adds.
	only := `{"spec":{"matchResources":{"namespaceSelector":{"matchExpressions":[{"key":"kubernetes.io/metadata.name","operator":"NotIn","values":["` +
		plain + `","` + patched + `"]}]}}}}`
	if err := plane.RunKubectl(ctx, "", "patch", "validatingadmissionpolicybinding", "advice.akv-injector.io", "--type=merge", "--patch="+only); err != nil {
		return err
	}
	for _, namespace := range []string{injected, enforced} {
		if err := plane.WaitForServiceAccount(ctx, namespace); err != nil {
			return err
		}
		if err := injector.WaitUntilCalled(ctx, plane.Config, namespace); err != nil {
			return err
		}
	}
	return nil
}

// celPatch returns the CEL expression of a patch for a MutatingAdmissionPolicy. The expression
// contains the finished patch: a real policy would have to look up and parse its input.
func celPatch(operations []jsonpatch.Operation) (string, error) {
	patches := make([]string, len(operations))
	for i, operation := range operations {
		text, err := json.Marshal(operation.Value)
		if err != nil {
			return "", fmt.Errorf("print the policy: %w", err)
		}
		var value any
		if err := json.Unmarshal(text, &value); err != nil {
			return "", fmt.Errorf("print the policy: %w", err)
		}
		segments := []string{"Object"}
		for segment := range strings.SplitSeq(operation.Path[1:], "/") {
			if strings.Trim(segment, "0123456789-") != "" {
				segments = append(segments, segment)
			}
		}
		patches[i] = fmt.Sprintf("JSONPatch{op: %q, path: %q, value: %s}", operation.Operation, operation.Path, celValue(strings.Join(segments, "."), value))
	}
	// The API server evaluates a policy first and again after the webhooks. The condition keeps the
	// second evaluation from adding everything twice.
	return "'keyvault.io/injected' in object.metadata.labels ? [] : [\n" + strings.Join(patches, ",\n") + "\n]", nil
}

// celValue returns value as a CEL literal. typeName is the CEL type of an object.
func celValue(typeName string, value any) string {
	switch value := value.(type) {
	case map[string]any:
		members := make([]string, 0, len(value))
		for _, name := range slices.Sorted(maps.Keys(value)) {
			if strings.HasSuffix(typeName, ".volumeAttributes") {
				members = append(members, fmt.Sprintf("%q: %s", name, celValue("", value[name])))
			} else {
				members = append(members, name+": "+celValue(typeName+"."+name, value[name]))
			}
		}
		if strings.HasSuffix(typeName, ".volumeAttributes") {
			typeName = ""
		}
		return typeName + "{" + strings.Join(members, ", ") + "}"
	case []any:
		items := make([]string, len(value))
		for i := range value {
			items[i] = celValue(typeName, value[i])
		}
		return "[" + strings.Join(items, ", ") + "]"
	case string:
		return fmt.Sprintf("%q", value)
	}
	return fmt.Sprint(value)
}

// creator creates two pods: one that requests injection, and one that does not.
type creator struct {
	client rest.Interface
	pods   map[bool]*corev1.Pod
}

// create creates a pod, as a dry run unless dryRun is empty, and returns the answer of the API
// server.
func (c *creator) create(ctx context.Context, w way, dryRun string) ([]byte, error) {
	text, err := json.Marshal(c.pods[w.asks])
	if err != nil {
		return nil, err
	}
	request := c.client.Post().Namespace(w.namespace).Resource("pods").SetHeader("Content-Type", "application/json").Body(text)
	if dryRun != "" {
		request.Param("dryRun", dryRun)
	}
	return request.Do(ctx).Raw()
}

// awaitEqual waits until injector and policy both work and result in the same pod.
func (c *creator) awaitEqual(ctx context.Context) error {
	return process.Within(ctx, time.Minute, "the same pod from injector and policy", func(ctx context.Context) error {
		ours, err := c.outcome(ctx, injected)
		if err != nil {
			return err
		}
		theirs, err := c.outcome(ctx, patched)
		if err != nil {
			return err
		}
		if _, ok := ours.Labels["keyvault.io/injected"]; !ok {
			return errors.New("the injector did nothing")
		}
		if diff := cmp.Diff(ours, theirs); diff != "" {
			return fmt.Errorf("(-injector +policy):\n%s", diff)
		}
		return nil
	})
}

// outcome returns the pod that would be created in a namespace, without the fields that differ
// between any two pods.
func (c *creator) outcome(ctx context.Context, namespace string) (*corev1.Pod, error) {
	text, err := c.create(ctx, way{namespace, true}, metav1.DryRunAll)
	if err != nil {
		return nil, err
	}
	text = tokenVolume.ReplaceAll(text, []byte("kube-api-access"))
	var pod corev1.Pod
	if err := json.Unmarshal(text, &pod); err != nil {
		return nil, fmt.Errorf("decode pod: %w", err)
	}
	pod.ObjectMeta = metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}
	return &pod, nil
}

var tokenVolume = regexp.MustCompile(`kube-api-access-[0-9a-z]+`)
