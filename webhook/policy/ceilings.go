// Package policy decides what pods of a namespace may use.
//
// It is pure: it knows nothing of clusters, and judges what it is shown.
package policy

import (
	"path"
	"strings"

	"github.com/akv-injector/akv-injector/webhook/api"
)

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

// matchesAny reports whether one of the comma-separated globs matches name. A malformed glob matches nothing: a ceiling that can't be
// understood allows less, not more.
func matchesAny(globs, name string) bool {
	for glob := range strings.SplitSeq(globs, ",") {
		if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {
			return true
		}
	}
	return false
}
