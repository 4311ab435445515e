package api

import "slices"

// Prefixes under which every annotation and label key of the contract lives. A key under one of them that is not in
// [Keys] is a mistake, never an extension.
const (
	KeyVaultPrefix = "keyvault.io/"
	IdentityPrefix = "identity.io/"
)

// Keys that a pod, a pod template, a workload or (as a default) a namespace may carry as annotations.
const (
	IdentityName     = IdentityPrefix + "name"
	IdentityMode     = IdentityPrefix + "mode"
	IdentityClientID = IdentityPrefix + "client-id"
	IdentityTenantID = IdentityPrefix + "tenant-id"

	Secrets    = KeyVaultPrefix + "secrets"
	Class      = KeyVaultPrefix + "class"
	Vault      = KeyVaultPrefix + "vault"
	MountPath  = KeyVaultPrefix + "mount-path"
	Containers = KeyVaultPrefix + "containers"
	Env        = KeyVaultPrefix + "env"
	OnConflict = KeyVaultPrefix + "on-conflict"
	Inject     = KeyVaultPrefix + "inject"
	Inherited  = KeyVaultPrefix + "inherited"
	Status     = KeyVaultPrefix + "status"
)

// Keys of the namespace.
const (
	// Injection is the namespace label that opts in: [InjectionEnabled] or [InjectionAlways].
	Injection = KeyVaultPrefix + "injection"
	// AllowedVaults and AllowedNames are namespace annotations: comma-separated globs. Absent allows all, empty none.
	AllowedVaults = KeyVaultPrefix + "allowed-vaults"
	AllowedNames  = IdentityPrefix + "allowed-names"
	// Exempt is the namespace annotation that lists globs of the ServiceAccounts whose pods policy passes over.
	Exempt = IdentityPrefix + "exempt"
	// Enforce, Warn and Audit are the namespace labels of policy.
	Enforce = IdentityPrefix + "enforce"
	Warn    = IdentityPrefix + "warn"
	Audit   = IdentityPrefix + "audit"
)

// Values of the namespace label [Injection].
const (
	// InjectionEnabled injects the pods that carry an annotation of their own.
	InjectionEnabled = "enabled"
	// InjectionAlways injects every pod, with the namespace's defaults at least.
	InjectionAlways = "always"
	// InjectionDisabled says in words what no label says too.
	InjectionDisabled = "disabled"
)

// Labels and annotations that an injected pod gets.
const (
	// Injected is the pod label that every injected pod carries with the value "true".
	Injected = KeyVaultPrefix + "injected"
	// PodIdentityBinding is AAD pod identity's label; its value is an AzureIdentityBinding's spec.selector.
	PodIdentityBinding = "aadpodidbinding"
	// WorkloadIdentityUse is the label by which Azure's workload identity webhook selects pods.
	WorkloadIdentityUse = "azure.workload.identity/use"
	// WorkloadIdentityBinding is the annotation that asks for an AKS identity binding.
	WorkloadIdentityBinding = "azure.workload.identity/use-identity-binding"
	// WorkloadIdentityClientID and WorkloadIdentityTenantID are annotations of a ServiceAccount: read, never written.
	WorkloadIdentityClientID = "azure.workload.identity/client-id"
	WorkloadIdentityTenantID = "azure.workload.identity/tenant-id"
	// TokenExchangeAudience and TokenProxyAudience are the audiences of ServiceAccount tokens by which Microsoft Entra, and AKS's proxy, know a workload.
	TokenExchangeAudience = "api://AzureADTokenExchange" //nolint:gosec // an audience is no secret
	TokenProxyAudience    = "api://AKSIdentityBinding"   //nolint:gosec // nor is this
	// MirrorPod marks the API server's image of a static pod, which nobody may change or block.
	MirrorPod = "kubernetes.io/config.mirror"
)

// DefaultMountPath is where the first class of a pod is mounted unless [MountPath] says otherwise.
const DefaultMountPath = "/mnt/secrets-store"

// MaxClasses is how many classes [Class] may list. Each is a volume, and a read of the API server where the cache is behind.
const MaxClasses = 10

// MaxItems is how many items [Secrets] may list.
const MaxItems = 100

// Key is one annotation that a user may write, with what the documentation says of it.
type Key struct {
	// Name is the whole key, prefix included.
	Name string
	// Values says what may be written, in words.
	Values string
	// Default is what holds when nothing is written; empty where there is none.
	Default string
	// Effect is what the key does.
	Effect string
}

// Keys lists every annotation of the request in the order in which mistakes are reported. docs/annotations.md and the
// README's table are generated from it.
//
//go:generate go run ../../docs/generate
var Keys = [numKeys]Key{
	identityName:     {IdentityName, "a name", "", "the identity to bind: an AzureIdentityBinding's selector, or a ServiceAccount"},
	identityMode:     {IdentityMode, "`auto`, `pod-identity`, `workload-identity`, `identity-binding`, `none`", "`auto`", "how the identity is bound"},
	identityClientID: {IdentityClientID, "GUID", "from the ServiceAccount", "the client that a managed class signs in as"},
	identityTenantID: {IdentityTenantID, "GUID", "from the ServiceAccount", "the Microsoft Entra tenant of a managed class"},
	secrets:          {Secrets, "a list of items", "", "what to mount, and which env vars to set"},
	classes:          {Class, "comma-separated names", "a managed class", "existing SecretProviderClasses to mount, the first at the mount path, others at `<mount-path>-<class>`"},
	vault:            {Vault, "vault name", "", "the Key Vault of items that name none, in a managed class"},
	mountPath:        {MountPath, "absolute path", "`" + DefaultMountPath + "`", "where the volume is mounted; `C:\\…` too in a Windows pod"},
	containers:       {Containers, "comma-separated names, globs, `!name`", "all, init containers too", "which containers get mounts and env vars; `!` entries alone start from all"},
	envMode:          {Env, "`explicit`, `auto`", "`explicit`", "`auto`: every secret also becomes an env var, `db-password` as `DB_PASSWORD`"},
	onConflict:       {OnConflict, "`keep`, `fail`, `override`", "`keep`", "a container sets that env var already: keep it and warn, reject the pod, or replace it"},
	injectKey:        {Inject, "`\"true\"`, `\"false\"`", "`\"true\"`", "`\"false\"` opts the pod out of everything but policy"},
	inherited:        {Inherited, "written by the injector", "", "what a pod template inherits from its workload's own annotations"},
	status:           {Status, "written by the injector", "", "what was injected and where each value came from; replaced wherever something is injected, never read"},
}

// The position of each key in [Keys]; what was read of a key is kept at its position.
const (
	identityName = iota
	identityMode
	identityClientID
	identityTenantID
	secrets
	classes
	vault
	mountPath
	containers
	envMode
	onConflict
	injectKey
	inherited
	status
	numKeys
)

// NamespaceLabels and NamespaceAnnotations are the keys that are valid on a Namespace only.
var (
	NamespaceLabels      = [...]string{Injection, Enforce, Warn, Audit}
	NamespaceAnnotations = [...]string{AllowedVaults, AllowedNames, Exempt}
)

// Governed reports whether a namespace has one of [NamespaceLabels]. Without one, the injector changes and rejects nothing in it.
func Governed(labels map[string]string) bool {
	for _, key := range NamespaceLabels {
		if _, set := labels[key]; set {
			return true
		}
	}
	return false
}

// namespaceKeyKind returns "label" or "annotation" for a key that is valid on a Namespace only, else "".
func namespaceKeyKind(key string) string {
	switch {
	case slices.Contains(NamespaceLabels[:], key):
		return "label"
	case slices.Contains(NamespaceAnnotations[:], key):
		return "annotation"
	}
	return ""
}
