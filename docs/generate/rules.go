package main

import (
	"bytes"
	"fmt"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/policy"
)

// rules writes the table of policy rules, with the messages that users see.
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

// sample returns the message of a rule for the first sample that breaks it.
func sample(rule *policy.Rule) (string, error) {
	for _, s := range samples {
		subject := pods.Subject{Pod: &pods.Pod{
			Meta: &pods.Meta{Labels: s.labels},
			Spec: pods.Spec{ServiceAccountName: s.runsAs},
		}}
		if s.attributes != nil {
			subject.Spec.Volumes = []pods.Volume{{CSI: &pods.CSI{Driver: class.Driver, Attributes: s.attributes}}}
		}
		usage := policy.UsageOf(&subject)
		usage.IsBinding = rule.OfBindings
		answer := &facts.Answer{Classes: s.classes, ServiceAccount: s.serviceAccount, Available: available}
		namespace := facts.Namespace{Name: "shop", Labels: demands, Annotations: s.annotations}
		for _, v := range policy.Check(usage, namespace, answer) {
			if v.Rule == rule && api.ReasonOf(v.Err) == rule.Reason {
				return api.Message(v.Err), nil
			}
		}
	}
	return "", fmt.Errorf("rule %s: no sample breaks it", rule.Name)
}

// The labels of the namespace of all samples, and the objects in it.
var (
	demands   = map[string]string{api.Enforce: string(policy.Required)}
	available = facts.Available{
		Classes:         []string{"key-vault-secret"},
		ServiceAccounts: []string{"blob-sa", "default"},
		Clients:         []string{"blob-sa"},
		Selectors:       []string{"access-blob"},
	}
)

// samples are pods that break rules.
var samples = []struct {
	labels, attributes, annotations map[string]string
	runsAs                          string
	classes                         []*class.Class
	serviceAccount                  *facts.ServiceAccount
}{
	{},
	{labels: map[string]string{api.PodIdentityBinding: "no-access-blob"}},
	{labels: map[string]string{api.WorkloadIdentityUse: "true"}, runsAs: "blob"},
	{labels: map[string]string{api.WorkloadIdentityUse: "true"}, serviceAccount: &facts.ServiceAccount{Name: "default"}},
	{attributes: map[string]string{}},
	{attributes: map[string]string{class.Attribute: "key-vault-secrets"}},
	{
		attributes: map[string]string{class.Attribute: "key-vault-secret"},
		classes: []*class.Class{{
			Name: "key-vault-secret", Provider: class.Provider, Vault: "nf425csi", UsesPodIdentity: true,
		}},
		annotations: map[string]string{api.AllowedVaults: "shop-*"},
	},
	{
		attributes: map[string]string{class.Attribute: "key-vault-secret"},
		classes: []*class.Class{{
			Name: "key-vault-secret", Provider: class.Provider, Vault: "nf425csi", UsesPodIdentity: true,
			Synced: []class.Synced{{File: "db", Secret: "admin", Key: "db"}},
		}},
		annotations: map[string]string{api.AllowedSecretNames: "app-*"},
	},
	{attributes: map[string]string{class.Attribute: "key-vault-secret", "keyvaultName": "another-kv"}},
	{
		labels:      map[string]string{api.PodIdentityBinding: "admin"},
		annotations: map[string]string{api.AllowedNames: "access-*, blob-sa"},
	},
}
