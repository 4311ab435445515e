package main

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"
)

func TestWrap(t *testing.T) {
	for behaviour, test := range map[string]struct {
		text  string
		width int
		want  []string
	}{
		"what fits stays whole":                   {"  key: value", 12, []string{"  key: value"}},
		"a value goes on below its key, deeper":   {"  key: value", 11, []string{"  key:", "    value"}},
		"a list's dash belongs to the indent":     {"- name: value", 11, []string{"- name:", "    value"}},
		"a long text goes on as often as needed":  {"one two three four", 9, []string{"one two", "  three", "  four"}},
		"a word that is too long stays whole":     {"one twothreefour five", 8, []string{"one", "  twothreefour", "  five"}},
		"a single word that is too long, as well": {"twothreefour", 8, []string{"twothreefour"}},
		"JSON is cut off":                         {`status: '{"a":"b"}'`, 12, []string{`status: '{"…`}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if diff := cmp.Diff(test.want, wrap(test.text, test.width)); diff != "" {
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
	(&page{to: out, width: 44}).columns(
		"left", []line{{text: "kind: Deployment"}, {text: "key: a-long-value"}},
		"right", []line{{text: "kind: Pod"}, {text: "labels:", added: true}, {text: "  key: a-long-value", added: true}})
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

func TestContains(t *testing.T) {
	const pod = `{labels: {a: b}, containers: [{name: x, image: y, env: [{name: V, value: "1"}]}, {name: z}]}`
	for behaviour, test := range map[string]struct {
		part string
		want bool
	}{
		"an object contains itself":                     {pod, true},
		"an object may have more fields":                {`{labels: {a: b}}`, true},
		"a list may have other elements, in any order":  {`{containers: [{name: z}, {name: x}]}`, true},
		"a missing field is not contained":              {`{labels: {c: d}}`, false},
		"another value is not contained":                {`{labels: {a: c}}`, false},
		"a missing element is not contained":            {`{containers: [{name: y}]}`, false},
		"an element with another value isn't contained": {`{containers: [{name: x, env: [{name: V, value: "2"}]}]}`, false},
		"a list is not contained in what is none":       {`{labels: [{name: a}]}`, false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := contains(parse(t, pod), parse(t, test.part)); got != test.want {
				t.Errorf("got %t, want %t", got, test.want)
			}
		})
	}
}

func TestManifest(t *testing.T) {
	// The API server's default stays unseen, the author's own is as it was, the injector's is marked.
	got := manifest(
		parse(t, `{labels: {app: web, injected: "true"}, spec: {dns: first, containers: [{image: i, name: c, env: [{name: V}], policy: Always}]}}`),
		parse(t, `{labels: {app: web}, spec: {dns: first, containers: [{image: i, name: c, policy: Always}]}}`),
		parse(t, `{labels: {app: web}, spec: {containers: [{name: c, image: i}]}}`), "")
	want := []line{
		{text: "labels:"},
		{text: "  app: web"},
		{text: `  injected: "true"`, added: true},
		{text: "spec:"},
		{text: "  containers:"},
		{text: "  - name: c"},
		{text: "    image: i"},
		{text: "    env:", added: true},
		{text: "    - name: V", added: true},
	}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(line{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func parse(t *testing.T, text string) map[string]any {
	t.Helper()
	var fields map[string]any
	if err := yaml.Unmarshal([]byte(text), &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}
