package policy_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/policy"
)

func TestModesOf(t *testing.T) {
	for behaviour, test := range map[string]struct {
		labels map[string]string
		want   policy.Modes
	}{
		"no label":                    {nil, policy.Modes{}},
		"other labels":                {map[string]string{"enforce": "bound", api.Injection: "enabled"}, policy.Modes{}},
		"another level for each mode": {map[string]string{api.Enforce: "bound", api.Warn: "required"}, policy.Modes{Enforce: policy.Bound, Warn: policy.Required}},
		"only audit":                  {map[string]string{api.Audit: "bound"}, policy.Modes{Audit: policy.Bound}},
		"an unknown level is the strictest": {
			map[string]string{api.Enforce: "restricted", api.Warn: "off", api.Audit: "bound "},
			policy.Modes{Enforce: policy.Required, Warn: policy.Required, Audit: policy.Required},
		},
		"so is a level in another case": {map[string]string{api.Enforce: "Bound"}, policy.Modes{Enforce: policy.Required}},
		"so is a label without a value": {map[string]string{api.Warn: ""}, policy.Modes{Warn: policy.Required}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if diff := cmp.Diff(test.want, policy.ModesOf(facts.Namespace{Labels: test.labels}, "default")); diff != "" {
				t.Errorf("modes (-want +got):\n%s", diff)
			}
		})
	}
}

func TestAtLeast(t *testing.T) {
	levels := []policy.Level{policy.Off, policy.Bound, policy.Required}
	for i, level := range levels {
		for j, other := range levels {
			if got := level.AtLeast(other); got != (i >= j) {
				t.Errorf("%q is at least %q: %t", level, other, got)
			}
		}
	}
	if unknown := policy.Level("restricted"); !unknown.AtLeast(policy.Required) {
		t.Errorf("%q is less strict than %q", unknown, policy.Required)
	}
}

// TestAnyMode shows that a pod is checked against the strictest level of all modes. Which mode a
// violation is reported in is decided later.
func TestAnyMode(t *testing.T) {
	for behaviour, test := range map[string]struct {
		labels map[string]string
		want   []string
	}{
		"enforce":               {map[string]string{api.Enforce: "required"}, []string{"identity-required"}},
		"warn":                  {map[string]string{api.Warn: "required"}, []string{"identity-required"}},
		"audit":                 {map[string]string{api.Audit: "required"}, []string{"identity-required"}},
		"the strictest of them": {map[string]string{api.Enforce: "bound", api.Audit: "required"}, []string{"identity-required"}},
		"an unknown level":      {map[string]string{api.Enforce: ""}, []string{"identity-required"}},
		"bound in all of them":  {map[string]string{api.Enforce: "bound", api.Warn: "bound", api.Audit: "bound"}, nil},
	} {
		t.Run(behaviour, func(t *testing.T) {
			s := scene{demands: test.labels}
			var got []string
			for _, v := range policy.Check(s.pod(), s.namespace(), &s.facts) {
				got = append(got, v.Rule.Name)
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("rules broken (-want +got):\n%s", diff)
			}
		})
	}
}

func TestUnknownLevels(t *testing.T) {
	for behaviour, test := range map[string]struct {
		labels map[string]string
		want   []string
	}{
		"no label":    {nil, nil},
		"both levels": {map[string]string{api.Enforce: "bound", api.Warn: "required"}, nil},
		"an unknown level in every mode": {
			map[string]string{api.Audit: "baseline", api.Warn: "required", api.Enforce: "Bound"},
			[]string{
				`[UnknownLevel] namespaces[team-a].metadata.labels[identity.io/enforce]: Unsupported value: "Bound": supported values: "bound", "required"; it counts as required`,
				`[UnknownLevel] namespaces[team-a].metadata.labels[identity.io/audit]: Unsupported value: "baseline": supported values: "bound", "required"; it counts as required`,
			},
		},
		"a label without a value": {
			map[string]string{api.Warn: ""},
			[]string{`[UnknownLevel] namespaces[team-a].metadata.labels[identity.io/warn]: Unsupported value: "": supported values: "bound", "required"; it counts as required`},
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var got []string
			for _, err := range policy.UnknownLevels(facts.Namespace{Name: "team-a", Labels: test.labels}) {
				got = append(got, api.Message(err))
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("warnings (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExempt(t *testing.T) {
	for behaviour, test := range map[string]struct {
		annotations map[string]string
		name        string
		want        bool
	}{
		"no annotation":               {nil, "builder", false},
		"an empty annotation":         {map[string]string{api.Exempt: ""}, "builder", false},
		"a name":                      {map[string]string{api.Exempt: "builder"}, "builder", true},
		"a name with the same prefix": {map[string]string{api.Exempt: "builder"}, "builder-2", false},
		"a glob":                      {map[string]string{api.Exempt: "argo, build* "}, "builder", true},
		"another case":                {map[string]string{api.Exempt: "Builder"}, "builder", false},
		"a malformed glob":            {map[string]string{api.Exempt: "[builder"}, "builder", false},
		"ceilings do not exempt":      {map[string]string{api.AllowedNames: "*", api.AllowedVaults: "*"}, "builder", false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			// A label with the key of the annotation must have no effect: users who may
			// label the namespace may not be allowed to annotate it.
			namespace := facts.Namespace{Name: "team-a", Labels: map[string]string{api.Exempt: "*", api.Enforce: "bound"}, Annotations: test.annotations}
			if got := policy.ModesOf(namespace, test.name).Enforce == policy.Off; got != test.want {
				t.Errorf("%s is exempt: %t", test.name, got)
			}
		})
	}
}
