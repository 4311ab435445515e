package api

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// maxDepth is how deep mappings and lists may be nested, and maxKeys is how many keys a mapping may
// have: the YAML library compares each key with every other.
const (
	maxDepth = 10
	maxKeys  = 100
)

// directive finds a line that begins with a percent sign. The character class has everything that
// ends a line in YAML.
var directive = regexp.MustCompile(`(?:^|[\n\r\x{85}\x{2028}\x{2029}\x{FEFF}])%`)

// ParseYAML parses a text with at most one YAML document, which a tenant wrote. Time and memory are
// linear in its length.
//
// YAML can make a short text large: an alias repeats what it refers to, a directive lengthens each
// tag, and a node takes a hundred times the memory of the two bytes of its text. ParseYAML
// therefore rejects aliases, directives, a second document, and more than maxMarks marks (see
// [CountMarks]), before anything is expanded. The node is nil if the text has no document.
func ParseYAML(text string, maxMarks int) (*yaml.Node, error) {
	switch marks := CountMarks(text); {
	case !utf8.ValidString(text): // the parser would read some of these as UTF-16
		return nil, errors.New("must be UTF-8")
	case directive.MatchString(text):
		return nil, errors.New("must have no directives")
	case marks > maxMarks:
		return nil, fmt.Errorf("must have at most %d lines, commas, colons and brackets, has %d", maxMarks, marks)
	}
	var document, rest yaml.Node
	decoder := yaml.NewDecoder(strings.NewReader(text))
	switch err := decoder.Decode(&document); {
	case errors.Is(err, io.EOF):
		return nil, nil
	case err != nil:
		return nil, err
	}
	if err := decoder.Decode(&rest); err == nil {
		return nil, fmt.Errorf("line %d: must be the only document", max(rest.Line, 1))
	} else if !errors.Is(err, io.EOF) {
		return nil, err
	}
	if len(document.Content) == 0 {
		return nil, nil
	}
	return document.Content[0], checkNode(document.Content[0], 0)
}

// CountMarks counts the characters that can begin or end a YAML node: ends of lines, punctuation,
// and dashes and question marks before a space or the end of a line. A YAML text with n marks has
// at most a small multiple of n nodes.
func CountMarks(text string) int {
	marks, indicator := 0, false
	for _, r := range text {
		switch r {
		case '\n', '\r', '\u0085', '\u2028', '\u2029':
			marks++
			fallthrough
		case ' ', '\t':
			if indicator {
				marks++
			}
		case ',', ':', '[', '{':
			marks++
		}
		indicator = r == '-' || r == '?'
	}
	if indicator {
		marks++
	}
	return marks
}

func checkNode(node *yaml.Node, depth int) error {
	switch {
	case depth > maxDepth:
		return fmt.Errorf("line %d: must be nested at most %d levels deep", node.Line, maxDepth)
	case node.Kind == yaml.AliasNode:
		return fmt.Errorf("line %d: must have no aliases", node.Line)
	case node.Kind == yaml.MappingNode && len(node.Content) > 2*maxKeys:
		return fmt.Errorf("line %d: must have at most %d keys, has %d", node.Line, maxKeys, len(node.Content)/2)
	}
	for _, child := range node.Content {
		if err := checkNode(child, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// checkPlain rejects anchors and tags, which an annotation does not need: aliases are rejected, and
// the type of each field is known.
func checkPlain(node *yaml.Node) error {
	switch {
	case node.Anchor != "":
		return fmt.Errorf("line %d: must have no anchors", node.Line)
	case node.Style&yaml.TaggedStyle != 0:
		return fmt.Errorf("line %d: must have no tags", node.Line)
	}
	for _, child := range node.Content {
		if err := checkPlain(child); err != nil {
			return err
		}
	}
	return nil
}

// OneLine returns the text of an error as one line of at most n bytes. The YAML library writes a
// line for each mistake.
func OneLine(err error, n int) string {
	return Cut(strings.Join(strings.Fields(err.Error()), " "), n)
}
