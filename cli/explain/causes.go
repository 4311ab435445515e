package explain

import (
	"regexp"
	"strings"

	"al.essio.dev/pkg/shellescape"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// Cause is what the text of an event, or of the state of a container, means. All texts are Markdown.
// In them and in commands, {NAME} is a placeholder, such as {VAULT}; in a pattern, a group of that
// name has the value.
type Cause struct {
	// Contains describes the text.
	Contains string
	// Means is the cause, and Fix what to do.
	Means, Fix string
	// Commands show or repair it, each as words.
	Commands [][]string
	// See is a link for the documentation; empty for none.
	See string

	pattern *regexp.Regexp
	// foreign is true if the cause has nothing to do with identities or Key Vault, vague if another
	// event says more, and synced if it is only about Secrets that the driver syncs.
	foreign, vague, synced bool
}

// Row returns the cells of the row of the documentation: what the event contains, the cause and the
// fix.
func (c *Cause) Row() (contains, means, fix string) {
	var commands []string
	for _, command := range c.Commands {
		words := make([]string, len(command))
		for i, word := range command {
			words[i] = unset(word)
		}
		commands = append(commands, "`"+strings.ReplaceAll(shellescape.QuoteCommand(words), "|", `\|`)+"`")
	}
	fix = c.Fix
	if len(commands) > 0 {
		fix += ". Run " + strings.Join(commands, ", then ")
	}
	return c.Contains, unset(c.Means), unset(fix) + c.See
}

// placeholder matches a placeholder.
var placeholder = regexp.MustCompile(`\{([A-Z_]+)\}`)

// unset replaces placeholders by their names.
func unset(text string) string { return placeholder.ReplaceAllString(text, "$1") }

// Commands that several lines suggest.
var (
	installDriver = words("az aks enable-addons --resource-group RESOURCE_GROUP --name CLUSTER --addons azure-keyvault-secrets-provider")
	federate      = [][]string{
		append(words("az identity list --output table --query"), "[?clientId=='{CLIENT_ID}'].{name:name, resourceGroup:resourceGroup}"),
		words("az identity federated-credential create --identity-name IDENTITY --resource-group RESOURCE_GROUP" +
			" --name {NAMESPACE}-{SERVICE_ACCOUNT} --issuer {ISSUER} --subject {SUBJECT} --audiences " + api.TokenExchangeAudience),
	}
	showIssuer     = words("az aks show --resource-group RESOURCE_GROUP --name CLUSTER --query oidcIssuerProfile.issuerUrl")
	podsOnNode     = words("kubectl get pods --all-namespaces --output=wide --field-selector=spec.nodeName={NODE}")
	syncOn         = kube.HelmDriver("syncSecret.enabled=true")
	tokenAudiences = kube.HelmDriver("tokenRequests[0].audience=" + api.TokenExchangeAudience)
	describeClass  = words("kubectl get secretproviderclass {CLASS} --namespace {NAMESPACE} --output=yaml")
	showNetwork    = append(words("az keyvault show --name {VAULT} --query"), "properties.{access:publicNetworkAccess, rules:networkAcls}")
	injectorPods   = words("kubectl get pods --namespace {INJECTOR_NAMESPACE}")
	injectorLogs   = words("kubectl logs --namespace {INJECTOR_NAMESPACE} --selector app.kubernetes.io/name=akv-injector --tail=-1")
)

func words(text string) []string { return strings.Fields(text) }

// match compiles a pattern, which ignores case. A dot also matches a line break.
func match(pattern string) *regexp.Regexp { return regexp.MustCompile("(?is)" + pattern) }

// Causes are all causes. The first whose pattern matches counts, so an exact one comes before a vague
// one. The texts are those of the sources: kubelet (pkg/kubelet, pkg/volume/csi), Secrets Store CSI
// driver (pkg/secrets-store, controllers), Azure provider (pkg/provider, pkg/auth), Microsoft Entra
// (its error codes, https://learn.microsoft.com/entra/identity-platform/reference-error-codes) and
// Key Vault (its REST API error codes).
var Causes = []Cause{
	// The injector and the API server.
	{
		Contains: "`akv-injector could not review the request`",
		pattern:  match(`akv-injector could not review the request`),
		Means: "a lookup failed or timed out, the API server has not answered the replica for 25 seconds, or the injector has a bug " +
			"(a panic). The rest of the message and the injector's log say which",
		Fix: "controllers retry. Repeat a rejected `kubectl apply`. If the failure persists, check that the API server answers the injector, " +
			"and that the injector has its permissions",
		Commands: [][]string{injectorLogs},
		See:      ". The permissions are in [rbac.yaml](../deploy/kustomize/rbac.yaml)",
	},
	{
		Contains: "`failed calling webhook \"….akv-injector.io\"`, and `the server is currently unable to handle the request`",
		pattern:  match(`failed calling webhook "[^"]*akv-injector\.io".*currently unable to handle the request`),
		Means:    "the replica has no capacity left (status 503)",
		Fix:      "controllers retry. Repeat a rejected `kubectl apply`",
		Commands: [][]string{injectorLogs},
		See:      ". See [AKVInjectorFlooded](metrics.md#akvinjectorflooded)",
	},
	{
		Contains: "`failed calling webhook \"….akv-injector.io\"`, otherwise",
		pattern:  match(`failed calling webhook "[^"]*akv-injector\.io"`),
		Means:    "no replica of the injector answers",
		Fix: "the pods of the injector and their readiness say why. Afterwards, `kubectl rollout restart` creates pods at once. " +
			"Repeat a rejected `kubectl apply`",
		Commands: [][]string{injectorPods},
		See:      ". See also [Failure modes](operations.md#failure-modes)",
	},
	{
		Contains: "`admission webhook \"….akv-injector.io\" denied the request`",
		pattern:  match(`admission webhook "[^"]*akv-injector\.io" denied the request:.*?\[\w+\]|ValidatingAdmissionPolicy 'akv-injector[^']*'.* denied request`),
		Means:    "the injector rejects the pod. The message has the Reason in brackets, and what to write",
		Fix:      "do what the message says",
		See:      ". [Reasons](#reasons) explains each",
	},
	{
		Contains: "`failed calling webhook`, of another webhook",
		pattern:  match(`failed calling webhook|admission webhook .* denied the request`),
		Means:    "another webhook rejects the pod, or does not answer",
		Fix:      "ask the owner of that webhook",
		foreign:  true,
	},
	{
		Contains: "`error looking up service account`",
		pattern:  match(`error looking up service account (?P<NAMESPACE>[^/]+)/(?P<SERVICE_ACCOUNT>[^:\s]+)`),
		Means:    "the pod's ServiceAccount {SERVICE_ACCOUNT} does not exist",
		Fix:      "create the ServiceAccount, or correct the name",
		Commands: [][]string{words("kubectl get serviceaccounts --namespace {NAMESPACE}")},
	},
	{
		Contains: "`exceeded quota`, `is forbidden: violates PodSecurity`",
		pattern:  match(`exceeded quota|violates PodSecurity`),
		Means:    "a quota or the Pod Security level of the namespace rejects the pod",
		Fix:      "change the pod, or ask the owner of the namespace",
		foreign:  true,
	},

	// Microsoft Entra.
	{
		Contains: "`AADSTS700211`",
		pattern:  match(`AADSTS700211`),
		Means:    "no federated credential of the identity has the issuer of this cluster's tokens",
		Fix:      "create a federated credential with the cluster's OIDC issuer `{ISSUER}`, with its slash at the end if it has one",
		Commands: federate,
	},
	{
		Contains: "`AADSTS700212`",
		pattern:  match(`AADSTS700212`),
		Means:    "the federated credential of the identity is for another audience",
		Fix:      "create it for the audience `" + api.TokenExchangeAudience + "`",
		Commands: federate,
	},
	{
		Contains: "`AADSTS700213`, `AADSTS70021`: no matching federated identity record",
		pattern:  match(`AADSTS(700213|7002138|70021)\b`),
		Means:    "the identity has no federated credential for the pod's ServiceAccount",
		Fix: "create one with the subject `{SUBJECT}`, compared with case, and the cluster's OIDC issuer `{ISSUER}`. " +
			"It takes effect after about a minute",
		Commands: federate,
	},
	{
		Contains: "`AADSTS700016`, `AADSTS7000229`",
		pattern:  match(`AADSTS(700016|7000229)\b`),
		Means:    "the tenant {TENANT} has no application or identity with client id {CLIENT_ID}",
		Fix:      "correct the client id or the tenant id in the annotations of the ServiceAccount or the pod, or in the class",
		Commands: [][]string{append(words("az identity list --output table --query"), "[].{name:name, clientId:clientId, tenantId:tenantId}")},
	},
	{
		Contains: "`AADSTS90002`, `AADSTS900021`, `AADSTS900023`",
		pattern:  match(`AADSTS(90002|900021|900023)\b`),
		Means:    "the tenant {TENANT} does not exist",
		Fix:      "correct `identity.io/tenant-id`, the ServiceAccount's annotation, the injector's flag `--tenant-id`, or `tenantID` in the class",
		Commands: [][]string{words("az account show --query tenantId --output tsv")},
	},
	{
		Contains: "`AADSTS500011`, `AADSTS50020`",
		pattern:  match(`AADSTS(500011|50020)\b`),
		Means:    "the identity is of another tenant or cloud than the vault",
		Fix:      "use an identity of the vault's tenant. For another cloud than the public one, the class needs `cloudName`",
		Commands: [][]string{words("az keyvault show --name {VAULT} --query properties.tenantId --output tsv")},
	},
	{
		Contains: "`AADSTS7000215`, `AADSTS7000222`",
		pattern:  match(`AADSTS(7000215|7000222)\b`),
		Means:    "the client secret of the service principal is wrong or has expired",
		Fix:      "replace the Secret in the volume's `nodePublishSecretRef`, or better use workload identity",
		Commands: [][]string{words("az ad app credential list --id {CLIENT_ID}")},
	},
	{
		Contains: "`AADSTS700024`, `AADSTS700027`, `AADSTS50166`",
		pattern:  match(`AADSTS(700024|700027|50166)\b`),
		Means:    "Microsoft Entra cannot verify the ServiceAccount's token: it cannot read the keys of the cluster's issuer, or the clocks differ",
		Fix:      "check that the issuer is reachable from the Internet, and the time on the node",
		Commands: [][]string{words("curl --fail {ISSUER}/.well-known/openid-configuration")},
	},
	{
		Contains: "`AADSTS7000112`, `AADSTS53003`",
		pattern:  match(`AADSTS(7000112|53003)\b`),
		Means:    "the application is disabled, or Conditional Access blocks it",
		Fix:      "ask the administrator of the tenant",
		Commands: [][]string{words("az ad sp show --id {CLIENT_ID} --query accountEnabled")},
	},
	{
		Contains: "`AADSTS`, another code",
		pattern:  match(`(?P<CODE>AADSTS\d+)`),
		Means:    "Microsoft Entra rejects the sign-in of the identity with {CODE}",
		Fix:      "see https://login.microsoftonline.com/error for the code",
	},
	{
		Contains: "`nmi response failed with status code: 404`",
		pattern:  match(`nmi response failed with status code: 404`),
		Means: "no AzureIdentityBinding in the pod's namespace has the pod's label `aadpodidbinding` as its `spec.selector`, " +
			"or its AzureIdentity is missing",
		Fix:      "apply both in that namespace",
		Commands: [][]string{words("kubectl get azureidentities,azureidentitybindings --namespace {NAMESPACE}")},
		See:      ". The warning [IdentityNotBound](#identitynotbound) said so",
	},
	{
		Contains: "`nmi response failed`, or `localhost:2579` and `connection refused`",
		pattern:  match(`nmi response failed|localhost:2579.*(connection refused|deadline)`),
		Means:    "NMI of AAD pod identity does not run on the node, or fails",
		Fix:      "check the pods of NMI and MIC. AAD pod identity was retired in September 2025: move to workload identity",
		Commands: [][]string{podsOnNode},
	},
	{
		Contains: "`Identity not found`, of a class with `useVMManagedIdentity`",
		pattern:  match(`ManagedIdentityCredential|169\.254\.169\.254.*Identity not found`),
		Means:    "the node does not have the identity that the class names",
		Fix:      "assign it to the node pool's virtual machine scale set, or use workload identity",
		Commands: [][]string{words("az vmss identity show --resource-group NODE_RESOURCE_GROUP --name SCALE_SET")},
	},

	// Key Vault.
	{
		Contains: "`ForbiddenByFirewall`, `Client address is not authorized`",
		pattern:  match(`ForbiddenByFirewall|Client address is not authorized`),
		Means:    "the firewall of vault {VAULT} does not admit the cluster's nodes",
		Fix:      "allow the subnet of the nodes, or use a private endpoint",
		Commands: [][]string{showNetwork, words("az keyvault network-rule add --name {VAULT} --subnet SUBNET_ID")},
	},
	{
		Contains: "`ForbiddenByConnection`, `Public network access is disabled`, `not from a trusted service nor via an approved private link`",
		pattern:  match(`ForbiddenByConnection|Public network access is disabled|approved private link|TCP connection does not allow access`),
		Means:    "vault {VAULT} only admits its private endpoint, and the nodes do not use it",
		Fix:      "link the private DNS zone `privatelink.vaultcore.azure.net` to the network of the nodes, and approve the endpoint",
		Commands: [][]string{showNetwork},
	},
	{
		Contains: "`is not allowed on a disabled secret`",
		pattern:  match(`is not allowed on a disabled (secret|key|certificate)|SecretDisabled`),
		Means:    "{OBJECT} in vault {VAULT} is disabled",
		Fix:      "enable it, or name another version",
		Commands: [][]string{words("az keyvault {TYPE} set-attributes --vault-name {VAULT} --name {OBJECT} --enabled true")},
	},
	{
		Contains: "`does not have secrets get permission on key vault`",
		pattern:  match(`does not have (secrets|keys|certificates) \w+ permission on key vault|ForbiddenByPolicy|AccessDenied`),
		Means:    "the access policies of vault {VAULT} do not let the identity {CLIENT_ID} read it",
		Fix:      "add an access policy",
		Commands: [][]string{words("az keyvault set-policy --name {VAULT} --spn {CLIENT_ID} --{TYPE}-permissions get")},
	},
	{
		Contains: "`RESPONSE 403`, `Caller is not authorized`, `ForbiddenByRbac`",
		pattern:  match(`RESPONSE 403|Caller is not authorized|ForbiddenByRbac|StatusCode=403`),
		Means:    "the identity {CLIENT_ID} may not read vault {VAULT}",
		Fix: "grant it the role Key Vault Secrets User on the vault (for keys Key Vault Crypto User, for certificates Key Vault Certificate User), " +
			"or an access policy. A role takes effect after some minutes",
		Commands: [][]string{
			words("az keyvault show --name {VAULT} --query id --output tsv"),
			append(words("az role assignment create --assignee {CLIENT_ID} --scope VAULT_ID --role"), "{ROLE}"),
		},
	},
	{
		Contains: "`RESPONSE 401`, `AKV10032`, `AKV10022`",
		pattern:  match(`AKV100\d\d|RESPONSE 401`),
		Means:    "vault {VAULT} accepts no tokens of tenant {TENANT}: the vault is of another tenant or cloud",
		Fix:      "correct the tenant id, or `cloudName` in the class",
		Commands: [][]string{words("az keyvault show --name {VAULT} --query properties.tenantId --output tsv")},
	},
	{
		Contains: "`RESPONSE 404`, `SecretNotFound`",
		pattern:  match(`(Secret|Key|Certificate)NotFound|RESPONSE 404|was not found in this key vault`),
		Means: "vault {VAULT} does not have {OBJECT}, or not that version. One missing object fails the whole volume: " +
			"there are no files and no env vars",
		Fix: "create the object, or correct the annotation",
		Commands: [][]string{
			append(words("az keyvault {TYPE} list --vault-name {VAULT} --output tsv --query"), "[].name"),
			words("az keyvault secret set --vault-name {VAULT} --name {OBJECT} --file FILE"),
		},
	},
	{
		Contains: "`RESPONSE 429`, `Throttled`",
		pattern:  match(`RESPONSE 429|Throttled`),
		Means:    "vault {VAULT} gets too many requests",
		Fix:      "wait. With rotation on, every pod reads each object about every 75 seconds: spread pods over several vaults, or turn rotation off",
		Commands: [][]string{words("az monitor metrics list --resource VAULT_ID --metric ServiceApiHit")},
	},
	{
		Contains: "`lookup login.microsoftonline.com` and `no such host`",
		pattern:  match(`lookup login\.\S+.*no such host`),
		Means:    "the node cannot resolve the host name of Microsoft Entra",
		Fix:      "check the DNS servers of the nodes, whose network the provider uses",
		Commands: [][]string{words("kubectl describe node {NODE}")},
	},
	{
		Contains: "`lookup VAULT.vault.azure.net` and `no such host`",
		pattern:  match(`lookup \S+\.vault\.\S+.*no such host`),
		Means:    "the host of vault {VAULT} has no address: the vault does not exist in this cloud, or the nodes cannot resolve its private DNS zone",
		Fix:      "correct `keyvault.io/vault` or `keyvault.io/cloud`, or the class",
		Commands: [][]string{append(words("az keyvault list --output tsv --query"), "[].name")},
	},
	{
		Contains: "`vault.azure.net` or `login.microsoftonline.com`, and `i/o timeout`, `connection refused` or `deadline exceeded`",
		pattern: match(`(vault\.azure\.(net|cn)|vault\.usgovcloudapi\.net|login\.microsoftonline\.(com|us)|login\.chinacloudapi\.cn)` +
			`.*(i/o timeout|connection refused|connection reset|deadline exceeded|TLS handshake timeout|context canceled)`),
		Means:    "the node cannot reach Azure: a firewall, a network policy or a proxy is in the way",
		Fix:      "allow HTTPS from the nodes, whose network the provider uses, to the vault and to `login.microsoftonline.com`",
		Commands: [][]string{showNetwork},
	},

	// The driver and the provider.
	{
		Contains: "`" + class.Driver + " not found in the list of registered CSI drivers`",
		pattern:  match(`secrets-store\.csi\.k8s\.io not found in the list of registered CSI drivers`),
		Means:    "the driver does not run on the pod's node, or is not installed. The usual cause is a taint of the node",
		Fix:      "the list shows whether a pod of the driver runs on that node. If the driver is not installed, install it",
		Commands: [][]string{podsOnNode, installDriver},
		See: ". If it is not installed, an event [ClassNotWritten](#classnotwritten) says so, or `kubectl apply` of a class prints " +
			"`no matches for kind \"SecretProviderClass\"`",
	},
	{
		Contains: "`provider not found: provider \"azure\"`, or `azure.sock` and `connection refused`",
		pattern:  match(`provider not found: provider|azure\.sock.*(connection refused|no such file)|failed to find provider binary`),
		Means:    "the Azure provider does not run on the pod's node",
		Fix:      "the list shows whether a pod of the provider runs on that node. The usual cause is a taint of the node. If it is not installed, install it",
		Commands: [][]string{podsOnNode, installDriver},
	},
	{
		Contains: "`csi.sock` and `connection refused`",
		pattern:  match(`csi\.sock.*(connection refused|no such file)`),
		Means:    "the driver on the pod's node does not answer",
		Fix:      "its pod restarts, or was evicted",
		Commands: [][]string{podsOnNode},
	},
	{
		Contains: "`service account tokens not found`, `token for audience … not found`",
		pattern:  match(`service account tokens (not found|are required)|token for audience \S+ not found`),
		Means:    "the kubelet passes no token to the driver: CSIDriver `" + class.Driver + "` does not request that audience",
		Fix:      "set `tokenRequests` of the driver's chart. The AKS add-on has it",
		Commands: [][]string{tokenAudiences},
	},
	{
		Contains: "`nodePublishSecretRef secret is not set`",
		pattern:  match(`nodePublishSecretRef secret is not set|no identity mode is enabled`),
		Means:    "class {CLASS} names no identity: it has neither `clientID` nor `usePodIdentity` or `useVMManagedIdentity`",
		Fix:      "set `clientID` in the class for workload identity",
		Commands: [][]string{describeClass},
		See:      ". See [IdentityMismatch](#identitymismatch)",
	},
	{
		Contains: "`failed to get secretproviderclass`",
		pattern:  match(`failed to get secretproviderclass \S+/(?P<CLASS>[^,\s]+)`),
		Means: "class {CLASS} is missing. The injector creates classes named `kv-…`, and its own event says why such a class is missing: " +
			"ClassNotWritten, ClassOutdated or ClassNameTaken",
		Fix:      "for a class named `kv-…`, do what that event says. Apply any other class",
		Commands: [][]string{words("kubectl get secretproviderclasses --namespace {NAMESPACE}")},
		See:      ". See [ClassNotWritten](#classnotwritten), [ClassOutdated](#classoutdated) and [ClassNameTaken](#classnametaken)",
	},
	{
		Contains: "`file matching objectName … not found in the pod`",
		pattern:  match(`file matching objectName (?P<OBJECT>\S+) not found in the pod`),
		Means:    "`secretObjects` of class {CLASS} names the file {OBJECT}, which the class does not mount",
		Fix:      "correct the class: the name is the object's alias, else its name",
		Commands: [][]string{describeClass},
	},
	{
		Contains: "`keyvaultName is not provided`, `tenantId is not provided`, `objects is not set`, `failed to yaml unmarshal`, `Invalid vault name`",
		pattern: match(`(keyvaultName|tenantId|pod name|pod namespace) is not provided|objects is not set|unmarshal (failed|objects)|` +
			`failed to (yaml unmarshal|parse use\w+ flag)|Invalid vault|only one identity mode|(parameters|provider) not set in|cloudName \S+ is not valid|` +
			`invalid object(Format|Encoding)|file name must`),
		Means:    "class {CLASS} is wrong: the message says which parameter",
		Fix:      "correct the class",
		Commands: [][]string{describeClass},
	},
	{
		Contains: "`Readonly is not true in request`",
		pattern:  match(`Readonly is not true in request`),
		Means:    "a volume of the driver that was written by hand lacks `readOnly: true`",
		Fix:      "set it",
	},

	// The kubelet.
	{
		Contains: "`secret \"…\" not found`, and `FailedToCreateSecret` with `timed out waiting for the condition`",
		pattern:  match(`FailedToCreateSecret.*timed out waiting for the condition|secret "(?P<SECRET>[^"]+)" not found|secrets is forbidden`),
		Means:    "the driver may not write Secrets. There are files but no env vars",
		Fix: "set `secrets-store-csi-driver.syncSecret.enabled=true` in the chart of the Azure provider; in the chart of the " +
			"driver, `syncSecret.enabled=true`. The AKS add-on has it",
		Commands: [][]string{syncOn},
		synced:   true,
	},
	{
		Contains: "`must …` of init container `keyvault-env`",
		pattern:  match(`[-.\w]+: (secret|key|cert) \S+ of vault \S+?(, property \S+)?: `),
		Means: "the program that writes the env vars of `keyvault.io/env-source: file` cannot: an env file cannot carry the value of an " +
			"object, or the object has no such property. The message never has a value",
		Fix: "do what the message says, or set `keyvault.io/env-source: secret`",
	},
	{
		Contains: "`secret \"…\" not found`, of a Secret that no class syncs",
		pattern:  match(`secret "(?P<SECRET>[^"]+)" not found`),
		Means:    "Secret {SECRET}, which the author of the pod names, does not exist",
		Fix:      "create it, or correct the name",
		Commands: [][]string{words("kubectl get secrets --namespace {NAMESPACE}")},
		foreign:  true,
	},
	{
		Contains: "`couldn't find key … in Secret`",
		pattern:  match(`couldn't find key (?P<KEY>\S+) in Secret \S+/(?P<SECRET>\S+)`),
		Means:    "Secret {SECRET} has no key {KEY}: another class or client writes a Secret of that name, or the class changed",
		Fix:      "compare `secretObjects` of the classes that sync it",
		Commands: [][]string{words("kubectl describe secret {SECRET} --namespace {NAMESPACE}"), describeClass},
	},
	{
		Contains: "`ErrImagePull`, `ImagePullBackOff`, `Failed to pull image`",
		pattern:  match(`ErrImage|ImagePullBackOff|InvalidImageName|pull(ing)? image|ImageInspectError`),
		Means:    "the image cannot be pulled",
		Fix:      "correct the image or its pull Secret",
		Commands: [][]string{words("kubectl describe pod {POD} --namespace {NAMESPACE}")},
		foreign:  true,
	},
	{
		Contains: "`FailedScheduling`",
		pattern:  match(`^FailedScheduling`),
		Means:    "no node fits the pod",
		Fix:      "the message says what the nodes lack",
		Commands: [][]string{words("kubectl describe pod {POD} --namespace {NAMESPACE}")},
		foreign:  true,
	},
	{
		Contains: "`CrashLoopBackOff`, `BackOff`, `Unhealthy`",
		pattern:  match(`^(CrashLoopBackOff|BackOff|Unhealthy|OOMKilled|RunContainerError|StartError)`),
		Means:    "the container starts, and ends or does not become ready",
		Fix:      "its log says why",
		Commands: [][]string{words("kubectl logs {POD} --namespace {NAMESPACE} --all-containers --previous")},
		foreign:  true,
	},
	{
		Contains: "`timed out waiting for the condition`, `context deadline exceeded`, otherwise",
		pattern:  match(`Unable to attach or mount volumes|timed out waiting for the condition|deadline exceeded|MountVolume\.SetUp failed`),
		Means:    "a volume is not mounted yet. Another event may say why; else the driver or the provider does not answer in time",
		Fix:      "look at the pods of the driver and the provider on that node",
		Commands: [][]string{podsOnNode},
		vague:    true,
	},
}

// said are patterns of values that many texts have.
var said = []*regexp.Regexp{
	match(`objectType:(?P<TYPE>\w+), objectName:(?P<OBJECT>[^,\s]+), objectVersion:[^:\s]*:`),
	match(`https://(?P<VAULT>[-\w]+)\.vault\.(azure\.net|azure\.cn|usgovcloudapi\.net)`),
	match(`lookup (?P<VAULT>[-\w]+)\.vault\.`),
	match(`login\.microsoftonline\.\w+/(?P<TENANT>[-0-9a-f]{36})`),
	match(`app(id|lication)[= ]'?(?P<CLIENT_ID>[-0-9a-f]{36})`),
}

// causeOf returns the cause of a text and the values in it; nil for none. Needed reports whether the
// driver must sync a Secret for the pod.
func causeOf(text string, needed func(secret string) bool) (*Cause, map[string]string) {
	values := map[string]string{}
	for _, pattern := range said {
		extract(pattern, text, values)
	}
	for i := range Causes {
		if !extract(Causes[i].pattern, text, values) {
			continue
		}
		if secret := values["SECRET"]; Causes[i].synced && secret != "" && !needed(secret) {
			continue
		}
		return &Causes[i], values
	}
	return nil, values
}

// extract reports whether a pattern matches, and adds the values of its named groups.
func extract(pattern *regexp.Regexp, text string, values map[string]string) bool {
	found := pattern.FindStringSubmatch(text)
	for i, name := range pattern.SubexpNames() {
		if found != nil && name != "" && found[i] != "" {
			values[name] = found[i]
		}
	}
	return found != nil
}

// plain returns Markdown as text for a terminal, with the values of placeholders.
func plain(text string, values func(string) string) string {
	return expand(strings.ReplaceAll(text, "`", ""), values)
}

// expand replaces placeholders by their values, or by their names if they have none.
func expand(text string, values func(string) string) string {
	return placeholder.ReplaceAllStringFunc(text, func(found string) string {
		name := strings.Trim(found, "{}")
		if value := values(name); value != "" {
			return value
		}
		return name
	})
}
