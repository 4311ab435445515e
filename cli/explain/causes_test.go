package explain_test

import (
	"strings"
	"testing"

	"github.com/akv-injector/akv-injector/cli/explain"
)

// TestCauses decodes texts as the kubelet, the driver, the provider, Microsoft Entra and Key Vault
// write them: each is the reason of an event, a space and its message. Every cause needs a text.
func TestCauses(t *testing.T) {
	const (
		mount = `FailedMount MountVolume.SetUp failed for volume "keyvault" : rpc error: code = Unknown desc = failed to mount secrets store objects ` +
			`for pod shop/web, err: rpc error: code = Unknown desc = failed to mount objects, error: `
		secret = mount + `failed to get objectType:secret, objectName:db-password, objectVersion:: `
		entra  = secret + "ClientAssertionCredential authentication failed. \nPOST https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/oauth2/v2.0/token\n" +
			"RESPONSE 401: 401 Unauthorized\n{\"error\": \"invalid_client\", \"error_description\": \""
		vault  = secret + "GET https://team-kv.vault.azure.net/secrets/db-password/\n"
		create = `FailedCreate Error creating: `
		driver = `FailedMount MountVolume.SetUp failed for volume "keyvault" : rpc error: code = Unknown desc = `
	)
	reached := map[*explain.Cause]bool{}
	for _, test := range []struct{ want, text string }{
		{"a lookup failed", create + `Internal error occurred: failed calling webhook "pods.akv-injector.io": failed to call webhook: akv-injector could not review the request: look up namespace shop: timeout`},
		{"no capacity left", create + `Internal error occurred: failed calling webhook "pods.akv-injector.io": failed to call webhook: the server is currently unable to handle the request`},
		{"no replica of the injector answers", create + `Internal error occurred: failed calling webhook "pods.akv-injector.io": failed to call webhook: Post "https://akv-injector.akv-injector-system.svc:443/mutate/pods?timeout=5s": no endpoints available for service "akv-injector"`},
		{"the injector rejects the pod", create + `admission webhook "pods.akv-injector.io" denied the request: [ClassNotFound] workload.metadata.annotations[keyvault.io/class][0]: Not found: "payments"`},
		{"the injector rejects the pod", create + `pods "web" is forbidden: ValidatingAdmissionPolicy 'akv-injector' with binding 'akv-injector' denied request: [IdentityRequired] must have an identity`},
		{"another webhook", create + `admission webhook "validate.kyverno.svc-fail" denied the request: policy`},
		{"another webhook", create + `Internal error occurred: failed calling webhook "istio.io": no endpoints`},
		{"ServiceAccount {SERVICE_ACCOUNT} does not exist", create + `pods "web-" is forbidden: error looking up service account shop/orders: serviceaccount "orders" not found`},
		{"a quota or the Pod Security level", create + `pods "web-" is forbidden: exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1`},

		{"has the issuer of this cluster", entra + `AADSTS700211: No matching federated identity record found for presented assertion issuer 'https://oidc.example/'. Please check your federated identity credential Subject, Audience and Issuer against the presented assertion.`},
		{"for another audience", entra + `AADSTS700212: No matching federated identity record found for presented assertion audience 'x'.`},
		{"no federated credential for the pod's ServiceAccount", entra + `AADSTS700213: No matching federated identity record found for presented assertion subject 'system:serviceaccount:shop:web'.`},
		{"no federated credential for the pod's ServiceAccount", entra + `AADSTS7002138: No matching federated identity record found for presented assertion subject 'system:serviceaccount:shop:Web'. The subject matches with case-insensitive comparison, but not with case-sensitive comparison.`},
		{"no federated credential for the pod's ServiceAccount", entra + `AADSTS70021: No matching federated identity record found for presented assertion. Assertion Issuer: 'https://oidc.example/'. Assertion Subject: 'system:serviceaccount:shop:web'.`},
		{"no application or identity with client id", entra + `AADSTS700016: Application with identifier '11111111-2222-3333-4444-555555555555' was not found in the directory 'Contoso'.`},
		{"does not exist", entra + `AADSTS90002: Tenant '72f988bf-86f1-41af-91ab-2d7cd011db48' not found. Check to make sure you have the correct tenant ID`},
		{"another tenant or cloud", entra + `AADSTS500011: The resource principal named https://vault.azure.net was not found in the tenant named Contoso.`},
		{"another tenant or cloud", entra + `AADSTS50020: User account from identity provider does not exist in tenant`},
		{"client secret", entra + `AADSTS7000215: Invalid client secret provided.`},
		{"cannot verify", entra + `AADSTS700024: Client assertion is not within its valid time range.`},
		{"disabled", entra + `AADSTS7000112: Application '11111111-2222-3333-4444-555555555555'(web) is disabled.`},
		{"rejects the sign-in", entra + `AADSTS999999: something new`},
		{"no AzureIdentityBinding", secret + `nmi response failed with status code: 404, response body: getting assigned identities for pod shop/web in ASSIGNED state failed after 16 attempts`},
		{"NMI of AAD pod identity does not run", secret + `Get "http://localhost:2579/host/token/?resource=https://vault.azure.net": dial tcp 127.0.0.1:2579: connect: connection refused`},
		{"the node does not have the identity", secret + "ManagedIdentityCredential authentication failed. the requested identity isn't assigned to this resource\nGET http://169.254.169.254/metadata/identity/oauth2/token\nRESPONSE 400 Bad Request"},

		{"firewall of vault", vault + `RESPONSE 403: 403 Forbidden ERROR CODE: Forbidden {"error": {"code": "Forbidden", "message": "Client address is not authorized and caller is not a trusted service.\r\nClient address: 20.1.2.3", "innererror": {"code": "ForbiddenByFirewall"}}}`},
		{"private endpoint", vault + `RESPONSE 403: 403 Forbidden ERROR CODE: Forbidden {"error": {"code": "Forbidden", "message": "Public network access is disabled and request is not from a trusted service nor via an approved private link.", "innererror": {"code": "ForbiddenByConnection"}}}`},
		{"is disabled", vault + `RESPONSE 403: 403 Forbidden {"error": {"code": "Forbidden", "message": "Operation get is not allowed on a disabled secret.", "innererror": {"code": "SecretDisabled"}}}`},
		{"access policies", vault + `RESPONSE 403: 403 Forbidden {"error": {"code": "Forbidden", "message": "The user, group or application 'appid=11111111-2222-3333-4444-555555555555;oid=0' does not have secrets get permission on key vault 'team-kv;location=westeurope'.", "innererror": {"code": "AccessDenied"}}}`},
		{"may not read vault", vault + `RESPONSE 403: 403 Forbidden {"error": {"code": "Forbidden", "message": "Caller is not authorized to perform action on resource.", "innererror": {"code": "ForbiddenByRbac"}}}`},
		{"accepts no tokens of tenant", vault + `RESPONSE 401: 401 Unauthorized {"error": {"code": "Unauthorized", "message": "AKV10032: Invalid issuer. Expected https://sts.windows.net/1/, found https://sts.windows.net/2/."}}`},
		{"does not have {OBJECT}", vault + `RESPONSE 404: 404 Not Found ERROR CODE: SecretNotFound {"error": {"code": "SecretNotFound", "message": "A secret with (name/id) db-password was not found in this key vault."}}`},
		{"too many requests", vault + `RESPONSE 429: 429 Too Many Requests ERROR CODE: Throttled`},
		{"cannot resolve the host name of Microsoft Entra", secret + `ClientAssertionCredential authentication failed. Post "https://login.microsoftonline.com/1/oauth2/v2.0/token": dial tcp: lookup login.microsoftonline.com on 10.0.0.10:53: no such host`},
		{"has no address", secret + `Get "https://team-kv.vault.azure.net/secrets/db-password/?api-version=7.4": dial tcp: lookup team-kv.vault.azure.net on 10.0.0.10:53: no such host`},
		{"cannot reach Azure", secret + `Get "https://team-kv.vault.azure.net/secrets/db-password/?api-version=7.4": dial tcp 10.1.2.3:443: i/o timeout`},

		{"the driver does not run", driver[:strings.Index(driver, "rpc error")] + `kubernetes.io/csi: mounter.SetUpAt failed to get CSI client: driver name secrets-store.csi.k8s.io not found in the list of registered CSI drivers`},
		{"the Azure provider does not run", driver + `failed to mount secrets store objects for pod shop/web, err: error connecting to provider "azure": provider not found: provider "azure"`},
		{"the Azure provider does not run", driver + `failed to mount secrets store objects for pod shop/web, err: rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial unix /var/run/secrets-store-csi-providers/azure.sock: connect: connection refused"`},
		{"the driver on the pod's node does not answer", `FailedMount MountVolume.SetUp failed for volume "keyvault" : rpc error: code = Unavailable desc = connection error: desc = "transport: Error while dialing: dial unix /var/lib/kubelet/plugins/csi-secrets-store/csi.sock: connect: connection refused"`},
		{"passes no token", mount + `failed to build auth config for mode : failed to parse workload identity tokens, error: service account tokens not found`},
		{"names no identity", mount + `failed to get credentials, nodePublishSecretRef secret is not set`},
		{"class {CLASS} is missing", driver + `failed to get secretproviderclass shop/payments, error: SecretProviderClass.secrets-store.csi.x-k8s.io "payments" not found`},
		{"names the file", `FailedToCreateSecret failed to get data in spc shop/payments for secret payments, err: file matching objectName db not found in the pod`},
		{"is wrong", mount + `keyvaultName is not provided`},
		{"is wrong", mount + `failed to yaml unmarshal objects, error: yaml: x`},
		{"is wrong", driver + `parameters not set in shop/payments`},
		{"lacks `readOnly: true`", `FailedMount MountVolume.SetUp failed for volume "keyvault" : rpc error: code = InvalidArgument desc = Readonly is not true in request`},

		{"cannot carry the value", `Error PASSWORD: secret db-login of vault payments-kv, property password: must not have a single quote: an env file has no escape for it`},
		{"cannot carry the value", `Error EDGE: cert edge of vault payments-kv: must not be empty`},
		{"may not write Secrets", `FailedToCreateSecret timed out waiting for the condition`},
		{"may not write Secrets", `CreateContainerConfigError secret "kv-0123456789" not found`},
		{"may not write Secrets", `Failed Error: secret "kv-0123456789" not found`},
		{"which the author of the pod names", `CreateContainerConfigError secret "of-the-author" not found`},
		{"has no key", `CreateContainerConfigError couldn't find key db-password in Secret shop/payments`},
		{"the image cannot be pulled", `ErrImagePull dial tcp: lookup registry.example on 10.0.0.10:53: no such host`},
		{"the image cannot be pulled", `Failed Failed to pull image "nginx": 429 Too Many Requests - Server message: toomanyrequests`},
		{"the image cannot be pulled", `ErrImagePull failed to pull and unpack image "docker.io/library/ngnix:latest"`},
		{"no node fits", `FailedScheduling 0/3 nodes are available: 3 Insufficient memory.`},
		{"the container starts", `BackOff Back-off restarting failed container app in pod web_shop(1)`},
		{"not mounted yet", `FailedMount Unable to attach or mount volumes: unmounted volumes=[keyvault], unattached volumes=[keyvault]: timed out waiting for the condition`},
		{"not mounted yet", `FailedMount MountVolume.SetUp failed for volume "keyvault" : rpc error: code = DeadlineExceeded desc = context deadline exceeded`},
	} {
		cause := explain.CauseOf(test.text, "kv-0123456789")
		reached[cause] = true
		if cause == nil || !strings.Contains(cause.Means, test.want) {
			t.Errorf("%s\nmust mean %q, means %+v", test.text, test.want, cause)
		}
	}
	for i := range explain.Causes {
		if !reached[&explain.Causes[i]] {
			t.Errorf("no text has the cause %q", explain.Causes[i].Contains)
		}
	}
	if cause := explain.CauseOf("Odd something else"); cause != nil {
		t.Errorf("an unknown text has the cause %q", cause.Means)
	}
}
