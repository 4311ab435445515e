package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/akv-injector/akv-injector/core/api"
)

// Severity says whether a finding causes a rejection.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Finding is an error or a warning about a manifest. The JSON format of lint is an array of
// findings, with these names.
type Finding struct {
	// File is the name of the file as it was given or found in a directory; <stdin> for standard
	// input.
	File string `json:"file"`
	// Line and Column are the position in the file, from 1; 0 if it is about no line.
	Line   int `json:"line,omitzero"`
	Column int `json:"column,omitzero"`
	// Document is the number of the document in the file, from 1, not counting blank documents; 0
	// if it is about the file.
	Document int `json:"document,omitzero"`
	// Kind, Namespace and Name are those of the object; empty if it cannot be read. Namespace is
	// where the object would be created; empty for a Namespace.
	Kind      string `json:"kind,omitzero"`
	Namespace string `json:"namespace,omitzero"`
	Name      string `json:"name,omitzero"`

	Severity Severity `json:"severity"`
	// Reason is empty if the finding is about the manifest and not about the request: for example
	// if it cannot be parsed.
	Reason api.Reason `json:"reason,omitzero"`
	// Field is the path of the field in the document. For an object in a List it starts with items.
	Field string `json:"field,omitzero"`
	// Message is the field, what is wrong, and how to correct it.
	Message string `json:"message"`

	unreadable bool
	// aboutOutput is true if the finding is about the output of inject, and not about the input.
	aboutOutput bool
}

// subject returns the kind and the name of the object; empty if it has none.
func (f *Finding) subject() string {
	if f.Kind == "" {
		return ""
	}
	return strings.TrimSpace(f.Kind + " " + f.Name)
}

// text returns the finding as a line in the format of compilers.
func (f *Finding) text() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Line > 0 && f.Column > 0 {
		fmt.Fprintf(&b, ":%d", f.Column)
	}
	fmt.Fprintf(&b, ": %s: ", f.Severity)
	switch subject := f.subject(); {
	case subject != "":
		fmt.Fprintf(&b, "%s (document %d): ", subject, f.Document)
	case f.Document > 0:
		fmt.Fprintf(&b, "document %d: ", f.Document)
	}
	if f.Reason != "" {
		b.WriteString("[" + string(f.Reason) + "] ")
	}
	b.WriteString(f.Message + "\n")
	return b.String()
}

// Escapes of GitHub's workflow commands (actions/toolkit, packages/core/src/command.ts).
var (
	githubData     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	githubProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

// github returns the finding as a workflow command. GitHub shows it at the line in a pull request.
func (f *Finding) github() string {
	var properties []string
	property := func(name, value string) { properties = append(properties, name+"="+githubProperty.Replace(value)) }
	if f.File != stdinName {
		property("file", f.File)
		if f.Line > 0 {
			property("line", strconv.Itoa(f.Line))
		}
		if f.Line > 0 && f.Column > 0 {
			property("col", strconv.Itoa(f.Column))
		}
	}
	title := string(f.Reason)
	if title == "" {
		title = "Unreadable"
	}
	property("title", "akv-injector: "+title)
	message := f.Message
	if subject := f.subject(); subject != "" {
		message = subject + ": " + message
	}
	return "::" + string(f.Severity) + " " + strings.Join(properties, ",") + "::" + githubData.Replace(message) + "\n"
}

// Format is the output format of lint.
type Format string

// The formats.
const (
	// Text is one line for each finding: "deploy.yaml:14:7: error: Deployment web (document 2):
	// [Reason] path: …". It is the default.
	Text Format = "text"
	// JSON is one array of [Finding].
	JSON Format = "json"
	// GitHub is one workflow command for each finding, which annotates a pull request.
	GitHub Format = "github"
)

// Formats are all formats.
var Formats = []Format{Text, JSON, GitHub}

type findings []Finding

func (f findings) status() Status {
	status := Fine
	for i := range f {
		switch {
		case f[i].unreadable:
			return Unusable
		case f[i].Severity == Error:
			status = Rejected
		}
	}
	return status
}

func (f findings) text() string {
	var b strings.Builder
	for i := range f {
		b.WriteString(f[i].text())
	}
	return b.String()
}

func (f findings) format(format Format) (string, error) {
	switch format {
	case Text, "":
		return f.text(), nil
	case GitHub:
		var b strings.Builder
		for i := range f {
			b.WriteString(f[i].github())
		}
		return b.String(), nil
	case JSON:
		text, err := json.Marshal(f, jsontext.WithIndent("  "))
		if err != nil {
			return "", fmt.Errorf("print findings: %w", err)
		}
		return string(text) + "\n", nil
	}
	return "", fmt.Errorf("format %q must be %s, %s or %s", format, Text, JSON, GitHub)
}
