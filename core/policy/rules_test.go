package policy_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// scene is a pod in namespace team-a, with the facts about what it uses.
type scene struct {
	labels         map[string]string
	serviceAccount string              // empty for "default"
	volumes        []map[string]string // attributes of volumes of the driver
	hasToken       bool                // a volume has a token for Microsoft Entra
	nodeAllowed    bool                // the server's flag allows node identities
	isBinding      bool
	demands        map[string]string // labels of the namespace
	allows         map[string]string // annotations of the namespace
	facts          facts.Answer
	// want are the names and messages of the rules that the pod breaks.
	want []string
}

func (s *scene) namespace() facts.Namespace {
	return facts.Namespace{Name: "team-a", Labels: s.demands, Annotations: s.allows}
}

func (s *scene) pod() *policy.Usage {
	subject := pods.Subject{Pod: &pods.Pod{Meta: &pods.Meta{Labels: s.labels}, Spec: pods.Spec{ServiceAccountName: s.serviceAccount}}}
	for _, attributes := range s.volumes {
		subject.Spec.Volumes = append(subject.Spec.Volumes, pods.Volume{CSI: &pods.CSI{Driver: class.Driver, Attributes: attributes}})
	}
	usage := policy.UsageOf(&subject)
	if s.isBinding {
		usage = &policy.Usage{Labels: s.labels}
	}
	usage.HasIdentityToken, usage.NodeIdentityAllowed, usage.IsBinding = s.hasToken, s.nodeAllowed, s.isBinding
	return usage
}

func (s *scene) run(t *testing.T) {
	t.Helper()
	if diff := cmp.Diff(s.want, broken(s.pod(), s.namespace(), &s.facts)); diff != "" {
		t.Errorf("rules broken (-want +got):\n%s", diff)
	}
}

// broken returns the names and messages of the rules that a pod breaks.
func broken(pod *policy.Usage, namespace facts.Namespace, facts *facts.Answer) []string {
	var lines []string
	for _, v := range policy.Check(pod, namespace, facts) {
		lines = append(lines, v.Rule.Name+": "+api.Message(v.Err))
	}
	return lines
}

var (
	bound    = map[string]string{api.Enforce: "bound"}
	required = map[string]string{api.Enforce: "required"}
)

// binding returns the labels of a pod with AAD pod identity, and workload those with workload
// identity.
func binding(name string) map[string]string { return map[string]string{api.PodIdentityBinding: name} }

func workload(use string) map[string]string { return map[string]string{api.WorkloadIdentityUse: use} }

// mount returns the attributes of a volume of that class; more has pairs of other attributes and
// their values.
func mount(name string, more ...string) map[string]string {
	attributes := map[string]string{class.Attribute: name}
	for i := 0; i < len(more); i += 2 {
		attributes[more[i]] = more[i+1]
	}
	return attributes
}

// many returns n volumes of different classes.
func many(n int) (volumes []map[string]string) {
	for i := range n {
		volumes = append(volumes, mount(fmt.Sprintf("c%d", i)))
	}
	return volumes
}

func mounts(volumes ...map[string]string) []map[string]string { return volumes }

// azure returns a class of Key Vault team-kv with more parameters.
func azure(name string, parameters ...string) *class.Class {
	return provided(name, class.Provider, append([]string{"keyvaultName", "team-kv"}, parameters...)...)
}

// syncs returns a class that syncs these Secrets.
func syncs(name string, secrets ...string) *class.Class {
	c := azure(name, "clientID", "0")
	for _, secret := range secrets {
		c.Synced = append(c.Synced, class.Synced{File: "db", Secret: secret, Key: "db"})
	}
	return c
}

func provided(name, provider string, parameters ...string) *class.Class {
	spc := &class.SecretProviderClass{Spec: class.Spec{Provider: provider, Parameters: map[string]string{}}}
	spc.Name = name
	for i := 0; i < len(parameters); i += 2 {
		spc.Spec.Parameters[parameters[i]] = parameters[i+1]
	}
	return class.Read(spc)
}

func classes(list ...*class.Class) facts.Answer { return facts.Answer{Classes: list} }

// rules has, for each rule, pods that it rejects, and similar pods that it allows.
var rules = map[string]map[string]scene{
	"binding-exists": {
		"a label that a binding selects": {labels: binding("access-blob"), demands: bound, facts: facts.Answer{Bound: true}},
		"a label that no binding selects": {
			labels: binding("no-access-blob"), demands: bound, facts: facts.Answer{Available: facts.Available{Selectors: []string{"access-blob"}}},
			want: []string{`binding-exists: [IdentityNotBound] metadata.labels[aadpodidbinding]: Not found: "no-access-blob": must be the spec.selector of an AzureIdentityBinding in namespace team-a; did you mean access-blob?`},
		},
		"a label in a namespace without bindings": {
			labels: binding("access-blob"), demands: bound,
			want: []string{`binding-exists: [IdentityNotBound] metadata.labels[aadpodidbinding]: Not found: "access-blob": must be the spec.selector of an AzureIdentityBinding in namespace team-a; there is no AzureIdentityBinding here`},
		},
		"an empty label binds nothing": {labels: binding(""), demands: bound},
		"a label by another name":      {labels: map[string]string{"AadPodIdBinding": "no-access-blob"}, demands: bound},
		"no level":                     {labels: binding("no-access-blob")},
		"only a ceiling":               {labels: binding("access-blob"), allows: map[string]string{api.AllowedNames: "*"}},
		"a label that no binding selects, and a workload identity": {
			labels: map[string]string{api.PodIdentityBinding: "x", api.WorkloadIdentityUse: "true"}, demands: bound,
			facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: "0"}, Available: facts.Available{Selectors: []string{"access-blob"}}},
			want:  []string{`binding-exists: [IdentityNotBound] metadata.labels[aadpodidbinding]: Not found: "x": must be the spec.selector of an AzureIdentityBinding in namespace team-a; available here: access-blob`},
		},
	},
	"service-account-exists": {
		"a ServiceAccount that exists": {labels: workload("true"), serviceAccount: "blob-sa", demands: bound, facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "blob-sa", ClientID: "0"}}},
		"a ServiceAccount that does not exist": {
			labels: workload("true"), serviceAccount: "blob-as", demands: bound,
			facts: facts.Answer{Available: facts.Available{ServiceAccounts: []string{"default", "blob-sa"}}},
			want:  []string{`service-account-exists: [ServiceAccountNotFound] spec.serviceAccountName: Not found: "blob-as": must be a ServiceAccount in namespace team-a; did you mean blob-sa?`},
		},
		"no label of workload identity":           {serviceAccount: "blob-as", demands: bound},
		"Azure's webhook does not know \"True\"":  {labels: workload("True"), serviceAccount: "blob-as", demands: bound},
		"nor does it know \"1\"":                  {labels: workload("1"), serviceAccount: "blob-as", demands: bound},
		"a binding needs no ServiceAccount":       {labels: binding("access-blob"), serviceAccount: "blob-as", demands: bound, facts: facts.Answer{Bound: true}},
		"a class with a client id needs no label": {serviceAccount: "blob-as", volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv", "clientID", "0"))},
		"no level": {labels: workload("true"), serviceAccount: "blob-as"},
		"a level in mode warn": {
			labels: workload("true"), demands: map[string]string{api.Warn: "bound"},
			want: []string{`service-account-exists: [ServiceAccountNotFound] spec.serviceAccountName: Not found: "default": must be a ServiceAccount in namespace team-a; there is no ServiceAccount here`},
		},
	},
	"service-account-bound": {
		"a ServiceAccount with a client id": {labels: workload("true"), demands: bound, facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: "0"}}},
		"a ServiceAccount without a client id": {
			labels: workload("true"), demands: bound,
			facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default"}, Available: facts.Available{Clients: []string{"blob-sa"}}},
			want:  []string{`service-account-bound: [IdentityNotBound] spec.serviceAccountName: Invalid value: "default": must be a ServiceAccount with annotation azure.workload.identity/client-id; add the annotation; available here: blob-sa`},
		},
		"a client id that is no GUID": {
			labels: workload("true"), demands: bound, facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default", InvalidClientID: "${ID}"}},
			want: []string{`service-account-bound: [IdentityNotBound] spec.serviceAccountName: Invalid value: "default": must be a ServiceAccount with annotation azure.workload.identity/client-id; correct its value "${ID}", which is not a GUID; there is no ServiceAccount with one here`},
		},
		"no label and no client id": {demands: bound, facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default"}}},
		"no level and no client id": {labels: workload("true"), facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default"}}},
	},
	"class-named": {
		"a volume that names a class": {volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv"))},
		"a volume without attributes": {
			volumes: mounts(nil), demands: bound,
			want: []string{`class-named: [VolumeInvalid] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Required value: must name a SecretProviderClass`},
		},
		"each volume that names none, by its index": {
			volumes: mounts(mount(""), mount("kv"), map[string]string{}), demands: bound, facts: classes(azure("kv")),
			want: []string{
				`class-named: [VolumeInvalid] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Required value: must name a SecretProviderClass`,
				`class-named: [VolumeInvalid] spec.volumes[2].csi.volumeAttributes[secretProviderClass]: Required value: must name a SecretProviderClass`,
			},
		},
		"an attribute in another case": {
			volumes: mounts(map[string]string{"SecretProviderClass": "kv"}), demands: bound, facts: classes(azure("kv")),
			want: []string{
				`class-named: [VolumeInvalid] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Required value: must name a SecretProviderClass`,
				`attributes: [AttributeNotAllowed] spec.volumes[0].csi.volumeAttributes[SecretProviderClass]: Forbidden: must not override the class; write it into the class`,
			},
		},
		"no level": {volumes: mounts(nil)},
		"only ceilings, since the driver mounts nothing": {volumes: mounts(nil), allows: map[string]string{api.AllowedVaults: "", api.AllowedNames: ""}},
	},
	"class-exists": {
		"a class that exists": {volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv"))},
		"a class that does not exist": {
			volumes: mounts(mount("key-vault")), demands: bound, facts: facts.Answer{Available: facts.Available{Classes: []string{"key-vault-2", "other"}}},
			want: []string{`class-exists: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "key-vault": must be a SecretProviderClass in namespace team-a; did you mean key-vault-2?`},
		},
		"a cluster without the kind": {
			volumes: mounts(mount("kv")), demands: bound, facts: facts.Answer{Available: facts.Available{NoDriver: true}},
			want: []string{`class-exists: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; this cluster does not have that kind: install the Secrets Store CSI driver, or upgrade it`},
		},
		"a class of another provider": {volumes: mounts(mount("kv")), demands: bound, facts: classes(provided("kv", "vault"))},
		"a second volume whose class does not exist": {
			volumes: mounts(mount("kv"), mount("other")), demands: bound, facts: classes(azure("kv")),
			want: []string{`class-exists: [ClassNotFound] spec.volumes[1].csi.volumeAttributes[secretProviderClass]: Not found: "other": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`},
		},
		"two volumes of one class that does not exist": {
			volumes: mounts(mount("kv"), mount("kv")), demands: bound,
			want: []string{
				`class-exists: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`,
				`class-exists: [ClassNotFound] spec.volumes[1].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`,
			},
		},
		"a class name in another case": {
			volumes: mounts(mount("KV")), demands: bound, facts: classes(azure("kv")),
			want: []string{`class-exists: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "KV": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`},
		},
		"a class name with a space": {
			volumes: mounts(mount("kv ")), demands: bound, facts: classes(azure("kv")),
			want: []string{`class-exists: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv ": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`},
		},
		"no level": {volumes: mounts(mount("kv"))},
	},
	"class-identified": {
		"a class that uses pod identity, and the label": {labels: binding("access-blob"), volumes: mounts(mount("kv")), demands: bound, facts: facts.Answer{Bound: true, Classes: []*class.Class{azure("kv", "usePodIdentity", "true")}}},
		"a class that uses pod identity, without the label": {
			volumes: mounts(mount("kv")), demands: bound, facts: facts.Answer{Classes: []*class.Class{azure("kv", "usePodIdentity", "true")}, Available: facts.Available{Selectors: []string{"access-blob"}}},
			want: []string{`class-identified: [IdentityRequired] metadata.labels[aadpodidbinding]: Required value: must be set, since class kv has usePodIdentity: "true"; add annotation identity.io/name, or this label, to the pod template; available here: access-blob`},
		},
		"a second volume whose class uses pod identity, with another boolean": {
			volumes: mounts(mount("other"), mount("kv")), demands: bound, facts: classes(azure("other"), azure("kv", "usePodIdentity", " T ")),
			want: []string{`class-identified: [IdentityRequired] metadata.labels[aadpodidbinding]: Required value: must be set, since class kv has usePodIdentity: "true"; add annotation identity.io/name, or this label, to the pod template; there is no AzureIdentityBinding here`},
		},
		"an empty label and two classes are one violation": {
			labels: binding(""), volumes: mounts(mount("kv"), mount("kv2"), mount("kv")), demands: bound, facts: classes(azure("kv", "usePodIdentity", "true"), azure("kv2", "usePodIdentity", "true")),
			want: []string{`class-identified: [IdentityRequired] metadata.labels[aadpodidbinding]: Required value: must be set, since class kv has usePodIdentity: "true"; add annotation identity.io/name, or this label, to the pod template; there is no AzureIdentityBinding here`},
		},
		"workload identity instead of the label": {
			labels: workload("true"), volumes: mounts(mount("kv")), demands: bound,
			facts: facts.Answer{Classes: []*class.Class{azure("kv", "usePodIdentity", "true")}, ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: "0"}},
			want:  []string{`class-identified: [IdentityRequired] metadata.labels[aadpodidbinding]: Required value: must be set, since class kv has usePodIdentity: "true"; add annotation identity.io/name, or this label, to the pod template; there is no AzureIdentityBinding here`},
		},
		"a class with usePodIdentity false": {volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv", "usePodIdentity", "false"))},
		"a class that the provider rejects": {volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv", "usePodIdentity", "yes"))},
		"a class of another provider":       {volumes: mounts(mount("kv")), demands: bound, facts: classes(provided("kv", "aws", "usePodIdentity", "true"))},
		"no level":                          {volumes: mounts(mount("kv")), facts: classes(azure("kv", "usePodIdentity", "true"))},
	},
	"attributes": {
		"the class and nothing else": {volumes: mounts(mount("kv")), demands: bound, facts: classes(azure("kv"))},
		"another vault": {
			volumes: mounts(mount("kv", "keyvaultName", "other-kv")), demands: bound, facts: classes(azure("kv")),
			want: []string{`attributes: [AttributeNotAllowed] spec.volumes[0].csi.volumeAttributes[keyvaultName]: Forbidden: must not override the class; write it into the class`},
		},
		"an attribute without a value overrides too": {
			volumes: mounts(mount("kv", "clientID", "")), demands: bound, facts: classes(azure("kv")),
			want: []string{`attributes: [AttributeNotAllowed] spec.volumes[0].csi.volumeAttributes[clientID]: Forbidden: must not override the class; write it into the class`},
		},
		"several attributes, sorted by name": {
			volumes: mounts(mount("kv"), mount("kv", "objects", "x", "clientID", "0", "made up", "")), demands: bound, facts: classes(azure("kv")),
			want: []string{
				`attributes: [AttributeNotAllowed] spec.volumes[1].csi.volumeAttributes[clientID]: Forbidden: must not override the class; write it into the class`,
				`attributes: [AttributeNotAllowed] spec.volumes[1].csi.volumeAttributes[made up]: Forbidden: must not override the class; write it into the class`,
				`attributes: [AttributeNotAllowed] spec.volumes[1].csi.volumeAttributes[objects]: Forbidden: must not override the class; write it into the class`,
			},
		},
		"no level": {volumes: mounts(mount("kv", "keyvaultName", "other-kv")), facts: classes(azure("kv"))},
	},
	"identity-required": {
		"a binding":         {labels: binding("access-blob"), demands: required, facts: facts.Answer{Bound: true}},
		"workload identity": {labels: workload("true"), demands: required, facts: facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: "0"}}},
		"neither": {
			demands: required, facts: facts.Answer{Available: facts.Available{Selectors: []string{"access-blob"}, Clients: []string{"blob-sa"}}},
			want: []string{`identity-required: [IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: access-blob (AzureIdentityBinding), blob-sa (ServiceAccount)`},
		},
		"an empty label, in a namespace without identities": {
			labels: binding(""), demands: required,
			want: []string{`identity-required: [IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; there is none here: apply an AzureIdentityBinding, or a ServiceAccount with annotation azure.workload.identity/client-id`},
		},
		"a label that Azure's webhook ignores": {
			labels: workload("True"), demands: required, facts: facts.Answer{Available: facts.Available{Clients: []string{"f", "e", "d", "c", "b", "a"}}},
			want: []string{`identity-required: [IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: a (ServiceAccount), b (ServiceAccount), c (ServiceAccount), d (ServiceAccount), e (ServiceAccount), …`},
		},
		"bindings with one selector are listed once": {
			demands: required, facts: facts.Answer{Available: facts.Available{Selectors: []string{"access-blob", "access-blob"}}},
			want: []string{`identity-required: [IdentityRequired] metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: access-blob (AzureIdentityBinding)`},
		},
		"level bound": {demands: bound},
	},
	"secret-names-allowed": {
		"a class that syncs no Secret":    {volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedSecretNames: ""}, facts: classes(azure("kv", "clientID", "0"))},
		"a class that syncs allowed ones": {volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedSecretNames: "app-*"}, facts: classes(syncs("kv", "app-tls", "app-db"))},
		"a class that syncs another one": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedSecretNames: "app-*"}, facts: classes(syncs("kv", "app-tls", "admin")),
			want: []string{`secret-names-allowed: [SecretNameNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not sync Secret admin, since the driver overwrites any Secret of that name; namespace annotation keyvault.io/allowed-secret-names allows app-*`},
		},
		"without the ceiling":             {volumes: mounts(mount("kv")), facts: classes(syncs("kv", "admin"))},
		"a managed class with its Secret": {volumes: mounts(mount("kv-0123456789")), allows: map[string]string{api.AllowedSecretNames: ""}, facts: classes(syncs("kv-0123456789", "kv-0123456789"))},
		"a class by hand with its Secret": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedSecretNames: ""}, facts: classes(syncs("kv", "kv")),
			want: []string{`secret-names-allowed: [SecretNameNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not sync Secret kv, since the driver overwrites any Secret of that name; namespace annotation keyvault.io/allowed-secret-names allows none`},
		},
		"a class that does not exist": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedSecretNames: "*"},
			want: []string{`secret-names-allowed: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here; namespace annotation keyvault.io/allowed-secret-names allows *`},
		},
		"no class": {volumes: mounts(mount("")), allows: map[string]string{api.AllowedSecretNames: ""}},
		"more classes than are looked up": {
			volumes: many(101), allows: map[string]string{api.AllowedSecretNames: "*"},
			want: []string{`secret-names-allowed: [VolumeInvalid] spec.volumes: Too many: 101: must mount at most 100 SecretProviderClasses, mounts 101`},
		},
	},
	"vaults-allowed": {
		"a vault that is allowed":              {volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "other-*, TEAM-*"}, facts: classes(azure("kv", "clientID", "0"))},
		"no ceiling on vaults":                 {volumes: mounts(mount("kv", "keyvaultName", "other-kv")), facts: classes(azure("kv", "clientID", "0"))},
		"a pod without a volume of the driver": {allows: map[string]string{api.AllowedVaults: ""}},
		"a vault that is not allowed": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "other-*"}, facts: classes(azure("kv", "clientID", "0")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read Key Vault team-kv; namespace annotation keyvault.io/allowed-vaults allows other-*`},
		},
		"a second volume, where none is allowed": {
			volumes: mounts(mount("hashicorp"), mount("kv")), allows: map[string]string{api.AllowedVaults: " "}, facts: classes(azure("kv", "clientID", "0"), provided("hashicorp", "vault")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[1].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read Key Vault team-kv; namespace annotation keyvault.io/allowed-vaults allows none`},
		},
		"a vault with space around it": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "team-*"}, facts: classes(provided("kv", class.Provider, "clientID", "0", "keyvaultName", "\tother-kv\n")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read Key Vault other-kv; namespace annotation keyvault.io/allowed-vaults allows team-*`},
		},
		"a provider by another name": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "team-*"}, facts: classes(provided("kv", "Azure", "keyvaultName", "other-kv")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read Key Vault other-kv; namespace annotation keyvault.io/allowed-vaults allows team-*`},
		},
		"a class without a vault, though all are allowed": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "*"}, facts: classes(provided("kv", class.Provider, "clientID", "0")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must name its Key Vault: class kv has no keyvaultName; namespace annotation keyvault.io/allowed-vaults allows *`},
		},
		"a class of another provider": {volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: ""}, facts: classes(provided("kv", "vault"))},
		"a class that does not exist": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedVaults: "*"}, facts: facts.Answer{Available: facts.Available{Classes: []string{"kv1"}}},
			want: []string{`vaults-allowed: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; did you mean kv1?; namespace annotation keyvault.io/allowed-vaults allows *`},
		},
		"attributes that override an allowed class": {
			volumes: mounts(mount("kv", "objects", "", "keyvaultName", "team-kv")), allows: map[string]string{api.AllowedVaults: "*"}, facts: classes(azure("kv", "clientID", "0")),
			want: []string{`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[keyvaultName]: Forbidden: must not override the class; namespace annotation keyvault.io/allowed-vaults allows *`},
		},
		"a ceiling and a level both report it": {
			volumes: mounts(mount("kv", "keyvaultName", "other-kv")), demands: bound, allows: map[string]string{api.AllowedVaults: "*"}, facts: classes(azure("kv", "clientID", "0")),
			want: []string{
				`attributes: [AttributeNotAllowed] spec.volumes[0].csi.volumeAttributes[keyvaultName]: Forbidden: must not override the class; write it into the class`,
				`vaults-allowed: [VaultNotAllowed] spec.volumes[0].csi.volumeAttributes[keyvaultName]: Forbidden: must not override the class; namespace annotation keyvault.io/allowed-vaults allows *`,
			},
		},
		"a class of the node": {
			volumes: mounts(mount("kv")), demands: required, labels: workload("true"), allows: map[string]string{api.AllowedVaults: "*"},
			facts: facts.Answer{Classes: []*class.Class{azure("kv", "useVMManagedIdentity", "true")}, ServiceAccount: &facts.ServiceAccount{ClientID: "0"}},
			want:  []string{`identities-allowed: [IdentityNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read the vault as the node or a service principal, as class kv does; namespace annotation keyvault.io/allowed-vaults allows *`},
		},
		"more classes than are looked up": {
			volumes: many(101), allows: map[string]string{api.AllowedVaults: "*"},
			want: []string{
				`vaults-allowed: [VolumeInvalid] spec.volumes: Too many: 101: must mount at most 100 SecretProviderClasses, mounts 101`,
				`identities-allowed: [VolumeInvalid] spec.volumes: Too many: 101: must mount at most 100 SecretProviderClasses, mounts 101`,
			},
		},
	},
	"identities-allowed": {
		"a label that is allowed":  {labels: binding("access-blob"), allows: map[string]string{api.AllowedNames: "access-*"}},
		"no ceiling on identities": {labels: binding("access-blob"), volumes: mounts(mount("kv", "clientID", "0"))},
		"a label that is not allowed": {
			labels: binding("admin"), allows: map[string]string{api.AllowedNames: "access-*"},
			want: []string{`identities-allowed: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity admin; namespace annotation identity.io/allowed-names allows access-*`},
		},
		"a label in another case is another identity": {
			labels: binding("Access-blob"), allows: map[string]string{api.AllowedNames: "access-*"},
			want: []string{`identities-allowed: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity Access-blob; namespace annotation identity.io/allowed-names allows access-*`},
		},
		"an empty label is no identity": {labels: binding(""), allows: map[string]string{api.AllowedNames: ""}},
		"a ServiceAccount that is allowed, and a class that does not exist": {
			labels: workload("true"), serviceAccount: "blob-sa", volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "access-*,blob-sa"},
			want: []string{`identities-allowed: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here; namespace annotation identity.io/allowed-names allows access-*,blob-sa`},
		},
		"a ServiceAccount that is not allowed": {
			labels: workload("true"), allows: map[string]string{api.AllowedNames: "blob-sa"},
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.serviceAccountName: Forbidden: must not use identity default; namespace annotation identity.io/allowed-names allows blob-sa`},
		},
		"a ServiceAccount that nothing uses": {labels: workload("True"), volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: ""}, facts: classes(azure("kv", "usePodIdentity", "true"))},
		"a ServiceAccount with a token in a volume": {
			hasToken: true, allows: map[string]string{api.AllowedNames: "blob-sa"},
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.serviceAccountName: Forbidden: must not use identity default; namespace annotation identity.io/allowed-names allows blob-sa`},
		},
		"an allowed ServiceAccount with a token in a volume": {hasToken: true, allows: map[string]string{api.AllowedNames: "def*"}},
		"a ServiceAccount that a class uses": {
			volumes: mounts(mount("other"), mount("kv")), allows: map[string]string{api.AllowedNames: ""}, facts: classes(azure("other", "usePodIdentity", "true"), azure("kv", "clientID", "0")),
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.serviceAccountName: Forbidden: must not use identity default; namespace annotation identity.io/allowed-names allows none`},
		},
		"a class that uses pod identity instead": {labels: binding("access-blob"), volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "access-*"}, facts: classes(azure("kv", "clientID", "0", "usePodIdentity", "true"))},
		"a class with the node's identity": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "*"}, facts: classes(azure("kv", "useVMManagedIdentity", "true")),
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read the vault as the node or a service principal, as class kv does; namespace annotation identity.io/allowed-names allows *`},
		},
		"a class with useVMManagedIdentity false": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "default"}, facts: classes(azure("kv", "useVMManagedIdentity", "false", "clientID", "0")),
		},
		"a class with the node's identity, if the server allows it": {
			nodeAllowed: true, volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "a"}, facts: classes(azure("kv", "useVMManagedIdentity", "true")),
		},
		"a class of a service principal": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "*"}, facts: classes(azure("kv")),
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Forbidden: must not read the vault as the node or a service principal, as class kv does; namespace annotation identity.io/allowed-names allows *`},
		},
		"a class that does not exist": {
			volumes: mounts(mount("kv")), allows: map[string]string{api.AllowedNames: "blob-sa"},
			want: []string{`identities-allowed: [ClassNotFound] spec.volumes[0].csi.volumeAttributes[secretProviderClass]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here; namespace annotation identity.io/allowed-names allows blob-sa`},
		},
		"a volume without a class": {volumes: mounts(mount("")), allows: map[string]string{api.AllowedNames: ""}},
		"attributes that override a class, and an allowed ServiceAccount": {
			volumes: mounts(mount("kv", "useVMManagedIdentity", "true")), allows: map[string]string{api.AllowedNames: "default"}, facts: classes(azure("kv", "clientID", "0")),
			want: []string{`identities-allowed: [IdentityNotAllowed] spec.volumes[0].csi.volumeAttributes[useVMManagedIdentity]: Forbidden: must not override the class; namespace annotation identity.io/allowed-names allows default`},
		},
		"everything at once": {
			labels: map[string]string{api.PodIdentityBinding: "admin", api.WorkloadIdentityUse: "true"}, volumes: mounts(mount("kv", "clientID", "0")), allows: map[string]string{api.AllowedNames: ""}, facts: classes(azure("kv", "usePodIdentity", "true")),
			want: []string{
				`identities-allowed: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not use identity admin; namespace annotation identity.io/allowed-names allows none`,
				`identities-allowed: [IdentityNotAllowed] spec.serviceAccountName: Forbidden: must not use identity default; namespace annotation identity.io/allowed-names allows none`,
				`identities-allowed: [IdentityNotAllowed] spec.volumes[0].csi.volumeAttributes[clientID]: Forbidden: must not override the class; namespace annotation identity.io/allowed-names allows none`,
			},
		},
	},
	"binding-labels-allowed": {
		"no label, under a ceiling on identities": {isBinding: true, allows: map[string]string{api.AllowedNames: ""}},
		"a label, under a ceiling on vaults":      {isBinding: true, labels: binding("access-blob"), allows: map[string]string{api.AllowedVaults: ""}},
		"a label that is allowed": {
			isBinding: true, labels: binding("access-blob"), allows: map[string]string{api.AllowedNames: "*"},
			want: []string{`binding-labels-allowed: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not be set by a Binding; set it on the pod`},
		},
		"workload identity": {
			isBinding: true, labels: workload("true"), allows: map[string]string{api.AllowedNames: "*"},
			want: []string{`binding-labels-allowed: [IdentityNotAllowed] metadata.labels[azure.workload.identity/use]: Forbidden: must not be set by a Binding; set it on the pod`},
		},
	},
	"binding-labels": {
		"no label":          {isBinding: true, labels: map[string]string{"app": "shop"}, demands: required},
		"a label, no level": {isBinding: true, labels: binding("access-blob")},
		"a label": {
			isBinding: true, labels: binding("access-blob"), demands: bound,
			want: []string{`binding-labels: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not be set by a Binding; set it on the pod`},
		},
		"both labels, which an exemption does not allow": {
			isBinding: true, labels: map[string]string{api.PodIdentityBinding: "a", api.WorkloadIdentityUse: "true"}, demands: bound, allows: map[string]string{api.Exempt: "*"},
			want: []string{
				`binding-labels: [IdentityNotAllowed] metadata.labels[aadpodidbinding]: Forbidden: must not be set by a Binding; set it on the pod`,
				`binding-labels: [IdentityNotAllowed] metadata.labels[azure.workload.identity/use]: Forbidden: must not be set by a Binding; set it on the pod`,
			},
		},
	},
}

func TestRules(t *testing.T) {
	for rule, scenes := range rules {
		for behaviour, s := range scenes {
			t.Run(rule+"/"+behaviour, s.run)
		}
	}
}

// TestEveryRule shows that every rule has a test that keeps it, a test that breaks it, and
// documentation.
func TestEveryRule(t *testing.T) {
	reasons := map[api.Reason]bool{}
	for _, doc := range api.Reasons {
		reasons[doc.Reason] = true
	}
	names := map[string]bool{}
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		if names[rule.Name] {
			t.Errorf("two rules are named %s", rule.Name)
		}
		names[rule.Name] = true
		if !reasons[rule.Reason] {
			t.Errorf("%s: there is no Reason %q", rule.Name, rule.Reason)
		}
		for _, text := range []string{rule.Checks, rule.Fix} {
			if !strings.HasSuffix(text, ".") || strings.ContainsAny(text, "|\n") {
				t.Errorf("%s: %q is not a sentence for a table", rule.Name, text)
			}
		}
		accepted, rejected := 0, 0
		for _, s := range rules[rule.Name] {
			if strings.HasPrefix(strings.Join(s.want, "\n"), rule.Name+": ") {
				rejected++
			} else if len(s.want) == 0 {
				accepted++
			}
		}
		if accepted < 2 || rejected < 2 {
			t.Errorf("%s: tests have %d pods that keep it and %d that break it", rule.Name, accepted, rejected)
		}
	}
	for name := range rules {
		if !names[name] {
			t.Errorf("%s has tests, but is not a rule", name)
		}
	}
}

// TestRuleAlone checks the rules that need only the pod and its namespace: facts must not change
// their result, except for the available names in messages.
func TestRuleAlone(t *testing.T) {
	full := facts.Answer{Classes: []*class.Class{azure("kv"), azure("other")}, Bound: true, ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: "0"}}
	said := func(s *scene, facts *facts.Answer) []string {
		var fields []string
		for _, v := range policy.Check(s.pod(), s.namespace(), facts) {
			if v.Rule.Alone {
				fields = append(fields, v.Rule.Name+": "+v.Err.Field)
			}
		}
		return fields
	}
	for rule, scenes := range rules {
		for behaviour, s := range scenes {
			if diff := cmp.Diff(said(&s, &facts.Answer{}), said(&s, &full)); diff != "" {
				t.Errorf("%s/%s differs (-without facts +with facts):\n%s", rule, behaviour, diff)
			}
		}
	}
}

func TestCheckOrder(t *testing.T) {
	s := scene{
		labels:  map[string]string{api.PodIdentityBinding: "admin", api.WorkloadIdentityUse: "true"},
		volumes: mounts(mount("gone"), nil, mount("kv", "objects", "")),
		demands: required, allows: map[string]string{api.AllowedVaults: "", api.AllowedNames: ""},
		facts: classes(azure("kv", "clientID", "0")),
	}
	var got []string
	for _, v := range policy.Check(s.pod(), s.namespace(), &s.facts) {
		got = append(got, fmt.Sprintf("%s %s %s", v.Rule.Name, api.ReasonOf(v.Err), v.Err.Field))
	}
	const volumes = "spec.volumes"
	if diff := cmp.Diff([]string{
		"binding-exists IdentityNotBound metadata.labels[aadpodidbinding]",
		"service-account-exists ServiceAccountNotFound spec.serviceAccountName",
		"class-named VolumeInvalid " + volumes + "[1].csi.volumeAttributes[secretProviderClass]",
		"class-exists ClassNotFound " + volumes + "[0].csi.volumeAttributes[secretProviderClass]",
		"attributes AttributeNotAllowed " + volumes + "[2].csi.volumeAttributes[objects]",
		"vaults-allowed ClassNotFound " + volumes + "[0].csi.volumeAttributes[secretProviderClass]",
		"vaults-allowed VaultNotAllowed " + volumes + "[2].csi.volumeAttributes[objects]",
		"identities-allowed IdentityNotAllowed metadata.labels[aadpodidbinding]",
		"identities-allowed IdentityNotAllowed spec.serviceAccountName",
		"identities-allowed ClassNotFound " + volumes + "[0].csi.volumeAttributes[secretProviderClass]",
		"identities-allowed IdentityNotAllowed " + volumes + "[2].csi.volumeAttributes[objects]",
	}, got); diff != "" {
		t.Errorf("violations (-want +got):\n%s", diff)
	}
}

// TestPaths checks a template with labels and volumes that annotations cause: messages have the
// paths of the annotations.
func TestPaths(t *testing.T) {
	subject := pods.Subject{Root: pods.TemplateRoot, Pod: &pods.Pod{
		Meta: &pods.Meta{Labels: map[string]string{api.PodIdentityBinding: "admin", api.WorkloadIdentityUse: "true"}},
		Spec: pods.Spec{ServiceAccountName: "blob-sa", Volumes: []pods.Volume{
			{},
			{CSI: &pods.CSI{Driver: "other.csi.k8s.io"}},
			{CSI: &pods.CSI{Driver: class.Driver, Attributes: mount("gone")}},
		}},
	}}
	pod := policy.UsageOf(&subject)
	pod.LabelPaths = map[string]*field.Path{api.PodIdentityBinding: subject.AnnotationPathOf(api.IdentityName)}
	pod.Volumes = append(pod.Volumes, policy.Volume{Path: subject.AnnotationPathOf(api.Class), Injected: true, Attributes: mount("kv")})
	if diff := cmp.Diff([]string{
		`binding-exists: [IdentityNotBound] spec.template.metadata.annotations[identity.io/name]: Not found: "admin": must be the spec.selector of an AzureIdentityBinding in namespace team-a; there is no AzureIdentityBinding here`,
		`service-account-exists: [ServiceAccountNotFound] spec.template.spec.serviceAccountName: Not found: "blob-sa": must be a ServiceAccount in namespace team-a; there is no ServiceAccount here`,
		`class-exists: [ClassNotFound] spec.template.spec.volumes[2].csi.volumeAttributes[secretProviderClass]: Not found: "gone": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`,
		`class-exists: [ClassNotFound] spec.template.metadata.annotations[keyvault.io/class]: Not found: "kv": must be a SecretProviderClass in namespace team-a; there is no SecretProviderClass here`,
	}, broken(pod, facts.Namespace{Name: "team-a", Labels: required}, &facts.Answer{})); diff != "" {
		t.Errorf("rules broken (-want +got):\n%s", diff)
	}
	pod = &policy.Usage{Root: pods.TemplateRoot, ServiceAccount: "default"}
	if diff := cmp.Diff([]string{
		`identity-required: [IdentityRequired] spec.template.metadata.annotations[identity.io/name]: Required value: must be set on the pod template; available here: x (AzureIdentityBinding)`,
	}, broken(pod, facts.Namespace{Name: "team-a", Labels: required}, &facts.Answer{Available: facts.Available{Selectors: []string{"x"}}})); diff != "" {
		t.Errorf("rules broken (-want +got):\n%s", diff)
	}
}

// TestLargePod checks a malicious pod: it has thousands of volumes, and very long names.
func TestLargePod(t *testing.T) {
	long := strings.Repeat("x", 1<<20)
	s := scene{demands: required, allows: map[string]string{api.AllowedVaults: long, api.AllowedNames: long}}
	for i := range 10_000 {
		s.volumes = append(s.volumes, mount(fmt.Sprintf("class-%d", i), fmt.Sprintf("attribute-%d", i), long))
	}
	s.volumes[0] = mount(long, long, long)
	for i := range 500 {
		s.facts.Available.Classes = append(s.facts.Available.Classes, fmt.Sprintf("another-class-%d", i))
	}
	start := time.Now()
	violations := policy.Check(s.pod(), s.namespace(), &s.facts)
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %s", took)
	}
	if most := 20 * len(policy.Rules); len(violations) > most {
		t.Errorf("%d violations, want %d at most", len(violations), most)
	}
	for _, v := range violations {
		if message := api.Message(v.Err); len(message) > 1<<10 {
			t.Errorf("%s has a message of %d bytes", v.Rule.Name, len(message))
		}
	}
}
