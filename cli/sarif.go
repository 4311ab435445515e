package cli

import (
	"fmt"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/akv-injector/akv-injector/core/api"
)

// The parts of a SARIF log that lint writes
// (https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/sarif-v2.1.0-errata01-os-complete.html).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		ColumnKind string        `json:"columnKind"`
		Results    []sarifResult `json:"results"`
	}
	sarifDriver struct {
		Name  string      `json:"name"`
		Rules []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string    `json:"id"`
		ShortDescription sarifText `json:"shortDescription"`
		Help             sarifText `json:"help"`
	}
	sarifText struct {
		Text     string `json:"text"`
		Markdown string `json:"markdown,omitzero"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifLocation struct {
		PhysicalLocation struct {
			ArtifactLocation struct {
				URI string `json:"uri"`
			} `json:"artifactLocation"`
			Region *sarifRegion `json:"region,omitempty"`
		} `json:"physicalLocation"`
		LogicalLocations []sarifLogicalLocation `json:"logicalLocations,omitempty"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitzero"`
	}
	sarifLogicalLocation struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
	}
)

// sarif returns the findings as a SARIF log with one run. The rules are the Reasons that occur. A
// finding in a document that Helm rendered is located in the template of the chart, without a line:
// the lines of the template are not known.
func (f findings) sarif() (string, error) {
	var run sarifRun
	run.Tool.Driver.Name = "akv-injector"
	run.Tool.Driver.Rules = []sarifRule{}
	run.ColumnKind = "unicodeCodePoints"
	run.Results = []sarifResult{}
	described := map[string]bool{}
	for i := range f {
		finding := &f[i]
		if id := finding.rule(); !described[id] {
			described[id] = true
			run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, ruleOf(id))
		}
		var location sarifLocation
		physical := &location.PhysicalLocation
		physical.ArtifactLocation.URI = uriOf(finding.File)
		if finding.Source != "" {
			physical.ArtifactLocation.URI = uriOf(finding.Source)
		} else if finding.Line > 0 {
			physical.Region = &sarifRegion{finding.Line, finding.Column}
		}
		if subject := finding.subject(); subject != "" {
			name := strings.TrimSpace(subject + " " + finding.Field)
			location.LogicalLocations = []sarifLogicalLocation{{name}}
		}
		run.Results = append(run.Results, sarifResult{
			RuleID: finding.rule(), Level: string(finding.Severity),
			Message: sarifText{Text: finding.whole()}, Locations: []sarifLocation{location},
		})
	}
	text, err := json.Marshal(sarifLog{
		Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{run},
	}, jsontext.WithIndent("  "))
	if err != nil {
		return "", fmt.Errorf("print findings: %w", err)
	}
	return string(text) + "\n", nil
}

// ruleOf describes a rule.
func ruleOf(id string) sarifRule {
	for _, doc := range api.Reasons {
		if string(doc.Reason) == id {
			return sarifRule{id, markdown(doc.Means), markdown(doc.Fix)}
		}
	}
	if id == ruleUnreadable {
		return sarifRule{id, markdown("The file, the document or a field cannot be read."), markdown("Correct the file as the message describes it.")}
	}
	return sarifRule{id, markdown("The manifest is valid, but it may not do what its author wants."), markdown("Correct it as the message describes it.")}
}

func markdown(text string) sarifText {
	return sarifText{Text: strings.ReplaceAll(text, "`", ""), Markdown: text}
}

// uriOf returns the URI of a file: relative, unless its name is absolute.
func uriOf(name string) string {
	if name == stdinName {
		name = "stdin"
	}
	path := filepath.ToSlash(name)
	if filepath.IsAbs(name) {
		return (&url.URL{Scheme: "file", Path: path}).String()
	}
	return (&url.URL{Path: path}).String()
}
