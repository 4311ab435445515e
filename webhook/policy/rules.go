package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
)

// Rule is one thing that policy checks.
type Rule struct {
	// Name tells rules apart; it is stable.
	Name string
	// Level is from where on the rule holds: [Off] for ceilings, which hold wherever they are set.
	Level Level
	// Reason is that of the rule's violations.
	Reason api.Reason
	// Alone is true where the rule needs nothing but the pod and its namespace, so that the API server can check it without the injector.
	Alone bool
	// Checks and Fix are what the documentation says of it.
	Checks, Fix string

	check func(*subject) field.ErrorList
}

// Rules is all that policy checks, in the order of the documentation, which is generated from it.
var Rules = [...]Rule{
	{
		Name: "binding-exists", Level: Bound, Reason: api.IdentityNotBound,
		Checks: "The label `aadpodidbinding` has the value of an AzureIdentityBinding's `spec.selector` in the namespace.",
		Fix:    "Apply the binding, or take a name that the message offers.", check: bindingExists,
	},
	{
		Name: "service-account-exists", Level: Bound, Reason: api.ServiceAccountNotFound,
		Checks: "With the label `azure.workload.identity/use: \"true\"` or a projected token for Microsoft Entra, the pod's ServiceAccount exists.",
		Fix:    "Apply the ServiceAccount, or name another.", check: serviceAccountExists,
	},
	{
		Name: "service-account-bound", Level: Bound, Reason: api.IdentityNotBound,
		Checks: "With the label `azure.workload.identity/use: \"true\"` or a projected token for Microsoft Entra, the pod's ServiceAccount has a client id.",
		Fix:    "Annotate the ServiceAccount with `azure.workload.identity/client-id`.", check: serviceAccountBound,
	},
	{
		Name: "class-named", Level: Bound, Reason: api.VolumeInvalid, Alone: true,
		Checks: "A volume of the Secrets Store CSI driver names a class.",
		Fix:    "Set the volume attribute `secretProviderClass`.", check: classNamed,
	},
	{
		Name: "class-exists", Level: Bound, Reason: api.ClassNotFound,
		Checks: "The class of every volume of the Secrets Store CSI driver exists in the namespace, or is the managed class of the pod's own annotations.",
		Fix:    "Apply the class, or take a name that the message offers.", check: classExists,
	},
	{
		Name: "class-identified", Level: Bound, Reason: api.IdentityRequired,
		Checks: "A pod that mounts a class of provider azure with `usePodIdentity: \"true\"` has the label `aadpodidbinding`.",
		Fix:    "Set `identity.io/name`, or the label.", check: classIdentified,
	},
	{
		Name: "attributes", Level: Bound, Reason: api.AttributeNotAllowed, Alone: true,
		Checks: "A volume of the Secrets Store CSI driver has no attribute but `secretProviderClass`: the driver lets others override the class.",
		Fix:    "Write it into a class.", check: attributesAlone,
	},
	{
		Name: "identity-required", Level: Required, Reason: api.IdentityRequired, Alone: true,
		Checks: "The pod has an identity: the label `aadpodidbinding`, `azure.workload.identity/use: \"true\"`, or a projected token for Microsoft Entra.",
		Fix:    "Set `identity.io/name` on the pod template.", check: identityRequired,
	},
	{
		Name: "vaults-allowed", Reason: api.VaultNotAllowed,
		Checks: "The namespace's annotation `keyvault.io/allowed-vaults`, where there is one, allows the Key Vault of every class that the pod mounts. The class is there to tell, and no attribute of the volume overrides it.",
		Fix:    "Take a vault that it allows, or ask whoever owns the namespace.", check: vaultsAllowed,
	},
	{
		Name: "identities-allowed", Reason: api.IdentityNotAllowed,
		Checks: "The namespace's annotation `identity.io/allowed-names`, where there is one, allows the label `aadpodidbinding`, and the ServiceAccount of a pod that has the label `azure.workload.identity/use: \"true\"`, projects a token for Microsoft Entra, or mounts a class with a `clientID`. The class is there to tell, and no attribute of a volume overrides it. Under either ceiling, no class reads the vault as the node or a service principal, which have no name, unless the server's flag `--allow-vm-identity` is set.",
		Fix:    "Take an identity that it allows, or ask whoever owns the namespace.", check: identitiesAllowed,
	},
}

func bindingExists(s *subject) field.ErrorList {
	name := s.binding()
	if name == "" || s.facts.Bound {
		return nil
	}
	err := field.NotFound(s.labelPath(api.PodIdentityBinding), api.Echo(name))
	err.Detail = "must be the spec.selector of an AzureIdentityBinding in namespace " + s.namespace.Name + api.Available(name, "AzureIdentityBinding", s.facts.Available.Selectors)
	return field.ErrorList{err}
}

func serviceAccountExists(s *subject) field.ErrorList {
	if !s.usesWorkloadIdentity() || s.facts.ServiceAccount != nil {
		return nil
	}
	err := field.NotFound(child(s.Root, "spec", "serviceAccountName"), s.ServiceAccount)
	err.Detail = "must be a ServiceAccount in namespace " + s.namespace.Name + api.Available(s.ServiceAccount, "ServiceAccount", s.facts.Available.ServiceAccounts)
	return field.ErrorList{err}
}

func serviceAccountBound(s *subject) field.ErrorList {
	sa := s.facts.ServiceAccount
	if !s.usesWorkloadIdentity() || sa == nil || sa.ClientID != "" {
		return nil
	}
	return field.ErrorList{field.Invalid(child(s.Root, "spec", "serviceAccountName"), s.ServiceAccount,
		"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+api.NoClientID(sa.InvalidClientID)+api.Available("", "ServiceAccount with one", s.facts.Available.Clients))}
}

// maxErrors is how many errors a rule has for a pod, more than anyone reads. A pod may have thousands of volumes, and each message looks
// for names that may have been meant.
const maxErrors = 20

// eachVolume gathers what is wrong with the pod's volumes.
func (s *subject) eachVolume(check func(*Volume) field.ErrorList) field.ErrorList {
	var errs field.ErrorList
	for i := range s.Volumes {
		if errs = append(errs, check(&s.Volumes[i])...); len(errs) >= maxErrors {
			return errs[:maxErrors]
		}
	}
	return errs
}

func classNamed(s *subject) field.ErrorList {
	return s.eachVolume(func(v *Volume) field.ErrorList {
		if v.class() != "" {
			return nil
		}
		return field.ErrorList{field.Required(v.attributePath(class.Attribute), "must name a SecretProviderClass")}
	})
}

func classExists(s *subject) field.ErrorList {
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	return s.eachVolume(func(v *Volume) field.ErrorList {
		if v.class() == "" || s.facts.class(v.class()) != nil {
			return nil
		}
		return field.ErrorList{s.noClass(v)}
	})
}

func (s *subject) noClass(v *Volume) *field.Error {
	name := api.Echo(v.class()) // nobody has checked it, not even its length
	err := field.NotFound(v.classPath(), name)
	err.Detail = "must be a SecretProviderClass in namespace " + s.namespace.Name +
		class.Available(name, s.facts.Available.Classes, s.facts.Available.NoDriver)
	return err
}

// classPath is where a volume's class was written.
func (v *Volume) classPath() *field.Path {
	if v.Injected {
		return v.Path
	}
	return v.attributePath(class.Attribute)
}

func (v *Volume) attributePath(key string) *field.Path {
	return v.Path.Child("volumeAttributes").Key(api.Echo(key))
}

func classIdentified(s *subject) field.ErrorList {
	if s.binding() != "" {
		return nil
	}
	for i := range s.Volumes {
		// Other providers have a parameter of that name too, for something else.
		if c := s.facts.class(s.Volumes[i].class()); c != nil && c.Provider == class.Provider && c.UsesPodIdentity {
			return field.ErrorList{field.Required(s.labelPath(api.PodIdentityBinding), fmt.Sprintf(
				"must be set, since class %s has usePodIdentity: \"true\"; add annotation %s, or this label, to the pod template%s",
				c.Name, api.IdentityName, api.Available("", "AzureIdentityBinding", s.facts.Available.Selectors)))}
		}
	}
	return nil
}

func attributesAlone(s *subject) field.ErrorList {
	return s.eachVolume(func(v *Volume) field.ErrorList {
		var errs field.ErrorList
		for _, key := range v.others() {
			errs = append(errs, field.Forbidden(v.attributePath(key), "must not override the class; write it into a class of its own"))
		}
		return errs
	})
}

// others are the attributes of a volume that override its class, sorted.
func (v *Volume) others() []string {
	var keys []string
	for key := range v.Attributes {
		if key != class.Attribute {
			keys = append(keys, key)
		}
	}
	slices.Sort(keys)
	return keys
}

func (p *Pod) hasIdentity() bool {
	return p.binding() != "" || p.usesWorkloadIdentity()
}

func identityRequired(s *subject) field.ErrorList {
	if s.hasIdentity() {
		return nil
	}
	return field.ErrorList{field.Required(child(s.Root, "metadata", "annotations").Key(api.IdentityName), "must be set on the pod template"+s.facts.Available.identities())}
}

// maxOffered is how many identities of a kind a message offers.
const maxOffered = 5

// identities is the end of a sentence about an identity that is missing.
func (a *Available) identities() string {
	var offered []string
	for _, kind := range []struct {
		names []string
		of    string
	}{{a.Selectors, "AzureIdentityBinding"}, {a.Clients, "ServiceAccount"}} {
		names := slices.Compact(slices.Sorted(slices.Values(kind.names)))
		for _, name := range names[:min(len(names), maxOffered)] {
			offered = append(offered, name+" ("+kind.of+")")
		}
		if len(names) > maxOffered {
			offered = append(offered, "…")
		}
	}
	if len(offered) == 0 {
		return "; there is none here: apply an AzureIdentityBinding, or a ServiceAccount with annotation " + api.WorkloadIdentityClientID
	}
	return "; available here: " + strings.Join(offered, ", ")
}

// vaultsAllowed does not ask for the provider: a ceiling must not depend on what one is called on a node.
func vaultsAllowed(s *subject) field.ErrorList {
	if _, set := s.namespace.Annotations[api.AllowedVaults]; !set {
		return nil
	}
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	return s.eachVolume(func(v *Volume) field.ErrorList {
		c := s.facts.class(v.class())
		switch {
		case len(v.others()) > 0:
			return field.ErrorList{s.overrides(v, api.AllowedVaults)}
		case v.class() == "":
			return nil // the driver mounts nothing
		case c == nil:
			return field.ErrorList{s.untold(v, api.AllowedVaults)}
		case c.Vault == "" && c.Provider == class.Provider:
			return field.ErrorList{field.Forbidden(v.classPath(), "must say its Key Vault: class "+c.Name+" has no keyvaultName"+s.allowed(api.AllowedVaults))}
		case c.Vault != "" && !VaultAllowed(s.namespace.Annotations, c.Vault):
			return field.ErrorList{field.Forbidden(v.classPath(), "must not read Key Vault "+api.Echo(c.Vault)+s.allowed(api.AllowedVaults))}
		}
		return nil
	})
}

func identitiesAllowed(s *subject) field.ErrorList {
	ceiling := Ceiling(s.namespace.Annotations)
	if ceiling == "" {
		return nil
	}
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	nameless := s.eachVolume(func(v *Volume) field.ErrorList {
		if c := s.facts.class(v.class()); c != nil && c.IsNameless() && !s.NodeIdentityAllowed {
			return field.ErrorList{field.Forbidden(v.classPath(), "must not read the vault as the node or a service principal, as class "+api.Echo(c.Name)+" does"+s.allowed(ceiling))}
		}
		return nil
	})
	if ceiling != api.AllowedNames {
		return nameless
	}
	var errs field.ErrorList
	if name := s.binding(); name != "" && !IdentityAllowed(s.namespace.Annotations, name) {
		errs = append(errs, field.Forbidden(s.labelPath(api.PodIdentityBinding), "must not use identity "+api.Echo(name)+s.allowed(api.AllowedNames)))
	}
	uses := s.usesWorkloadIdentity()
	volumes := s.eachVolume(func(v *Volume) field.ErrorList {
		c := s.facts.class(v.class())
		switch {
		case len(v.others()) > 0:
			return field.ErrorList{s.overrides(v, api.AllowedNames)}
		case c != nil:
			uses = uses || (c.ClientID+c.InvalidClientID != "" && !c.UsesPodIdentity) // with both, the provider passes over the client id
		case v.class() != "": // it may turn out to have no name
			return field.ErrorList{s.untold(v, api.AllowedNames)}
		}
		return nil
	})
	if uses && !IdentityAllowed(s.namespace.Annotations, s.ServiceAccount) {
		errs = append(errs, field.Forbidden(child(s.Root, "spec", "serviceAccountName"), "must not use identity "+api.Echo(s.ServiceAccount)+s.allowed(api.AllowedNames)))
	}
	return append(append(errs, nameless...), volumes...)
}

// overrides is about a volume whose attributes get around a ceiling.
func (s *subject) overrides(v *Volume, ceiling string) *field.Error {
	return field.Forbidden(v.attributePath(v.others()[0]), "must not override the class"+s.allowed(ceiling))
}

// untold is about a class that is not there to be held against a ceiling: it may turn out to say anything.
func (s *subject) untold(v *Volume, ceiling string) *field.Error {
	err := s.noClass(v)
	err.Detail += s.allowed(ceiling)
	return api.Because(api.ClassNotFound, err)
}

// maxCeiling is how much of a ceiling, in bytes, a message repeats.
const maxCeiling = 256

// allowed is the end of a sentence about what a ceiling forbids.
func (s *subject) allowed(key string) string {
	ceiling := strings.TrimSpace(s.namespace.Annotations[key])
	if ceiling == "" {
		ceiling = "none"
	}
	return "; namespace annotation " + key + " allows " + api.Cut(ceiling, maxCeiling)
}
