package manifest

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	jsonv2 "github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"
	"gomodules.xyz/jsonpatch/v2"
	jsonpatchv4 "gopkg.in/evanphx/json-patch.v4"
	sigsyaml "sigs.k8s.io/yaml"
)

// Patch is the document's text after a JSON Patch of add, replace and remove.
//
// The patched value is printed anew, and what printing changed besides the patch is undone by a merge with the author's text. Where the
// two can't be merged, the new print stands, which keeps comments and the order of keys. Whatever is returned holds the value that
// the API server's own library makes of the patch; a text that does not is never returned. Dropped is true where that cost a comment.
func (d *Document) Patch(operations []jsonpatch.Operation) (text string, dropped bool, err error) {
	if len(operations) == 0 {
		return d.Text(), false, nil
	}
	want, err := d.patchedValue(operations)
	if err != nil {
		return "", false, err
	}
	var body string
	if d.syntax == jsonSyntax {
		body, err = d.patchJSON(operations, want)
	} else {
		body, dropped, err = d.patchYAML(operations, want)
	}
	if err != nil {
		return "", false, fmt.Errorf("patch document: %w", err)
	}
	head := d.head
	if strings.HasSuffix(head, marker) && !startsWith(marker+body, marker) {
		head += lineEnding(d.body) // the author's value began on the line of its marker
	}
	return head + body + d.tail, dropped, nil
}

// patchedValue applies the operations with the library that the API server uses.
func (d *Document) patchedValue(operations []jsonpatch.Operation) (any, error) {
	text, err := jsonv2.Marshal(operations)
	if err != nil {
		return nil, fmt.Errorf("print patch: %w", err)
	}
	patch, err := jsonpatchv4.DecodePatch(text)
	if err != nil {
		return nil, fmt.Errorf("decode patch: %w", err)
	}
	patched, err := patch.Apply(d.json)
	if err != nil {
		return nil, fmt.Errorf("apply patch: %w", err)
	}
	return decode(patched)
}

func decode(text []byte) (any, error) {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.UseNumber()
	var value any
	if err := decoder.Decode(&value); err != nil {
		return nil, fmt.Errorf("decode document: %w", err)
	}
	return value, nil
}

// holds reports whether a text of YAML or JSON has that value.
func (d *Document) holds(text string, want any) bool {
	value := []byte(text)
	if d.syntax == yamlSyntax {
		var err error
		if value, err = sigsyaml.YAMLToJSON(value); err != nil {
			return false
		}
	}
	got, err := decode(value)
	return err == nil && reflect.DeepEqual(got, want)
}

var errOtherValue = errors.New("its text can't be changed without changing its value")

func (d *Document) patchJSON(operations []jsonpatch.Operation, want any) (string, error) {
	value, _, err := parseJSON(d.body)
	if err != nil {
		return "", err
	}
	indent := jsonIndent(d.body)
	base, err := printJSON(value, indent)
	if err != nil {
		return "", err
	}
	t := tree{root: &yaml.Node{Kind: yaml.DocumentNode, Content: []*yaml.Node{value}}, syntax: jsonSyntax}
	for _, operation := range operations {
		if err := t.apply(operation); err != nil {
			return "", err
		}
	}
	patched, err := printJSON(t.root.Content[0], indent)
	if err != nil {
		return "", err
	}
	if merged, ok := mergeJSON(d.body, base, patched); ok && d.holds(merged, want) {
		return merged, nil
	}
	patched = withEndings(patched+"\n", d.body)
	if !d.holds(patched, want) {
		return "", errOtherValue
	}
	return patched, nil
}

// style is how a YAML text is indented.
type style struct {
	indent int
	// compact sequences are not indented below their key.
	compact bool
}

func (d *Document) patchYAML(operations []jsonpatch.Operation, want any) (text string, dropped bool, err error) {
	root, err := parseYAML(d.body)
	if err != nil {
		return "", false, err
	}
	styles := candidates(root)
	bases := make([]string, len(styles))
	for i, s := range styles {
		if bases[i], err = s.print(root); err != nil {
			return "", false, err
		}
	}
	t := tree{root: root}
	for _, operation := range operations {
		if err := t.apply(operation); err != nil {
			return "", false, err
		}
	}
	// fits writes the tree as it is into text, if that holds the value.
	fits := func() bool {
		prints := make([]string, len(styles))
		for i, s := range styles {
			if prints[i], err = s.print(root); err != nil {
				return false
			}
			if merged, ok := merge(d.body, bases[i], prints[i]); ok && d.holds(merged, want) {
				text = merged
				return true
			}
		}
		for _, printed := range prints {
			if printed = withEndings(printed, d.body); d.holds(printed, want) {
				text = printed
				return true
			}
		}
		return false
	}
	// The library can print comments and anchors so that they mean something else. The value matters more than its looks.
	ok := fits()
	if !ok {
		blockAroundComments(root)
		ok = fits()
	}
	if !ok {
		kept := comments(root, nil)
		drop(kept)
		if ok = fits(); !ok {
			dropAnchors(root)
			ok = fits()
		}
		if ok {
			restore(kept, fits)
		}
	}
	if !ok {
		return "", false, cmp.Or(err, errOtherValue)
	}
	return text, lacksComment(text, d.body), nil
}

// comment is one comment and where its node keeps it.
type comment struct {
	at   *string
	text string
}

// comments adds those of a node and of what is below it to a list.
func comments(node *yaml.Node, to []comment) []comment {
	for _, at := range []*string{&node.HeadComment, &node.LineComment, &node.FootComment} {
		if *at != "" {
			to = append(to, comment{at, *at})
		}
	}
	for _, child := range node.Content {
		to = comments(child, to)
	}
	return to
}

func drop(list []comment) {
	for _, c := range list {
		*c.at = ""
	}
}

// restore puts comments back where the document fits without them, all but those with which it doesn't. It halves the list until it has
// found them.
func restore(list []comment, fits func() bool) {
	for _, c := range list {
		*c.at = c.text
	}
	if fits() {
		return
	}
	drop(list)
	if half := len(list) / 2; half > 0 {
		restore(list[:half], fits)
		restore(list[half:], fits)
	}
}

// commentText is what looks like a comment. Some of it the library doesn't know as one; what is in a string stays as it is anyway.
var commentText = regexp.MustCompile(`(?m)(?:^|[ \t])(#.*?)\s*$`)

// lacksComment reports whether a comment of the author's is not in text.
func lacksComment(text, author string) bool {
	return slices.ContainsFunc(commentText.FindAllStringSubmatch(author, -1), func(match []string) bool { return !strings.Contains(text, match[1]) })
}

// blockAroundComments turns what is in the flow style and holds comments into blocks.
func blockAroundComments(node *yaml.Node) {
	if hasComments(node) {
		node.Style &^= yaml.FlowStyle
	}
	for _, child := range node.Content {
		blockAroundComments(child)
	}
}

func hasComments(node *yaml.Node) bool {
	return node.HeadComment+node.LineComment+node.FootComment != "" || slices.ContainsFunc(node.Content, hasComments)
}

func dropAnchors(node *yaml.Node) {
	for i, child := range node.Content {
		if child.Kind == yaml.AliasNode {
			node.Content[i] = clone(child.Alias)
		}
		dropAnchors(node.Content[i])
	}
	node.Anchor = ""
}

// candidates are the styles that an author may have followed, the likeliest first.
func candidates(root *yaml.Node) []style {
	likeliest := style{indent: 2, compact: true}
	var indented, listed bool
	var visit func(*yaml.Node)
	visit = func(node *yaml.Node) {
		for i, child := range node.Content {
			if node.Kind == yaml.MappingNode && node.Style&yaml.FlowStyle == 0 && i%2 == 1 && child.Style&yaml.FlowStyle == 0 && len(child.Content) > 0 {
				switch {
				case child.Kind == yaml.MappingNode && !indented:
					likeliest.indent, indented = max(child.Content[0].Column-node.Column, 2), true
				case child.Kind == yaml.SequenceNode && !listed && child.Anchor == "": // an anchor's place is that of the node
					likeliest.compact, listed = child.Column == node.Column, true
				}
			}
			visit(child)
		}
	}
	visit(root)
	styles := []style{likeliest}
	for _, s := range []style{{2, true}, {2, false}, {4, true}, {4, false}} {
		if s != likeliest {
			styles = append(styles, s)
		}
	}
	return styles
}

func (s style) print(root *yaml.Node) (string, error) {
	var b strings.Builder
	encoder := yaml.NewEncoder(&b)
	encoder.SetIndent(s.indent)
	if s.compact {
		encoder.CompactSeqIndent()
	}
	if err := encoder.Encode(root); err != nil {
		return "", err
	}
	if err := encoder.Close(); err != nil {
		return "", err
	}
	return b.String(), nil
}

// Print is another value as a document in the look of d: JSON beside JSON, YAML beside YAML. It has no --- and ends with a newline.
func (d *Document) Print(value any) (string, error) {
	t := tree{syntax: d.syntax}
	node, err := t.value(value)
	if err != nil {
		return "", fmt.Errorf("print document: %w", err)
	}
	var text string
	if d.syntax == jsonSyntax {
		text, err = printJSON(node, jsonIndent(d.body))
		text += "\n"
	} else {
		text, err = style{indent: 2, compact: true}.print(node)
	}
	if err != nil {
		return "", fmt.Errorf("print document: %w", err)
	}
	return withEndings(text, d.head+d.body), nil
}
