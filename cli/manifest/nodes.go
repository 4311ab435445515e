package manifest

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"
	"gomodules.xyz/jsonpatch/v2"
)

// tree is a document to patch.
type tree struct {
	// root is the document node, above the value.
	root   *yaml.Node
	syntax syntax
}

// apply applies one operation of RFC 6902: add, replace or remove.
func (t *tree) apply(operation jsonpatch.Operation) error {
	if operation.Path == "" || operation.Path[0] != '/' {
		return errAt(operation.Path, "must lead to a member or an item")
	}
	tokens := strings.Split(operation.Path[1:], "/")
	node := t.own(&t.root.Content[0])
	for i, token := range tokens {
		tokens[i] = unescape(token)
		if i == len(tokens)-1 {
			break
		}
		slot := t.slot(node, tokens[i])
		if slot == nil {
			return errAt(operation.Path, "must exist down to the last token, and "+strconv.Quote(tokens[i])+" does not")
		}
		node = t.own(slot)
	}
	last := tokens[len(tokens)-1]
	var value *yaml.Node
	if operation.Operation != "remove" {
		var err error
		if value, err = t.value(operation.Value); err != nil {
			return err
		}
	}
	if detail := t.change(node, operation.Operation, last, value); detail != "" {
		return errAt(operation.Path, detail)
	}
	return nil
}

// change applies an operation to a member or an item of node. It returns what is wrong with the
// operation, or "".
func (t *tree) change(node *yaml.Node, operation, token string, value *yaml.Node) string {
	slot := t.slot(node, token)
	switch {
	case node.Kind != yaml.MappingNode && node.Kind != yaml.SequenceNode:
		return "must lead into a mapping or a sequence"
	case operation == "add" && node.Kind == yaml.SequenceNode:
		index, err := strconv.Atoi(token)
		if token == "-" {
			index, err = len(node.Content), nil
		}
		if err != nil || index < 0 || index > len(node.Content) {
			return "must be an index of the sequence"
		}
		node.Content = slices.Insert(node.Content, index, value)
		blockIfEmptied(node)
	case operation == "add" && slot == nil:
		key := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: token}
		if t.syntax == yamlSyntax {
			key = stringNode(token)
		}
		node.Content = append(node.Content, key, value)
		blockIfEmptied(node)
	case slot == nil:
		return "must exist"
	case operation == "add", operation == "replace":
		t.release(*slot)
		value.HeadComment = (*slot).HeadComment
		value.LineComment = (*slot).LineComment
		value.FootComment = (*slot).FootComment
		if at := slices.Index(node.Content, *slot); len(value.Content) > 0 && value.LineComment != "" {
			if node.Kind == yaml.MappingNode {
				// The comment stays on the line of the key.
				node.Content[at-1].LineComment, value.LineComment = value.LineComment, ""
			} else {
				headline(value)
			}
		}
		*slot = value
	case operation == "remove":
		t.release(*slot)
		at := slices.Index(node.Content, *slot)
		if node.Kind == yaml.MappingNode {
			node.Content = slices.Delete(node.Content, at-1, at+1)
		} else {
			node.Content = slices.Delete(node.Content, at, at+1)
		}
	default:
		return "must be add, replace or remove, not " + operation
	}
	return ""
}

// blockIfEmptied changes a node that was {} or [] to the block style after its first value was
// added.
func blockIfEmptied(node *yaml.Node) {
	if len(node.Content) <= 2 && node.Style&yaml.FlowStyle != 0 {
		node.Style &^= yaml.FlowStyle
		headline(node)
	}
}

// headline moves the comment on a node's line to the line above it: a block has no comment on its
// line.
func headline(node *yaml.Node) {
	node.HeadComment = strings.TrimPrefix(node.HeadComment+"\n"+node.LineComment, "\n")
	node.LineComment = ""
}

// slot returns the location of a member or an item; nil for none.
func (t *tree) slot(node *yaml.Node, token string) **yaml.Node {
	if node.Kind == yaml.MappingNode {
		if at := member(node, token); at >= 0 {
			return &node.Content[at+1]
		}
		return nil
	}
	index, err := strconv.Atoi(token)
	if err == nil && node.Kind == yaml.SequenceNode && index >= 0 && index < len(node.Content) {
		return &node.Content[index]
	}
	return nil
}

// own makes the node in slot independent of other nodes, so that a change of it changes nothing
// else: it replaces an alias by a copy of its node, aliases of the node by copies, and merge keys
// by copies of the merged members.
func (t *tree) own(slot **yaml.Node) *yaml.Node {
	if (*slot).Kind == yaml.AliasNode {
		*slot = expanded(*slot)
	}
	node := *slot
	if node.Anchor != "" {
		t.unshare(node)
	}
	inlineMerges(node)
	return node
}

// release replaces aliases of a node, and of the nodes below it, by copies before the node is
// removed.
func (t *tree) release(node *yaml.Node) {
	if node.Anchor != "" {
		t.unshare(node)
	}
	for _, child := range node.Content {
		t.release(child)
	}
}

// unshare replaces every alias of node by a copy, and removes the anchor if it has no more aliases.
func (t *tree) unshare(node *yaml.Node) {
	shared := false
	var visit func(*yaml.Node)
	visit = func(parent *yaml.Node) {
		for i, child := range parent.Content {
			if child.Kind == yaml.AliasNode && child.Alias == node {
				parent.Content[i], shared = expanded(child), true
				continue
			}
			visit(child)
		}
	}
	visit(t.root)
	if shared {
		node.Anchor = ""
	}
}

// expanded returns a copy of the node that an alias refers to, with the comments of the alias.
func expanded(alias *yaml.Node) *yaml.Node {
	node := clone(alias.Alias)
	node.HeadComment, node.LineComment, node.FootComment = alias.HeadComment, alias.LineComment, alias.FootComment
	return node
}

// clone copies a node. The copy has no anchors; its aliases refer to the same nodes.
func clone(node *yaml.Node) *yaml.Node {
	c := *node
	c.Anchor = ""
	c.Content = make([]*yaml.Node, len(node.Content))
	for i, child := range node.Content {
		c.Content[i] = clone(child)
	}
	return &c
}

const mergeKey = "<<"

// inlineMerges replaces the merge keys << of a mapping by copies of the merged members.
func inlineMerges(mapping *yaml.Node) {
	if mapping.Kind != yaml.MappingNode {
		return
	}
	for at := member(mapping, mergeKey); at >= 0 && mapping.Content[at].Tag == "!!merge"; at = member(mapping, mergeKey) {
		merged := mapping.Content[at+1]
		mapping.Content = slices.Delete(mapping.Content, at, at+2)
		sources := []*yaml.Node{merged}
		if merged.Kind == yaml.SequenceNode {
			sources = merged.Content
		}
		for _, source := range sources {
			if source.Kind == yaml.AliasNode {
				source = expanded(source)
			}
			inlineMerges(source)
			for i := 0; i+1 < len(source.Content); i += 2 {
				if member(mapping, source.Content[i].Value) < 0 {
					mapping.Content = slices.Insert(mapping.Content, at, source.Content[i:i+2]...)
					at += 2
				}
			}
		}
	}
}

// value returns the value of an operation as nodes.
func (t *tree) value(value any) (*yaml.Node, error) {
	text, err := json.Marshal(value, json.Deterministic(true))
	if err != nil {
		return nil, err
	}
	node, _, err := parseJSON(string(text))
	if err == nil && t.syntax == yamlSyntax {
		restyle(node)
	}
	return node, err
}

// restyle removes the quotes of strings that are still strings without them.
func restyle(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode && node.Tag == "!!str" {
		*node = *stringNode(node.Value)
	}
	for _, child := range node.Content {
		restyle(child)
	}
}

func stringNode(text string) *yaml.Node {
	var node yaml.Node
	if err := node.Encode(text); err != nil {
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Value: text}
	}
	return &node
}

var pointerUnescaper = strings.NewReplacer("~1", "/", "~0", "~")

func unescape(token string) string { return pointerUnescaper.Replace(token) }

// errAt returns an error about an operation at a pointer.
func errAt(pointer, detail string) error {
	return fmt.Errorf("%s: %s", pointer, detail)
}
