package api_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
)

func TestNearest(t *testing.T) {
	for behaviour, test := range map[string]struct {
		name  string
		names []string
		want  []string
	}{
		"a slip of a letter":             {"app-secret", []string{"other", "app-secrets"}, []string{"app-secrets"}},
		"letters swapped":                {"app-sercets", []string{"app-secrets"}, []string{"app-secrets"}},
		"case does not count":            {"APP", []string{"app"}, []string{"app"}},
		"nearest first, then by name":    {"abcd", []string{"abce", "abcd1", "abcd"}, []string{"abcd", "abcd1", "abce"}},
		"three at most":                  {"kv-a", []string{"kv-b", "kv-c", "kv-d", "kv-e"}, []string{"kv-b", "kv-c", "kv-d"}},
		"what is far off is not offered": {"db-password", []string{"tls-certificate"}, nil},
		"nothing to offer":               {"a", nil, nil},
	} {
		t.Run(behaviour, func(t *testing.T) {
			before := fmt.Sprint(test.names)
			if diff := cmp.Diff(test.want, api.Nearest(test.name, test.names)); diff != "" {
				t.Errorf("nearest names differ (-want +got):\n%s", diff)
			}
			if fmt.Sprint(test.names) != before {
				t.Errorf("the names are reordered: %v", test.names)
			}
		})
	}
}

func TestAvailable(t *testing.T) {
	var many []string
	for i := range 12 {
		many = append(many, fmt.Sprintf("class-%02d", 11-i))
	}
	for behaviour, test := range map[string]struct {
		name  string
		names []string
		want  string
	}{
		"a near name is offered":       {"app-secret", []string{"zzz", "app-secrets"}, "; did you mean app-secrets?"},
		"else all of them, sorted":     {"something", []string{"b", "a"}, "; available here: a, b"},
		"of many, the first ten":       {"something", many, "; available here: class-00, class-01, class-02, class-03, class-04, class-05, class-06, class-07, class-08, class-09, …"},
		"of none, that there are none": {"something", nil, "; there is no SecretProviderClass here"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := api.Available(test.name, "SecretProviderClass", test.names); got != test.want {
				t.Errorf("Available is %q, want %q", got, test.want)
			}
		})
	}
}
