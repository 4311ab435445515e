package rotation_test

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/akv-injector/akv-injector/core/class"
)

// kubelet stands for all kubelets and CSI drivers, and for the vaults.
type kubelet struct {
	mu sync.Mutex
	// vault has the version of each object, by namespace/TYPE/NAME; a missing one has the version v1.
	vault map[string]string
	// broken has the workloads whose new pods never become ready, by namespace/name.
	broken map[string]bool
}

// rotate gives an object a new version.
func (k *kubelet) rotate(namespace, object, version string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.vault[namespace+"/"+object] = version
}

// breakPods makes the pods of a workload that start from now on never become ready, or heals them.
func (k *kubelet) breakPods(namespace, name string, isBroken bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.broken[namespace+"/"+name] = isBroken
}

func (k *kubelet) version(namespace, object string) string {
	k.mu.Lock()
	defer k.mu.Unlock()
	if version := k.vault[namespace+"/"+object]; version != "" {
		return version
	}
	return "v1"
}

func (k *kubelet) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := k.sync(ctx); err != nil && ctx.Err() == nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
			fmt.Fprintln(os.Stderr, "kubelet:", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// sync mounts the classes of all injected pods, makes the pods ready, and ends those that are deleted.
func (k *kubelet) sync(ctx context.Context) error {
	list, err := client.CoreV1().Pods(metav1.NamespaceAll).List(ctx, metav1.ListOptions{LabelSelector: "keyvault.io/injected=true"})
	if err != nil {
		return err
	}
	for i := range list.Items {
		pod := &list.Items[i]
		for _, volume := range pod.Spec.Volumes {
			if volume.CSI != nil {
				if err := k.mount(ctx, pod, volume.CSI.VolumeAttributes[class.Attribute]); err != nil {
					return err
				}
			}
		}
		if err := k.start(ctx, pod); err != nil {
			return err
		}
	}
	return nil
}

// start makes a pod ready.
func (k *kubelet) start(ctx context.Context, pod *corev1.Pod) error {
	k.mu.Lock()
	isBroken := false
	for name, broken := range k.broken {
		isBroken = isBroken || broken && strings.HasPrefix(pod.Namespace+"/"+pod.Name, name+"-")
	}
	k.mu.Unlock()
	if isBroken || pod.Status.Phase == corev1.PodRunning {
		return nil
	}
	pod.Status.Phase = corev1.PodRunning
	for _, of := range []corev1.PodConditionType{corev1.PodReady, corev1.ContainersReady} {
		pod.Status.Conditions = append(pod.Status.Conditions, corev1.PodCondition{
			Type: of, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Now(),
		})
	}
	_, err := client.CoreV1().Pods(pod.Namespace).UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	return err
}

// mount writes the status of a class of a pod, with the versions that the vault has now.
func (k *kubelet) mount(ctx context.Context, pod *corev1.Pod, name string) error {
	spc, err := driver.SecretsstoreV1().SecretProviderClasses(pod.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return err
	}
	read := class.Read(&class.SecretProviderClass{ObjectMeta: spc.ObjectMeta, Spec: class.Spec{
		Provider: string(spc.Spec.Provider), Parameters: spc.Spec.Parameters,
	}})
	var objects []secretsstorev1.SecretProviderClassObject
	for _, o := range read.Objects {
		id := o.Type + "/" + o.Name
		objects = append(objects, secretsstorev1.SecretProviderClassObject{ID: id, Version: k.version(pod.Namespace, id)})
	}
	statuses := driver.SecretsstoreV1().SecretProviderClassPodStatuses(pod.Namespace)
	statusName := pod.Name + "-" + pod.Namespace + "-" + name
	found, err := statuses.Get(ctx, statusName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		_, err = statuses.Create(ctx, &secretsstorev1.SecretProviderClassPodStatus{
			ObjectMeta: metav1.ObjectMeta{Name: statusName, OwnerReferences: []metav1.OwnerReference{
				{APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: types.UID(pod.UID)},
			}},
			Status: secretsstorev1.SecretProviderClassPodStatusStatus{
				PodName: pod.Name, SecretProviderClassName: name, Mounted: true, Objects: objects,
			},
		}, metav1.CreateOptions{})
	case err == nil && !slices.Equal(found.Status.Objects, objects):
		found.Status.Objects = objects
		_, err = statuses.Update(ctx, found, metav1.UpdateOptions{})
	}
	return err
}
