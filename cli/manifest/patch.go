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

// Patch returns the document's text after a JSON Patch of add, replace and remove operations.
//
// It prints the patched value, and merges the print with the author's text to undo other changes of
// style. If they cannot be merged, it returns the print, which keeps comments and the order of
// keys. The text always has the value that the library of the API server gives for the patch;
// otherwise Patch returns an error. Dropped is true if a comment was dropped.
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
		head += lineEnding(d.body) // the value was on the line of its marker
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

// holds reports whether a YAML or JSON text has a value.
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

// style is the indentation of a YAML text.
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
	// fits prints the current tree to text, and reports whether the print has the wanted value.
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
	// The library may print comments and anchors so that the value changes. The value is more
	// important than comments and style.
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

// comment is one comment and its location in a node.
type comment struct {
	at   *string
	text string
}

// comments appends the comments of a node, and of the nodes below it, to a list.
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

// restore restores dropped comments, except those with which the document does not fit. It finds
// these by bisection.
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

// commentText matches a text that looks like a comment. The library does not find all comments. A
// match in a string does no harm, since strings are not changed.
var commentText = regexp.MustCompile(`(?m)(?:^|[ \t])(#.*?)\s*$`)

// lacksComment reports whether text lacks a comment of the author's text.
func lacksComment(text, author string) bool {
	return slices.ContainsFunc(commentText.FindAllStringSubmatch(author, -1), func(match []string) bool {
		return !strings.Contains(text, match[1])
	})
}

// blockAroundComments changes nodes in the flow style that have comments to the block style.
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

// dropAnchors replaces all aliases by copies and removes all anchors.
func dropAnchors(node *yaml.Node) {
	for i, child := range node.Content {
		if child.Kind == yaml.AliasNode {
			node.Content[i] = clone(child.Alias)
		}
		dropAnchors(node.Content[i])
	}
	node.Anchor = ""
}

// candidates returns the styles that the author may have used, the most likely first.
func candidates(root *yaml.Node) []style {
	likeliest := style{indent: 2, compact: true}
	var indented, listed bool
	var visit func(*yaml.Node)
	visit = func(node *yaml.Node) {
		for i, child := range node.Content {
			isBlockValue := node.Kind == yaml.MappingNode && node.Style&yaml.FlowStyle == 0 &&
				i%2 == 1 && child.Style&yaml.FlowStyle == 0 && len(child.Content) > 0
			if isBlockValue {
				switch {
				case child.Kind == yaml.MappingNode && !indented:
					likeliest.indent, indented = max(child.Content[0].Column-node.Column, 2), true
				// With an anchor, the node has the position of the anchor.
				case child.Kind == yaml.SequenceNode && !listed && child.Anchor == "":
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

// Print returns a value as a document in the syntax and style of d. The text has no --- and ends
// with a newline.
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
