package inventory

import (
	"cmp"
	"encoding/csv"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"github.com/akv-injector/akv-injector/cli/report"
)

// Format is the output format of an inventory.
type Format string

// The formats.
const (
	// Text is a table with one line for each object of a workload.
	Text Format = "text"
	// Wide is Text with client ids, classes and files, and whole versions.
	Wide Format = "wide"
	// JSON is one [Inventory].
	JSON Format = "json"
	// CSV is a table with one line for each object of a pod (RFC 4180).
	CSV Format = "csv"
)

// Formats are all formats.
var Formats = []Format{Text, Wide, JSON, CSV}

// Print writes the inventory.
func (i *Inventory) Print(w io.Writer, format Format) error {
	var err error
	switch format {
	case Text, "":
		err = i.table(w, false)
	case Wide:
		err = i.table(w, true)
	case JSON:
		err = i.json(w)
	case CSV:
		err = i.csv(w)
	default:
		err = fmt.Errorf("format %q must be %s, %s, %s or %s", format, Text, Wide, JSON, CSV)
	}
	if err != nil {
		return fmt.Errorf("print the inventory: %w", err)
	}
	return nil
}

// json writes the inventory as JSON. A terminal could interpret characters that JSON permits, so they
// are escaped, too.
func (i *Inventory) json(w io.Writer) error {
	text, err := json.Marshal(i, jsontext.WithIndent("  "), json.Deterministic(true), jsontext.AllowInvalidUTF8(true))
	if err != nil {
		return err
	}
	lines := strings.Split(string(text), "\n")
	for n := range lines {
		lines[n] = report.Escape(lines[n])
	}
	_, err = io.WriteString(w, strings.Join(lines, "\n")+"\n")
	return err
}

// table writes columns that are separated by spaces. Cells that hold names of tenants are escaped.
func (i *Inventory) table(w io.Writer, wide bool) error {
	if len(i.Workloads) == 0 {
		_, err := io.WriteString(w, "no workload uses a Key Vault object or an identity\n")
		return err
	}
	header := []string{"NAMESPACE", "WORKLOAD", "PODS", "IDENTITY", "VAULT", "OBJECT", "VERSIONS", "ENV"}
	if wide {
		header = slices.Insert(header, 4, "CLIENT-ID", "CLASS")
		header = append(header, "FILES")
	}
	rows := [][]string{header}
	for _, workload := range i.Workloads {
		objects := workload.Objects
		if len(objects) == 0 {
			objects = []*Object{{}}
		}
		for _, o := range objects {
			row := []string{
				workload.Namespace, workload.Kind + "/" + workload.Name, strconv.Itoa(len(workload.Pods)), workload.identities(),
				o.Vault, o.label(), o.versions(wide), joined(o.Env, func(e Env) string { return e.Name }),
			}
			if wide {
				row = slices.Insert(row, 4, workload.clientIDs(), o.class())
				row = append(row, joined(o.Files, func(f File) string { return f.Path }))
			}
			rows = append(rows, row)
		}
	}
	return columns(w, rows)
}

// columns writes rows as a table.
func columns(w io.Writer, rows [][]string) error {
	var b strings.Builder
	table := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			row[i] = report.Escape(cmp.Or(cell, "-"))
		}
		_, _ = fmt.Fprintln(table, strings.Join(row, "\t")) // a Builder returns no error
	}
	_ = table.Flush()
	_, err := io.WriteString(w, b.String())
	return err
}

func (w *Workload) identities() string {
	return joined(w.Identities, func(id Identity) string { return strings.TrimSpace(id.Mode + " " + id.Name) })
}

func (w *Workload) clientIDs() string {
	return joined(w.Identities, func(id Identity) string { return id.ClientID })
}

// label returns the object as TYPE:NAME, or why it is not known.
func (o *Object) label() string {
	switch {
	case o.Problem != "":
		return "class " + o.Class + ": " + o.Problem
	case o.Name == "":
		return ""
	}
	return o.Type + ":" + o.Name
}

func (o *Object) class() string {
	if o.Class == "" && o.Managed {
		return "(managed)"
	}
	return o.Class
}

// shortVersion is how many digits of a version a table shows, as Git shows commits.
const shortVersion = 8

// versions returns the mounted versions; with their numbers of pods if there are several.
func (o *Object) versions(whole bool) string {
	short := func(v Version) string { return v.Version[:min(len(v.Version), shortVersion)] }
	distinct := map[string]bool{}
	for _, v := range o.Versions {
		distinct[short(v)] = true
	}
	whole = whole || len(distinct) < len(o.Versions)
	return joined(o.Versions, func(v Version) string {
		text := v.Version
		if !whole {
			text = short(v)
		}
		if len(o.Versions) > 1 {
			text += fmt.Sprintf(" (%d)", len(v.Pods))
		}
		return text
	})
}

// joined joins the distinct texts of a list.
func joined[T any](list []T, text func(T) string) string {
	var texts []string
	for _, item := range list {
		if t := text(item); t != "" && !slices.Contains(texts, t) {
			texts = append(texts, t)
		}
	}
	return strings.Join(texts, ", ")
}

// csv writes one line for each object of a pod. A workload without pods has one line for each
// object, with an empty pod.
func (i *Inventory) csv(w io.Writer) error {
	table := csv.NewWriter(w)
	err := table.Write([]string{
		"namespace", "kind", "name", "pod", "identity", "clientID", "class", "managed",
		"vault", "type", "object", "version", "env", "files", "problem",
	})
	for _, workload := range i.Workloads {
		objects, pods := workload.Objects, workload.Pods
		if len(objects) == 0 {
			objects = []*Object{{}}
		}
		if len(pods) == 0 {
			pods = []string{""}
		}
		for _, pod := range pods {
			for _, o := range objects {
				row := []string{
					workload.Namespace, workload.Kind, workload.Name, pod, workload.identities(),
					workload.clientIDs(), o.Class, strconv.FormatBool(o.Managed),
					o.Vault, o.Type, o.Name, o.versionOf(pod),
					joined(o.Env, func(e Env) string { return e.Name }),
					joined(o.Files, func(f File) string { return f.Path }), o.Problem,
				}
				for i := range row {
					row[i] = inert(report.Escape(row[i]))
				}
				if err == nil {
					err = table.Write(row)
				}
			}
		}
	}
	table.Flush()
	return cmp.Or(err, table.Error())
}

// versionOf returns the version that a pod has mounted; empty if it is not known.
func (o *Object) versionOf(pod string) string {
	for _, v := range o.Versions {
		if _, has := slices.BinarySearch(v.Pods, pod); has { // they are sorted, and may be thousands
			return v.Version
		}
	}
	return ""
}

// inert returns a cell that no spreadsheet takes for a formula: a text that starts with one of these
// characters gets an apostrophe before it (https://owasp.org/www-community/attacks/CSV_Injection).
func inert(cell string) string {
	if strings.IndexAny(cell, "=+-@\t\r") == 0 {
		return "'" + cell
	}
	return cell
}
