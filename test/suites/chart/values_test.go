package chart_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/test/harness/chart"
)

var update = flag.Bool("update", false, "rewrite the differences in testdata/values.txtar")

// TestValues sets each value once. Both versions of Helm must render the same, and exactly the
// listed fields must differ.
func TestValues(t *testing.T) {
	t.Parallel()
	archive := read(t)
	for name, row := range rows(t, archive) {
		t.Run(name, func(t *testing.T) {
			before, after := render(t, row.base), render(t, row.values)
			got := strings.Join(append(differences(before, after), ""), "\n")
			if *update {
				row.file.Data = []byte(got)
				return
			}
			if diff := cmp.Diff(string(row.file.Data), got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
	if *update {
		if err := os.WriteFile(archivePath, txtar.Format(archive), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEveryValue compares the rows and the table in the chart's README with values.yaml.
func TestEveryValue(t *testing.T) {
	t.Parallel()
	folder, err := chart.Folder(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	schema, values := map[string]any{}, map[string]any{}
	for file, into := range map[string]*map[string]any{"values.schema.json": &schema, "values.yaml": &values} {
		text, err := os.ReadFile(filepath.Join(folder, file))
		if err == nil {
			err = yaml.Unmarshal(text, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	readme, err := os.ReadFile(filepath.Join(folder, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	described := regexp.MustCompile("(?m)^\\| `([^`]+)` \\| .* \\| \\S.* \\|$").FindAllStringSubmatch(string(readme), -1)
	set := rows(t, read(t))
	for _, value := range leaves("", values, schema) {
		// These values are always rejected: see TestRefusals.
		if _, ok := set[value]; !ok && value != "nameOverride" && value != "fullnameOverride" {
			t.Errorf("%s has no row in %s", value, archivePath)
		}
		if !slices.ContainsFunc(described, func(line []string) bool { return line[1] == value }) {
			t.Errorf("%s has no description in values.yaml", value)
		}
	}
}

// leaves returns the paths of the values that a user sets as a whole: scalars, lists and free-form
// maps.
func leaves(path string, value any, schema map[string]any) []string {
	fields, ok := value.(map[string]any)
	if free, _ := schema["additionalProperties"].(bool); !ok || free {
		return []string{strings.TrimPrefix(path, ".")}
	}
	properties, _ := schema["properties"].(map[string]any)
	var paths []string
	for key, field := range fields {
		of, _ := properties[key].(map[string]any)
		paths = append(paths, leaves(path+"."+key, field, of)...)
	}
	return paths
}

// row is one value that is set.
type row struct {
	values, base map[string]any
	file         *txtar.File // has the expected differences
}

var archivePath = filepath.Join("testdata", "values.txtar")

func read(t *testing.T) *txtar.Archive {
	t.Helper()
	archive, err := txtar.ParseFile(archivePath)
	if err != nil {
		t.Fatal(err)
	}
	return archive
}

func rows(t *testing.T, archive *txtar.Archive) map[string]*row {
	t.Helper()
	all := map[string]*row{}
	for i := range archive.Files {
		file := &archive.Files[i]
		name, part, _ := cut(file.Name, ".base.yaml", ".yaml", ".diff")
		if all[name] == nil {
			all[name] = &row{}
		}
		var err error
		switch part {
		case ".base.yaml":
			err = yaml.UnmarshalStrict(file.Data, &all[name].base)
		case ".yaml":
			err = yaml.UnmarshalStrict(file.Data, &all[name].values)
		case ".diff":
			all[name].file = file
		}
		if err != nil {
			t.Fatalf("%s: %v", file.Name, err)
		}
	}
	for name, row := range all {
		if row.values == nil || row.file == nil {
			t.Fatalf("%s has no %s.yaml, or no %[2]s.diff", archivePath, name)
		}
	}
	return all
}

func cut(name string, suffixes ...string) (string, string, bool) {
	for _, suffix := range suffixes {
		if before, ok := strings.CutSuffix(name, suffix); ok {
			return before, suffix, true
		}
	}
	return name, "", false
}

// programs builds Helm 4 and Helm 3.
var programs = sync.OnceValues(func() ([]string, error) {
	var all []string
	for _, major := range []int{4, 3} {
		program, err := chart.Helm(context.Background(), major, os.Stderr)
		if err != nil {
			return nil, err
		}
		all = append(all, program)
	}
	return all, nil
})

// render renders the chart with each Helm. The results must be equal. The returned objects are
// shared.
func render(t *testing.T, values map[string]any) []*unstructured.Unstructured {
	t.Helper()
	key, err := json.Marshal(values)
	if err != nil {
		t.Fatal(err)
	}
	renderings.Lock()
	once := renderings.of[string(key)]
	if once == nil {
		once = sync.OnceValues(func() ([]*unstructured.Unstructured, error) { return renderByAll(values) })
		renderings.of[string(key)] = once
	}
	renderings.Unlock()
	objects, err := once()
	if err != nil {
		t.Fatal(err)
	}
	return objects
}

// renderings caches the results of render by the values' JSON.
var renderings = struct {
	sync.Mutex
	of map[string]func() ([]*unstructured.Unstructured, error)
}{of: map[string]func() ([]*unstructured.Unstructured, error){}}

func renderByAll(values map[string]any) ([]*unstructured.Unstructured, error) {
	helms, err := programs()
	if err != nil {
		return nil, err
	}
	var first []*unstructured.Unstructured
	for _, helm := range helms {
		objects, err := chart.Render(context.Background(), chart.Options{Helm: helm, Values: values})
		if err != nil {
			return nil, err
		}
		if first == nil {
			first = objects
		}
		if diff := cmp.Diff(byName(first), byName(objects)); diff != "" {
			return nil, fmt.Errorf("%s and %s render differently (-%[1]s +%[2]s):\n%[3]s", filepath.Base(helms[0]), filepath.Base(helm), diff)
		}
	}
	return first, nil
}

func byName(objects []*unstructured.Unstructured) map[string]*unstructured.Unstructured {
	named := map[string]*unstructured.Unstructured{}
	for _, object := range objects {
		named[object.GetKind()+"/"+object.GetName()] = object
	}
	return named
}

// differences returns the differences, one in each line: an object that exists on one side only, or
// a field with its values before and after. Equal differences in the entries of a webhook
// configuration are counted in one line.
func differences(before, after []*unstructured.Unstructured) []string {
	olds, news := byName(before), byName(after)
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(news)) {
		if olds[name] == nil {
			lines = append(lines, "+ "+name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(olds)) {
		if news[name] == nil {
			lines = append(lines, "- "+name)
			continue
		}
		was, is := map[string]string{}, map[string]string{}
		flatten("", olds[name].Object, was)
		flatten("", news[name].Object, is)
		counts := map[string]int{}
		all := maps.Clone(was)
		maps.Copy(all, is)
		for path := range all {
			old, had := was[path]
			now, has := is[path]
			line := name + " " + entry.ReplaceAllString(path, "webhooks")
			switch {
			case old == now && had == has:
			case !had:
				counts["+ "+line+now]++
			case !has:
				counts["- "+line+old]++
			default:
				counts[line+old+" ->"+strings.TrimPrefix(now, ":")]++
			}
		}
		for _, line := range slices.Sorted(maps.Keys(counts)) {
			if counts[line] > 1 {
				line += fmt.Sprintf(" (%d times)", counts[line])
			}
			lines = append(lines, line)
		}
	}
	return lines
}

var entry = regexp.MustCompile(`webhooks\[[^]]+\]`)

// flatten writes the scalars of a value by their paths, each as it follows its path in a line. The
// elements of a list are identified by their name, or by their value.
func flatten(path string, value any, into map[string]string) {
	switch value := value.(type) {
	case map[string]any:
		for key, field := range value {
			flatten(strings.TrimPrefix(path+"."+key, "."), field, into)
		}
		if len(value) == 0 {
			into[path] = ": {}"
		}
	case []any:
		for i, element := range value {
			switch element := element.(type) {
			case map[string]any:
				key, ok := element["name"].(string)
				if !ok {
					key = strconv.Itoa(i)
				}
				flatten(path+"["+key+"]", element, into)
			default:
				into[fmt.Sprintf("%s[%v]", path, element)] = ""
			}
		}
	default:
		into[path] = fmt.Sprintf(": %v", value)
	}
}
