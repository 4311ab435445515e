package api_test

import (
	"strings"
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
)

// TestParseYAML has a case for each rejected construct, and for valid texts that resemble it.
func TestParseYAML(t *testing.T) {
	for text, want := range map[string]string{
		"[a, '%TAG', \"&a *a !a\"]":                       "",
		"a: b\n--- \n":                                    "line 2: must be the only document",
		"a: b\n...\n%TAG !x! a\n---\nb":                   "must have no directives",
		"%YAML 1.1\n---\na":                               "must have no directives",
		"\ufeff%TAG !x! a\n---\na":                        "must have no directives",
		"a\u0085...\u2028%TAG !x! a\r---":                 "must have no directives",
		"a: &a b\nc: *a":                                  "line 2: must have no aliases",
		"\xff\xfea":                                       "must be UTF-8",
		strings.Repeat("[", 12) + strings.Repeat("]", 12): "line 1: must be nested at most 10 levels deep",
		strings.Repeat("-\u0085", 50):                     "must have at most 99 lines, commas, colons and brackets, has 100",
		strings.Repeat("#\u2028", 100) + "-":              "must have at most 99 lines, commas, colons and brackets, has 101",
		strings.Repeat("- a\n", 50):                       "must have at most 99 lines, commas, colons and brackets, has 100",
	} {
		got := ""
		if _, err := api.ParseYAML(text, 99); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}
