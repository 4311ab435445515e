package policy

import (
	"strings"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// HasCeiling reports whether a namespace, given by its annotations, has a ceiling.
func HasCeiling(namespace map[string]string) bool {
	_, vaults := namespace[api.AllowedVaults]
	_, names := namespace[api.AllowedNames]
	return vaults || names
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
