package policy

import (
	"cmp"
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// Ceiling returns the key of the annotation that limits identities without a name in a namespace:
// [api.AllowedNames] if the namespace has it, else [api.AllowedVaults]. It is empty if the
// namespace has neither, and so no ceiling.
func Ceiling(namespace facts.Namespace) string {
	for _, key := range []string{api.AllowedNames, api.AllowedVaults} {
		if _, set := namespace.Annotations[key]; set {
			return key
		}
	}
	return ""
}

// CheckVault returns an error at fldPath if the ceiling of the namespace does not allow the Key
// Vault, else nil. A glob without a cloud, which is before a slash, allows vaults of every cloud. An
// empty cloud is the public one. Vault names are parts of DNS names, so case does not matter.
func CheckVault(namespace facts.Namespace, cloud, vault string, fldPath *field.Path) *field.Error {
	ceiling, set := namespace.Annotations[api.AllowedVaults]
	ceiling, name := strings.ToLower(ceiling), strings.ToLower(vault)
	ofCloud := strings.ToLower(cmp.Or(cloud, api.Clouds[0])) + "/" + name
	if !set || matchesAny(ceiling, name) || matchesAny(ceiling, ofCloud) {
		return nil
	}
	detail := "must not read Key Vault " + api.Echo(vault)
	if cloud != "" {
		detail += " of " + api.Echo(cloud)
	}
	return forbidden(api.VaultNotAllowed, namespace, api.AllowedVaults, fldPath, detail)
}

// CheckSecretName returns an error at fldPath unless the ceiling of the namespace allows a class to
// sync the Secret of that name. Without the ceiling, none is allowed.
func CheckSecretName(namespace facts.Namespace, name string, fldPath *field.Path) *field.Error {
	if matchesAny(namespace.Annotations[api.AllowedSecretNames], name) {
		return nil
	}
	return forbidden(api.SecretNameNotAllowed, namespace, api.AllowedSecretNames, fldPath,
		"must not sync Secret "+api.Echo(name)+", since the driver overwrites any Secret of that name")
}

// CheckSynced returns an error at fldPath if the namespace has a ceiling for names of Secrets that does
// not allow one that the class syncs, else nil.
func CheckSynced(namespace facts.Namespace, c *class.Class, fldPath *field.Path) *field.Error {
	if _, set := namespace.Annotations[api.AllowedSecretNames]; !set {
		return nil
	}
	for _, s := range c.Synced {
		if isOwn := s.Secret == c.Name && class.IsManagedName(c.Name); isOwn {
			continue
		}
		if err := CheckSecretName(namespace, s.Secret, fldPath); err != nil {
			return err
		}
	}
	return nil
}

// CheckIdentity returns an error at fldPath if the ceiling of the namespace does not allow the
// identity of that name, else nil.
func CheckIdentity(namespace facts.Namespace, name string, fldPath *field.Path) *field.Error {
	ceiling, set := namespace.Annotations[api.AllowedNames]
	if !set || matchesAny(ceiling, name) {
		return nil
	}
	return forbidden(api.IdentityNotAllowed, namespace, api.AllowedNames, fldPath, "must not use identity "+api.Echo(name))
}

// CheckNameless returns an error at fldPath if the class reads the vault as an identity without a
// name, and the namespace has a ceiling, which cannot allow that identity. Else it returns nil.
func CheckNameless(namespace facts.Namespace, c *class.Class, fldPath *field.Path) *field.Error {
	ceiling := Ceiling(namespace)
	if ceiling == "" || !c.IsNameless() {
		return nil
	}
	return forbidden(api.IdentityNotAllowed, namespace, ceiling, fldPath,
		"must not read the vault as the node or a service principal, as class "+api.Echo(c.Name)+" does")
}

// CheckAttributes returns an error if the namespace has that ceiling, and attributes of the volume
// override its class, else nil.
func CheckAttributes(namespace facts.Namespace, ceiling string, v *Volume) *field.Error {
	_, set := namespace.Annotations[ceiling]
	others := v.others()
	if !set || len(others) == 0 {
		return nil
	}
	reason := api.VaultNotAllowed
	if ceiling == api.AllowedNames {
		reason = api.IdentityNotAllowed
	}
	return forbidden(reason, namespace, ceiling, v.attributePath(others[0]), "must not override the class")
}

// forbidden is the error about what a ceiling does not allow.
func forbidden(
	reason api.Reason, namespace facts.Namespace, ceiling string, fldPath *field.Path, detail string,
) *field.Error {
	return api.Because(reason, field.Forbidden(fldPath, detail+allows(namespace, ceiling)))
}

// maxCeiling is how much of a ceiling, in bytes, a message repeats.
const maxCeiling = 256

// allows ends a message with what a ceiling allows.
func allows(namespace facts.Namespace, key string) string {
	ceiling := strings.TrimSpace(namespace.Annotations[key])
	if ceiling == "" {
		ceiling = "none"
	}
	return "; namespace annotation " + key + " allows " + api.Cut(ceiling, maxCeiling)
}

// CheckNamespace warns of annotations of a namespace that may not do what their author wants:
// ceilings without a label that enforces them, and globs. If onlyUnchecked, it leaves out what a
// review of policy reports for the pods of the namespace.
func CheckNamespace(namespace facts.Namespace, onlyUnchecked bool) field.ErrorList {
	warnings := ceilingsNotEnforced(namespace)
	if onlyUnchecked && hasLevels(namespace) {
		return warnings
	}
	return append(warnings, GlobMistakes(namespace)...)
}

// ceilingsNotEnforced warns of ceilings that do not hold for labels and volumes in manifests.
func ceilingsNotEnforced(namespace facts.Namespace) field.ErrorList {
	var ceilings []string
	for _, key := range []string{api.AllowedVaults, api.AllowedNames, api.AllowedSecretNames} {
		if _, set := namespace.Annotations[key]; set {
			ceilings = append(ceilings, key)
		}
	}
	if len(ceilings) == 0 || Enforces(namespace) {
		return nil
	}
	path := field.NewPath("namespaces").Key(namespace.Name).Child("metadata", "labels").Key(api.Enforce)
	return field.ErrorList{api.Because(api.CeilingNotEnforced, field.Required(path,
		"must be set for "+strings.Join(ceilings, " and ")+
			" to hold for labels and volumes that are written by hand; set it to "+string(Bound)))}
}

// GlobMistakes warns of globs in the annotations of a namespace that match something else than
// their author may expect.
func GlobMistakes(namespace facts.Namespace) field.ErrorList {
	var errs field.ErrorList
	for _, key := range []string{api.AllowedVaults, api.AllowedNames, api.AllowedSecretNames, api.Exempt} {
		for glob := range strings.SplitSeq(namespace.Annotations[key], ",") {
			glob = strings.TrimSpace(glob)
			detail := ""
			if _, err := path.Match(glob, ""); err != nil {
				detail = "is malformed and matches nothing; write * for any characters, ? for one, [a-z] or [^a-z]"
			} else if strings.Contains(glob, "[!") {
				detail = "matches ! and the characters after it; write [^ for all characters but these"
			}
			if detail != "" {
				at := field.NewPath("namespaces").Key(namespace.Name).Child("metadata", "annotations").Key(key)
				errs = append(errs, api.Because(api.GlobInvalid, field.Invalid(at, api.Echo(glob), detail)))
				break // one of each annotation is enough for a warning on every pod
			}
		}
	}
	return errs
}
