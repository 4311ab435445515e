package api_test

import (
	"strings"
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
)

func TestNear(t *testing.T) {
	for key, want := range map[string]string{
		// Another domain, or none.
		"keyvault.com/class":               api.Class,
		"keyvault.azure.com/secrets":       api.Secrets,
		"keyvault.azure.io/vault":          api.Vault,
		"keyvault.k8s.io/secrets":          api.Secrets,
		"keyvault/secrets":                 api.Secrets,
		"keyvault.azure/env":               api.Env,
		"identity.azure.com/name":          api.IdentityName,
		"identity.k8s.io/client-id":        api.IdentityClientID,
		"identity/mode":                    api.IdentityMode,
		"secrets-store.keyvault.io/secret": api.Secrets,
		// Another spelling of the words.
		"keyvaults.io/mount-path":  api.MountPath,
		"key-vault.io/secrets":     api.Secrets,
		"key_vault.io/secrets":     api.Secrets,
		"KeyVault.io/secrets":      api.Secrets,
		"KEYVAULT.IO/SECRETS":      api.Secrets,
		"keyVault.io/mountPath":    api.MountPath,
		"identities.io/name":       api.IdentityName,
		"Identity.io/tenantId":     api.IdentityTenantID,
		"keyvaults.io/injection":   api.Injection,
		"keyvaults.io/enabled":     api.Injection,
		"key-vaults.io/allowed":    "",
		"identitys.io/enforce":     api.Enforce,
		"identities.io/exempt":     api.Exempt,
		"keyvaults.io/client-id":   api.IdentityClientID,
		"keyvaults.io/on_conflict": api.OnConflict,
		// Another word before or after.
		"azure-keyvault.io/secrets":   api.Secrets,
		"azurekeyvault.io/class":      api.Class,
		"azure.keyvault.io/secrets":   api.Secrets,
		"shop.keyvault.io/secrets":    api.Secrets,
		"keyvault-injector.io/inject": api.Inject,
		"azure.identity.io/name":      api.IdentityName,
		"azureidentity.io/names":      api.IdentityName,
		// The name of the project.
		"akv-injector.io/secrets": api.Secrets,
		"akv-injector/inject":     api.Inject,
		"akv.io/secret":           api.Secrets,
		"akv/classes":             api.Class,
		// Letters.
		"keyvalt.io/secrets":   api.Secrets,
		"kevyault.io/secrets":  api.Secrets,
		"keyvaullt.io/secrets": api.Secrets,
		"eyvault.io/secrets":   api.Secrets,
		"idenity.io/name":      api.IdentityName,
		"idenitty.io/name":     api.IdentityName,
		"keyvaults.io/scerets": api.Secrets,
		// Another separator.
		"keyvault.io.secrets": api.Secrets,
		"identity.io_name":    api.IdentityName,
		"keyvault.io:secrets": api.Secrets,
		// Other names.
		"keyvaults.io/vault-name":            api.Vault,
		"keyvaults.io/secret-provider-class": api.Class,
		"keyvault.com/objects":               api.Secrets,
		"identities.io/serviceAccountName":   api.IdentityName,
		// Keys of akv-injector, misspelt names of it included: others report these.
		"keyvault.io/secrets": "",
		"keyvault.io/secret":  "",
		"identity.io/names":   "",
		// Keys that have nothing to do with it, and those of other products.
		"": "", "app": "", "keyvault": "", "team/name": "", "name": "", "identity.name": "", "azure.keyvault.client-id": "",
		"spring.cloud.azure.keyvault.secret.name":            "",
		"keyvault.azure.com/role":                            "",
		"identity.example.com/name":                          "",
		"example.com/keyvault":                               "",
		"vault.io/secrets":                                   "",
		"azure.workload.identity/use":                        "",
		"azure.workload.identity/client-id":                  "",
		"azure.workload.identity/tenant-id":                  "",
		"azure.workload.identity/inject-proxy-sidecar":       "",
		"azure.workload.identity/skip-containers":            "",
		"azure.workload.identity/use-identity-binding":       "",
		"aadpodidbinding":                                    "",
		"aadpodidentity.k8s.io/Behavior":                     "",
		"azure-key-vault-env-injection":                      "",
		"akv2k8s.io/enabled":                                 "",
		"spv.no/name":                                        "",
		"serviceoperator.azure.com/reconcile-policy":         "",
		"serviceoperator.azure.com/credential-from":          "",
		"keyvault.azure.com/v1api20230701":                   "",
		"external-secrets.io/refresh":                        "",
		"reconcile.external-secrets.io/data-hash":            "",
		"vault.hashicorp.com/agent-inject":                   "",
		"vault.hashicorp.com/agent-inject-secret-name":       "",
		"vault.hashicorp.com/role":                           "",
		"vault.hashicorp.com/secret-volume-path":             "",
		"vault.security.banzaicloud.io/vault-env":            "",
		"vault.security.banzaicloud.io/vault-path":           "",
		"vault.security.banzaicloud.io/vault-serviceaccount": "",
		"secrets-store.csi.k8s.io/managed":                   "",
		"secrets-store.csi.k8s.io/used":                      "",
		"config.linkerd.io/proxy-await":                      "",
		"linkerd.io/inject":                                  "",
		"identity.linkerd.io/name":                           "",
		"sidecar.istio.io/inject":                            "",
		"cilium.io/identity":                                 "",
		"kubernetes.azure.com/mode":                          "",
		"eks.amazonaws.com/role-arn":                         "",
		"iam.gke.io/gcp-service-account":                     "",
		"reloader.stakater.com/auto":                         "",
		"conjur.org/container-mode":                          "",
		"kubectl.kubernetes.io/default-container":            "",
		"app.kubernetes.io/name":                             "",
	} {
		got := api.Near(key)
		if len(got) == 0 {
			got = []string{""}
		}
		if got[0] != want {
			t.Errorf("Near(%q) is %q, want %q first", key, got, want)
		}
	}
}

// TestNearPattern shows that a CEL expression can hold the pattern, and that it stays short: CEL's
// estimate of the cost grows with it.
func TestNearPattern(t *testing.T) {
	const most = 2 << 10
	if n := len(api.NearPattern); n > most || strings.ContainsAny(api.NearPattern, "'\n") {
		t.Errorf("NearPattern has %d bytes, want at most %d, and no quotes, so that a CEL expression can hold it:\n%s", n, most, api.NearPattern)
	}
}
