package check_test

import (
	"fmt"
	"net/http"
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/cli/check"
	"github.com/akv-injector/akv-injector/deploy"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

// breakage breaks something in a healthy cluster.
type breakage func(t *testing.T, server *fakeapi.Server, o *check.Options)

// edit returns a breakage that changes an object.
func edit(path string, change func(map[string]any)) breakage {
	return func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		server.Edit(t, path, change)
	}
}

// remove returns a breakage that deletes objects.
func remove(paths ...string) breakage {
	return func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		for _, path := range paths {
			server.Delete(t, path)
		}
	}
}

// apply returns a breakage that adds objects.
func apply(manifest string) breakage {
	return func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		server.Apply(t, manifest)
	}
}

// deny returns a breakage that takes rights from the user.
func deny(rights ...string) breakage {
	return func(_ *testing.T, server *fakeapi.Server, _ *check.Options) { server.Deny(rights...) }
}

// all returns a breakage that breaks several things.
func all(breakages ...breakage) breakage {
	return func(t *testing.T, server *fakeapi.Server, o *check.Options) {
		t.Helper()
		for _, b := range breakages {
			b(t, server, o)
		}
	}
}

// bundle returns a breakage that sets the CA bundles.
func bundle(pem func(t *testing.T) []byte) breakage {
	return func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		setBundles(t, server, pem(t))
	}
}

// tryPod returns a breakage in which the API server answers the creation of a pod.
func tryPod(namespace string, status int, answer string) breakage {
	return func(t *testing.T, server *fakeapi.Server, o *check.Options) {
		t.Helper()
		server.Apply(t, namespace)
		server.Answer(dryRun, status, answer)
		o.DryRunIn = "shop"
	}
}

// noSlices are the EndpointSlices of the injector.
const injectorSlices = "/apis/discovery.k8s.io/v1/namespaces/akv-injector-system/endpointslices/"

const (
	optedIn    = "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: enabled}}}"
	notOptedIn = "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}"
	somePod    = `{"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "check"}}`
)

// pod returns the first container of a pod template.
func firstContainer(change func(container map[string]any)) func(map[string]any) {
	return func(object map[string]any) {
		change(fakeapi.Map(object, "spec", "template", "spec", "containers", -1))
	}
}

var breakages = map[string]breakage{
	"the API server is too old":                          func(_ *testing.T, server *fakeapi.Server, _ *check.Options) { server.Version = "v1.29.9-gke.1" },
	"the API server has a version that cannot be parsed": func(_ *testing.T, server *fakeapi.Server, _ *check.Options) { server.Version = "main" },

	"nothing is installed":                    remove(mutating, validating, "/apis/apps/v1/namespaces/akv-injector-system/"),
	"the mutating configuration is deleted":   remove(mutating),
	"the validating configuration is deleted": remove(validating),
	"the configurations have no CA bundle":    bundle(func(*testing.T) []byte { return nil }),
	"the CA bundle has no certificate":        bundle(func(*testing.T) []byte { return []byte("ca.crt") }),
	"the CA bundle has a broken certificate": bundle(func(*testing.T) []byte {
		return []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	}),
	"the CA bundle expired": bundle(func(t *testing.T) []byte {
		t.Helper()
		return authority(t, time.Date(2020, 1, 2, 0, 0, 0, 0, time.UTC))
	}),
	"one webhook has no CA bundle, and no cert-manager writes it": edit(validating, func(object map[string]any) {
		delete(fakeapi.Map(object, "metadata"), "annotations")
		firstWebhook(func(webhook map[string]any) { delete(clientConfig(webhook), "caBundle") })(object)
	}),
	"one webhook calls another Service": edit(mutating, firstWebhook(func(webhook map[string]any) {
		fakeapi.Map(webhook, "clientConfig", "service")["name"] = "other"
	})),
	"the configurations call a URL": func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		for _, path := range []string{mutating, validating} {
			server.Edit(t, path, eachWebhook(func(webhook map[string]any) {
				to := clientConfig(webhook)
				to["url"] = fmt.Sprint("https://192.0.2.1:9443", fakeapi.Map(to, "service")["path"])
				delete(to, "service")
			}))
		}
	},
	"a webhook is missing": edit(mutating, func(object map[string]any) { object["webhooks"] = fakeapi.Items(object, "webhooks")[:3] }),
	"a webhook was added": edit(validating, func(object map[string]any) {
		hooks := fakeapi.Items(object, "webhooks")
		extra := map[string]any{"name": "extra.akv-injector.io", "clientConfig": fakeapi.Map(hooks, 0, "clientConfig")}
		object["webhooks"] = append(hooks, extra)
	}),
	"everything about a webhook was edited": edit(mutating, firstWebhook(func(webhook map[string]any) {
		fakeapi.Map(webhook, "clientConfig", "service")["path"] = "/mutate"
		fakeapi.Map(webhook, "rules", 0)["operations"] = []any{"UPDATE"}
		webhook["namespaceSelector"] = map[string]any{
			"matchLabels":      map[string]any{"team": "shop"},
			"matchExpressions": []any{map[string]any{"key": "env", "operator": "In", "values": []any{"prod"}}},
		}
		webhook["objectSelector"] = map[string]any{"matchLabels": map[string]any{"app": "web"}}
		conditions := fakeapi.Items(webhook, "matchConditions")
		fakeapi.Map(conditions, 0)["expression"] = "true"
		webhook["matchConditions"] = []any{conditions[0], map[string]any{"name": "extra", "expression": "true"}}
	})),
	"the replicas have another version, and a match condition was edited": all(
		edit(injector, firstContainer(func(c map[string]any) { c["image"] = "akv-injector:1.1.0" })),
		edit(mutating, firstWebhook(func(webhook map[string]any) { webhook["matchConditions"] = nil })),
	),
	"the image has only a digest": edit(injector, firstContainer(func(c map[string]any) { c["image"] = "akv-injector@sha256:0" })),
	"values of the chart add rules and namespaces": edit(mutating, firstWebhook(func(webhook map[string]any) {
		rules := fakeapi.Items(webhook, "rules")
		webhook["rules"] = append(rules, map[string]any{"apiGroups": []any{"argoproj.io"}, "resources": []any{"rollouts"}})
		last := fakeapi.Map(webhook, "namespaceSelector", "matchExpressions", -1)
		last["values"] = append(fakeapi.Items(last, "values"), "monitoring")
	})),
	"AKS changed the selectors": edit(mutating, func(object map[string]any) {
		delete(fakeapi.Map(object, "metadata", "annotations"), "admissions.enforcer/disabled")
		firstWebhook(func(webhook map[string]any) {
			selector := fakeapi.Map(webhook, "namespaceSelector")
			selector["matchExpressions"] = append(fakeapi.Items(selector, "matchExpressions"),
				map[string]any{"key": "control-plane", "operator": "NotIn", "values": []any{"true"}})
		})(object)
	}),
	"a release of Helm without webhooks": edit(mutating, func(object map[string]any) {
		fakeapi.Map(object, "metadata", "labels")["app.kubernetes.io/managed-by"] = "Helm"
		fakeapi.Map(object, "metadata", "annotations")["meta.helm.sh/release-name"] = "injector"
		object["webhooks"] = []any{}
	}),
	"AKS changed the selectors before the annotation was there": edit(mutating, firstWebhook(func(webhook map[string]any) {
		selector := fakeapi.Map(webhook, "namespaceSelector")
		selector["matchExpressions"] = append(fakeapi.Items(selector, "matchExpressions"),
			map[string]any{"key": "kubernetes.azure.com/managedby", "operator": "NotIn", "values": []any{"aks"}})
	})),
	"reviews fail open":   edit(mutating, firstWebhook(func(webhook map[string]any) { webhook["failurePolicy"] = "Ignore" })),
	"policy fails open":   edit(validating, eachWebhook(func(webhook map[string]any) { webhook["failurePolicy"] = "Ignore" })),
	"reviews may be slow": edit(mutating, firstWebhook(func(webhook map[string]any) { webhook["timeoutSeconds"] = 30 })),
	"another installation": apply(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: second}
webhooks: [{name: pods.akv-injector.io, clientConfig: {service: {namespace: other, name: akv-injector}}}]
---
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingWebhookConfiguration
metadata: {name: second}
webhooks: [{name: bound.pods.akv-injector.io, clientConfig: {service: {namespace: other, name: akv-injector}}}]
`),
	"the injector is called too late": apply(`
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingWebhookConfiguration
metadata: {name: a-workload-identity}
webhooks:
- name: a.example.com
  objectSelector: {matchLabels: {azure.workload.identity/use: "true"}}
  rules: [{resources: [pods]}]
`),
	"the user looks for the injector elsewhere": func(_ *testing.T, _ *fakeapi.Server, o *check.Options) { o.Namespace = "secrets" },

	"the Deployment is deleted": remove(injector),
	"no replica is ready": all(
		edit(injector, set(map[string]any{"readyReplicas": 0}, "status")), remove(injectorSlices),
		edit("/api/v1/namespaces/akv-injector-system/pods/akv-injector-1", set(map[string]any{
			"phase":             "Running",
			"conditions":        []any{map[string]any{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}},
			"containerStatuses": []any{map[string]any{"state": map[string]any{"waiting": map[string]any{"reason": "ImagePullBackOff", "message": "Back-off"}}}},
		}, "status")),
		func(_ *testing.T, server *fakeapi.Server, _ *check.Options) {
			server.Answer("GET /api/v1/namespaces/akv-injector-system/pods/akv-injector-1:8081/proxy/readyz/certificate",
				http.StatusInternalServerError, "internal server error: the CA bundle of webhook pods.akv-injector.io does not verify it\n")
		},
	),
	"no replica is ready, for another reason than its certificate": all(
		edit(injector, set(map[string]any{}, "status")),
		func(_ *testing.T, server *fakeapi.Server, _ *check.Options) {
			server.Answer("GET /api/v1/namespaces/akv-injector-system/pods/akv-injector-1:8081/proxy/readyz/certificate", http.StatusOK, "ok")
		},
	),
	"one of two replicas is ready":    edit(injector, set(map[string]any{"readyReplicas": 1}, "status")),
	"there is one replica":            edit(injector, func(o map[string]any) { set(1, "spec", "replicas")(o); set(1, "status", "readyReplicas")(o) }),
	"the Service selects no replica":  remove(injectorSlices),
	"there is no PodDisruptionBudget": remove("/apis/policy/v1/namespaces/akv-injector-system/poddisruptionbudgets/akv-injector"),

	"the Certificate is deleted":    remove(issued),
	"the Certificate is not issued": edit(issued, set(map[string]any{"conditions": []any{map[string]any{"type": "Ready", "status": "False", "reason": "DoesNotExist", "message": "no issuer"}}}, "status")),
	"the Certificate expired":       edit(issued, set("2020-01-02T00:00:00Z", "status", "notAfter")),
	"the Certificate expires soon": edit(issued, func(o map[string]any) {
		set(time.Now().Add(36*time.Hour).UTC().Format(time.RFC3339), "status", "notAfter")(o)
	}),
	"a self-signed certificate":      selfSigned("akv_injector_serving_certificate_expiry_seconds 4.07e+09\n"),
	"no self-signed certificate yet": selfSigned("akv_injector_serving_certificate_expiry_seconds 0\n"),
	"a replica without the metric":   selfSigned(""),
	"self-signed, without the right to read metrics": all(selfSigned(""), deny("get pods/proxy"), func(_ *testing.T, server *fakeapi.Server, _ *check.Options) {
		server.Answer(metricsOf, http.StatusForbidden, `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden"}`)
	}),

	"a pod that the injector rejects":             tryPod(optedIn, http.StatusUnprocessableEntity, refusal(`admission webhook \"pods.akv-injector.io\" denied the request: …`)),
	"a pod that is admitted without the injector": tryPod(optedIn, http.StatusCreated, somePod),
	"a pod for which the injector does not answer": tryPod(optedIn, http.StatusInternalServerError,
		refusal(`failed calling webhook \"pods.akv-injector.io\": failed to call webhook: connection refused`)),
	"a pod that another webhook rejects": tryPod(optedIn, http.StatusForbidden,
		`{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 403, "reason": "Forbidden", "message": "admission webhook \"other\" denied the request"}`),
	"a pod in a namespace that did not opt in": tryPod(notOptedIn, http.StatusCreated, somePod),
	"a pod in a namespace that does not exist": func(_ *testing.T, _ *fakeapi.Server, o *check.Options) { o.DryRunIn = "shop" },
	"a pod without the right to create it": all(deny("create pods"), func(t *testing.T, server *fakeapi.Server, o *check.Options) {
		t.Helper()
		server.Apply(t, optedIn)
		o.DryRunIn = "shop"
	}),

	"the driver is not installed":      remove("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/secretproviderclasses"),
	"there is no CSIDriver":            remove(csiDriver),
	"the CSIDriver requests no tokens": edit(csiDriver, set([]any{map[string]any{"audience": "api://AKSIdentityBinding"}}, "spec", "tokenRequests")),
	"the CSIDriver requests no tokens, and pods use AAD pod identity": all(
		edit(csiDriver, set(nil, "spec", "tokenRequests")), apply(`
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: nmi, namespace: kube-system}
spec: {template: {spec: {containers: [{name: nmi, image: "mcr.microsoft.com/oss/azure/aad-pod-identity/nmi:v1.8.17"}]}}}
status: {desiredNumberScheduled: 1, numberReady: 1}
`)),
	"the kinds of AAD pod identity are left": apply("{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: azureidentitybindings.aadpodidentity.k8s.io}}"),
	"a node does not know the driver":        remove("/apis/storage.k8s.io/v1/csinodes/node-2"),
	"the driver has no DaemonSet":            remove(driver),
	"the driver is not ready on a node":      edit(driver, set(1, "status", "numberReady")),
	"the driver runs nowhere":                edit(driver, set(map[string]any{}, "status")),
	"the provider has no DaemonSet":          remove(provider),
	"the driver may not write Secrets":       deny("create secrets system:serviceaccount:kube-system:aks-secrets-store-csi-driver"),
	"rotation is off":                        edit(driver, firstContainer(func(c map[string]any) { c["args"] = []any{"--provider-volume=/x"} })),
	"rotation without republishing":          edit(csiDriver, set(false, "spec", "requiresRepublish")),
	"the poll interval cannot be parsed":     edit(driver, firstContainer(func(c map[string]any) { c["args"] = []any{"--provider-volume=/x", "--rotation-poll-interval=often"} })),

	"Azure's workload identity webhook is not installed": remove("/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/azure-wi"),
	"Azure's workload identity webhook is down":          remove("/apis/discovery.k8s.io/v1/namespaces/azure-workload-identity-system/endpointslices/"),

	"the user has no rights": deny("list *", "get *", "create *"),
	"the user may read only objects of the installation's namespace": deny(
		"list mutatingwebhookconfigurations.admissionregistration.k8s.io", "list validatingwebhookconfigurations.admissionregistration.k8s.io",
		"list nodes", "list csinodes.storage.k8s.io", "get csidrivers.storage.k8s.io", "list daemonsets.apps"),
	"the user may not review the access of others": deny("create subjectaccessreviews.authorization.k8s.io"),
}

const metricsOf = "GET /api/v1/namespaces/akv-injector-system/pods/akv-injector-1:8080/proxy/metrics"

// selfSigned returns a breakage in which the injector makes its own certificate, with these metrics.
func selfSigned(metrics string) breakage {
	return func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		server.Edit(t, injector, firstContainer(func(c map[string]any) { c["args"] = []any{"serve", "--certs=self-signed"} }))
		server.Answer(metricsOf, http.StatusOK, "# HELP x\n"+metrics)
	}
}

// obstacles keep a user from installing.
var obstacles = map[string]breakage{
	"the user may not create cluster-wide objects": deny(
		"create clusterroles.rbac.authorization.k8s.io", "create mutatingwebhookconfigurations.admissionregistration.k8s.io"),
	"the user may not grant what the injector needs": deny("escalate clusterroles.rbac.authorization.k8s.io", "patch secretproviderclasses.secrets-store.csi.x-k8s.io"),
	"the user may not escalate, but has the rights":  deny("escalate clusterroles.rbac.authorization.k8s.io"),
	"the user has hardly any right": all(deny("escalate clusterroles.rbac.authorization.k8s.io"),
		func(_ *testing.T, server *fakeapi.Server, _ *check.Options) {
			for _, resource := range []string{
				"namespaces", "secrets", "serviceaccounts", "services", "deployments.apps", "networkpolicies.networking.k8s.io", "certificates.cert-manager.io",
				"issuers.cert-manager.io", "clusterroles.rbac.authorization.k8s.io", "clusterrolebindings.rbac.authorization.k8s.io", "roles.rbac.authorization.k8s.io",
			} {
				server.Deny("create "+resource, "get "+resource)
			}
		}),
	"the user may not create namespaces, but the namespace exists": all(deny("create namespaces"),
		apply("{apiVersion: v1, kind: Namespace, metadata: {name: akv-injector-system}}")),
	"access cannot be reviewed": deny("create selfsubjectaccessreviews.authorization.k8s.io"),

	"cert-manager is not installed":  remove("/apis/apiextensions.k8s.io/v1/customresourcedefinitions/certificates.cert-manager.io"),
	"cert-manager's webhook is down": remove("/apis/discovery.k8s.io/v1/namespaces/cert-manager/endpointslices/"),
	"cert-manager has no webhook":    remove("/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/cert-manager-webhook"),

	"it is installed already": func(t *testing.T, server *fakeapi.Server, _ *check.Options) {
		t.Helper()
		installed, err := deploy.Kustomize.ReadFile("kustomize/mutating-webhook-configuration.yaml")
		if err != nil {
			t.Fatal(err)
		}
		server.Apply(t, string(installed))
	},
	"it is installed in another namespace": func(t *testing.T, server *fakeapi.Server, o *check.Options) {
		t.Helper()
		installed, err := deploy.Kustomize.ReadFile("kustomize/mutating-webhook-configuration.yaml")
		if err != nil {
			t.Fatal(err)
		}
		server.Apply(t, string(installed))
		o.Namespace = "secrets"
	},
	"another injector is called":            breakages["another installation"],
	"another webhook would be called first": breakages["the injector is called too late"],
	"the cluster is AKS":                    apply("{apiVersion: admissionregistration.k8s.io/v1, kind: ValidatingWebhookConfiguration, metadata: {name: aks-node-validating-webhook}}"),
	"the configurations cannot be read":     deny("list mutatingwebhookconfigurations.admissionregistration.k8s.io"),
	"the driver is not installed":           breakages["the driver is not installed"],
}
