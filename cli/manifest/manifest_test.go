package manifest_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/cli/manifest"
)

func TestSplitKeepsEveryByte(t *testing.T) {
	tests := map[string]struct {
		text string
		// want are the texts of the documents with a value.
		want []string
	}{
		"one document":                         {"a: 1\n", []string{"a: 1\n"}},
		"no newline at the end":                {"a: 1", []string{"a: 1"}},
		"documents between markers":            {"a: 1\n---\nb: 2\n---\n", []string{"a: 1\n", "---\nb: 2\n"}},
		"a marker at the start":                {"---\na: 1\n", []string{"---\na: 1\n"}},
		"a marker with a comment":              {"--- # first\na: 1\n---\t\nb: 2\n", []string{"--- # first\na: 1\n", "---\t\nb: 2\n"}},
		"a marker with a value":                {"--- {a: 1}\n--- {\"b\": 2}\n", []string{"--- {a: 1}\n", "--- {\"b\": 2}\n"}},
		"--- without a space is no marker":     {"a: |\n  x\nb: y\n---c: 1\n", []string{"a: |\n  x\nb: y\n---c: 1\n"}},
		"an indented marker in a string":       {"a: |\n  ---\n  x\n", []string{"a: |\n  ---\n  x\n"}},
		"end markers":                          {"a: 1\n...\n# between\n---\nb: 2\n... # end\n", []string{"a: 1\n...\n", "---\nb: 2\n... # end\n"}},
		"directives":                           {"%YAML 1.1\n---\na: 1\n", []string{"---\na: 1\n"}},
		"only comments":                        {"# nothing\n\n---\n# here\n", nil},
		"a byte order mark":                    {"\uFEFFa: 1\n---\nb: 2\n", []string{"\uFEFFa: 1\n", "---\nb: 2\n"}},
		"a byte order mark before a marker":    {"\uFEFF---\na: 1\n", []string{"\uFEFF---\na: 1\n"}},
		"carriage returns":                     {"a: 1\r\n---\r\nb: 2\r\n", []string{"a: 1\r\n", "---\r\nb: 2\r\n"}},
		"space at the ends of lines":           {"a: 1  \n \n---  \nb: 2\t\n", []string{"a: 1  \n \n", "---  \nb: 2\t\n"}},
		"JSON objects in a row":                {"{\"a\":1}\n\n{\"b\":2} {\"c\":3}\n", []string{"{\"a\":1}\n", "\n{\"b\":2}", " {\"c\":3}\n"}},
		"JSON between markers":                 {"{\"a\":1}\n---\n{\"b\":2}\n", []string{"{\"a\":1}\n", "---\n{\"b\":2}\n"}},
		"YAML in the flow style is not JSON":   {"{a: 1, b: [2]}\n", []string{"{a: 1, b: [2]}\n"}},
		"an empty file":                        {"", nil},
		"a file that is not UTF-8":             {"a: \xff\n", []string{"a: \xff\n"}},
		"a document that can't be read":        {"a: [\n---\nb: 2\n", []string{"a: [\n", "---\nb: 2\n"}},
		"JSON with an error at the end":        {"{\"a\":1}\n{\"b\":\n", []string{"{\"a\":1}\n", "{\"b\":\n"}},
		"only a marker":                        {"---", nil},
		"end markers without newline":          {"a: 1\n...", []string{"a: 1\n..."}},
		"blank lines around a marker are kept": {"\n\na: 1\n\n\n---\n\n\nb: 2\n\n", []string{"\n\na: 1\n\n\n", "---\n\n\nb: 2\n\n"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var whole strings.Builder
			var got []string
			for _, d := range manifest.Split(tt.text) {
				whole.WriteString(d.Text())
				if !d.IsBlank() {
					got = append(got, d.Text())
				}
			}
			if whole.String() != tt.text {
				t.Errorf("the documents of %q have the text %q", tt.text, whole.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("documents (-want +got):\n%s", diff)
			}
		})
	}
}

func TestProblemNamesTheLineOfTheFile(t *testing.T) {
	tests := map[string]struct {
		text string
		line int
	}{
		"in the first line":                 {"a: b: c\n", 1},
		"in a later document":               {"a: 1\n---\nb: 1\nc: }\n", 4},
		"a key in an unfinished list":       {"---\na: 1\nb: [1\nc: 2\n", 3},
		"broken JSON":                       {"{\n  \"a\": 1,\n  \"b\" 2\n}\n", 3},
		"an alias of nothing":               {"a: 1\nb: *c\n", 1},
		"a tab instead of a space":          {"a:\n\tb: 1\n", 2},
		"invalid UTF-8":                     {"a: \xff\n", 0},
		"a duplicate key":                   {"a: 1\n---\na:\n  b: 1\n  c: 2\n  b: 3\n", 6},
		"a duplicate key in JSON":           {"{\"a\": 1,\n\"a\": 2}\n", 2},
		"a duplicate key in the flow style": {"{a: 1,\na: 2}\n", 2},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			documents := manifest.Split(tt.text)
			problem := problemOf(documents[len(documents)-1])
			if problem == nil {
				t.Fatal("there is no problem")
			}
			if problem.Line != tt.line {
				t.Errorf("line %d, want %d: %s", problem.Line, tt.line, problem.Detail)
			}
		})
	}
}

// problemOf returns the problem of a document, or its duplicate key.
func problemOf(d *manifest.Document) *manifest.Problem {
	if p := d.Problem(); p != nil {
		return p
	}
	return d.Duplicate()
}

func TestProblemSaysWhatWouldBeRight(t *testing.T) {
	const template = "must be YAML or JSON; render the template first"
	tests := map[string]struct{ text, want string }{
		"a template":                  {"{{ .x }}\na: b\n", template},
		"a template after a marker":   {"--- {{ .x }}\n", template},
		"a template in a later line":  {"a: b\n{{- if .x }}\nc: d\n", template},
		"a template as a value":       {"a: b\nc: {{ .x }}\n", template},
		"a key that is a list":        {"a: 1\n[b]: 2\n", "must have a string as the key"},
		"a duplicate key":             {"# one\na: 1\nb: 2\na: 3\n", `must have key "a" once, not on line 2 and on line 4: only the last one counts; merge them`},
		"a duplicate key on one line": {"a: {b: 1, b: 2}\n", `must have key "b" once, not twice on line 1: only the last one counts; merge them`},
		"a key in another list item":  {"l:\n- a: 1\n  b: 2\n- a: 3\n", ""},
		"a key that is also merged":   {"x: &x {a: 1}\ny:\n  <<: *x\n  a: 2\n", ""},
		"a list that is long":         {"a: [" + strings.Repeat("b,", 390_000) + "]\n", ""},
		"a list that is too long":     {"a: [" + strings.Repeat("b,", 400_000) + "]\n", "must have at most 400000 lines, commas, colons and brackets, has 400003; split it into documents"},
		"the same in JSON":            {"[" + strings.Repeat("1,", 500_000) + "1]\n", "must have at most 500000 values; split it into documents"},
		"a text that is long":         {"a: |\n" + strings.Repeat("  b\n", 390_000), ""},
		"a text and its aliases":      {"a: &a " + strings.Repeat("b", 1000) + "\nc: [" + strings.Repeat("*a,", 5000) + "]\n", "must have at most 3209780 bytes with its aliases expanded"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if problem := problemOf(manifest.Split(tt.text)[0]); problem != nil {
				got = problem.Detail
			}
			if got != tt.want {
				t.Errorf("problem %q, want %q", got, tt.want)
			}
		})
	}
}

func TestLocate(t *testing.T) {
	const deployment = `# A file with two documents.
kind: Pod
---
kind: Deployment
metadata:
  annotations:
    keyvault.io/secrets: |
      A=a
spec:
  template:
    metadata: &meta
      labels: {app: web}
    spec:
      containers:
      - name: app
        env:
        - {name: A, value: b}
  other: *meta
`
	const list = `{"items": [{"kind": "Pod"},
  {"kind": "Pod", "metadata": {"name": "ü", "annotations": {"a/b": ""}}}]}`
	tests := map[string]struct {
		text, path   string
		line, column int
	}{
		"a key of a mapping":             {deployment, "metadata.annotations", 6, 3},
		"an annotation":                  {deployment, "metadata.annotations[keyvault.io/secrets]", 7, 5},
		"a path in a string":             {deployment, "metadata.annotations[keyvault.io/secrets][0].env", 7, 5},
		"a key that does not exist":      {deployment, "metadata.annotations[keyvault.io/class]", 6, 3},
		"an item of a sequence":          {deployment, "spec.template.spec.containers[0]", 15, 9},
		"a key of an item":               {deployment, "spec.template.spec.containers[0].env[0].name", 17, 12},
		"a key in the flow style":        {deployment, "spec.template.metadata.labels[app]", 12, 16},
		"through an alias":               {deployment, "spec.other.labels", 12, 7},
		"a root key that does not exist": {deployment, "status", 4, 1},
		"in JSON":                        {list, "items[1].metadata.annotations[a/b]", 2, 61},
		"a value after a marker":         {"--- {kind: Pod}\n", "kind", 1, 6},
		"an item that does not exist":    {deployment, "spec.template.spec.containers[7]", 14, 7},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			documents := manifest.Split(tt.text)
			line, column := documents[len(documents)-1].Locate(tt.path)
			if line != tt.line || column != tt.column {
				t.Errorf("%s is at %d:%d, want %d:%d", tt.path, line, column, tt.line, tt.column)
			}
		})
	}
}

func TestBlock(t *testing.T) {
	const text = "# head\n---\na: &b |\n\n  x\n  y\nc: >\n  z\nd: *b\ne: z\n"
	tests := map[string]struct {
		path, text string
		line       int
	}{
		"a literal block":           {"a", "\nx\ny\n", 4},
		"below a literal block":     {"a[1].b", "\nx\ny\n", 4},
		"an alias of one":           {"d", "\nx\ny\n", 4},
		"a folded block":            {"c", "", 0},
		"a word":                    {"e", "", 0},
		"a key that does not exist": {"f", "", 0},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if text, line := manifest.Split(text)[1].Block(tt.path); text != tt.text || line != tt.line {
				t.Errorf("text %q on line %d, want %q on line %d", text, line, tt.text, tt.line)
			}
		})
	}
}

func add(path string, value any) jsonpatch.Operation {
	return jsonpatch.Operation{Operation: "add", Path: path, Value: value}
}

func replace(path string, value any) jsonpatch.Operation {
	return jsonpatch.Operation{Operation: "replace", Path: path, Value: value}
}

func remove(path string) jsonpatch.Operation {
	return jsonpatch.Operation{Operation: "remove", Path: path}
}

func TestPatchKeepsTheAuthorsWords(t *testing.T) {
	tests := map[string]struct {
		text       string
		operations []jsonpatch.Operation
		want       string
	}{
		"comments, quotes and blank lines": {
			"# head\n\nkind:   Pod   # kind\nmetadata:\n    # before\n    labels:\n        a: 'x' # a\n        b: \"y\"\n\n\n# spec\nspec:\n\n    volumes: [] # none\n",
			[]jsonpatch.Operation{add("/metadata/labels/c~1d", "true")},
			"# head\n\nkind:   Pod   # kind\nmetadata:\n    # before\n    labels:\n        a: 'x' # a\n        b: \"y\"\n        c/d: \"true\"\n\n\n# spec\nspec:\n\n    volumes: [] # none\n",
		},
		"sequences that are indented": {
			"spec:\n  containers:\n    - name: a\n      env:\n        - name: A\n          value: >-\n            a long\n            text\n\n    - name: b\n",
			[]jsonpatch.Operation{add("/spec/containers/0/env/0", map[string]string{"name": "B"}), add("/spec/containers/-", map[string]string{"name": "c"})},
			"spec:\n  containers:\n    - name: a\n      env:\n        - name: B\n        - name: A\n          value: >-\n            a long\n            text\n\n    - name: b\n    - name: c\n",
		},
		"sequences that are not": {
			"spec:\n  containers:\n  - name: a\n    image: x\n\n  - name: b\n",
			[]jsonpatch.Operation{add("/spec/containers/0/env", []any{map[string]string{"name": "B"}})},
			"spec:\n  containers:\n  - name: a\n    image: x\n    env:\n    - name: B\n\n  - name: b\n",
		},
		"carriage returns": {
			"a:\r\n  b: 1\r\nc:  2\r\n",
			[]jsonpatch.Operation{add("/a/d", "x")},
			"a:\r\n  b: 1\r\n  d: x\r\nc:  2\r\n",
		},
		"no newline at the end": {
			"a:\n  b: 1",
			[]jsonpatch.Operation{add("/a/c", "x")},
			"a:\n  b: 1\n  c: x\n",
		},
		"comments around the value": {
			"--- # Source: chart/x.yaml\na:\n  b: 1\n... # end\n",
			[]jsonpatch.Operation{add("/a/c", 2)},
			"--- # Source: chart/x.yaml\na:\n  b: 1\n  c: 2\n... # end\n",
		},
		"a value on the line of its marker": {
			"--- {a: {b: 1}}\n",
			[]jsonpatch.Operation{add("/a/c", 2)},
			"--- {a: {b: 1, c: 2}}\n",
		},
		"words with another type in YAML 1.1": {
			"a: {}\n",
			[]jsonpatch.Operation{add("/a", map[string]string{"a": "yes", "b": "0400", "c": "12:30", "d": "1e3", "e": "null", "f": "x: y", "g": "a\nb\n"})},
			"a:\n  a: \"yes\"\n  b: \"0400\"\n  c: \"12:30\"\n  d: \"1e3\"\n  e: \"null\"\n  f: 'x: y'\n  g: |\n    a\n    b\n",
		},
		"more words with another type in YAML 1.1": {
			"on: yes\nmode: 0400\na:\n  b: 1\n",
			[]jsonpatch.Operation{add("/a/c", 2)},
			"on: yes\nmode: 0400\na:\n  b: 1\n  c: 2\n",
		},
		"an empty mapping with a comment": {
			"labels: {} # none yet\nspec: 1\n",
			[]jsonpatch.Operation{add("/labels", map[string]string{"a": "b"})},
			"labels: # none yet\n  a: b\nspec: 1\n",
		},
		"null": {
			"labels:\nspec: 1\n",
			[]jsonpatch.Operation{add("/labels", map[string]string{"a": "b"})},
			"labels:\n  a: b\nspec: 1\n",
		},
		"an alias below which something changes": {
			"x: &env\n- name: A # why\nv: *env\nz: *env\n",
			[]jsonpatch.Operation{add("/v/-", map[string]string{"name": "B"})},
			"x: &env\n- name: A # why\nv:\n- name: A # why\n- name: B\nz: *env\n",
		},
		"an anchor below which something changes": {
			"x: &env\n- name: A\ny: *env\nz: *env\n",
			[]jsonpatch.Operation{add("/x/-", map[string]string{"name": "B"})},
			"x:\n- name: A\n- name: B\ny:\n- name: A\nz:\n- name: A\n",
		},
		"a merged mapping": {
			"x: &base\n  a: 1\n  b: 2\nv:\n  <<: *base\n  b: 3\n",
			[]jsonpatch.Operation{replace("/v/a", 7)},
			"x: &base\n  a: 1\n  b: 2\nv:\n  a: 7\n  b: 3\n",
		},
		"an anchor that is removed": {
			"x:\n  a: &a [1]\ny: *a\n",
			[]jsonpatch.Operation{remove("/x/a")},
			"x: {}\ny: [1]\n",
		},
		"comments of empty values": {
			"a:\n# above\n- {} # beside\n- b: {} # its own\n  c: [] # too\n  d: 1\n# tail\n",
			[]jsonpatch.Operation{add("/a/0/x", 1), add("/a/1/b/x", 1), add("/a/1/c/-", 1)},
			"a:\n# above\n# beside\n- x: 1\n- b:\n    # its own\n    x: 1\n  c:\n  # too\n  - 1\n  d: 1\n# tail\n",
		},
		"comments of an item that is replaced": {
			"env:\n# my env\n- {name: A, value: x} # old\n- {name: Z}\n# tail\nports: [{p: 80}] # p\n",
			[]jsonpatch.Operation{replace("/env/0", map[string]any{"name": "A", "valueFrom": map[string]string{"b": "c"}}), add("/new", []string{"x"})},
			"env:\n# my env\n# old\n- name: A\n  valueFrom:\n    b: c\n- {name: Z}\n# tail\nports: [{p: 80}] # p\nnew:\n- x\n",
		},
		"JSON, indented": {
			"{\n    \"a\": { \"b\": 1.50 },\n    \"c\": [1, 2]\n}\n",
			[]jsonpatch.Operation{add("/d", "<x>")},
			"{\n    \"a\": { \"b\": 1.50 },\n    \"c\": [1, 2],\n    \"d\": \"<x>\"\n}\n",
		},
		"JSON on a line": {
			"{\"z\":1,\"a\":{\"b\":\"\\ud83d\\ude00\\/\"}}\n",
			[]jsonpatch.Operation{add("/a/c", []string{"x"})},
			"{\"z\":1,\"a\":{\"b\":\"\\ud83d\\ude00\\/\",\"c\":[\"x\"]}}\n",
		},
		"JSON indented by tabs": {
			"{\n\t\"a\": {},\n\t\"b\": []\n}",
			[]jsonpatch.Operation{add("/a/c", 1), add("/b/-", "x")},
			"{\n\t\"a\": {\n\t\t\"c\": 1\n\t},\n\t\"b\": [\n\t\t\"x\"\n\t]\n}",
		},
		"styles that differ within a document": {
			"a:\n    b:\n        c: 1\nspec:\n  list:\n  - x: 1\n",
			[]jsonpatch.Operation{add("/spec/list/0/z", 2)},
			"a:\n    b:\n        c: 1\nspec:\n  list:\n  - x: 1\n    z: 2\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, dropped, err := manifest.Split(tt.text)[0].Patch(tt.operations)
			if err != nil || dropped {
				t.Fatalf("error %v, comments dropped: %t", err, dropped)
			}
			if diff := cmp.Diff(strings.SplitAfter(tt.want, "\n"), strings.SplitAfter(got, "\n")); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPatchSaysWhereACommentWasDropped(t *testing.T) {
	const text = "# head\na: [ # open\n  {x: 1}\n]\nb: {c: 1} # kept\n"
	tests := map[string]struct {
		path    string
		dropped bool
		want    string
	}{
		"its line stays":    {"/b/d", false, "# head\na: [ # open\n  {x: 1}\n]\nb: {c: 1, d: 2} # kept\n"},
		"it cannot be kept": {"/a/-", true, "# head\na:\n- {x: 1}\n- 2\nb: {c: 1} # kept\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, dropped, err := manifest.Split(text)[0].Patch([]jsonpatch.Operation{add(tt.path, 2)})
			if err != nil || dropped != tt.dropped {
				t.Fatalf("dropped %t, want %t, error %v", dropped, tt.dropped, err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

func TestPatchRejectsWhatDoesNotApply(t *testing.T) {
	tests := map[string]jsonpatch.Operation{
		"a member that does not exist": replace("/x", 1),
		"below a missing member":       add("/x/y", 1),
		"an index beyond the sequence": add("/list/9", 1),
		"below a scalar":               add("/a/b", 1),
	}
	for name, operation := range tests {
		t.Run(name, func(t *testing.T) {
			if text, _, err := manifest.Split("a: 1\nlist: []\n")[0].Patch([]jsonpatch.Operation{operation}); err == nil {
				t.Errorf("Patch returned %q, want an error", text)
			}
		})
	}
}

func TestPrintLooksLikeItsDocument(t *testing.T) {
	value := map[string]any{"kind": "X", "list": []string{"a", "yes"}}
	tests := map[string]struct{ document, want string }{
		"YAML":          {"a: 1\n", "kind: X\nlist:\n- a\n- \"yes\"\n"},
		"YAML, CRLF":    {"a: 1\r\n", "kind: X\r\nlist:\r\n- a\r\n- \"yes\"\r\n"},
		"JSON":          {"{\"a\":1}\n", "{\"kind\":\"X\",\"list\":[\"a\",\"yes\"]}\n"},
		"indented JSON": {"{\n \"a\": 1\n}", "{\n \"kind\": \"X\",\n \"list\": [\n  \"a\",\n  \"yes\"\n ]\n}\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := manifest.Split(tt.document)[0].Print(value)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("text (-want +got):\n%s", diff)
			}
		})
	}
}

func decode(t *testing.T, text []byte) any {
	t.Helper()
	var value any
	if err := json.Unmarshal(text, &value); err != nil {
		t.Fatalf("decode %q: %v", text, err)
	}
	return value
}
