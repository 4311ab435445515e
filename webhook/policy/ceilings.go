package policy

import (
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

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

// GlobMistakes says which globs in the annotations of a namespace match something else than their author may have meant.
func GlobMistakes(name string, annotations map[string]string) field.ErrorList {
	var errs field.ErrorList
	for _, key := range []string{api.AllowedVaults, api.AllowedNames, api.Exempt} {
		for glob := range strings.SplitSeq(annotations[key], ",") {
			glob = strings.TrimSpace(glob)
			detail := ""
			if _, err := path.Match(glob, ""); err != nil {
				detail = "is malformed and matches nothing; write * for any characters, ? for one, [a-z] or [^a-z]"
			} else if strings.Contains(glob, "[!") {
				detail = "matches ! and the characters after it; write [^ for all characters but these"
			}
			if detail != "" {
				at := field.NewPath("namespaces").Key(name).Child("metadata", "annotations").Key(key)
				errs = append(errs, api.Because(api.GlobInvalid, field.Invalid(at, api.Echo(glob), detail)))
				break // one of each annotation is enough for a warning on every pod
			}
		}
	}
	return errs
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
