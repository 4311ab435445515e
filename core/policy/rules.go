package policy

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// Rule is one thing that policy checks.
type Rule struct {
	// Name identifies the rule; it is stable.
	Name string
	// Level is the lowest level at which the rule holds; [Off] for ceilings, which hold
	// wherever a namespace has them.
	Level Level
	// Reason is the Reason of the rule's violations.
	Reason api.Reason
	// Alone is true if the rule needs no lookup, only the pod and its namespace. The API server
	// can check such a rule without the injector.
	Alone bool
	// OfBindings is true for rules about Bindings, which do not hold for pods.
	OfBindings bool
	// Checks and Fix are the texts for the documentation.
	Checks, Fix string

	check func(*subject) field.ErrorList
}

// Rules are all rules, in the order of the documentation, which is generated from them.
var Rules = [...]Rule{
	{
		Name: "binding-exists", Level: Bound, Reason: api.IdentityNotBound,
		Checks: "The label `aadpodidbinding` has the value of an AzureIdentityBinding's `spec.selector` in the namespace.",
		Fix:    "Apply the binding, or use a name that the message offers.", check: bindingExists,
	},
	{
		Name: "service-account-exists", Level: Bound, Reason: api.ServiceAccountNotFound,
		Checks: "With the label `azure.workload.identity/use: \"true\"` or a projected token for Microsoft Entra, the pod's ServiceAccount exists.",
		Fix:    "Apply the ServiceAccount, or name another one.", check: serviceAccountExists,
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
		Fix:    "Apply the class, or use a name that the message offers.", check: classExists,
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
		Checks: "The namespace's annotation `keyvault.io/allowed-vaults`, if the namespace has it, allows the Key Vault of every class that the pod mounts. The class must exist, and no attribute of the volume may override it.",
		Fix:    "Use a vault that it allows, or ask the owner of the namespace.", check: vaultsAllowed,
	},
	{
		Name: "secret-names-allowed", Reason: api.SecretNameNotAllowed,
		Checks: "The namespace's annotation `keyvault.io/allowed-secret-names`, if the namespace has it, allows the name of every Secret that a class of the pod syncs, unless it is a managed class and the Secret has its name. The class must exist.",
		Fix:    "Use a name that it allows, or ask the owner of the namespace.", check: secretNamesAllowed,
	},
	{
		Name: "identities-allowed", Reason: api.IdentityNotAllowed,
		Checks: "The namespace's annotation `identity.io/allowed-names`, if the namespace has it, allows the label `aadpodidbinding`, and the ServiceAccount of a pod that has the label `azure.workload.identity/use: \"true\"`, projects a token for Microsoft Entra, or mounts a class with a `clientID`. The class must exist, and no attribute of a volume may override it. Under either ceiling, no class reads the vault as the node or a service principal, which have no name, unless `akv-injector serve` runs with `--allow-vm-identity`.",
		Fix:    "Use an identity that it allows, or ask the owner of the namespace.", check: identitiesAllowed,
	},
	{
		Name: "binding-labels-allowed", Reason: api.IdentityNotAllowed, OfBindings: true,
		Checks: "In a namespace with the annotation `identity.io/allowed-names`, a Binding, by which a scheduler gives a pod its node, sets no identity label on the pod. A Binding does not have what policy needs to check the identity.",
		Fix:    "Set the label on the pod.", check: bindingLabelsAllowed,
	},
	{
		Name: "binding-labels", Level: Bound, Reason: api.IdentityNotAllowed, OfBindings: true,
		Checks: "A Binding sets no identity label on the pod, also without `identity.io/allowed-names`.",
		Fix:    "Set the label on the pod.", check: bindingLabels,
	},
}

func bindingLabels(s *subject) field.ErrorList {
	var errs field.ErrorList
	for _, key := range []string{api.PodIdentityBinding, api.WorkloadIdentityUse} {
		if _, set := s.Labels[key]; set {
			errs = append(errs, field.Forbidden(s.labelPath(key), "must not be set by a Binding; set it on the pod"))
		}
	}
	return errs
}

func bindingLabelsAllowed(s *subject) field.ErrorList {
	if _, ceiling := s.namespace.Annotations[api.AllowedNames]; !ceiling {
		return nil
	}
	return bindingLabels(s)
}

func bindingExists(s *subject) field.ErrorList {
	name := s.binding()
	if name == "" || s.answer.Bound {
		return nil
	}
	err := field.NotFound(s.labelPath(api.PodIdentityBinding), api.Echo(name))
	err.Detail = "must be the spec.selector of an AzureIdentityBinding in namespace " + s.namespace.Name +
		api.Available(name, "AzureIdentityBinding", s.answer.Available.Selectors)
	return field.ErrorList{err}
}

func serviceAccountExists(s *subject) field.ErrorList {
	if !s.usesWorkloadIdentity() || s.answer.ServiceAccount != nil {
		return nil
	}
	err := field.NotFound(s.Root.Child("spec", "serviceAccountName"), s.ServiceAccount)
	err.Detail = "must be a ServiceAccount in namespace " + s.namespace.Name +
		api.Available(s.ServiceAccount, "ServiceAccount", s.answer.Available.ServiceAccounts)
	return field.ErrorList{err}
}

func serviceAccountBound(s *subject) field.ErrorList {
	sa := s.answer.ServiceAccount
	if !s.usesWorkloadIdentity() || sa == nil || sa.ClientID != "" {
		return nil
	}
	return field.ErrorList{field.Invalid(s.Root.Child("spec", "serviceAccountName"), s.ServiceAccount,
		"must be a ServiceAccount with annotation "+api.WorkloadIdentityClientID+
			api.NoClientID(sa.InvalidClientID)+api.Available("", "ServiceAccount with one", s.answer.Available.Clients))}
}

// maxErrors is how many errors a rule returns for a pod. A pod may have thousands of volumes, and
// each message searches for similar names.
const maxErrors = 20

// eachVolume collects the errors of the pod's volumes.
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
		if v.class() == "" || s.answer.Class(v.class()) != nil {
			return nil
		}
		return field.ErrorList{s.noClass(v)}
	})
}

func (s *subject) noClass(v *Volume) *field.Error {
	name := api.Echo(v.class()) // not validated yet, not even its length
	err := field.NotFound(v.classPath(), name)
	err.Detail = "must be a SecretProviderClass in namespace " + s.namespace.Name +
		class.Available(name, s.answer.Available.Classes, s.answer.Available.NoDriver)
	return err
}

// classPath returns where the class of a volume was written.
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
		// Other providers may use a parameter of that name for something else.
		if c := s.answer.Class(s.Volumes[i].class()); c != nil && c.Provider == class.Provider && c.UsesPodIdentity {
			return field.ErrorList{field.Required(s.labelPath(api.PodIdentityBinding), fmt.Sprintf(
				"must be set, since class %s has usePodIdentity: \"true\"; add annotation %s, or this label, to the pod template%s",
				c.Name, api.IdentityName, api.Available("", "AzureIdentityBinding", s.answer.Available.Selectors)))}
		}
	}
	return nil
}

func attributesAlone(s *subject) field.ErrorList {
	return s.eachVolume(func(v *Volume) field.ErrorList {
		var errs field.ErrorList
		for _, key := range v.others() {
			errs = append(errs, field.Forbidden(v.attributePath(key), "must not override the class; write it into the class"))
		}
		return errs
	})
}

// others returns the attributes of a volume that override its class, sorted.
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

func (u *Usage) hasIdentity() bool {
	return u.binding() != "" || u.usesWorkloadIdentity()
}

func identityRequired(s *subject) field.ErrorList {
	if s.hasIdentity() {
		return nil
	}
	return field.ErrorList{field.Required(s.Root.Child("metadata", "annotations").Key(api.IdentityName),
		"must be set on the pod template"+identities(&s.answer.Available))}
}

// maxOffered is how many identities of each kind a message offers.
const maxOffered = 5

// identities ends a message about a missing identity with those that exist.
func identities(a *facts.Available) string {
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
		return "; there is none here: apply an AzureIdentityBinding, or a ServiceAccount with annotation " +
			api.WorkloadIdentityClientID
	}
	return "; available here: " + strings.Join(offered, ", ")
}

// vaultsAllowed looks at classes of every provider: a ceiling must not depend on the name under
// which one runs on a node.
func vaultsAllowed(s *subject) field.ErrorList {
	if _, set := s.namespace.Annotations[api.AllowedVaults]; !set {
		return nil
	}
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	return s.eachVolume(func(v *Volume) field.ErrorList {
		if err := CheckAttributes(s.namespace, api.AllowedVaults, v); err != nil {
			return field.ErrorList{err}
		}
		switch c := s.answer.Class(v.class()); {
		case v.class() == "":
			return nil // the driver mounts nothing
		case c == nil:
			return field.ErrorList{s.missing(v, api.AllowedVaults)}
		case c.Vault == "" && c.Provider == class.Provider:
			return field.ErrorList{field.Forbidden(v.classPath(),
				"must name its Key Vault: class "+c.Name+" has no keyvaultName"+allows(s.namespace, api.AllowedVaults))}
		case c.Vault != "":
			return listOf(CheckVault(s.namespace, c.Cloud, c.Vault, v.classPath()))
		}
		return nil
	})
}

func secretNamesAllowed(s *subject) field.ErrorList {
	if _, set := s.namespace.Annotations[api.AllowedSecretNames]; !set {
		return nil
	}
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	return s.eachVolume(func(v *Volume) field.ErrorList {
		switch c := s.answer.Class(v.class()); {
		case v.class() == "":
			return nil // the driver mounts nothing
		case c == nil:
			return field.ErrorList{s.missing(v, api.AllowedSecretNames)}
		default:
			return listOf(CheckSynced(s.namespace, c, v.classPath()))
		}
	})
}

func identitiesAllowed(s *subject) field.ErrorList {
	if Ceiling(s.namespace) == "" {
		return nil
	}
	if errs := s.tooManyClasses(); errs != nil {
		return errs
	}
	nameless := s.eachVolume(func(v *Volume) field.ErrorList {
		if c := s.answer.Class(v.class()); c != nil && !s.NodeIdentityAllowed {
			return listOf(CheckNameless(s.namespace, c, v.classPath()))
		}
		return nil
	})
	if _, set := s.namespace.Annotations[api.AllowedNames]; !set {
		return nameless
	}
	var errs field.ErrorList
	if name := s.binding(); name != "" {
		errs = append(errs, listOf(CheckIdentity(s.namespace, name, s.labelPath(api.PodIdentityBinding)))...)
	}
	uses := s.usesWorkloadIdentity()
	volumes := s.eachVolume(func(v *Volume) field.ErrorList {
		if err := CheckAttributes(s.namespace, api.AllowedNames, v); err != nil {
			return field.ErrorList{err}
		}
		c := s.answer.Class(v.class())
		switch {
		case c != nil:
			// With both, the provider ignores the client id.
			uses = uses || (c.ClientID+c.InvalidClientID != "" && !c.UsesPodIdentity)
		case v.class() != "":
			return field.ErrorList{s.missing(v, api.AllowedNames)}
		}
		return nil
	})
	if uses {
		path := s.Root.Child("spec", "serviceAccountName")
		errs = append(errs, listOf(CheckIdentity(s.namespace, s.ServiceAccount, path))...)
	}
	return append(append(errs, nameless...), volumes...)
}

// listOf returns a list of err, or nil for nil.
func listOf(err *field.Error) field.ErrorList {
	if err == nil {
		return nil
	}
	return field.ErrorList{err}
}

// missing rejects a class that does not exist under a ceiling: it could later name any vault or
// identity.
func (s *subject) missing(v *Volume, ceiling string) *field.Error {
	err := s.noClass(v)
	err.Detail += allows(s.namespace, ceiling)
	return api.Because(api.ClassNotFound, err)
}
