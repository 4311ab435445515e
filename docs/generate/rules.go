package main

import (
	"bytes"
	"cmp"
	"fmt"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/class"
	"github.com/akv-injector/akv-injector/webhook/pods"
	"github.com/akv-injector/akv-injector/webhook/policy"
)

// rules writes the table of policy's rules. Their messages are those that pods get.
func rules(out *bytes.Buffer) error {
	out.WriteString("| rule | what is checked | level | Reason | fix | message |\n|---|---|---|---|---|---|\n")
	for i := range policy.Rules {
		rule := &policy.Rules[i]
		message, err := sample(rule)
		if err != nil {
			return err
		}
		level := "ceiling"
		if rule.Level != policy.Off {
			level = "`" + string(rule.Level) + "`"
		}
		fmt.Fprintf(out, "| `%s` | %s | %s | [%s](troubleshooting.md#%s) | %s | `%s` |\n",
			rule.Name, rule.Checks, level, rule.Reason, anchor(rule.Reason), rule.Fix, message)
	}
	return nil
}

// sample is what a rule says of the first pod that breaks it.
func sample(rule *policy.Rule) (string, error) {
	for _, s := range samples {
		pod := &policy.Pod{Labels: s.labels, ServiceAccount: cmp.Or(s.runsAs, "default")}
		if s.attributes != nil {
			pod.Volumes = policy.VolumesOf([]pods.Volume{{CSI: &pods.CSI{Driver: class.Driver, Attributes: s.attributes}}}, nil)
		}
		facts := &policy.Facts{Classes: s.classes, ServiceAccount: s.serviceAccount, Available: available}
		for _, v := range policy.Check(pod, policy.Namespace{Name: "shop", Labels: demands, Annotations: s.annotations}, facts) {
			if v.Rule == rule && api.ReasonOf(v.Err) == rule.Reason {
				return api.Message(v.Err), nil
			}
		}
	}
	return "", fmt.Errorf("rule %s: no sample breaks it", rule.Name)
}

// The namespace of all samples.
var (
	demands   = map[string]string{api.Enforce: string(policy.Required)}
	available = policy.Available{
		Classes: []string{"key-vault-secret"}, ServiceAccounts: []string{"blob-sa", "default"}, Clients: []string{"blob-sa"}, Selectors: []string{"access-blob"},
	}
)

// samples are pods that break rules.
var samples = []struct {
	labels, attributes, annotations map[string]string
	runsAs                          string
	classes                         []*class.Class
	serviceAccount                  *policy.ServiceAccount
}{
	{},
	{labels: map[string]string{api.PodIdentityBinding: "no-access-blob"}},
	{labels: map[string]string{api.WorkloadIdentityUse: "true"}, runsAs: "blob"},
	{labels: map[string]string{api.WorkloadIdentityUse: "true"}, serviceAccount: &policy.ServiceAccount{Name: "default"}},
	{attributes: map[string]string{}},
	{attributes: map[string]string{class.Attribute: "key-vault-secrets"}},
	{
		attributes:  map[string]string{class.Attribute: "key-vault-secret"},
		classes:     []*class.Class{{Name: "key-vault-secret", Provider: class.Provider, Vault: "nf425csi", UsesPodIdentity: true}},
		annotations: map[string]string{api.AllowedVaults: "shop-*"},
	},
	{attributes: map[string]string{class.Attribute: "key-vault-secret", "keyvaultName": "another-kv"}},
	{labels: map[string]string{api.PodIdentityBinding: "admin"}, annotations: map[string]string{api.AllowedNames: "access-*, blob-sa"}},
}
