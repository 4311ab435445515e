package api

import (
	"slices"
	"strings"
)

// Annotations returns annotations that [ParseRequest] parses to the same request, with other
// origins.
func (r *Request) Annotations() map[string]string {
	annotations := map[string]string{}
	put := func(key, value, unless string) {
		if value != unless {
			annotations[key] = value
		}
	}
	put(IdentityName, r.Identity, "")
	put(IdentityMode, string(r.Mode), string(ModeAuto))
	put(IdentityClientID, r.ClientID, "")
	put(IdentityTenantID, r.TenantID, "")
	put(Secrets, printItems(r.Items), "")
	put(Class, strings.Join(r.Classes, ","), "")
	put(Vault, r.Vault, "")
	put(Cloud, r.Cloud, "")
	put(MountPath, r.MountPath, DefaultMountPath)
	put(Containers, r.Containers.String(), "")
	put(Env, string(r.EnvMode), string(EnvExplicit))
	put(EnvSource, string(r.EnvSource), string(EnvFromSecret))
	put(SecretName, r.SecretName, "")
	put(SecretType, r.SecretType, SecretTypes[0])
	put(OnConflict, string(r.OnConflict), string(ConflictKeep))
	put(OnRotation, string(r.OnRotation), string(RotationIgnore))
	if r.OptedOut {
		annotations[Inject] = "false"
	}
	return annotations
}

// Equal reports whether both have the same patterns. It is for package cmp.
func (s Selector) Equal(other Selector) bool {
	return slices.Equal(s.patterns, other.patterns)
}
