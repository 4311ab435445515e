package main

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
)

const (
	// writers is the number of concurrent requests to the API server.
	writers  = 32
	account  = "checkout" // the ServiceAccount of the recorded pod
	clientID = "0f3cbb3a-5d5a-4b5d-9d0f-2a7f6a0c1f11"
	tenantID = "72f988bf-86f1-41af-91ab-2d7cd011db47"
)

// cluster describes the objects in the API server: namespaces with a default vault and tenant, and
// Deployments in them, each with a ReplicaSet. The pods of a ReplicaSet mount a class that no other
// ReplicaSet's pods mount. cluster creates what kube-controller-manager would create.
type cluster struct {
	sizes

	client *kubernetes.Clientset
	// pod is the application of the recorded review of 11 KB, as a ReplicaSet creates it.
	pod *corev1.Pod
	// replicaSets own the pods. There are as many as classes.
	replicaSets []*appsv1.ReplicaSet
	sample      *corev1.Pod // the first pod that was created
}

func newCluster(cfg *rest.Config, s sizes) (*cluster, error) {
	cfg = rest.CopyConfig(cfg)
	// Controllers use protobuf too.
	cfg.ContentType, cfg.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, fmt.Errorf("create a client: %w", err)
	}
	request, err := reviews.Medium.Request()
	if err != nil {
		return nil, err
	}
	pod := &request.Object
	pod.ObjectMeta = metav1.ObjectMeta{GenerateName: pod.GenerateName, Labels: pod.Labels, Annotations: pod.Annotations}
	delete(pod.Annotations, api.Class)
	pod.Status = corev1.PodStatus{}
	// Its init container and its sidecar would make it larger than most pods. The API server adds
	// the token again.
	pod.Spec.InitContainers, pod.Spec.Containers = nil, slices.DeleteFunc(pod.Spec.Containers, func(c corev1.Container) bool {
		return c.Name != "checkout"
	})
	pod.Spec.Volumes = slices.DeleteFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Projected != nil })
	app := &pod.Spec.Containers[0]
	app.VolumeMounts = slices.DeleteFunc(app.VolumeMounts, func(m corev1.VolumeMount) bool {
		return strings.HasPrefix(m.MountPath, "/var/run/secrets/kubernetes.io/")
	})
	return &cluster{sizes: s, client: client, pod: pod, replicaSets: make([]*appsv1.ReplicaSet, s.classes)}, nil
}

// fill creates all objects except the classes. No webhook configuration exists yet, so fill creates
// the pods as the core would inject them.
func (c *cluster) fill(ctx context.Context) error {
	if err := inParallel(ctx, "namespaces", c.namespaces, c.createNamespace); err != nil {
		return err
	}
	injected := make([]*corev1.Pod, c.classes)
	err := inParallel(ctx, "Deployments", c.classes, func(ctx context.Context, n int) error {
		if err := c.createDeployment(ctx, n); err != nil {
			return err
		}
		var err error
		injected[n], err = c.injected(n)
		return err
	})
	if err != nil {
		return err
	}
	return inParallel(ctx, "pods", c.pods, func(ctx context.Context, n int) error {
		pod, err := c.create(ctx, injected[n%c.classes])
		if n == 0 {
			c.sample = pod
		}
		return err
	})
}

// podSize returns the size of a pod as JSON, in bytes.
func (c *cluster) podSize() float64 {
	text, err := json.Marshal(c.sample)
	if err != nil {
		return 0 // a pod that the API server sent can be encoded
	}
	return float64(len(text))
}

// namespace returns the namespace of the n-th ReplicaSet.
func (c *cluster) namespace(n int) *corev1.Namespace {
	n %= c.namespaces
	return &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name:   fmt.Sprintf("team-%d", n),
		Labels: map[string]string{api.Injection: api.InjectionEnabled},
		Annotations: map[string]string{
			api.Vault:            fmt.Sprintf("team-%d-vault", n),
			api.IdentityTenantID: tenantID,
		},
	}}
}

func (c *cluster) createNamespace(ctx context.Context, n int) error {
	namespace := c.namespace(n)
	if _, err := c.client.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{}); err != nil {
		return fmt.Errorf("create a namespace: %w", err)
	}
	accounts := map[string]map[string]string{"default": nil, account: {api.WorkloadIdentityClientID: clientID}}
	for i := range c.accountsEach() - len(accounts) {
		accounts[fmt.Sprintf("%s-%d", account, i)] = accounts[account]
	}
	for name, annotations := range accounts {
		object := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: name, Annotations: annotations}}
		if _, err := c.client.CoreV1().ServiceAccounts(namespace.Name).Create(ctx, object, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create a ServiceAccount: %w", err)
		}
	}
	return nil
}

// templateHash is the label that tells the ReplicaSets of a Deployment apart.
const templateHash = "6d8f9c7b54"

// createDeployment creates the n-th Deployment and its ReplicaSet.
func (c *cluster) createDeployment(ctx context.Context, n int) error {
	pod := c.requesting(n, "")
	labels := map[string]string{"app": fmt.Sprintf("checkout-%d", n)}
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: maps.Clone(pod.Labels), Annotations: pod.Annotations}, Spec: pod.Spec,
	}
	maps.Copy(template.Labels, labels)
	delete(template.Labels, appsv1.DefaultDeploymentUniqueLabelKey)
	replicas := new(int32(c.pods / c.classes))
	deployment, err := c.client.AppsV1().Deployments(pod.Namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: labels["app"], Labels: labels},
		Spec: appsv1.DeploymentSpec{
			Replicas: replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template,
		},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create a Deployment: %w", err)
	}
	labels = maps.Clone(labels)
	labels[appsv1.DefaultDeploymentUniqueLabelKey] = templateHash
	template.Labels = maps.Clone(template.Labels)
	maps.Copy(template.Labels, labels)
	c.replicaSets[n], err = c.client.AppsV1().ReplicaSets(pod.Namespace).Create(ctx, &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: deployment.Name + "-" + templateHash, Labels: labels,
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(deployment, appsv1.SchemeGroupVersion.WithKind("Deployment"))},
		},
		Spec: appsv1.ReplicaSetSpec{Replicas: replicas, Selector: &metav1.LabelSelector{MatchLabels: labels}, Template: template},
	}, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("create a ReplicaSet: %w", err)
	}
	return nil
}

// requesting returns a pod of the n-th ReplicaSet before its admission. If extra is not empty, the
// pod also requests that object, and so needs another class than the other pods of the ReplicaSet.
func (c *cluster) requesting(n int, extra string) *corev1.Pod {
	n %= c.classes
	pod := c.pod.DeepCopy()
	pod.Namespace = c.namespace(n).Name
	secrets := fmt.Sprintf("DB_PASSWORD=db-password, STRIPE_KEY=stripe-key,\nJWT_SIGNING_KEY=jwt-signing-key-%d", n)
	if extra != "" {
		secrets += ", " + extra
	}
	pod.Annotations[api.Secrets] = secrets
	if owner := c.replicaSets[n]; owner != nil {
		pod.Labels = maps.Clone(owner.Spec.Template.Labels)
		pod.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	}
	return pod
}

// injected returns a pod of the n-th ReplicaSet after its admission.
func (c *cluster) injected(n int) (*corev1.Pod, error) {
	pod, namespace := c.requesting(n, ""), c.namespace(n)
	plan := inject.NewPlan(pods.SubjectOf(corpus.Read(pod)), facts.Namespace{
		Name: namespace.Name, Labels: namespace.Labels, Annotations: namespace.Annotations,
	}, inject.Defaults{})
	result := plan.Decide(facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: account, ClientID: clientID}})
	if err := result.AllErrors().ToAggregate(); err != nil {
		return nil, fmt.Errorf("inject a pod: %w", err)
	}
	injected := corpus.WholePod{Meta: &pod.ObjectMeta, Spec: pod.Spec}
	injected.Mutate(&result.Change)
	pod.Spec = injected.Spec
	if key := classOf(pod); len(result.Classes) != 1 || result.Classes[0].Name != key.Name {
		return nil, fmt.Errorf("inject a pod: it mounts class %q, and %d others", key.Name, len(result.Classes)-1)
	}
	return pod, nil
}

// create creates the pod and returns it as the API server answered.
func (c *cluster) create(ctx context.Context, pod *corev1.Pod) (*corev1.Pod, error) {
	created, err := c.client.CoreV1().Pods(pod.Namespace).Create(ctx, pod, metav1.CreateOptions{})
	if err != nil {
		return nil, fmt.Errorf("create a pod: %w", err)
	}
	return created, nil
}

// classOf returns the class that a pod mounts. The name is empty if the pod mounts none.
func classOf(pod *corev1.Pod) types.NamespacedName {
	key := types.NamespacedName{Namespace: pod.Namespace}
	for _, volume := range pod.Spec.Volumes {
		if volume.CSI != nil && volume.CSI.Driver == class.Driver {
			key.Name = volume.CSI.VolumeAttributes["secretProviderClass"]
		}
	}
	return key
}

// inParallel calls work n times with up to [writers] concurrent calls, and prints the progress. It
// ends with the first error.
func inParallel(ctx context.Context, what string, n int, work func(context.Context, int) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var next, done atomic.Int64
	var running sync.WaitGroup
	for range min(writers, n) {
		running.Go(func() {
			for ctx.Err() == nil {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				if err := work(ctx, i); err != nil {
					cancel(err)
				}
				done.Add(1)
			}
		})
	}
	begin, finished := time.Now(), make(chan struct{})
	go func() {
		running.Wait()
		close(finished)
	}()
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			progress("%d of %d %s done ...", done.Load(), n, what)
		case <-finished:
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			progress("%d %s after %s", n, what, time.Since(begin).Round(100*time.Millisecond))
			return nil
		}
	}
}
