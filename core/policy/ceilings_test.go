package policy_test

import (
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

func TestCeilings(t *testing.T) {
	ceiling := func(key, globs string) facts.Namespace {
		return facts.Namespace{Name: "team-a", Annotations: map[string]string{key: globs}}
	}
	for behaviour, test := range map[string]struct {
		globs           string
		absent          bool
		name            string
		vault, identity bool
	}{
		"no ceiling allows all":               {absent: true, name: "Team-A", vault: true, identity: true},
		"an empty ceiling allows none":        {globs: "", name: "team-a"},
		"a name allows itself":                {globs: "team-a", name: "team-a", vault: true, identity: true},
		"a name does not match by prefix":     {globs: "team", name: "team-a"},
		"a glob allows what it matches":       {globs: "team-*", name: "team-a", vault: true, identity: true},
		"any of several globs, with space":    {globs: "x, team-? ,y", name: "team-a", vault: true, identity: true},
		"only vaults ignore case":             {globs: "Team-*", name: "team-a", vault: true},
		"a malformed glob allows nothing":     {globs: "[,[a-", name: "["},
		"other globs next to a malformed one": {globs: "[,team-a", name: "team-a", vault: true, identity: true},
		"a glob may name the cloud":           {globs: "AzureChinaCloud/team-*, azurepubliccloud/team-a", name: "team-a", vault: true},
		"and then allows no other cloud":      {globs: "AzureChinaCloud/*", name: "team-a"},
		"* allows all":                        {globs: "*", name: "anything", vault: true, identity: true},
	} {
		t.Run(behaviour, func(t *testing.T) {
			vaults, names := ceiling(api.AllowedVaults, test.globs), ceiling(api.AllowedNames, test.globs)
			if test.absent {
				vaults, names = names, vaults // the ceiling under test is absent
			}
			if got := policy.CheckVault(vaults, "", test.name, nil) == nil; got != test.vault {
				t.Errorf("vault is allowed: %t", got)
			}
			if got := policy.CheckIdentity(names, test.name, nil) == nil; got != test.identity {
				t.Errorf("identity is allowed: %t", got)
			}
		})
	}
}
