package ha

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

// waiting is the number of pods that a Deployment wants in an outage.
const waiting = 5

// outage kills all replicas at once. Meanwhile it creates pods that do not request injection, which
// must all succeed.
func (c *cluster) outage(ctx context.Context, round int) (*Phase, error) {
	name := fmt.Sprintf("waits-%d", round)
	if err := c.deploy(ctx, name); err != nil {
		return nil, fmt.Errorf("create a Deployment: %w", err)
	}
	var refused int
	var recovered time.Duration
	creations := c.creations(fmt.Sprintf("bystander-%d", round), bystander, untouched)
	phase, err := creations.during(ctx, "outage, pods that request nothing", func(ctx context.Context) error {
		for range len(c.replicas) {
			if err := c.end(ctx, syscall.SIGKILL); err != nil {
				return err
			}
		}
		scale := &autoscalingv1.Scale{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace}, Spec: autoscalingv1.ScaleSpec{Replicas: waiting}}
		if _, err := c.client.AppsV1().Deployments(namespace).UpdateScale(ctx, name, scale, metav1.UpdateOptions{}); err != nil {
			return fmt.Errorf("scale a Deployment: %w", err)
		}
		for begin := time.Now(); time.Since(begin) < c.Outage; refused++ {
			if err := c.expectRefusal(ctx, fmt.Sprintf("refused-%d-%d", round, refused)); err != nil {
				return err
			}
		}
		if err := c.expectWaiting(ctx, name); err != nil {
			return err
		}
		if err := errors.Join(c.add(ctx), c.add(ctx)); err != nil {
			return err
		}
		begin := time.Now()
		if err := c.awaitPods(ctx, name); err != nil {
			return err
		}
		recovered = time.Since(begin)
		return nil
	})
	if err != nil {
		return nil, err
	}
	phase.Note = fmt.Sprintf("%d pods that requested injection were rejected; "+
		"the %d pods of a Deployment were created and injected %.1f s after the outage", refused, waiting, recovered.Seconds())
	return phase, nil
}

// expectRefusal creates a pod that requests injection. The API server must reject it and name the
// webhook.
func (c *cluster) expectRefusal(ctx context.Context, name string) error {
	_, err := c.client.CoreV1().Pods(namespace).Create(ctx, asking(name), metav1.CreateOptions{})
	if err == nil {
		return errors.New("a pod that requests injection was admitted while no replica ran")
	}
	if !strings.Contains(err.Error(), `failed calling webhook "pods.akv-injector.io"`) {
		return fmt.Errorf("a pod that requests injection was rejected for another reason: %w", err)
	}
	return process.Sleep(ctx, time.Second/4)
}

// deploy creates a Deployment without pods. It must exist before the outage, because the webhook
// also reviews Deployments.
func (c *cluster) deploy(ctx context.Context, name string) error {
	template := corev1.PodTemplateSpec{ObjectMeta: asks(), Spec: container()}
	template.Labels["app"] = name
	_, err := c.client.AppsV1().Deployments(namespace).Create(ctx, &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: appsv1.DeploymentSpec{
			Replicas: new(int32(0)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}, Template: template,
		},
	}, metav1.CreateOptions{})
	return err
}

// expectWaiting waits for an event that says why the pods of the Deployment cannot be created.
func (c *cluster) expectWaiting(ctx context.Context, name string) error {
	return process.Until(ctx, func(ctx context.Context) error {
		events, err := c.client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{
			FieldSelector: "reason=FailedCreate,involvedObject.kind=ReplicaSet",
		})
		if err != nil {
			return err
		}
		for _, event := range events.Items {
			if strings.HasPrefix(event.InvolvedObject.Name, name+"-") && strings.Contains(event.Message, "pods.akv-injector.io") {
				return nil
			}
		}
		return fmt.Errorf("none of %d events says that the pods of Deployment %s are rejected", len(events.Items), name)
	})
}

// awaitPods waits until all pods of the Deployment exist, and returns an error unless all are
// injected.
func (c *cluster) awaitPods(ctx context.Context, name string) error {
	var pods *corev1.PodList
	err := process.Until(ctx, func(ctx context.Context) (err error) {
		pods, err = c.client.CoreV1().Pods(namespace).List(ctx, metav1.ListOptions{LabelSelector: "app=" + name})
		if err == nil && len(pods.Items) != waiting {
			err = fmt.Errorf("deployment %s has %d pods, want %d", name, len(pods.Items), waiting)
		}
		return err
	})
	if err != nil {
		return err
	}
	for i := range pods.Items {
		if err := injected(&pods.Items[i]); err != nil {
			return err
		}
	}
	return nil
}
