package cli

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/api"
)

// Severity says whether a finding causes a rejection.
type Severity string

// The severities.
const (
	Error   Severity = "error"
	Warning Severity = "warning"
)

// Severities are all severities.
var Severities = []Severity{Error, Warning}

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
	// Source is the template of a Helm chart that the document was rendered from, as the comment of
	// helm template names it; empty without such a comment. Line and Column are still those in File.
	Source string `json:"source,omitzero"`
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
}

// subject returns the kind and the name of the object; empty if it has none.
func (f *Finding) subject() string {
	if f.Kind == "" {
		return ""
	}
	return strings.TrimSpace(f.Kind + " " + f.Name)
}

// rule returns the reason, or a word for the findings without one.
func (f *Finding) rule() string {
	switch {
	case f.Reason != "":
		return string(f.Reason)
	case f.unreadable:
		return ruleUnreadable
	}
	return ruleManifest
}

// The rules of findings without a reason.
const (
	ruleUnreadable = "Unreadable"
	ruleManifest   = "Manifest"
)

// text returns the finding as a line in the format of compilers. Manifests may have any text in them,
// which must not control a terminal.
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
	source := f.Source
	if source != "" {
		source = ", " + source
	}
	switch subject := f.subject(); {
	case subject != "":
		fmt.Fprintf(&b, "%s (document %d%s): ", subject, f.Document, source)
	case f.Document > 0:
		fmt.Fprintf(&b, "document %d%s: ", f.Document, source)
	}
	if f.Reason != "" {
		b.WriteString("[" + string(f.Reason) + "] ")
	}
	b.WriteString(f.Message)
	return report.Escape(b.String()) + "\n"
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
	property("title", "akv-injector: "+f.rule())
	return "::" + string(f.Severity) + " " + strings.Join(properties, ",") + "::" + githubData.Replace(f.whole()) + "\n"
}

// whole returns the message with the object and the template of a chart that it is about.
func (f *Finding) whole() string {
	about := f.subject()
	if f.Source != "" {
		about = strings.TrimSpace(about + " (" + f.Source + ")")
	}
	if about == "" {
		return f.Message
	}
	return about + ": " + f.Message
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
	// SARIF is a log in the Static Analysis Results Interchange Format, version 2.1.0, which code
	// scanning tools read.
	SARIF Format = "sarif"
)

// Formats are all formats.
var Formats = []Format{Text, JSON, GitHub, SARIF}

type findings []Finding

// status returns the status of a run that findings of a severity fail.
func (f findings) status(failOn Severity) Status {
	status := Fine
	for i := range f {
		switch {
		case f[i].unreadable:
			return Unusable
		case f[i].Severity == Error, failOn == Warning:
			status = Rejected
		}
	}
	return status
}

// count counts what was looked at.
type count struct {
	// objects are those of all documents.
	objects int
	// pods are the pods and pod templates that were judged, and asking are those of them with an
	// annotation of the injector.
	pods, asking int
}

// summary returns a line about what was judged, and what was found.
func (r *run) summary() string {
	severities := map[Severity]int{}
	for i := range r.findings {
		severities[r.findings[i].Severity]++
	}
	documents := 0
	for _, f := range r.files {
		for _, d := range f.documents {
			if !d.IsBlank() {
				documents++
			}
		}
	}
	judged := "no pod or pod template was judged"
	if r.count.pods > 0 {
		judged = fmt.Sprintf("%s judged, %d with annotations of akv-injector",
			several(r.count.pods, "pod or pod template", "pods or pod templates"), r.count.asking)
	}
	return fmt.Sprintf("%s, %s: %s: %s, %s\n",
		several(documents, "document", "documents"), several(r.count.objects, "object", "objects"), judged,
		several(severities[Error], "error", "errors"), several(severities[Warning], "warning", "warnings"))
}

// several returns a number and the noun in its form.
func several(n int, one, more string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + more
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
	case SARIF:
		return f.sarif()
	}
	return "", fmt.Errorf("format %q must be one of %v", format, Formats)
}
