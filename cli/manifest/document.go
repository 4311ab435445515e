package manifest

import (
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"go.yaml.in/yaml/v3"
	sigsyaml "sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/api"
)

// Document is one document of a file. Together, the documents of a file contain its whole text, in
// order.
type Document struct {
	// head is a byte order mark and the line that starts with ---; tail is the line that starts
	// with "...".
	head, body, tail string
	// line and column are the position of the body in its file, both from 0.
	line, column int
	syntax       syntax

	// root is the parsed body; nil if it was not parsed yet, or was released.
	root    *yaml.Node
	json    []byte
	problem *Problem
	// duplicate is about a duplicate key of a mapping.
	duplicate *Problem
}

type syntax uint8

const (
	yamlSyntax syntax = iota
	jsonSyntax
	// blank is the syntax of a document without a value: space, comments and directives.
	blank
)

// Problem is the reason why a document cannot be read. Line and Column count from 1, and are 0 if
// they are not known.
type Problem struct {
	Line, Column int
	Detail       string
}

// Error returns the detail.
func (p *Problem) Error() string {
	return p.Detail
}

// Text returns the whole document, byte for byte.
func (d *Document) Text() string { return d.head + d.body + d.tail }

// IsBlank reports whether the document has no value.
func (d *Document) IsBlank() bool { return d.syntax == blank }

// IsJSON reports whether the document is JSON. YAML in the flow style is not.
func (d *Document) IsJSON() bool { return d.syntax == jsonSyntax }

// IsMarked reports whether the document starts with ---.
func (d *Document) IsMarked() bool {
	return strings.HasPrefix(strings.TrimPrefix(d.head, byteOrderMark), marker)
}

// Problem returns why the document cannot be read; nil if it can.
func (d *Document) Problem() *Problem { return d.problem }

// Duplicate returns the first duplicate key in the document; nil for none. The last value of a
// duplicate key counts. A document with a duplicate key cannot be patched.
func (d *Document) Duplicate() *Problem { return d.duplicate }

// JSON returns the value of the document as kubectl would send it; nil for none. Plain words such
// as yes have the type that kubectl gives them.
func (d *Document) JSON() []byte { return d.json }

// Limits of a document. A node takes up to 500 bytes of memory, even if its text is short. No API
// server accepts an object larger than maxObject.
const (
	maxNodes  = 500_000
	maxMarks  = 400_000
	maxObject = 3 << 20
)

const (
	byteOrderMark = "\uFEFF"
	marker        = "---"
	endMarker     = "..."
)

// Split splits the text of a file into documents. Together, the documents contain the whole text.
// Those that cannot be read have a [Document.Problem].
func Split(text string) []*Document {
	if !utf8.ValidString(text) {
		return []*Document{{body: text, problem: &Problem{Detail: "must be UTF-8"}}}
	}
	var documents []*Document
	line, start, from, at, released := 0, 0, 0, 0, 0
	flush := func() {
		if at > from {
			documents = append(documents, read(text[from:at], start)...)
			if len(documents) > 1 { // a single one is most likely needed again
				for i := range documents[released:] {
					documents[released+i].Release()
				}
				released = len(documents)
			}
		}
		start, from = line, at
	}
	for text := range strings.SplitAfterSeq(text, "\n") {
		if startsWith(strings.TrimPrefix(text, byteOrderMark), marker) {
			flush()
		}
		at += len(text)
		line++
		if startsWith(text, endMarker) {
			flush()
		}
	}
	flush()
	return documents
}

// Release frees the parsed nodes of the document, which take many times the memory of its text. A
// later call that needs them parses the text again.
func (d *Document) Release() { d.root = nil }

// value returns the root node of the document's value; nil if the document has none, or cannot be
// read.
func (d *Document) value() *yaml.Node {
	if d.root == nil && d.json != nil {
		var err error
		if d.syntax == jsonSyntax {
			d.root, _, err = parseJSON(d.body)
		} else {
			d.root, err = parseYAML(d.body)
		}
		if err != nil {
			return nil
		}
	}
	if d.root != nil && d.root.Kind == yaml.DocumentNode {
		return d.root.Content[0]
	}
	return d.root
}

// startsWith reports whether a line starts with a marker of YAML, alone or before a space.
func startsWith(line, mark string) bool {
	rest, ok := strings.CutPrefix(line, mark)
	return ok && (rest == "" || strings.ContainsAny(rest[:1], " \t\r\n"))
}

// read returns the documents of a chunk, which starts at a line, from 0: one document, or one for
// each JSON value.
func read(chunk string, line int) []*Document {
	d := Document{line: line}
	if rest, ok := strings.CutPrefix(chunk, byteOrderMark); ok {
		d.head, chunk = byteOrderMark, rest
	}
	if startsWith(chunk, marker) {
		first, rest, newline := strings.Cut(chunk, "\n")
		if content := strings.TrimSpace(first[len(marker):]); content != "" && content[0] != '#' {
			d.head, d.column, chunk = d.head+marker, len(marker), chunk[len(marker):]
		} else if newline {
			d.head, d.line, chunk = d.head+first+"\n", line+1, rest
		} else {
			d.head, chunk = d.head+first, ""
		}
	}
	if at := strings.LastIndex(strings.TrimRight(chunk, "\r\n"), "\n") + 1; startsWith(chunk[at:], endMarker) {
		chunk, d.tail = chunk[:at], chunk[at:]
	}
	d.body = chunk
	if isBlank(chunk) {
		d.syntax = blank
		return []*Document{&d}
	}
	if strings.ContainsAny(strings.TrimLeft(chunk, " \t\r\n")[:1], "{[") {
		return readJSON(d)
	}
	d.readYAML()
	return []*Document{&d}
}

func isBlank(text string) bool {
	for line := range strings.SplitSeq(text, "\n") {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != '%' {
			return false
		}
	}
	return true
}

// readJSON reads one JSON value after the other. A text that starts like JSON, but is not JSON, may
// be YAML in the flow style.
func readJSON(d Document) []*Document {
	var documents []*Document
	whole := d
	for rest := d.body; strings.TrimSpace(rest) != ""; {
		value, length, err := parseJSON(rest)
		if errors.Is(err, errNodes) {
			d.body, d.problem = rest, d.tooLarge("must have at most %d values; split it into documents", maxNodes)
			return append(documents, &d)
		}
		if err != nil {
			if whole.readYAML(); whole.root != nil {
				return []*Document{&whole}
			}
			d.body, d.problem = rest, d.jsonProblem(rest, err)
			return append(documents, &d)
		}
		if newline := strings.IndexByte(rest[length:], '\n'); strings.TrimSpace(rest[length:]) == "" {
			length = len(rest)
		} else if newline >= 0 && strings.TrimSpace(rest[length:length+newline]) == "" {
			length += newline + 1
		}
		one := d
		one.syntax, one.root, one.body = jsonSyntax, value, rest[:length]
		if one.keyProblem(value); one.problem == nil {
			one.json = []byte(strings.TrimSpace(one.body))
		}
		if rest = rest[length:]; strings.TrimSpace(rest) != "" {
			one.tail = ""
		}
		documents = append(documents, &one)
		d.head = ""
		if newlines := strings.Count(one.body, "\n"); newlines > 0 {
			d.line, d.column = d.line+newlines, 0
		}
		d.column += len(one.body) - (strings.LastIndexByte(one.body, '\n') + 1)
	}
	return documents
}

// jsonProblem returns the problem, with its line, for an error of the JSON library.
func (d *Document) jsonProblem(text string, err error) *Problem {
	p := &Problem{Line: d.line + 1, Detail: "must be JSON: " + err.Error()}
	if syntactic, ok := errors.AsType[*jsontext.SyntacticError](err); ok {
		p.Line += strings.Count(text[:syntactic.ByteOffset], "\n")
		p.Detail = "must be JSON: " + syntactic.Err.Error()
	}
	return d.templated(p)
}

// templated changes the detail of a problem if its line is part of a template.
func (d *Document) templated(p *Problem) *Problem {
	lines := strings.Split(d.body, "\n")
	if at := p.Line - d.line - 1; at >= 0 && at < len(lines) && strings.Contains(lines[at], "{{") {
		p.Detail = "must be YAML or JSON; render the template first"
	}
	return p
}

// keyProblem checks the keys of all mappings below a node. A key that is not a scalar is a problem;
// a duplicate key is kept in d.duplicate.
func (d *Document) keyProblem(node *yaml.Node) {
	seen := map[string]*yaml.Node{}
	for i, child := range node.Content {
		if node.Kind == yaml.MappingNode && i%2 == 0 {
			p := &Problem{Line: d.line + child.Line}
			if len(child.Content) > 0 {
				p.Detail = "must have a string as the key"
				d.problem = d.templated(p)
				return
			}
			if first := seen[child.Value]; first != nil && d.duplicate == nil {
				where := fmt.Sprintf("on line %d and on line %d", d.line+first.Line, p.Line)
				if first.Line == child.Line {
					where = fmt.Sprintf("twice on line %d", p.Line)
				}
				p.Detail = fmt.Sprintf("must have key %q once, not %s: only the last one counts; merge them", child.Value, where)
				d.duplicate = p
			}
			seen[child.Value] = child
		}
		if d.keyProblem(child); d.problem != nil {
			return
		}
	}
}

func (d *Document) readYAML() {
	if marks := api.CountMarks(d.body); marks > maxMarks {
		d.problem = d.tooLarge("must have at most %d lines, commas, colons and brackets, has %d; split it into documents",
			maxMarks, marks)
		return
	}
	root, err := parseYAML(d.body)
	if err != nil {
		d.problem = d.yamlProblem(err)
		return
	}
	d.root = root
	if limit := 4*len(d.body) + maxObject; expandedSize(root, limit, map[*yaml.Node]int{}) > limit {
		d.problem = d.tooLarge("must have at most %d bytes with its aliases expanded", limit)
		return
	}
	if d.keyProblem(root); d.problem != nil {
		return
	}
	if d.json, err = sigsyaml.YAMLToJSON([]byte(d.body)); err != nil {
		d.problem = d.yamlProblem(err)
	}
}

// tooLarge returns the problem of a document that exceeds a limit.
func (d *Document) tooLarge(format string, args ...any) *Problem {
	return &Problem{Line: d.line + 1, Detail: fmt.Sprintf(format, args...)}
}

// expandedSize returns the size in bytes of a node's scalars with its aliases expanded. If the size
// exceeds limit, the result is any number above limit. The sizes of the nodes that aliases refer to
// are kept in known.
func expandedSize(node *yaml.Node, limit int, known map[*yaml.Node]int) int {
	if node.Kind == yaml.AliasNode {
		size, ok := known[node.Alias]
		if !ok {
			known[node.Alias] = 0 // an alias inside its own node is reported elsewhere
			size = expandedSize(node.Alias, limit, known)
			known[node.Alias] = size
		}
		return size
	}
	size := len(node.Value) + 1
	for _, child := range node.Content {
		if size += expandedSize(child, limit, known); size > limit {
			break
		}
	}
	return size
}

func parseYAML(text string) (*yaml.Node, error) {
	decoder := yaml.NewDecoder(strings.NewReader(text))
	var document, next yaml.Node
	if err := decoder.Decode(&document); err != nil {
		return nil, err
	}
	if err := decoder.Decode(&next); !errors.Is(err, io.EOF) {
		return nil, errors.Join(err, errors.New("must be one value; write a line --- before the next one"))
	}
	return &document, nil
}

var yamlError = regexp.MustCompile(`^(?:error converting YAML to JSON: )?yaml: (?:line (\d+): )?(?s:(.*))$`)

// parserError matches errors of the library's parser (parserc.go, and fail in decode.go, which
// counts lines).
var parserError = regexp.MustCompile("^did not find expected (<|node content|key|'-'|',')")

// yamlProblem returns the problem, with its line, for an error of the YAML library.
func (d *Document) yamlProblem(err error) *Problem {
	match := yamlError.FindStringSubmatch(err.Error())
	if match == nil {
		return d.templated(&Problem{Line: d.line + 1, Detail: err.Error()})
	}
	line, err := strconv.Atoi(match[1])
	switch {
	case err != nil:
		line = 1 // the library omits the number of the first line
	case parserError.MatchString(match[2]):
		line++ // the library's parser counts lines from 0, and its scanner from 1
	}
	return d.templated(&Problem{Line: d.line + line, Detail: strings.TrimSpace(match[2])})
}

// Locate returns the line and column, both from 1, of the value at a field path. For a member of a
// mapping that is the position of its key. If the path does not exist, it is the position of the
// longest part of the path that exists.
func (d *Document) Locate(fieldPath string) (line, column int) {
	if d.value() == nil {
		return d.line + 1, 1
	}
	at, _ := d.find(fieldPath)
	line, column = at.Line+d.line, at.Column
	if at.Line == 1 {
		column += d.column
	}
	return line, column
}

// Block returns the text at a field path and the line, from 1, where it starts, if it is a literal
// block: then each line of the text is a line of the file. Otherwise line is 0.
func (d *Document) Block(fieldPath string) (text string, line int) {
	if d.value() == nil {
		return "", 0
	}
	_, node := d.find(fieldPath)
	if node.Kind == yaml.AliasNode {
		node = node.Alias
	}
	if node.Style&yaml.LiteralStyle == 0 {
		return "", 0
	}
	return node.Value, node.Line + d.line + 1
}

// Line returns a line of the file, from 1, without its end; empty if it is not in the document's
// value.
func (d *Document) Line(line int) string {
	text := d.body
	for line -= d.line; line > 1; line-- {
		_, text, _ = strings.Cut(text, "\n")
	}
	text, _, _ = strings.Cut(text, "\n")
	return strings.TrimSuffix(text, "\r")
}

// find follows a field path as far as it exists. It returns the node, and its key if it is a member
// of a mapping.
func (d *Document) find(fieldPath string) (at, node *yaml.Node) {
	node = d.value()
	at = node
	for _, token := range pathTokens(fieldPath) {
		if node.Kind == yaml.AliasNode {
			node = node.Alias
		}
		key, value := child(node, token)
		if value == nil {
			break
		}
		at, node = key, value
	}
	return at, node
}

// child returns a member of a mapping with its key, or an item of a sequence as both values; nil
// for none.
func child(node *yaml.Node, token string) (key, value *yaml.Node) {
	switch node.Kind {
	case yaml.MappingNode:
		if at := member(node, token); at >= 0 {
			return node.Content[at], node.Content[at+1]
		}
	case yaml.SequenceNode:
		if index, err := strconv.Atoi(token); err == nil && index >= 0 && index < len(node.Content) {
			return node.Content[index], node.Content[index]
		}
	default:
	}
	return nil, nil
}

// member returns the index of a key in a mapping's content, or -1.
func member(mapping *yaml.Node, key string) int {
	for at := 0; at < len(mapping.Content); at += 2 {
		if mapping.Content[at].Value == key {
			return at
		}
	}
	return -1
}

// pathTokens splits a path such as spec.containers[0] or metadata.annotations[a.io/b] into its
// tokens.
func pathTokens(path string) []string {
	var tokens []string
	for path != "" {
		if path[0] == '[' {
			token, rest, _ := strings.Cut(path[1:], "]")
			tokens, path = append(tokens, token), strings.TrimPrefix(rest, ".")
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			end = len(path)
		}
		tokens, path = append(tokens, path[:end]), strings.TrimPrefix(path[end:], ".")
	}
	return tokens
}
