package e2e_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	authorizationv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apiextensions "k8s.io/apiextensions-apiserver/pkg/client/clientset/clientset/typed/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	managed "github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// ownCluster is a cluster for one test. It starts without the driver's CRDs and without
// controllers, and has one injector, so that its metrics count all.
type ownCluster struct {
	*controlplane.ControlPlane
	injector *injector.Injector
	client   kubernetes.Interface
	objects  dynamic.Interface
}

// startCluster starts a cluster in whose namespace default pods request a secret by one annotation.
// The injector gets the tenant by flag. apiServerArgs and args are added to the arguments of the
// API server and of the injector.
func startCluster(t *testing.T, apiServerArgs []string, args ...string) *ownCluster {
	t.Helper()
	var c ownCluster
	var err error
	if c.ControlPlane, err = controlplane.Start(t.Context(), controlplane.Options{
		Binaries: plane.Binaries, NoControllers: true, TempDir: t.TempDir(), APIServerArgs: apiServerArgs,
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Stop(); err != nil {
			t.Error(err)
		}
	})
	quiet := rest.CopyConfig(c.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	if c.client, err = kubernetes.NewForConfig(quiet); err != nil {
		t.Fatal(err)
	}
	if c.objects, err = dynamic.NewForConfig(quiet); err != nil {
		t.Fatal(err)
	}
	c.injector, err = injector.Start(t.Context(), c.ControlPlane, injector.Options{Binary: binary, Args: append(args, "--tenant-id=00000000-0000-4000-8000-000000000001")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.injector.Stop(); err != nil {
			t.Error(err)
		}
	})
	c.apply(t, documents(`
apiVersion: v1
kind: Namespace
metadata:
  name: default
  labels: {keyvault.io/injection: enabled}
  annotations: {keyvault.io/vault: team-kv, identity.io/mode: workload-identity}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, annotations: {azure.workload.identity/client-id: 00000000-0000-4000-8000-000000000002}}
`)...)
	if err := injector.WaitUntilCalled(t.Context(), c.Config, metav1.NamespaceDefault); err != nil {
		t.Fatal(err)
	}
	return &c
}

func (c *ownCluster) apply(t *testing.T, list ...*unstructured.Unstructured) {
	t.Helper()
	for _, object := range list {
		options := metav1.ApplyOptions{FieldManager: "e2e", Force: true}
		if _, err := resource(c.objects, object, metav1.NamespaceDefault).Apply(t.Context(), object.GetName(), in(object, metav1.NamespaceDefault), options); err != nil {
			t.Fatal(err)
		}
	}
}

// newPod creates a pod that requests a secret named like the pod, and returns the name of its
// class.
func (c *ownCluster) newPod(t *testing.T, name string) string {
	t.Helper()
	c.apply(t, asking(pod, name, name))
	pod, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return mounted(t, pod)[0]
}

// waitForClass waits until a class exists, and returns it.
func (c *ownCluster) waitForClass(t *testing.T, name string) *unstructured.Unstructured {
	t.Helper()
	return waitForClass(t, c.objects, metav1.NamespaceDefault, name, nil)
}

// counted returns the metric of classes, by result.
func (c *ownCluster) counted(ctx context.Context) (map[string]int, error) {
	_, body, err := get(ctx, c.injector.Metrics)
	if err != nil {
		return nil, err
	}
	counts := map[string]int{}
	for scanner := bufio.NewScanner(strings.NewReader(body)); scanner.Scan(); {
		if line, ok := strings.CutPrefix(scanner.Text(), `akv_injector_classes_total{result="`); ok {
			result, value, _ := strings.Cut(line, `"} `)
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, err
			}
			counts[result] = n
		}
	}
	return counts, nil
}

// TestClassesThroughTrouble starts without the driver, and then removes, one by one, what the
// injector needs. The injector must recover without a restart.
func TestClassesThroughTrouble(t *testing.T) {
	t.Parallel()
	c := startCluster(t, nil)
	definitions, err := apiextensions.NewForConfig(c.Config)
	if err != nil {
		t.Fatal(err)
	}

	t.Run("the driver is installed after the first pod", func(t *testing.T) {
		name := c.newPod(t, "early")
		waitForEvent(t, c.client, metav1.NamespaceDefault, "early", "ClassNotWritten", fmt.Sprintf(noteNoDriver, name))
		if err := controlplane.InstallCRDs(t.Context(), c.Config); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		class := c.waitForClass(t, name)
		t.Logf("created %s after the driver was installed", time.Since(begin).Round(time.Millisecond))
		if tenant, _, _ := unstructured.NestedString(class.Object, "spec", "parameters", "tenantID"); tenant != "00000000-0000-4000-8000-000000000001" {
			t.Errorf("the class has tenant %q, want that of the injector's flag", tenant)
		}
	})

	t.Run("the injector loses its rights", func(t *testing.T) {
		roles := c.client.RbacV1().ClusterRoles()
		role, err := roles.Get(t.Context(), "akv-injector", metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		c.setRules(t, nil)
		name := c.newPod(t, "powerless")
		waitForEvent(t, c.client, metav1.NamespaceDefault, "powerless", "ClassNotWritten", fmt.Sprintf(noteNoRights, name))
		c.setRules(t, role.Rules)
		begin := time.Now()
		c.waitForClass(t, name)
		t.Logf("created %s after the rights were restored", time.Since(begin).Round(time.Millisecond))
	})

	t.Run("the API server restarts", func(t *testing.T) {
		before := c.newPod(t, "before")
		class := c.waitForClass(t, before)
		if err := c.RestartAPIServer(t.Context()); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		deleteClass(t, c.objects, metav1.NamespaceDefault, before)
		if again := c.waitForClass(t, before); again.GetUID() == class.GetUID() {
			t.Error("the class was not deleted")
		}
		c.waitForClass(t, c.newPod(t, "after"))
		t.Logf("both created %s after the API server was ready", time.Since(begin).Round(time.Millisecond))
	})

	t.Run("the driver is removed and installed again", func(t *testing.T) {
		pods, err := c.client.CoreV1().Pods(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		const definition = "secretproviderclasses.secrets-store.csi.x-k8s.io"
		if err := definitions.CustomResourceDefinitions().Delete(t.Context(), definition, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		waitFor(t, "the CRD to be deleted", func(ctx context.Context) error {
			_, err := definitions.CustomResourceDefinitions().Get(ctx, definition, metav1.GetOptions{})
			switch {
			case apierrors.IsNotFound(err):
				return nil
			case err == nil:
				return errors.New("it still exists")
			}
			return err
		})
		if err := controlplane.InstallCRDs(t.Context(), c.Config); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for _, pod := range pods.Items {
			c.waitForClass(t, mounted(t, &pod)[0])
		}
		t.Logf("%d created %s after the driver was installed again", len(pods.Items), time.Since(begin).Round(time.Millisecond))
	})

	select {
	case <-c.injector.Done():
		t.Error("the injector exited")
	default:
	}
}

// setRules replaces the rules of the injector's ClusterRole on classes, and waits until they take
// effect. With nil rules the injector can only read classes.
func (c *ownCluster) setRules(t *testing.T, rules []rbacv1.PolicyRule) {
	t.Helper()
	roles := c.client.RbacV1().ClusterRoles()
	role, err := roles.Get(t.Context(), "akv-injector", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	allowed := rules != nil
	if !allowed {
		for _, rule := range role.Rules {
			if rule.APIGroups[0] == managed.Resource.Group {
				rule.Verbs = []string{"get", "list", "watch"}
			}
			rules = append(rules, rule)
		}
	}
	role.Rules = rules
	if _, err := roles.Update(t.Context(), role, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	question := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{
		User: "system:serviceaccount:akv-injector-system:akv-injector",
		ResourceAttributes: &authorizationv1.ResourceAttributes{
			Namespace: metav1.NamespaceDefault, Verb: "create", Group: managed.Resource.Group, Resource: managed.Resource.Resource,
		},
	}}
	waitFor(t, "the rules to take effect", func(ctx context.Context) error {
		answer, err := c.client.AuthorizationV1().SubjectAccessReviews().Create(ctx, question, metav1.CreateOptions{})
		if err == nil && answer.Status.Allowed != allowed {
			err = fmt.Errorf("allowed is %t", answer.Status.Allowed)
		}
		return err
	})
}

// TestClassMetrics checks the metric of classes while each result occurs once.
func TestClassMetrics(t *testing.T) {
	t.Parallel()
	c := startCluster(t, nil)
	want := map[string]int{"created": 0, "owned": 0, "restored": 0, "taken": 0, "outdated": 0, "failed": 0}
	count := func(result string) {
		t.Helper()
		want[result]++
		waitFor(t, "the result "+result, func(ctx context.Context) error {
			got, err := c.counted(ctx)
			if err != nil {
				return err
			}
			for _, again := range []string{"taken", "outdated", "failed"} { // retried and counted until they succeed
				if want[again] > 0 {
					want[again] = max(want[again], got[again])
				}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				return fmt.Errorf("classes by result (-want +got):\n%s", diff)
			}
			return nil
		})
	}
	classes := c.objects.Resource(managed.Resource).Namespace(metav1.NamespaceDefault)
	patch := func(name, text string) {
		t.Helper()
		if _, err := classes.Patch(t.Context(), name, types.MergePatchType, []byte(text), metav1.PatchOptions{}); err != nil {
			t.Fatal(err)
		}
	}

	name := c.newPod(t, "secret")
	count("failed")
	if err := controlplane.InstallCRDs(t.Context(), c.Config); err != nil {
		t.Fatal(err)
	}
	count("created")
	c.apply(t, asking(pod, "another", "secret"))
	count("owned")
	patch(name, `{"spec":{"parameters":{"clientID":"x"}}}`)
	count("restored")
	patch(name, `{"metadata":{"labels":{"color":"blue"}}}`) // ignored by the injector

	theirs := classFor(t.Context(), t, c.objects, metav1.NamespaceDefault, "taken")
	c.apply(t, document(strings.Replace(class, "key-vault-secret}", theirs+"}", 1)))
	c.apply(t, asking(pod, "taken", "taken"))
	count("taken")
	deleteClass(t, c.objects, metav1.NamespaceDefault, theirs)
	count("created")

	c.apply(t, document(`{apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {keyvault.io/injection: enabled}, annotations: {keyvault.io/vault: other-kv, identity.io/mode: workload-identity}}}`))
	deleteClass(t, c.objects, metav1.NamespaceDefault, theirs)
	count("outdated")
}
