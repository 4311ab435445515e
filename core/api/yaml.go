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

// maxDepth is how deep mappings and lists may be nested, maxKeys how many keys a mapping may have: the library compares each with every other.
const (
	maxDepth = 10
	maxKeys  = 100
)

// directive finds a line that begins with a percent sign, by whatever YAML takes for the end of a line.
var directive = regexp.MustCompile(`(?:^|[\n\r\x{85}\x{2028}\x{2029}\x{FEFF}])%`)

// ParseYAML parses the one YAML document in a text that a tenant wrote, in time and memory that grow with its length alone. YAML can make a
// short text large: an alias repeats what it refers to, a directive lengthens each tag, and a node takes a hundred times the memory of the two
// bytes that it is written in. So ParseYAML rejects aliases, directives and further documents, and a text with more than maxMarks
// characters that can begin or end a node, before any of it is expanded. The node is nil for a text without a document.
func ParseYAML(text string, maxMarks int) (*yaml.Node, error) {
	switch marks := CountMarks(text); {
	case !utf8.ValidString(text): // the parser would take some of these for UTF-16
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

// CountMarks counts the characters without which there is no further node: ends of lines, punctuation, and the dashes and question marks that
// stand before a space or the end of a line.
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

// checkPlain rejects what an annotation has no use for: an anchor, since there are no aliases, and a tag, since no type is in doubt.
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

// OneLine is the text of an error in one line of at most n bytes. The YAML library writes a line for each mistake.
func OneLine(err error, n int) string {
	return Cut(strings.Join(strings.Fields(err.Error()), " "), n)
}
