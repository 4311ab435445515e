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
		"a missing letter":            {"app-secret", []string{"other", "app-secrets"}, []string{"app-secrets"}},
		"letters swapped":             {"app-sercets", []string{"app-secrets"}, []string{"app-secrets"}},
		"another case":                {"APP", []string{"app"}, []string{"app"}},
		"nearest first, then by name": {"abcd", []string{"abce", "abcd1", "abcd"}, []string{"abcd", "abcd1", "abce"}},
		"at most three":               {"kv-a", []string{"kv-b", "kv-c", "kv-d", "kv-e"}, []string{"kv-b", "kv-c", "kv-d"}},
		"a name that is not similar":  {"db-password", []string{"tls-certificate"}, nil},
		"no names":                    {"a", nil, nil},
	} {
		t.Run(behaviour, func(t *testing.T) {
			before := fmt.Sprint(test.names)
			if diff := cmp.Diff(test.want, api.Nearest(test.name, test.names)); diff != "" {
				t.Errorf("nearest names differ (-want +got):\n%s", diff)
			}
			if fmt.Sprint(test.names) != before {
				t.Errorf("Nearest reordered its argument: %v", test.names)
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
		"a similar name is suggested": {"app-secret", []string{"zzz", "app-secrets"}, "; did you mean app-secrets?"},
		"otherwise all names, sorted": {"something", []string{"b", "a"}, "; available here: a, b"},
		"many names":                  {"something", many, "; available here: class-00, class-01, class-02, class-03, class-04, class-05, class-06, class-07, class-08, class-09, …"},
		"a name of two objects":       {"something", []string{"b", "a", "b"}, "; available here: a, b"},
		"a similar one of two":        {"app-secret", []string{"app-secrets", "app-secrets"}, "; did you mean app-secrets?"},
		"no names":                    {"something", nil, "; there is no SecretProviderClass here"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := api.Available(test.name, "SecretProviderClass", test.names); got != test.want {
				t.Errorf("Available is %q, want %q", got, test.want)
			}
		})
	}
}
