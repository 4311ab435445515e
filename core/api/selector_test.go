package api_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
)

func TestSelector(t *testing.T) {
	names := []string{"app", "api", "init-db", "istio-proxy"}
	for behaviour, test := range map[string]struct {
		patterns        string
		want, unmatched []string
	}{
		"no pattern selects all":                 {want: names},
		"names":                                  {patterns: "app,init-db", want: []string{"app", "init-db"}},
		"a glob":                                 {patterns: "a*", want: []string{"app", "api"}},
		"globs with ? and classes":               {patterns: "ap?,[i]nit*", want: []string{"app", "api", "init-db"}},
		"! excludes what it matches":             {patterns: "a*,!api", want: []string{"app"}},
		"! wins in any order":                    {patterns: "!api,a*", want: []string{"app"}},
		"only !: all others are selected":        {patterns: "!istio-*", want: []string{"app", "api", "init-db"}},
		"! of all selects none":                  {patterns: "!*"},
		"a name that does not exist is reported": {patterns: "app,web", want: []string{"app"}, unmatched: []string{"web"}},
		"an excluded name that does not exist":   {patterns: "!web,!x*", want: names, unmatched: []string{"!web", "!x*"}},
		"a name does not match by prefix":        {patterns: "ap", unmatched: []string{"ap"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var s api.Selector
			if test.patterns != "" {
				s = selector(t, strings.Split(test.patterns, ",")...)
			}
			var got []string
			for _, name := range names {
				if s.Matches(name) {
					got = append(got, name)
				}
			}
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("selected (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.unmatched, s.Unmatched(names)); diff != "" {
				t.Errorf("unmatched (-want +got):\n%s", diff)
			}
			if s.String() != test.patterns || s.All() != (test.patterns == "") || !s.Equal(s) || (!s.All() && s.Equal(api.Selector{})) {
				t.Errorf("String is %q, want %q", s, test.patterns)
			}
		})
	}
}

func TestSelectorMistakes(t *testing.T) {
	for behaviour, patterns := range map[string][]string{
		"no pattern":              {},
		"an empty pattern":        {"app", ""},
		"nothing after !":         {"!"},
		"! twice":                 {"!!app"},
		"a glob without its end":  {"[a"},
		"a range without its end": {"[a-]"},
		"a character that no container's name has": {"app_1"},
		"a comma within a pattern":                 {"a,b"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if s, err := api.ParseSelector(patterns); err == nil || !strings.HasPrefix(err.Error(), "must ") {
				t.Errorf("ParseSelector(%q) returned %q, %v", patterns, s, err)
			}
		})
	}
}
