package check

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// enableAddOn are the words of the command that installs driver and provider on AKS.
var enableAddOn = []string{
	"az", "aks", "enable-addons", "--addons", "azure-keyvault-secrets-provider",
	"--resource-group", "RESOURCE_GROUP", "--name", "CLUSTER",
}

// checkDriver checks the Secrets Store CSI driver and the Azure provider.
func (c *cluster) checkDriver(s *report.Section) {
	if !c.hasClasses.unknown(s, "the kinds of the driver") {
		if !c.hasClasses.value {
			s.Broken("the cluster does not have the kind SecretProviderClass, v1: " +
				"the Secrets Store CSI driver is not installed").
				Run(enableAddOn...)
			return
		}
		s.OK("the cluster has the kind SecretProviderClass")
	}
	c.checkCSIDriver(s)
	c.checkNodes(s)
	if c.daemonSets.unknown(s, "the DaemonSets of driver and provider") {
		return
	}
	checkDaemonSet(s, "the Secrets Store CSI driver", c.daemonSet(kube.Driver))
	checkDaemonSet(s, "the Azure provider", c.daemonSet(kube.Provider))
	c.checkSync(s)
	c.checkRotation(s)
}

// checkCSIDriver checks the CSIDriver object, and the tokens that the kubelet gives to the driver.
func (c *cluster) checkCSIDriver(s *report.Section) {
	if c.csiDriver.unknown(s, "CSIDriver "+class.Driver) {
		return
	}
	if c.csiDriver.value == nil {
		s.Broken("the cluster has no CSIDriver %s", class.Driver).Run(enableAddOn...)
		return
	}
	var audiences []string
	for _, request := range c.csiDriver.value.Spec.TokenRequests {
		audiences = append(audiences, request.Audience)
	}
	if slices.Contains(audiences, api.TokenExchangeAudience) {
		s.OK("CSIDriver %s requests tokens for %s", class.Driver, strings.Join(audiences, " and "))
		return
	}
	state := report.Broken
	if c.daemonSet(kube.NMI) != nil {
		state = report.Warning // pods may all use AAD pod identity
	}
	s.Add(state, "CSIDriver %s requests no token for %s: classes of workload identity cannot sign in to Microsoft Entra",
		class.Driver, api.TokenExchangeAudience).
		Run(kube.HelmDriver(fmt.Sprintf("tokenRequests[%d].audience=%s", len(audiences), api.TokenExchangeAudience))...)
}

// checkNodes checks on which nodes the kubelet knows the driver.
func (c *cluster) checkNodes(s *report.Section) {
	if c.nodes.unknown(s, "the nodes without the driver") || c.registered.unknown(s, "the nodes without the driver") {
		return
	}
	var without []string
	for _, node := range c.nodes.value {
		if !c.registered.value[node] {
			without = append(without, node)
		}
	}
	switch {
	case len(without) > 0:
		s.Broken("on %d of %s the kubelet does not know the driver: pods with secrets do not start there",
			len(without), report.Count(len(c.nodes.value), "Linux node")).
			Detail("nodes: %s", report.Few(without, maxLines)).
			Detail("the usual cause is a taint that the driver's DaemonSet does not tolerate").
			Run("kubectl", "describe", "node", without[0])
	case len(c.nodes.value) > 0:
		s.OK("the driver is registered on %s", report.Count(len(c.nodes.value), "Linux node"))
	}
}

// checkDaemonSet checks that the pods of a DaemonSet are ready; nil if there is none.
func checkDaemonSet(s *report.Section, what string, found *appsv1.DaemonSet) {
	if found == nil {
		s.Broken("no DaemonSet runs %s on Linux nodes", what).Run(enableAddOn...)
		return
	}
	want, ready := found.Status.DesiredNumberScheduled, found.Status.NumberReady
	describe := []string{"kubectl", "describe", "daemonset", "--namespace", found.Namespace, found.Name}
	switch {
	case want == 0:
		s.Broken("DaemonSet %s/%s of %s is scheduled on no node", found.Namespace, found.Name, what).Run(describe...)
	case ready < want:
		s.Broken("%s is ready on %d of %s", what, ready, report.Count(int(want), "node")).
			Detail("DaemonSet %s/%s", found.Namespace, found.Name).Run(describe...)
	default:
		s.OK("%s is ready on %s", what, report.Count(int(want), "node"))
	}
}

// checkSync checks whether the driver may write the Secrets behind env vars.
func (c *cluster) checkSync(s *report.Section) {
	driver := c.daemonSet(kube.Driver)
	switch {
	case driver == nil:
	case c.syncs.unknown(s, "whether the driver syncs Secrets"):
	case c.syncs.value:
		s.OK("Secret sync is on: env vars work")
	default:
		s.Warning("Secret sync is off: ServiceAccount %s/%s may not write Secrets, so pods with env vars do not start",
			driver.Namespace, driver.Spec.Template.Spec.ServiceAccountName).Run(kube.HelmDriver("syncSecret.enabled=true")...)
	}
}

// rotation returns whether the driver reads mounted objects again, and at which interval at most. It
// returns an error if that is not known.
func (c *cluster) rotation() (on bool, interval time.Duration, err error) {
	driver := c.daemonSet(kube.Driver)
	if driver == nil {
		if c.daemonSets.err != nil {
			return false, 0, c.daemonSets.err
		}
		return c.republishes(), 0, c.csiDriver.err
	}
	container := kube.Driver(&driver.Spec.Template.Spec)
	if value, ok := kube.Argument(container, "enable-secret-rotation"); ok {
		on, _ = strconv.ParseBool(value)
	}
	interval = 2 * time.Minute // the default of the driver's flag
	if value, ok := kube.Argument(container, "rotation-poll-interval"); ok {
		if interval, err = time.ParseDuration(value); err != nil {
			return on, 0, fmt.Errorf("read --rotation-poll-interval of the driver: %w", err)
		}
	}
	return on, interval, nil
}

// republishes reports whether the kubelet calls the driver again for mounted volumes.
func (c *cluster) republishes() bool {
	driver := c.csiDriver.value
	return driver != nil && driver.Spec.RequiresRepublish != nil && *driver.Spec.RequiresRepublish
}

// Rotation reports whether the driver reads mounted objects again. The error is a [*kube.Denied] if
// the user may not read the driver's DaemonSet.
func Rotation(ctx context.Context, reader *kube.Reader) (on bool, err error) {
	c := &cluster{Options: &Options{Reader: reader}}
	c.readDriver(ctx)
	on, _, err = c.rotation()
	return on, err
}

func (c *cluster) checkRotation(s *report.Section) {
	on, interval, err := c.rotation()
	switch {
	case unknown(s, "whether rotation is on", err):
	case on && c.csiDriver.value != nil && !c.republishes():
		s.Warning("rotation is on, but CSIDriver %s has requiresRepublish false: since driver 1.6.0, "+
			"files do not follow the vault without it", class.Driver).
			Run("kubectl", "get", "csidriver", class.Driver, "--output=yaml")
	case on:
		every := ""
		if interval > 0 {
			every = fmt.Sprintf(", with a poll interval of %g s", interval.Seconds())
		}
		s.OK("rotation is on%s: files follow the vault; env vars and subPath mounts need a restart", every)
	default:
		s.Info("rotation is off: pods keep the versions that they were started with")
	}
}

// identityWebhook returns the webhook of Azure Workload Identity; nil if there is none.
func identityWebhook(configurations []kube.Configuration) *kube.Webhook {
	for i := range configurations {
		for j := range configurations[i].Webhooks {
			w := &configurations[i].Webhooks[j]
			selects := w.ObjectSelector != nil && w.ObjectSelector.MatchLabels[api.WorkloadIdentityUse] != ""
			if selects && w.ClientConfig.Service != nil {
				return w
			}
		}
	}
	return nil
}

// checkIdentities checks the components that give pods tokens.
func (c *cluster) checkIdentities(s *report.Section) {
	if c.mutating.err == nil { // else reported with the other configurations
		c.checkIdentityWebhook(s, identityWebhook(c.mutating.value))
	}
	nmi := c.daemonSet(kube.NMI)
	switch {
	case c.daemonSets.err != nil || c.hasBindings.unknown(s, "the kinds of AAD pod identity"):
	case nmi != nil:
		s.Warning("AAD pod identity runs on %s, and was retired in September 2025: move its pods to workload identity",
			report.Count(int(nmi.Status.DesiredNumberScheduled), "node")).
			Detail("DaemonSet %s/%s", nmi.Namespace, nmi.Name).
			Run("kubectl", "get", "pods", "--all-namespaces", "--selector", api.PodIdentityBinding)
	case c.hasBindings.value:
		s.Warning("the kinds of AAD pod identity are left, but its DaemonSet is not: pods that are bound by it get no token").
			Run("kubectl", "get", "azureidentities,azureidentitybindings", "--all-namespaces")
	default:
		s.OK("nothing of AAD pod identity is left")
	}
}

func (c *cluster) checkIdentityWebhook(s *report.Section, webhook *kube.Webhook) {
	if webhook == nil {
		s.Warning("Azure's workload identity webhook is not installed: "+
			"volumes are mounted, but applications get no token of their own").
			Run("az", "aks", "update", "--enable-workload-identity", "--enable-oidc-issuer",
				"--resource-group", "RESOURCE_GROUP", "--name", "CLUSTER")
		return
	}
	switch {
	case c.identityReady.unknown(s, "the replicas of Azure's workload identity webhook"):
	case c.identityReady.value == 0:
		effect := "pods that use workload identity cannot be created"
		if webhook.FailsOpen() {
			effect = "pods that use workload identity get no token"
		}
		s.Broken("Azure's workload identity webhook has no ready endpoint: %s", effect).
			Run("kubectl", "get", "pods", "--namespace", webhook.Service().Namespace,
				"--selector", "azure-workload-identity.io/system=true")
	default:
		s.OK("Azure's workload identity webhook has %s", report.Count(c.identityReady.value, "ready endpoint"))
	}
}

// maxLines is how many findings of one kind, and how many names, a report has.
const maxLines = 10
