package e2e_test

import (
	"context"
	"flag"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"

	managed "github.com/akv-injector/akv-injector/core/class"
)

var manyPods = flag.Int("many-pods", 200, "how many pods TestOwnersOfManyPods creates; docs/performance.md has 5000")

// ownedBySome returns an error unless a class has the number of owners that the injector keeps for
// a class of many pods.
func ownedBySome(class *unstructured.Unstructured) error {
	if n := len(class.GetOwnerReferences()); n < 8 || n > 16 {
		return fmt.Errorf("the class has %d owners, want 8 to 16", n)
	}
	return nil
}

// TestOwnersOfManyPods creates many pods without a controller that share a class. The class has few
// owners, and stays until the last pod is deleted.
func TestOwnersOfManyPods(t *testing.T) {
	t.Parallel()
	const namespace, atOnce = "owners-of-many", 8
	newTeam(t, namespace)
	each := func(do func(name string) error) {
		names := make(chan string)
		var running sync.WaitGroup
		for range atOnce {
			running.Go(func() {
				for name := range names {
					if err := do(name); err != nil {
						t.Error(err)
					}
				}
			})
		}
		for i := range *manyPods {
			names <- fmt.Sprintf("app-%04d", i)
		}
		close(names)
		running.Wait()
	}
	writes := countWrites(t, namespace)
	begin := time.Now()
	each(func(name string) error {
		return apply(t.Context(), namespace, asking(pod, name, "DB_PASSWORD=db-password"))
	})
	first, err := client.CoreV1().Pods(namespace).Get(t.Context(), "app-0000", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	name := mounted(t, first)[0]
	class := waitForClass(t, objects, namespace, name, ownedBySome)
	t.Logf("%d pods created in %s: the class has %d owners, and changed %d times", *manyPods, time.Since(begin).Round(time.Millisecond), len(class.GetOwnerReferences()), writes.Load())
	last := fmt.Sprintf("app-%04d", *manyPods/2)
	begin = time.Now()
	each(func(name string) error {
		if name == last {
			return nil
		}
		return client.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))})
	})
	kept, err := client.CoreV1().Pods(namespace).Get(t.Context(), last, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	waitUntilKept(t, kept, podOwner(kept))
	t.Logf("all but one deleted in %s; the class changed %d times", time.Since(begin).Round(time.Millisecond), writes.Load())
}

// countWrites counts the changes of a namespace's classes from now on.
func countWrites(t *testing.T, namespace string) *atomic.Int32 {
	t.Helper()
	var n atomic.Int32
	events := follow(t, namespace).events.ResultChan()
	go func() {
		for range events {
			n.Add(1)
		}
	}()
	return &n
}

// TestClassesOfRevisions changes the request of a StatefulSet and a DaemonSet several times. Their
// old classes are deleted with their revisions.
func TestClassesOfRevisions(t *testing.T) {
	t.Parallel()
	if err := apply(t.Context(), "", document(`{apiVersion: v1, kind: Node, metadata: {name: node}}`)); err != nil {
		t.Fatal(err)
	}
	if _, err := client.CoreV1().Nodes().Patch(t.Context(), "node", types.MergePatchType, []byte(`{"spec":{"taints":null}}`), metav1.PatchOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, kind := range []string{"StatefulSet", "DaemonSet"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			namespace := "revisions-of-" + strings.ToLower(kind)
			newTeam(t, namespace)
			workload := `{apiVersion: apps/v1, kind: ` + kind + `, metadata: {name: app, annotations: ` + annotations + `},
				spec: {revisionHistoryLimit: 1, selector: {matchLabels: {app: app}}, template: ` + template + `}}`
			seen := map[string]bool{}
			for i := range 5 {
				if err := apply(t.Context(), namespace, asking(workload, "app", fmt.Sprint("secret-", i))); err != nil {
					t.Fatal(err)
				}
				waitFor(t, "the rollout", func(ctx context.Context) error {
					pods, err := makeAllReady(ctx, namespace)
					if err != nil {
						return err
					}
					for _, pod := range pods {
						if strings.Contains(pod.Annotations["keyvault.io/inherited"], fmt.Sprint("secret-", i)) {
							seen[mounted(t, &pod)[0]] = true
						}
					}
					if len(seen) <= i {
						return fmt.Errorf("no pod has request %d", i)
					}
					return nil
				})
			}
			waitFor(t, "old classes to be deleted", func(ctx context.Context) error {
				classes, err := objects.Resource(managed.Resource).Namespace(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app.kubernetes.io/managed-by=akv-injector"})
				// One class of the current revision, and one of the revision kept
				// for an undo.
				if err == nil && len(classes.Items) != 2 {
					err = fmt.Errorf("there are %d classes, want 2", len(classes.Items))
				}
				return err
			})
		})
	}
}

// TestForgedOwners uses invented controllers in pods. A class must not be owned by what the garbage
// collector never collects.
func TestForgedOwners(t *testing.T) {
	t.Parallel()
	const namespace = "forged-owners"
	newTeam(t, namespace)
	home, err := client.CoreV1().Namespaces().Get(t.Context(), namespace, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	account, err := client.CoreV1().ServiceAccounts(namespace).Get(t.Context(), "default", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for name, owner := range map[string]metav1.OwnerReference{
		"namespace":       ownerOf("v1", "Namespace", home),
		"service-account": ownerOf("v1", "ServiceAccount", account),
	} {
		t.Run(name, func(t *testing.T) {
			object := asking(pod, name, name)
			owner.Controller = new(true)
			object.SetOwnerReferences([]metav1.OwnerReference{owner})
			if err := apply(t.Context(), namespace, object); err != nil {
				t.Fatal(err)
			}
			made, err := client.CoreV1().Pods(namespace).Get(t.Context(), name, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			class := waitUntilKept(t, made, podOwner(made)).GetName()
			if err := client.CoreV1().Pods(namespace).Delete(t.Context(), name, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
				t.Fatal(err)
			}
			waitUntilGone(t, namespace, class)
		})
	}
}
