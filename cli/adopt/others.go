package adopt

import (
	"slices"
	"strconv"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
)

// others are the annotations and env vars of other injectors, by prefix, and what users of this one
// write instead.
var others = []struct{ prefix, why string }{
	{"vault.hashicorp.com/agent-inject-template-", "vault-k8s renders a template, which has no counterpart: mount the objects, and let the program read them"},
	{"vault.hashicorp.com/agent-inject-secret-", "vault-k8s reads HashiCorp Vault: store the secret in Key Vault, and write " + api.Secrets + ": OBJECT as FILE"},
	{"vault.hashicorp.com/agent-inject-command-", "vault-k8s runs a command after a rotation, which has no counterpart; " + api.OnRotation + ": restart restarts the workload"},
	{"vault.hashicorp.com/agent-inject", "vault-k8s reads HashiCorp Vault; " + api.Secrets + " names objects of Key Vault"},
	{"vault.hashicorp.com/role", "a role of HashiCorp Vault has no counterpart; " + api.IdentityName + " names the identity of the pod"},
	{"vault.hashicorp.com/", "a setting of vault-k8s, which has no counterpart"},
	{"vault.security.banzaicloud.io/vault-role", "a role of HashiCorp Vault has no counterpart; " + api.IdentityName + " names the identity of the pod"},
	{"vault.security.banzaicloud.io/", "a setting of bank-vaults, which has no counterpart"},
	{"secrets-webhook.security.bank-vaults.io/", "a setting of bank-vaults, which has no counterpart"},
}

// bankVaults is how the value of an env var starts that bank-vaults replaces.
const bankVaults = "vault:"

// findOthers finds what other injectors read. All of it stays.
func (a *adoption) findOthers() {
	for _, key := range sortedKeys(annotationsOf(a.pod)) {
		for _, other := range others {
			if strings.HasPrefix(key, other.prefix) {
				a.pieces = append(a.pieces, &piece{kind: identityPiece, path: []string{"metadata", "annotations", key}, why: other.why})
				break
			}
		}
	}
	for _, c := range containers(a.pod) {
		for i, variable := range items(c.fields, "env") {
			if value := text(variable, "value"); strings.HasPrefix(value, bankVaults) && strings.Contains(value, "#") {
				a.pieces = append(a.pieces, &piece{
					kind: envPiece, path: append(slices.Clone(c.path), "env", strconv.Itoa(i)),
					why: "bank-vaults reads HashiCorp Vault: store the secret in Key Vault, and write " + api.Secrets + ": " + text(variable, "name") + "=OBJECT",
				})
			}
		}
	}
}
