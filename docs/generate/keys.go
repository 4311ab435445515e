package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
)

// helpers is the template with lists that the chart's CEL expressions need.
const helpers = "deploy/chart/templates/_keys.tpl"

// writeHelpers writes [helpers] from core/api. The texts are elements of CEL lists, and of raw
// strings in single quotes.
func writeHelpers(root string) error {
	var handedDown []string
	for i := range api.Keys {
		if key := api.Keys[i].Name; api.IsRequestKey(key) {
			handedDown = append(handedDown, key)
		}
	}
	slices.Sort(handedDown)
	patterns := make([]string, len(api.NearNames))
	keys := make([]string, len(api.NearNames))
	for i, name := range api.NearNames {
		patterns[i], keys[i] = name.Pattern, name.Key
	}
	var out bytes.Buffer
	out.WriteString("{{- /* Generated from core/api by `make generate`: elements of lists in CEL expressions. */ -}}\n")
	written := []string{api.Injected, api.Inherited, api.RestartedFor, api.Status}
	injections := []string{api.InjectionEnabled, api.InjectionAlways, api.InjectionDisabled}
	for _, part := range []struct{ name, comment, text string }{
		{"handedDown", "The annotations that a pod template inherits, in the order of their names.", list("", handedDown)},
		{"written", "The labels and annotations that the injector writes.", list("", written)},
		{"injections", "The values of the label keyvault.io/injection.", list("", injections)},
		{"namespaceLabels", "The labels of a Namespace.", list("", api.NamespaceLabels[:])},
		{"namespaceAnnotations", "The annotations that only a Namespace may have.", list("", api.NamespaceAnnotations[:])},
		{"nearPattern", "api.NearPattern, a regular expression.", api.NearPattern},
		{"nearPatterns", "The patterns of api.NearNames, and their keys in the same order.", list("r", patterns)},
		{"nearKeys", "", list("", keys)},
	} {
		if part.comment != "" {
			fmt.Fprintf(&out, "\n{{- /* %s */ -}}", part.comment)
		}
		fmt.Fprintf(&out, "\n{{- define \"akv-injector.%s\" -}}\n%s\n{{- end -}}\n", part.name, part.text)
	}
	return os.WriteFile(filepath.Join(root, helpers), out.Bytes(), 0o600)
}

// list returns texts as elements of a CEL list, several on a line. The prefix r makes them raw.
func list(prefix string, texts []string) string {
	const width = 120
	var b strings.Builder
	column := 0
	for i, text := range texts {
		element := prefix + "'" + text + "'"
		if i < len(texts)-1 {
			element += ","
		}
		switch {
		case i == 0:
		case column+len(element) >= width:
			b.WriteByte('\n')
			column = 0
		default:
			b.WriteByte(' ')
			column++
		}
		b.WriteString(element)
		column += len(element)
	}
	return b.String()
}
