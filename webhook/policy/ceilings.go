package policy

import (
	"strings"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// Ceiling is the ceiling that holds for identities without a name in a namespace, given by its annotations: that on names, or else that on vaults.
// It is empty for a namespace without a ceiling.
func Ceiling(namespace map[string]string) string {
	for _, key := range []string{api.AllowedNames, api.AllowedVaults} {
		if _, set := namespace[key]; set {
			return key
		}
	}
	return ""
}

// VaultAllowed reports whether the ceiling of a namespace, given by its annotations, lets its pods read that Key Vault.
// Names of vaults are parts of DNS names: case does not matter.
func VaultAllowed(namespace map[string]string, vault string) bool {
	ceiling, set := namespace[api.AllowedVaults]
	return !set || matchesAny(strings.ToLower(ceiling), strings.ToLower(vault))
}

// IdentityAllowed reports whether the ceiling of a namespace, given by its annotations, lets its pods use the identity of that
// name.
func IdentityAllowed(namespace map[string]string, name string) bool {
	ceiling, set := namespace[api.AllowedNames]
	return !set || matchesAny(ceiling, name)
}
