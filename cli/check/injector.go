package check

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	certmanagerv1 "github.com/cert-manager/cert-manager/pkg/apis/certmanager/v1"
	certmanagermeta "github.com/cert-manager/cert-manager/pkg/apis/meta/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
)

// installedVersion returns the tag of the replicas' image; empty if it is not known.
func (c *cluster) installedVersion() string {
	injector := c.injector()
	if injector == nil {
		return ""
	}
	image, _, _ := strings.Cut(injector.Image, "@")
	_, tag, _ := strings.Cut(image[strings.LastIndexByte(image, '/')+1:], ":")
	return strings.TrimPrefix(tag, "v")
}

// checkInjector checks the replicas.
func (c *cluster) checkInjector(s *report.Section) {
	if c.service.Name == "" {
		s.Info("the injector runs outside the cluster; its readiness is not checked")
		return
	}
	if c.deployments.unknown(s, "the replicas") {
		return
	}
	deployment := c.deployment()
	if deployment == nil {
		s.Broken("namespace %s has no Deployment of the injector", c.installed).Run(c.upgrade()...)
		return
	}
	want, ready := int32(1), deployment.Status.ReadyReplicas
	if deployment.Spec.Replicas != nil {
		want = *deployment.Spec.Replicas
	}
	logs := []string{"kubectl", "logs", "--namespace", c.installed, "deployment/" + deployment.Name}
	switch {
	case ready == 0:
		line := s.Broken("no replica of Deployment %s/%s is ready: pods that request injection cannot be created",
			c.installed, deployment.Name)
		c.explainReplicas(line)
		line.Run("kubectl", "get", "pods", "--namespace", c.installed, "--selector", selector).Run(logs...)
	case ready < want:
		line := s.Warning("%d of %s of Deployment %s/%s are ready",
			ready, report.Count(int(want), "replica"), c.installed, deployment.Name)
		c.explainReplicas(line)
		line.Run("kubectl", "get", "pods", "--namespace", c.installed, "--selector", selector).Run(logs...)
	case want == 1:
		s.Warning("Deployment %s/%s has one replica: "+
			"while its node is upgraded, pods that request injection cannot be created", c.installed, deployment.Name).
			Run(c.upgrade("replicaCount=2")...)
	default:
		s.OK("%s of Deployment %s/%s are ready", report.Count(int(want), "replica"), c.installed, deployment.Name)
	}
	c.checkEndpoints(s, ready)
	c.checkImage(s)
	c.checkBudget(s, deployment.Spec.Template.Labels)
}

// explainReplicas adds why replicas are not ready, as far as the status of their pods says it.
func (c *cluster) explainReplicas(line *report.Line) {
	if c.pods.err != nil {
		line.Detail("%v", c.pods.err)
	}
	for i := range c.pods.value {
		pod := &c.pods.value[i]
		for _, condition := range pod.Status.Conditions {
			if condition.Type == corev1.PodScheduled && condition.Status == corev1.ConditionFalse {
				line.Detail("pod %s: %s: %s", pod.Name, condition.Reason, condition.Message)
			}
		}
		for _, status := range pod.Status.ContainerStatuses {
			if waiting := status.State.Waiting; waiting != nil {
				line.Detail("pod %s: %s: %s", pod.Name, waiting.Reason, waiting.Message)
			}
		}
	}
}

// checkEndpoints checks that the Service leads to a replica.
func (c *cluster) checkEndpoints(s *report.Section, ready int32) {
	switch {
	case c.ready.unknown(s, "the endpoints of Service "+c.service.String()):
	case c.ready.value == 0 && ready > 0:
		s.Broken("Service %s has no ready endpoint, although replicas are ready: its selector must be %s",
			c.service, selector).
			Run(c.upgrade()...)
	case c.ready.value == 0:
		s.Broken("Service %s has no ready endpoint: every call of the API server fails", c.service).
			Run("kubectl", "get", "endpointslices", "--namespace", c.service.Namespace,
				"--selector", "kubernetes.io/service-name="+c.service.Name)
	default:
		s.OK("Service %s has %s", c.service, report.Count(c.ready.value, "ready endpoint"))
	}
}

// checkImage compares the version of the replicas with that of this program.
func (c *cluster) checkImage(s *report.Section) {
	switch installed := c.installedVersion(); {
	case installed == "":
		s.Info("the image names no version, so this program (%s) may be another one", c.Version)
	case !c.isThisVersion():
		s.Warning("the replicas run version %s, this program is version %s: it checks what its own version installs",
			installed, c.Version)
	default:
		s.OK("the replicas run the version of this program, %s", installed)
	}
}

// checkBudget checks that evictions leave a replica.
func (c *cluster) checkBudget(s *report.Section, of map[string]string) {
	if c.budgets.unknown(s, "the PodDisruptionBudgets of namespace "+c.installed) {
		return
	}
	for i := range c.budgets.value {
		budget := &c.budgets.value[i]
		selects, err := metav1.LabelSelectorAsSelector(budget.Spec.Selector)
		if err == nil && selects.Matches(labels.Set(of)) {
			s.OK("PodDisruptionBudget %s limits evictions of the replicas", budget.Name)
			return
		}
	}
	s.Warning("no PodDisruptionBudget limits evictions of the replicas: an upgrade of nodes may end all of them at once").
		Run(c.upgrade("podDisruptionBudget.enabled=true")...)
}

// soon is how long before its expiry a certificate is reported. It is that of the first alert.
const soon = 14 * 24 * time.Hour

// checkCertificate checks the serving certificate. A replica is ready only with a certificate that
// the CA bundles verify; the program never reads the Secret.
func (c *cluster) checkCertificate(ctx context.Context, s *report.Section) {
	injector := c.injector()
	if c.service.Name == "" || injector == nil {
		return
	}
	if ready := c.deployment().Status.ReadyReplicas; ready > 0 {
		s.OK("the CA bundles verify the certificate of %s", report.Count(int(ready), "ready replica"))
	} else {
		c.explainCertificate(ctx, s)
	}
	if mode, ok := kube.Argument(injector, "certs"); !ok || mode == "cert-manager" {
		certificate := name
		if named, ok := kube.Argument(injector, "certificate"); ok {
			certificate = named
		}
		c.checkIssued(ctx, s, certificate)
		return
	}
	expiry, err := c.metric(ctx, injector, "akv_injector_serving_certificate_expiry_seconds")
	switch {
	case unknown(s, "the expiry of the serving certificate", err):
	case expiry == 0:
		s.Broken("the replicas have no serving certificate").
			Run("kubectl", "logs", "--namespace", c.installed, "deployment/"+name)
	default:
		c.checkExpiry(s, "the serving certificate", time.Unix(int64(expiry), 0))
	}
}

// explainCertificate reports why the replicas do not accept their certificate.
func (c *cluster) explainCertificate(ctx context.Context, s *report.Section) {
	for i := range c.pods.value {
		pod := &c.pods.value[i]
		if pod.Status.Phase != corev1.PodRunning {
			continue
		}
		port := containerPort(kube.Injector(&pod.Spec), "probes")
		_, err := c.proxy(ctx, pod.Name, port, "readyz", "certificate")
		if status, ok := apierrors.StatusCause(err, metav1.CauseTypeUnexpectedServerResponse); ok {
			s.Broken("replica %s has no certificate that the CA bundles verify: %s",
				pod.Name, strings.TrimSpace(status.Message)).
				Run("kubectl", "logs", "--namespace", c.installed, pod.Name)
		} else if !unknown(s, "the certificate of replica "+pod.Name, err) {
			s.OK("the CA bundles verify the certificate of replica %s", pod.Name)
		}
		return
	}
}

// checkIssued checks the Certificate that cert-manager issues.
func (c *cluster) checkIssued(ctx context.Context, s *report.Section, certificate string) {
	found, err := kube.Read[certmanagerv1.Certificate](ctx, c.Reader, certificates, c.installed, certificate)
	if unknown(s, "the expiry of the serving certificate", err) {
		return
	}
	describe := []string{"kubectl", "describe", "certificate", "--namespace", c.installed, certificate}
	if found == nil {
		s.Broken("namespace %s has no Certificate %s, which the replicas wait for", c.installed, certificate).
			Detail("without cert-manager, install with --set certs.mode=self-signed").Run(c.upgrade()...)
		return
	}
	for _, condition := range found.Status.Conditions {
		if condition.Type == certmanagerv1.CertificateConditionReady && condition.Status != certmanagermeta.ConditionTrue {
			s.Broken("Certificate %s/%s is not ready: %s: %s", c.installed, certificate, condition.Reason, condition.Message).
				Run(describe...)
		}
	}
	if found.Status.NotAfter == nil {
		s.Broken("Certificate %s/%s was not issued", c.installed, certificate).Run(describe...)
		return
	}
	c.checkExpiry(s, "Certificate "+c.installed+"/"+certificate, found.Status.NotAfter.Time, describe...)
}

func (c *cluster) checkExpiry(s *report.Section, what string, expiry time.Time, next ...string) {
	if next == nil {
		next = []string{"kubectl", "logs", "--namespace", c.installed, "deployment/" + name}
	}
	date := expiry.UTC().Format(time.DateOnly)
	switch left := time.Until(expiry); {
	case left <= 0:
		s.Broken("%s expired on %s: every call of the API server fails", what, date).Run(next...)
	case left < soon:
		s.Warning("%s expires on %s, and should have been renewed before", what, date).Run(next...)
	default:
		s.OK("%s is valid until %s", what, date)
	}
}

// containerPort returns a named port of the injector's container; 0 if it has none.
func containerPort(of *corev1.Container, name string) int32 {
	if of != nil {
		for _, port := range of.Ports {
			if port.Name == name {
				return port.ContainerPort
			}
		}
	}
	return 0
}

// proxy reads a path of a replica through the API server.
func (c *cluster) proxy(ctx context.Context, pod string, port int32, path ...string) ([]byte, error) {
	segments := []string{"api", "v1", "namespaces", c.installed, "pods", fmt.Sprintf("%s:%d", pod, port), "proxy"}
	segments = append(segments, path...)
	text, err := c.Reader.Discovery.RESTClient().Get().AbsPath(segments...).DoRaw(ctx)
	if apierrors.IsForbidden(err) {
		return nil, &kube.Denied{Verb: "get", Resource: schema.GroupResource{Resource: "pods/proxy"}, Namespace: c.installed}
	}
	return text, err
}

// metric returns a metric of a ready replica.
func (c *cluster) metric(ctx context.Context, injector *corev1.Container, metric string) (float64, error) {
	if c.pods.err != nil {
		return 0, c.pods.err
	}
	for i := range c.pods.value {
		pod := &c.pods.value[i]
		if pod.Status.Phase != corev1.PodRunning {
			continue
		}
		text, err := c.proxy(ctx, pod.Name, containerPort(injector, "metrics"), "metrics")
		if err != nil {
			return 0, err
		}
		for line := range strings.Lines(string(text)) {
			if value, ok := strings.CutPrefix(line, metric+" "); ok {
				return strconv.ParseFloat(strings.TrimSpace(value), 64)
			}
		}
		return 0, fmt.Errorf("replica %s has no metric %s", pod.Name, metric)
	}
	return 0, fmt.Errorf("no replica runs in namespace %s", c.installed)
}

// checkDryRun creates a pod with a wrong annotation as a dry run. Only the injector rejects it, so
// the answer shows whether the API server calls the injector.
func (c *cluster) checkDryRun(ctx context.Context, s *report.Section) {
	in := c.DryRunIn
	if in == "" {
		s.Info("not tried; to create a pod as a dry run, name a namespace that opted in").
			Run(c.command("check", "--dry-run-in", "NAMESPACE")...)
		return
	}
	namespace, err := kube.Read[corev1.Namespace](ctx, c.Reader, kube.Namespaces, "", in)
	switch {
	case unknown(s, "whether namespace "+in+" opted in", err):
	case namespace == nil:
		s.Broken("namespace %s does not exist", in).Run("kubectl", "get", "namespaces", "--selector", api.Injection)
		return
	case !facts.ReadNamespace(namespace).OptedIn():
		s.Broken("namespace %s did not opt in, so the API server does not call the injector for its pods", in).
			Run("kubectl", "label", "namespace", in, api.Injection+"="+api.InjectionEnabled)
		return
	}
	pod := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "v1", "kind": "Pod",
		"metadata": map[string]any{
			"generateName": "akv-injector-check-", "annotations": map[string]any{api.Inject: "perhaps"},
		},
		"spec": map[string]any{"containers": []any{map[string]any{"name": "check", "image": "check"}}},
	}}
	dryRun := metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}}
	_, err = c.Reader.Dynamic.Resource(kube.Pods).Namespace(in).Create(ctx, pod, dryRun)
	c.judgeDryRun(s, err)
}

// judgeDryRun reports what the answer to a wrong pod means.
func (c *cluster) judgeDryRun(s *report.Section, err error) {
	in := c.DryRunIn
	switch {
	case err == nil:
		s.Broken("the API server admitted a pod with a wrong annotation in namespace %s: "+
			"it does not call the injector, or ignores a failed call", in).
			Run(c.command("check")...)
	case strings.Contains(err.Error(), webhookDomain+`" denied the request`):
		s.OK("the injector rejected a pod with a wrong annotation in namespace %s, as it must; it was a dry run", in)
	case strings.Contains(err.Error(), webhookDomain+`": `) && strings.Contains(err.Error(), "failed calling webhook"):
		s.Broken("the API server cannot call the injector: %v", err).
			Run("kubectl", "get", "pods", "--namespace", c.installed, "--selector", selector)
	case apierrors.IsForbidden(err) && !strings.Contains(err.Error(), "admission webhook"):
		denied := &kube.Denied{Verb: "create", Resource: kube.Pods.GroupResource(), Namespace: in}
		unknown(s, "whether the API server calls the injector", denied)
	default:
		s.Unknown("whether the API server calls the injector is not known: something else rejected the dry run: %v", err)
	}
}
