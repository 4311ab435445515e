package main

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// advised is a namespace to which the chart's policy that warns applies. It does not apply to plain. To
// never, a copy applies whose match condition is false: what any policy costs.
const advised, never = "advised", "never"

// bystander is an object without a label or annotation of akv-injector.
type bystander struct {
	name   string
	create func(ctx context.Context, namespace string) error
}

// ofAdvice measures what the chart's advice adds to the creation of objects without a label or
// annotation of akv-injector. It creates such objects by dry runs, in groups of three: without the
// policy, with it, and with the copy. The order changes from group to group.
func ofAdvice(ctx context.Context, groups int) (err error) {
	plane, err := controlplane.Start(ctx, controlplane.Options{NoControllers: true})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, plane.Stop()) }()
	heard := &warnings{}
	config := rest.CopyConfig(plane.Config)
	config.WarningHandlerWithContext = heard
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, name := range []string{plain, advised, never} {
		namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if _, err := client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
			return err
		}
		account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "checkout"}}
		if _, err := client.CoreV1().ServiceAccounts(name).Create(ctx, account, metav1.CreateOptions{}); err != nil {
			return err
		}
	}
	if err := advise(ctx, plane.Config, client, heard); err != nil {
		return err
	}
	kinds, err := bystanders(ctx, client)
	if err != nil {
		return err
	}
	fmt.Printf("\nCreation of objects without a label or annotation of akv-injector, as dry runs, in turns without the advice, with it, "+
		"and with a policy whose match condition is false. The pod is that of the review of %s. Means of %d groups, "+
		"and the 95%% confidence interval:\n\n", reviews.Medium.Size, groups)
	fmt.Println("| object | without the advice, ms | the advice adds, ms | the other policy adds, ms |")
	fmt.Println("|---|--:|--:|--:|")
	for _, kind := range kinds {
		sides := [...]string{plain, advised, never}
		var without, added, floor []float64
		for n := -groups / 10; n < groups; n++ { // the first warm up
			var latencies [len(sides)]float64
			for turn := range sides {
				side := (max(n, -n) + turn) % len(sides)
				begin := time.Now()
				if err := kind.create(ctx, sides[side]); err != nil {
					return fmt.Errorf("create a %s: %w", kind.name, err)
				}
				latencies[side] = time.Since(begin).Seconds() * 1000
			}
			if n >= 0 {
				without = append(without, latencies[0])
				added, floor = append(added, latencies[1]-latencies[0]), append(floor, latencies[2]-latencies[0])
			}
		}
		mean, _ := meanOf(without)
		more, margin := meanOf(added)
		least, leastMargin := meanOf(floor)
		fmt.Printf("| %s | %.2f | %.3f ± %.3f | %.3f ± %.3f |\n", kind.name, mean, more, margin, least, leastMargin)
	}
	return nil
}

// bystanders returns what to create.
func bystanders(ctx context.Context, client kubernetes.Interface) ([]bystander, error) {
	pod, _, err := recordedPod(ctx)
	if err != nil {
		return nil, err
	}
	pod.Annotations = map[string]string{"prometheus.io/scrape": "true", "prometheus.io/port": "9090", "checksum/config": "5e884898da28"}
	deployment := &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "d-", Labels: pod.Labels, Annotations: map[string]string{"team.example.com/owner": "payments"}},
		Spec: appsv1.DeploymentSpec{
			Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
			Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels, Annotations: pod.Annotations}, Spec: pod.Spec},
		},
	}
	configMap := &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "c-", Labels: pod.Labels},
		Data:       map[string]string{"application.yaml": "server: {port: 8080}\n", "log.level": "info"},
	}
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	return []bystander{
		{"pod", func(ctx context.Context, namespace string) error {
			_, err := client.CoreV1().Pods(namespace).Create(ctx, pod, dryRun)
			return err
		}},
		{"Deployment", func(ctx context.Context, namespace string) error {
			_, err := client.AppsV1().Deployments(namespace).Create(ctx, deployment, dryRun)
			return err
		}},
		{"ConfigMap", func(ctx context.Context, namespace string) error {
			_, err := client.CoreV1().ConfigMaps(namespace).Create(ctx, configMap, dryRun)
			return err
		}},
	}, nil
}

// advise applies the chart's policy that warns to the namespace advised, and the copy to never. It waits
// until the policy warns there.
func advise(ctx context.Context, config *rest.Config, client kubernetes.Interface, heard *warnings) error {
	objects, err := injector.Shipped(ctx, "advice.yaml", "")
	if err != nil {
		return err
	}
	in, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	for _, namespace := range []string{advised, never} {
		for _, shipped := range objects {
			object := shipped.DeepCopy()
			object.SetName(namespace)
			spec, _, _ := unstructured.NestedMap(object.Object, "spec")
			if constraints, ok := spec["matchConstraints"].(map[string]any); ok {
				constraints["namespaceSelector"] = map[string]any{"matchLabels": map[string]any{corev1.LabelMetadataName: namespace}}
				if namespace == never {
					spec["matchConditions"] = []any{map[string]any{"name": "never", "expression": "false"}}
				}
			} else {
				spec["policyName"] = namespace
			}
			object.Object["spec"] = spec
			resource, _ := meta.UnsafeGuessKindToResource(object.GroupVersionKind())
			options := metav1.ApplyOptions{FieldManager: "load", Force: true}
			if _, err := in.Resource(resource).Apply(ctx, object.GetName(), object, options); err != nil {
				return fmt.Errorf("apply the advice: %w", err)
			}
		}
	}
	near := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "probe", Annotations: map[string]string{"keyvaults.io/secrets": "a"}}}
	return process.Within(ctx, time.Minute, "the advice", func(ctx context.Context) error {
		for name, want := range map[string]bool{plain: false, advised: true} {
			heard.count = 0
			if _, err := client.CoreV1().ConfigMaps(name).Create(ctx, near, metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}); err != nil {
				return err
			}
			if got := heard.count > 0; got != want {
				return fmt.Errorf("warned in namespace %s: %t, want %t", name, got, want)
			}
		}
		return nil
	})
}

// warnings counts warnings.
type warnings struct{ count int }

// HandleWarningHeaderWithContext implements [rest.WarningHandlerWithContext].
func (w *warnings) HandleWarningHeaderWithContext(context.Context, int, string, string) {
	w.count++
}

// meanOf returns the mean of values, and half the width of its 95% confidence interval.
func meanOf(values []float64) (mean, margin float64) {
	n := float64(len(values))
	for _, value := range values {
		mean += value / n
	}
	variance := 0.0
	for _, value := range values {
		variance += (value - mean) * (value - mean) / (n - 1)
	}
	return mean, 1.96 * math.Sqrt(variance/n)
}
