package manifest_test

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
	"gomodules.xyz/jsonpatch/v2"
	jsonpatchv4 "gopkg.in/evanphx/json-patch.v4"

	"github.com/akv-injector/akv-injector/cli/manifest"
)

// FuzzPatch patches random documents, and compares the result with that of the API server's
// library.
func FuzzPatch(f *testing.F) {
	for seed := range uint64(64) {
		f.Add(seed, seed)
	}
	f.Fuzz(func(t *testing.T, seed1, seed2 uint64) {
		r := random{Rand: rand.New(rand.NewPCG(seed1, seed2))}
		text := r.document(t)
		documents := manifest.Split(text)
		if len(documents) != 1 || documents[0].JSON() == nil {
			return // the libraries cannot parse their own output
		}
		d := documents[0]
		operations := r.operations(decode(t, d.JSON()))
		patch, err := json.Marshal(operations)
		if err != nil {
			t.Fatal(err)
		}
		decoded, err := jsonpatchv4.DecodePatch(patch)
		if err != nil {
			t.Fatal(err)
		}
		want, wantErr := decoded.Apply(d.JSON())
		got, _, err := d.Patch(operations)
		if err != nil && strings.Contains(string(patch), `"replace"`) && strings.HasSuffix(err.Error(), "must exist") {
			return // the library allows replace to add a member, but RFC 6902 does not
		}
		if (err != nil) != (wantErr != nil) {
			t.Fatalf("patch %s of\n%s\nerror %v, want %v", patch, text, err, wantErr)
		}
		if err != nil {
			return
		}
		again := manifest.Split(got)
		if len(again) != 1 || again[0].JSON() == nil {
			t.Fatalf("patch %s of\n%s\ncan't be read: %s", patch, text, got)
		}
		if !reflect.DeepEqual(decode(t, again[0].JSON()), decode(t, want)) {
			t.Errorf("patch %s of\n%s\ngave\n%s\nwant %s", patch, text, got, want)
		}
	})
}

// random generates documents and patches.
type random struct {
	*rand.Rand
	anchored []*yaml.Node
}

func (r *random) document(t *testing.T) string {
	t.Helper()
	root := &yaml.Node{Kind: yaml.MappingNode}
	for i := range 1 + r.IntN(5) {
		root.Content = append(root.Content, r.scalar("key"+strconv.Itoa(i)), r.node(4))
	}
	var b strings.Builder
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(2 + r.IntN(3))
	if r.IntN(2) == 0 {
		encoder.CompactSeqIndent()
	}
	if err := encoder.Encode(root); err != nil {
		t.Fatal(err)
	}
	text := b.String()
	if value := manifest.Split(text)[0].JSON(); value != nil && r.IntN(4) == 0 {
		compact, err := json.MarshalIndent(json.RawMessage(value), "", []string{"", "  ", "\t"}[r.IntN(3)])
		if err != nil {
			t.Fatal(err)
		}
		text = string(compact)
	}
	var out strings.Builder
	for line := range strings.SplitAfterSeq(text, "\n") {
		if r.IntN(6) == 0 && !strings.Contains(text, "|") && !strings.ContainsAny(text[:1], "{[") {
			out.WriteString("\n")
		}
		out.WriteString(line)
	}
	if text = out.String(); r.IntN(5) == 0 {
		text = strings.ReplaceAll(text, "\n", "\r\n")
	}
	return text
}

func (r *random) node(depth int) *yaml.Node {
	kind := r.IntN(6)
	if depth == 0 {
		kind = 5
	}
	var n *yaml.Node
	switch {
	case kind < 2:
		n = &yaml.Node{Kind: yaml.MappingNode}
		if len(r.anchored) > 0 && r.IntN(5) == 0 {
			if base := r.anchored[r.IntN(len(r.anchored))]; base.Kind == yaml.MappingNode {
				n.Content = append(n.Content, &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!merge", Value: "<<"}, &yaml.Node{Kind: yaml.AliasNode, Value: base.Anchor, Alias: base})
			}
		}
		for i := range r.IntN(4) {
			n.Content = append(n.Content, r.scalar("k"+strconv.Itoa(i+r.IntN(2)*10)), r.node(depth-1))
		}
	case kind < 4:
		n = &yaml.Node{Kind: yaml.SequenceNode}
		for range r.IntN(4) {
			n.Content = append(n.Content, r.node(depth-1))
		}
	case kind == 4 && len(r.anchored) > 0:
		base := r.anchored[r.IntN(len(r.anchored))]
		return &yaml.Node{Kind: yaml.AliasNode, Value: base.Anchor, Alias: base}
	default:
		values := []string{"a", "yes", "null", "12", "0400", "a: b", "x\ny\n", "", "1.50", "# no", "{}", "~", "ü", "- a", "*a", "long " + strings.Repeat("word ", 30)}
		n = r.scalar(values[r.IntN(len(values))])
		if r.IntN(3) == 0 {
			n = &yaml.Node{Kind: yaml.ScalarNode, Value: []string{"yes", "12", "null", "1.50", "0x10"}[r.IntN(5)]}
		}
	}
	if r.IntN(5) == 0 && n.Kind != yaml.ScalarNode {
		n.Style |= yaml.FlowStyle
	}
	if r.IntN(5) == 0 {
		n.LineComment = "# line"
	}
	if r.IntN(6) == 0 {
		n.Anchor = fmt.Sprintf("a%d", len(r.anchored))
		r.anchored = append(r.anchored, n)
	}
	return n
}

func (r *random) scalar(text string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: text, Style: []yaml.Style{yaml.DoubleQuotedStyle, yaml.SingleQuotedStyle}[r.IntN(2)]}
	if r.IntN(6) == 0 {
		n.HeadComment = "# head"
	}
	return n
}

// operations generates operations, most of which apply to value.
func (r *random) operations(value any) []jsonpatch.Operation {
	var pointers []string
	var walk func(pointer string, value any)
	walk = func(pointer string, value any) {
		switch value := value.(type) {
		case map[string]any:
			for _, key := range sortedKeys(value) {
				walk(pointer+"/"+strings.NewReplacer("~", "~0", "/", "~1").Replace(key), value[key])
			}
			pointers = append(pointers, pointer+"/new~1key", pointer+"/other")
		case []any:
			for i := range value {
				walk(pointer+"/"+strconv.Itoa(i), value[i])
			}
			pointers = append(pointers, pointer+"/-", pointer+"/"+strconv.Itoa(len(value)))
		}
		if pointer != "" {
			pointers = append(pointers, pointer)
		}
	}
	walk("", value)
	values := []any{"x", "yes", map[string]any{}, map[string]any{"a": "b", "c": []string{"d"}}, []int{1, 2}, "a\nb\n", true}
	var operations []jsonpatch.Operation
	for range 1 + r.IntN(3) {
		o := jsonpatch.Operation{Operation: "add", Path: pointers[r.IntN(len(pointers))], Value: values[r.IntN(len(values))]}
		switch r.IntN(6) {
		case 0:
			o.Operation = "replace"
		case 1:
			o.Operation, o.Value = "remove", nil
		}
		operations = append(operations, o)
	}
	return operations
}

func sortedKeys(m map[string]any) []string {
	keys := make([]string, 0, len(m))
	for key := range m {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}
