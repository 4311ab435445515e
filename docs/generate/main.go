// Command generate writes the parts of the documentation that are derived from the code: the
// annotation tables, the list of Reasons, the policy rules, the metrics
// and the causes of events. It also writes the lists
// of keys that the chart needs. `go generate` runs it. In the documentation, it replaces the text
// between these marks:
//
//	<!-- generated: NAME -->
//	<!-- end -->
package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/akv-injector/akv-injector/cli/explain"
	"github.com/akv-injector/akv-injector/core/api"
)

func main() {
	_, file, _, _ := runtime.Caller(0)
	root := filepath.Join(filepath.Dir(file), "..", "..")
	for _, name := range []string{
		"README.md", "docs/annotations.md", "docs/metrics.md", "docs/policy.md", "docs/troubleshooting.md",
	} {
		if err := rewrite(filepath.Join(root, name)); err != nil {
			fmt.Fprintf(os.Stderr, "generate %s: %v\n", name, err)
			os.Exit(1)
		}
	}
	if err := writeHelpers(root); err != nil {
		fmt.Fprintf(os.Stderr, "generate %s: %v\n", helpers, err)
		os.Exit(1)
	}
}

// parts are the generated parts by name.
var parts = map[string]func(*bytes.Buffer) error{
	"causes":        causes,
	"keys":          keys,
	"metrics":       metrics,
	"reasons":       reasons,
	"reasons-short": reasonsShort,
	"rules":         rules,
}

const (
	begin = "<!-- generated: "
	end   = "<!-- end -->\n"
)

// rewrite replaces the generated parts in a file.
func rewrite(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var out bytes.Buffer
	rest := string(text)
	for {
		before, after, found := strings.Cut(rest, begin)
		out.WriteString(before)
		if !found {
			break
		}
		name, after, ok := strings.Cut(after, " -->\n")
		part := parts[name]
		if !ok || part == nil {
			return fmt.Errorf("there is no part %q", name)
		}
		_, after, ok = strings.Cut(after, end)
		if !ok {
			return fmt.Errorf("part %s: must end with %q", name, strings.TrimSpace(end))
		}
		out.WriteString(begin + name + " -->\n")
		if err := part(&out); err != nil {
			return fmt.Errorf("part %s: %w", name, err)
		}
		out.WriteString(end)
		rest = after
	}
	return os.WriteFile(path, out.Bytes(), 0o600)
}

func keys(out *bytes.Buffer) error {
	out.WriteString("| annotation | value | default | effect |\n|---|---|---|---|\n")
	for _, key := range api.Keys {
		fmt.Fprintf(out, "| `%s` | %s | %s | %s |\n", key.Name, key.Values, key.Default, key.Effect)
	}
	return nil
}

// causes writes the table by which `akv-injector explain` decodes events.
func causes(out *bytes.Buffer) error {
	out.WriteString("| the event contains | cause | fix |\n|---|---|---|\n")
	for i := range explain.Causes {
		contains, means, fix := explain.Causes[i].Row()
		fmt.Fprintf(out, "| %s | %s | %s |\n", contains, means, fix)
	}
	return nil
}

func reasons(out *bytes.Buffer) error {
	for _, doc := range api.Reasons {
		fmt.Fprintf(out, "### %s\n\n%s\n\n%s\n\n", doc.Reason, doc.Means, doc.Fix)
	}
	return nil
}

func reasonsShort(out *bytes.Buffer) error {
	var names []string
	for _, doc := range api.Reasons {
		names = append(names, fmt.Sprintf("[%s](docs/troubleshooting.md#%s)", doc.Reason, anchor(doc.Reason)))
	}
	out.WriteString(strings.Join(names, ", ") + "\n")
	return nil
}

// anchor returns the anchor of a Reason in docs/troubleshooting.md.
func anchor(reason api.Reason) string {
	return strings.ToLower(string(reason))
}
