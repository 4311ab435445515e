package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/akv-injector/akv-injector/core/api"
)

// Severity says whether a finding rejects its object.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Finding is one thing that is wrong, or worth knowing. Lint's JSON format is an array of them, with these names.
type Finding struct {
	// File is the name as it was given or found in a directory; <stdin> for the standard input.
	File string `json:"file"`
	// Line and Column are where it is written, from 1; 0 where no line is to blame.
	Line   int `json:"line,omitzero"`
	Column int `json:"column,omitzero"`
	// Document counts the file's documents that hold something, from 1; 0 where it is about the file.
	Document int `json:"document,omitzero"`
	// Kind, Namespace and Name are those of the object; empty where it can't be read. Namespace is where the object would be created,
	// and empty for a Namespace itself.
	Kind      string `json:"kind,omitzero"`
	Namespace string `json:"namespace,omitzero"`
	Name      string `json:"name,omitzero"`

	Severity Severity `json:"severity"`
	// Reason is empty where the manifest can't be read or can't be kept as it was written.
	Reason api.Reason `json:"reason,omitzero"`
	// Field is the path of the field as its author wrote it, within a List from its items on.
	Field string `json:"field,omitzero"`
	// Message says what is wrong and what would be right, beginning with the field.
	Message string `json:"message"`

	unreadable bool
	// ofPrint is true for what is about the injected text alone, and nothing to mend.
	ofPrint bool
}

// subject is the object in words.
func (f *Finding) subject() string {
	if f.Kind == "" {
		return ""
	}
	return strings.TrimSpace(f.Kind + " " + f.Name)
}

// text is the finding as compilers write theirs.
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

// Escapes of GitHub's workflow commands (upstream: actions/toolkit, packages/core/src/command.ts).
var (
	githubData     = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A")
	githubProperty = strings.NewReplacer("%", "%25", "\r", "%0D", "\n", "%0A", ":", "%3A", ",", "%2C")
)

// github is the finding as a workflow command, which GitHub shows beside the line in a pull request.
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

// Format is how lint writes its findings.
type Format string

// The formats.
const (
	// Text is a line a finding: "deploy.yaml:14:7: error: Deployment web (document 2): [Reason] path: …". It is the default.
	Text Format = "text"
	// JSON is one array of [Finding].
	JSON Format = "json"
	// GitHub is a workflow command a finding, which annotates a pull request.
	GitHub Format = "github"
)

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
