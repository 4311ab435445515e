package lines_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli/lines"
)

func TestDiff(t *testing.T) {
	tests := map[string]struct {
		a, b string
		want []lines.Edit
	}{
		"nothing":                    {"", "", nil},
		"equal texts":                {"a b c", "a b c", nil},
		"an insertion":               {"a b", "a x b", []lines.Edit{{1, 1, 1, 2}}},
		"a deletion":                 {"a x b", "a b", []lines.Edit{{1, 2, 1, 1}}},
		"a replacement":              {"a x b", "a y z b", []lines.Edit{{1, 2, 1, 3}}},
		"all of it":                  {"a", "b", []lines.Edit{{0, 1, 0, 1}}},
		"from nothing":               {"", "a b", []lines.Edit{{0, 0, 0, 2}}},
		"to nothing":                 {"a b", "", []lines.Edit{{0, 2, 0, 0}}},
		"two places":                 {"a b c d", "a x b c y d", []lines.Edit{{1, 1, 1, 2}, {3, 3, 4, 5}}},
		"the second of equal blocks": {"n i n i e", "n i n i v e", []lines.Edit{{4, 4, 4, 5}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, lines.Diff(strings.Fields(tt.a), strings.Fields(tt.b))); diff != "" {
				t.Errorf("edits (-want +got):\n%s", diff)
			}
		})
	}
}

func FuzzDiff(f *testing.F) {
	f.Add("abcabba", "cbabac")
	f.Add("", "x")
	f.Fuzz(func(t *testing.T, textA, textB string) {
		a, b := strings.Split(textA, ""), strings.Split(textB, "")
		got := slices.Clone(a)
		for _, e := range slices.Backward(lines.Diff(a, b)) {
			got = slices.Replace(got, e.Start, e.End, b[e.OtherStart:e.OtherEnd]...)
		}
		if !slices.Equal(got, b) {
			t.Errorf("the edits make %q of %q, want %q", got, a, b)
		}
	})
}
