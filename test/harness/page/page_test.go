package page_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/page"
)

func TestWrap(t *testing.T) {
	for behaviour, test := range map[string]struct {
		text  string
		width int
		want  []string
	}{
		"a text that fits is unchanged":            {"  key: value", 12, []string{"  key: value"}},
		"a value moves below its key, indented":    {"  key: value", 11, []string{"  key:", "    value"}},
		"the dash of a list is part of the indent": {"- name: value", 11, []string{"- name:", "    value"}},
		"a long text has more than two lines":      {"one two three four", 9, []string{"one two", "  three", "  four"}},
		"a long word stays whole":                  {"one twothreefour five", 8, []string{"one", "  twothreefour", "  five"}},
		"a single long word stays whole":           {"twothreefour", 8, []string{"twothreefour"}},
		"JSON is cut off":                          {`status: '{"a":"b"}'`, 12, []string{`status: '{"…`}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if diff := cmp.Diff(test.want, page.Wrap(test.text, test.width)); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

func TestColumns(t *testing.T) {
	out, err := os.Create(filepath.Join(t.TempDir(), "out"))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	page.Wide(out, 44).Columns(
		"left", []page.Line{{Text: "kind: Deployment"}, {Text: "key: a-long-value"}},
		"right", []page.Line{{Text: "kind: Pod"}, {Text: "labels:", Added: true}, {Text: "  key: a-long-value", Added: true}})
	got, err := os.ReadFile(out.Name())
	if err != nil {
		t.Fatal(err)
	}
	const want = `  left                right
  ─────────────────   ─────────────────────
  kind: Deployment      kind: Pod
  key: a-long-value   + labels:
                      +   key: a-long-value
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
