package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/test/harness/page"
)

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
	// The API server's default is omitted, the author's fields are unmarked, the injector's are
	// marked.
	got := manifest(
		parse(t, `{labels: {app: web, injected: "true", notes: "a\nb"}, spec: {dns: first, containers: [{image: i, name: c, env: [{name: V}], policy: Always}]}}`),
		parse(t, `{labels: {app: web}, spec: {dns: first, containers: [{image: i, name: c, policy: Always}]}}`),
		parse(t, `{labels: {app: web}, spec: {containers: [{name: c, image: i}]}}`), "")
	want := []page.Line{
		{Text: "labels:"},
		{Text: "  app: web"},
		{Text: `  injected: "true"`, Added: true},
		{Text: "  notes: |-", Added: true},
		{Text: "    a", Added: true},
		{Text: "    b", Added: true},
		{Text: "spec:"},
		{Text: "  containers:"},
		{Text: "  - name: c"},
		{Text: "    image: i"},
		{Text: "    env:", Added: true},
		{Text: "    - name: V", Added: true},
	}
	if diff := cmp.Diff(want, got); diff != "" {
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
