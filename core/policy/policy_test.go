package policy_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

func TestNeeds(t *testing.T) {
	used := scene{
		labels:         map[string]string{api.PodIdentityBinding: "access-blob", api.WorkloadIdentityUse: "true"},
		serviceAccount: "blob-sa",
		volumes:        mounts(mount("kv"), mount(""), mount("key-vault"), mount("kv")),
	}
	with := func(s scene, demands, allows map[string]string) scene {
		s.demands, s.allows = demands, allows
		return s
	}
	for behaviour, test := range map[string]struct {
		scene scene
		want  facts.Needs
	}{
		"a pod that uses nothing, at level bound":       {scene{demands: bound}, facts.Needs{}},
		"a pod that uses nothing, under ceilings":       {scene{allows: map[string]string{api.AllowedVaults: "", api.AllowedNames: ""}}, facts.Needs{}},
		"a pod that uses nothing, at level required":    {scene{demands: required}, facts.Needs{Identities: true}},
		"a pod that uses nothing, required in one mode": {scene{demands: map[string]string{api.Enforce: "bound", api.Audit: "required"}}, facts.Needs{Identities: true}},
		"a pod that uses everything, without a policy":  {used, facts.Needs{}},
		"a ceiling on vaults needs classes":             {with(used, nil, map[string]string{api.AllowedVaults: "*"}), facts.Needs{Classes: []string{"key-vault", "kv"}}},
		"a ceiling on identities needs classes":         {with(used, nil, map[string]string{api.AllowedNames: "*"}), facts.Needs{Classes: []string{"key-vault", "kv"}}},
		"an exemption needs nothing":                    {with(used, nil, map[string]string{api.Exempt: "*"}), facts.Needs{}},
		"a pod that uses everything, at level bound":    {with(used, bound, nil), facts.Needs{Classes: []string{"key-vault", "kv"}, ServiceAccount: "blob-sa", Selector: "access-blob", Identities: true}},
		"a pod that uses everything, in mode warn":      {with(used, map[string]string{api.Warn: "bound"}, nil), facts.Needs{Classes: []string{"key-vault", "kv"}, ServiceAccount: "blob-sa", Selector: "access-blob", Identities: true}},
		"a binding":                              {scene{labels: binding("access-blob"), demands: required}, facts.Needs{Selector: "access-blob"}},
		"a binding, and a class":                 {scene{labels: binding("access-blob"), volumes: mounts(mount("kv")), demands: bound}, facts.Needs{Classes: []string{"kv"}, Selector: "access-blob"}},
		"a class alone, which may need a label":  {scene{volumes: mounts(mount("kv")), demands: bound}, facts.Needs{Classes: []string{"kv"}, Identities: true}},
		"workload identity":                      {scene{labels: workload("true"), demands: bound}, facts.Needs{ServiceAccount: "default", Identities: true}},
		"a label that Azure's webhook ignores":   {scene{labels: workload("True"), demands: bound}, facts.Needs{}},
		"a volume without a class needs nothing": {scene{volumes: mounts(nil), demands: bound}, facts.Needs{}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			got := test.scene.pod().Needs(test.scene.namespace())
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("needs (-want +got):\n%s", diff)
			}
			if empty := cmp.Equal(test.want, facts.Needs{}); got.IsEmpty() != empty {
				t.Errorf("there is nothing to look up: %t", got.IsEmpty())
			}
		})
	}
	for _, one := range []facts.Needs{{Classes: []string{"kv"}}, {ServiceAccount: "default"}, {Selector: "access-blob"}, {Identities: true}} {
		if one.IsEmpty() {
			t.Errorf("there is nothing to look up for %+v", one)
		}
	}
}

// TestNeedsIsBounded has a pod with very many classes. A pod with classes that are not looked up is
// rejected.
func TestNeedsIsBounded(t *testing.T) {
	p := &policy.Usage{ServiceAccount: "default"}
	var all []*class.Class
	for i := range 5000 {
		name := fmt.Sprintf("class-%04d", i)
		p.Volumes = append(p.Volumes, policy.Volume{Path: field.NewPath("spec", "volumes").Index(i), Attributes: map[string]string{class.Attribute: name}})
		all = append(all, &class.Class{Name: name, Provider: class.Provider, Vault: "team-kv"})
	}
	for _, namespace := range []facts.Namespace{
		{Name: "team-a", Labels: map[string]string{api.Enforce: "bound"}},
		{Name: "team-a", Annotations: map[string]string{api.AllowedVaults: "*"}},
	} {
		needs := p.Needs(namespace)
		if len(needs.Classes) != 100 {
			t.Errorf("%d classes are looked up", len(needs.Classes))
		}
		if broken := policy.Check(p, namespace, &facts.Answer{Classes: all[:len(needs.Classes)]}); len(broken) == 0 {
			t.Error("a pod with classes that were not looked up is allowed")
		}
	}
}
