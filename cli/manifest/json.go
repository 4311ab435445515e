package manifest

import (
	"errors"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
)

// parseJSON parses the first JSON value of text into the nodes of the same YAML. Numbers keep their
// text. Length is the length of the value in text.
func parseJSON(text string) (value *yaml.Node, length int, err error) {
	decoder := jsontext.NewDecoder(strings.NewReader(text), jsontext.AllowDuplicateNames(true))
	p := jsonParser{text: text, line: 1, column: 1, Decoder: decoder}
	value, err = p.value()
	return value, int(p.InputOffset()), err
}

type jsonParser struct {
	*jsontext.Decoder
	text string
	// line and column are the position, from 1, of the offset seen.
	line, column, seen int
	nodes              int
}

var errNodes = errors.New("there are too many values")

func (p *jsonParser) value() (*yaml.Node, error) {
	if p.nodes++; p.nodes > maxNodes {
		return nil, errNodes
	}
	kind := p.PeekKind()
	node := &yaml.Node{}
	node.Line, node.Column = p.position()
	switch kind {
	case '{', '[':
		if _, err := p.ReadToken(); err != nil {
			return nil, err
		}
		node.Kind, node.Tag = yaml.MappingNode, "!!map"
		if kind == '[' {
			node.Kind, node.Tag = yaml.SequenceNode, "!!seq"
		}
		for kind := p.PeekKind(); kind != '}' && kind != ']'; kind = p.PeekKind() {
			child, err := p.value()
			if err != nil {
				return nil, err
			}
			node.Content = append(node.Content, child)
		}
		_, err := p.ReadToken()
		return node, err
	default:
	}
	raw, err := p.ReadValue()
	if err != nil {
		return nil, err
	}
	node.Kind, node.Value = yaml.ScalarNode, string(raw)
	switch raw.Kind() {
	case '"':
		text, err := jsontext.AppendUnquote(nil, raw)
		if err != nil {
			return nil, err
		}
		node.Tag, node.Style, node.Value = "!!str", yaml.DoubleQuotedStyle, string(text)
	case 'n':
		node.Tag = "!!null"
	case 't', 'f':
		node.Tag = "!!bool"
	default:
		node.Tag = "!!int"
		if strings.ContainsAny(node.Value, ".eE") {
			node.Tag = "!!float"
		}
	}
	return node, nil
}

// position returns the line and column, from 1, of the next token.
func (p *jsonParser) position() (line, column int) {
	at := int(p.InputOffset())
	at = len(p.text) - len(strings.TrimLeft(p.text[at:], " \t\r\n,:"))
	for ; p.seen < at; p.seen++ {
		switch c := p.text[p.seen]; {
		case c == '\n':
			p.line, p.column = p.line+1, 1
		case utf8.RuneStart(c):
			p.column++
		}
	}
	return p.line, p.column
}

// jsonIndent returns the indentation of a JSON text; empty if the text is on one line.
func jsonIndent(text string) string {
	for line := range strings.SplitSeq(text, "\n") {
		if content := strings.TrimLeft(line, " \t"); content != line && strings.TrimSpace(content) != "" {
			return line[:len(line)-len(content)]
		}
	}
	return ""
}

// printJSON prints nodes without aliases as JSON, on one line if indent is empty.
func printJSON(node *yaml.Node, indent string) (string, error) {
	b, err := appendJSON(nil, node, indent, "\n")
	return string(b), err
}

func appendJSON(b []byte, node *yaml.Node, indent, newline string) ([]byte, error) {
	var err error
	switch node.Kind {
	case yaml.MappingNode, yaml.SequenceNode:
		brackets, inner := "{}", newline+indent
		if node.Kind == yaml.SequenceNode {
			brackets = "[]"
		}
		b = append(b, brackets[0])
		for i, child := range node.Content {
			isValue := node.Kind == yaml.MappingNode && i%2 == 1
			switch {
			case isValue:
				b = append(b, ':')
			case i > 0:
				b = append(b, ',')
			}
			switch {
			case indent == "":
			case isValue:
				b = append(b, ' ')
			default:
				b = append(b, inner...)
			}
			if b, err = appendJSON(b, child, indent, inner); err != nil {
				return nil, err
			}
		}
		if len(node.Content) > 0 && indent != "" {
			b = append(b, newline...)
		}
		return append(b, brackets[1]), nil
	default:
		if node.Tag == "!!str" {
			return jsontext.AppendQuote(b, node.Value)
		}
		return append(b, node.Value...), nil
	}
}
