package injector_test

import (
	"context"
	"errors"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/injector"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// TestSelectorsOfOthersStay adds a requirement to the selectors of a webhook configuration, as AKS
// does unless the configuration opts out. When the injector writes its CA bundle, the selectors
// must not change.
func TestSelectorsOfOthersStay(t *testing.T) {
	binaries, err := controlplane.Binaries(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	plane, err := controlplane.Start(ctx, controlplane.Options{Binaries: binaries, NoControllers: true, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := plane.Stop(); err != nil {
			t.Error(err)
		}
	})
	started, err := injector.Start(ctx, plane, injector.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
	})
	client, err := kubernetes.NewForConfig(plane.Config)
	if err != nil {
		t.Fatal(err)
	}
	configurations := client.AdmissionregistrationV1().MutatingWebhookConfigurations()
	theirs := metav1.LabelSelectorRequirement{Key: "control-plane", Operator: metav1.LabelSelectorOpDoesNotExist}
	// The injector writes at the same time.
	err = process.Until(ctx, func(ctx context.Context) error {
		configuration, err := configurations.Get(ctx, "akv-injector", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for i := range configuration.Webhooks {
			webhook := &configuration.Webhooks[i]
			webhook.NamespaceSelector.MatchExpressions = append(webhook.NamespaceSelector.MatchExpressions, theirs)
			webhook.ClientConfig.CABundle = nil
		}
		_, err = configurations.Update(ctx, configuration, metav1.UpdateOptions{FieldManager: "admissionsenforcer"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	err = process.Until(ctx, func(ctx context.Context) error {
		configuration, err := configurations.Get(ctx, "akv-injector", metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, webhook := range configuration.Webhooks {
			if len(webhook.ClientConfig.CABundle) == 0 {
				return errors.New("the CA bundle is not written yet")
			}
			last := webhook.NamespaceSelector.MatchExpressions[len(webhook.NamespaceSelector.MatchExpressions)-1]
			if last.Key != theirs.Key {
				t.Errorf("%s: the selector lost the added requirement: %v", webhook.Name, webhook.NamespaceSelector.MatchExpressions)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
