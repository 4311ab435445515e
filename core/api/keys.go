package api

import "slices"

// Prefixes of all annotation and label keys of akv-injector. An unknown annotation with one of
// these prefixes is an error on a pod or workload, and a warning on a namespace.
const (
	KeyVaultPrefix = "keyvault.io/"
	IdentityPrefix = "identity.io/"
)

// Annotation keys of pods, pod templates and workloads. On a namespace they are defaults for its
// pods.
const (
	IdentityName     = IdentityPrefix + "name"
	IdentityMode     = IdentityPrefix + "mode"
	IdentityClientID = IdentityPrefix + "client-id"
	IdentityTenantID = IdentityPrefix + "tenant-id"

	Secrets    = KeyVaultPrefix + "secrets"
	Class      = KeyVaultPrefix + "class"
	Vault      = KeyVaultPrefix + "vault"
	Cloud      = KeyVaultPrefix + "cloud"
	MountPath  = KeyVaultPrefix + "mount-path"
	Containers = KeyVaultPrefix + "containers"
	Env        = KeyVaultPrefix + "env"
	EnvSource  = KeyVaultPrefix + "env-source"
	SecretName = KeyVaultPrefix + "secret-name"
	SecretType = KeyVaultPrefix + "secret-type"
	OnConflict = KeyVaultPrefix + "on-conflict"
	OnRotation = KeyVaultPrefix + "on-rotation"
	Inject     = KeyVaultPrefix + "inject"
	Inherited  = KeyVaultPrefix + "inherited"
	Status     = KeyVaultPrefix + "status"
	// RestartedFor is also an annotation of a workload itself; see [Versions].
	RestartedFor = KeyVaultPrefix + "restarted-for"
)

// Keys of the namespace.
const (
	// Injection is the namespace label that opts in: [InjectionEnabled] or [InjectionAlways].
	Injection = KeyVaultPrefix + "injection"
	// AllowedVaults and AllowedNames are the ceilings of a namespace: annotations with
	// comma-separated globs. Without the annotation everything is allowed; an empty value allows
	// nothing.
	AllowedVaults = KeyVaultPrefix + "allowed-vaults"
	AllowedNames  = IdentityPrefix + "allowed-names"
	// AllowedSecretNames is the namespace annotation with globs of the names that [SecretName] may
	// have. Without it, only generated names are allowed: the driver overwrites any Secret of that
	// name.
	AllowedSecretNames = KeyVaultPrefix + "allowed-secret-names"
	// Exempt is the namespace annotation with globs of the ServiceAccounts whose pods are exempt
	// from the policy levels.
	Exempt = IdentityPrefix + "exempt"
	// RestartWindow is the namespace annotation with the times at which rotation may restart
	// workloads; see [ParseWindow].
	RestartWindow = KeyVaultPrefix + "restart-window"
	// Enforce, Warn and Audit are the namespace labels of policy.
	Enforce = IdentityPrefix + "enforce"
	Warn    = IdentityPrefix + "warn"
	Audit   = IdentityPrefix + "audit"
)

// Values of the namespace label [Injection].
const (
	// InjectionEnabled injects the pods that have an annotation of the request.
	InjectionEnabled = "enabled"
	// InjectionAlways injects every pod; pods without annotations get the namespace's defaults.
	InjectionAlways = "always"
	// InjectionDisabled injects no pod, as without the label.
	InjectionDisabled = "disabled"
)

// Other keys and values of pods and ServiceAccounts.
const (
	// Injected is a label with the value "true" on every injected pod.
	Injected = KeyVaultPrefix + "injected"
	// PodIdentityBinding is the pod label of AAD pod identity. Its value is the spec.selector of an
	// AzureIdentityBinding.
	PodIdentityBinding = "aadpodidbinding"
	// WorkloadIdentityUse is the label by which Azure's workload identity webhook selects pods.
	WorkloadIdentityUse = "azure.workload.identity/use"
	// WorkloadIdentityBinding is the pod annotation that requests an AKS identity binding.
	WorkloadIdentityBinding = "azure.workload.identity/use-identity-binding"
	// WorkloadIdentityClientID and WorkloadIdentityTenantID are annotations of a ServiceAccount.
	// The injector only reads them.
	WorkloadIdentityClientID = "azure.workload.identity/client-id"
	WorkloadIdentityTenantID = "azure.workload.identity/tenant-id"
	// TokenExchangeAudience and TokenProxyAudience are the audiences of the ServiceAccount tokens
	// with which a workload authenticates to Microsoft Entra, and to the token proxy of AKS.
	TokenExchangeAudience = "api://AzureADTokenExchange" //nolint:gosec // an audience is no secret
	TokenProxyAudience    = "api://AKSIdentityBinding"   //nolint:gosec // an audience is no secret
	// MirrorPod is the annotation of a mirror pod: the API server's copy of a static pod, which
	// must not be changed or rejected.
	MirrorPod = "kubernetes.io/config.mirror"
)

// DefaultMountPath is where the first class of a pod is mounted unless [MountPath] is set.
const DefaultMountPath = "/mnt/secrets-store"

// MaxClasses is how many classes [Class] may list. Each class is a volume, and may cost a read of
// the API server.
const MaxClasses = 10

// MaxItems is how many items [Secrets] may list.
const MaxItems = 100

// Key is one annotation and its documentation. All texts are Markdown.
type Key struct {
	// Name is the key with its prefix.
	Name string
	// Values describes the valid values.
	Values string
	// Default is the value that applies without the annotation; empty for none.
	Default string
	// Effect describes what the annotation does.
	Effect string
}

// Keys lists every annotation, in the order in which mistakes are reported. The tables in README.md
// and docs/annotations.md are generated from it.
//
//go:generate go run ../../docs/generate
var Keys = [numKeys]Key{
	identityName:     {IdentityName, "a name", "", "the identity to bind: the selector of an AzureIdentityBinding, or a ServiceAccount"},
	identityMode:     {IdentityMode, "`auto`, `pod-identity`, `workload-identity`, `identity-binding`, `none`", "`auto`, or the flag `--identity-mode`", "how the identity is bound"},
	identityClientID: {IdentityClientID, "GUID", "from the ServiceAccount", "the client id of the identity with which a managed class reads the vault"},
	identityTenantID: {IdentityTenantID, "GUID", "from the ServiceAccount, then `--tenant-id`", "the Microsoft Entra tenant of that identity"},
	secrets:          {Secrets, "a list of items", "", "the Key Vault objects to mount, and the env vars to set"},
	classes:          {Class, "comma-separated names", "a managed class", "existing SecretProviderClasses to mount: the first at the mount path, the others at `<mount-path>-<class>`"},
	vault:            {Vault, "vault name", "", "the Key Vault of items without a vault, for managed classes"},
	cloud:            {Cloud, "`AzurePublicCloud`, `AzureUSGovernmentCloud`, `AzureChinaCloud`", "`--cloud`, then the provider's default", "the cloud of the vaults of managed classes"},
	mountPath:        {MountPath, "absolute path", "`" + DefaultMountPath + "`", "where the volume is mounted; in a Windows pod also `C:\\…`"},
	containers:       {Containers, "comma-separated names, globs, `!name`", "all, including init containers", "which containers get mounts and env vars; only `!name` entries: all containers except those"},
	envMode:          {Env, "`explicit`, `auto`", "`explicit`", "`auto`: every secret also becomes an env var, such as `DB_PASSWORD` for `db-password`"},
	envSource:        {EnvSource, "`secret`, `file`", "`secret`", "where env vars come from: a synced Kubernetes Secret, or a file in the memory of the pod, for which no Secret is created"},
	secretName:       {SecretName, "name of a Secret", "the name of the class", "the name of the Secret that a managed class syncs, if the namespace's `keyvault.io/allowed-secret-names` allows it"},
	secretType:       {SecretType, "`Opaque`, `kubernetes.io/tls`, `kubernetes.io/dockerconfigjson`, `kubernetes.io/basic-auth`, `kubernetes.io/ssh-auth`", "`Opaque`", "the type of that Secret"},
	onConflict:       {OnConflict, "`keep`, `fail`, `override`", "`keep`", "if a container already sets the env var: keep it and warn, reject the pod, or replace it"},
	onRotation:       {OnRotation, "`ignore`, `restart`", "`ignore`", "`restart`: when a mounted object gets a new version, the workload is restarted if an env var or a `subPath` mount uses the object"},
	injectKey:        {Inject, "`\"true\"`, `\"false\"`", "`\"true\"`", "`\"false\"` opts the pod out of injection; policy still applies"},
	inherited:        {Inherited, "written by the injector", "", "the annotations that a pod template inherits from its workload"},
	restartedFor:     {RestartedFor, "written by the injector", "", "the versions for which the workload was last restarted; on the workload itself, the versions that its pods have"},
	status:           {Status, "written by the injector", "", "what was injected, and the origin of each value; rewritten at each injection, never read"},
}

// The index of each key in [Keys]. Arrays of length numKeys use the same indices.
const (
	identityName = iota
	identityMode
	identityClientID
	identityTenantID
	secrets
	classes
	vault
	cloud
	mountPath
	containers
	envMode
	envSource
	secretName
	secretType
	onConflict
	onRotation
	injectKey
	inherited
	restartedFor
	status
	numKeys
)

// NamespaceLabels and NamespaceAnnotations are the keys that are valid only on a Namespace.
var (
	NamespaceLabels      = [...]string{Injection, Enforce, Warn, Audit}
	NamespaceAnnotations = [...]string{AllowedVaults, AllowedNames, AllowedSecretNames, Exempt, RestartWindow}
)

// Governed reports whether a namespace has one of [NamespaceLabels]. Without one, the injector
// changes and rejects nothing in it.
func Governed(labels map[string]string) bool {
	for _, key := range NamespaceLabels {
		if _, set := labels[key]; set {
			return true
		}
	}
	return false
}

// namespaceKeyKind returns "label" or "annotation" for a key that is valid only on a Namespace,
// else "".
func namespaceKeyKind(key string) string {
	switch {
	case slices.Contains(NamespaceLabels[:], key):
		return "label"
	case slices.Contains(NamespaceAnnotations[:], key):
		return "annotation"
	}
	return ""
}
