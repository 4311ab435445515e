package cli_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/core/facts"
)

// lint returns the status of lint for a text on standard input, and what it prints.
func lint(t *testing.T, o cli.Options, format cli.Format, text string) (status cli.Status, stdout, stderr string) {
	t.Helper()
	var out, summary bytes.Buffer
	if text != "" {
		o.Files, o.Stdin = append(o.Files, "-"), strings.NewReader(text)
	}
	status, err := cli.Lint(t.Context(), o, format, &out, &summary)
	if err != nil {
		t.Fatal(err)
	}
	return status, out.String(), summary.String()
}

// limited is a cluster of which the user may not read some resources.
type limited struct {
	cluster

	denied []string
}

func (l limited) forbid(resources ...string) error {
	for _, resource := range resources {
		if slices.Contains(l.denied, resource) {
			return apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", nil)
		}
	}
	return nil
}

func (l limited) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	if err := l.forbid("namespaces"); err != nil {
		return facts.Namespace{}, err
	}
	return l.cluster.Namespace(ctx, name, fresh)
}

func (l limited) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	var resources []string
	if len(needs.Classes) > 0 {
		resources = append(resources, "secretproviderclasses")
	}
	if needs.ServiceAccount != "" || needs.NamedServiceAccount != "" {
		resources = append(resources, "serviceaccounts")
	}
	if needs.Selector != "" || needs.Identities {
		resources = append(resources, "azureidentitybindings")
	}
	if fresh { // lists names for messages
		resources = append(resources, "names")
	}
	if err := l.forbid(resources...); err != nil {
		return facts.Answer{}, err
	}
	return l.cluster.Facts(ctx, namespace, needs, fresh)
}

// TestForbiddenLookups shows that a lookup for which the user lacks the right costs only the
// findings that depend on it.
func TestForbiddenLookups(t *testing.T) {
	pod := func(annotations string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: open\n  annotations: {" + annotations + "}\nspec: {containers: [{name: app}]}\n"
	}
	const managed = "keyvault.io/secrets: a, identity.io/name: app"
	tests := map[string]struct {
		denied       []string
		annotations  string
		want, absent []string
	}{
		"a class": {
			[]string{"secretproviderclasses"},
			"keyvault.io/class: theirs, keyvault.io/secrets: in-cluster, keyvault.io/containers: ap",
			[]string{
				"[LookupFailed] metadata.annotations: Internal error: could not look up secretproviderclasses.secrets-store.csi.x-k8s.io in namespace open",
				"lacks the right to get them", "akv-injector facts -n open", "[ContainerNotFound]",
			},
			[]string{"ClassNotFound"},
		},
		"ServiceAccounts": {
			[]string{"serviceaccounts"},
			managed,
			[]string{"could not look up serviceaccounts in namespace open", "[VaultRequired]"},
			[]string{"ServiceAccountNotFound", "TenantIDRequired", "IdentityRequired"},
		},
		"AzureIdentityBindings": {
			[]string{"azureidentitybindings"},
			managed,
			[]string{"could not look up azureidentitybindings.aadpodidentity.k8s.io in namespace open", "right to list them", "[VaultRequired]"},
			[]string{"ServiceAccountNotFound"},
		},
		"the namespace": {
			[]string{"namespaces"},
			managed + ", keyvault.io/inject: maybe",
			[]string{"could not look up namespaces in namespace open", "[InvalidValue]"},
			[]string{"VaultRequired", "TenantIDRequired", "NoEffect"},
		},
		"only names for messages": {
			[]string{"names"},
			"keyvault.io/class: thiers",
			[]string{"[ClassNotFound]"},
			[]string{"LookupFailed", "did you mean"},
		},
		"nothing that is needed": {
			[]string{"serviceaccounts", "azureidentitybindings"},
			`keyvault.io/inject: "false"`,
			nil,
			[]string{"LookupFailed"},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			o := cli.Options{Cluster: limited{denied: tt.denied}}
			_, findings, _ := lint(t, o, cli.Text, pod(tt.annotations))
			for _, want := range tt.want {
				if !strings.Contains(findings, want) {
					t.Errorf("%q is not in the findings:\n%s", want, findings)
				}
			}
			for _, absent := range tt.absent {
				if strings.Contains(findings, absent) {
					t.Errorf("%q is in the findings:\n%s", absent, findings)
				}
			}
			if strings.Contains(findings, "error: Pod a (document 1): [LookupFailed]") {
				t.Errorf("a failed lookup is an error of lint:\n%s", findings)
			}
		})
	}
	t.Run("inject prints nothing that may be wrong", func(t *testing.T) {
		o := cli.Options{
			Files: []string{"-"}, Stdin: strings.NewReader(pod("keyvault.io/class: theirs")), Cluster: limited{denied: []string{"secretproviderclasses"}},
		}
		var stdout, stderr bytes.Buffer
		if status, err := cli.Inject(t.Context(), o, false, &stdout, &stderr); status != cli.Rejected || err != nil || stdout.Len() > 0 {
			t.Errorf("status %d, error %v, output\n%s\n%s", status, err, &stdout, &stderr)
		}
	})
}

func TestFailOn(t *testing.T) {
	const (
		fine    = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\n"
		warning = "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {keyvault.io/class: a}}\n"
		wrong   = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {keyvault.io/inject: no way}}\n"
	)
	tests := map[string]struct {
		text   string
		failOn cli.Severity
		want   cli.Status
	}{
		"no finding":                     {fine, cli.Warning, cli.Fine},
		"a warning":                      {warning, cli.Error, cli.Fine},
		"a warning, by default":          {warning, "", cli.Fine},
		"a warning that fails":           {warning, cli.Warning, cli.Rejected},
		"an error":                       {wrong, "", cli.Rejected},
		"an error, if warnings fail":     {wrong, cli.Warning, cli.Rejected},
		"unreadable, if warnings fail":   {"a: [", cli.Warning, cli.Unusable},
		"a duplicate key that is a risk": {"kind: X\na: 1\na: 2\n", cli.Warning, cli.Rejected},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if status, out, _ := lint(t, cli.Options{FailOn: tt.failOn}, cli.Text, tt.text); status != tt.want {
				t.Errorf("status %d, want %d\n%s", status, tt.want, out)
			}
		})
	}
}

func TestSummary(t *testing.T) {
	tests := map[string]struct{ text, want string }{
		"nothing to judge": {
			"kind: List\nitems: []\n---\n# nothing\n---\nreplicas: 3\n",
			"2 documents, 0 objects: no pod or pod template was judged: 0 errors, 0 warnings\n",
		},
		"one of each": {
			"kind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: a, annotations: {keyvault.io/inject: no way, keyvaults.io/env: auto}}}\n",
			"1 document, 1 object: 1 pod or pod template judged, 1 with annotations of akv-injector: 1 error, 1 warning\n",
		},
		"what cannot be read": {"a: [\n", "1 document, 0 objects: no pod or pod template was judged: 1 error, 0 warnings\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, _, summary := lint(t, cli.Options{}, cli.Text, tt.text)
			if diff := cmp.Diff(tt.want, summary); diff != "" {
				t.Errorf("summary (-want +got):\n%s", diff)
			}
		})
	}
}

func TestExclude(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"a.yaml", "b.tmpl.yaml", "chart/values.yaml", "chart/templates/web.yaml", "web/templates/web.yaml"} {
		write(t, "k8s/"+name, "apiVersion: v1\nkind: Service\nmetadata: {name: a, annotations: {keyvault.io/class: a}}\n")
	}
	tests := map[string]struct {
		patterns, want []string
	}{
		"nothing":              {nil, []string{"a.yaml", "b.tmpl.yaml", "chart/templates/web.yaml", "chart/values.yaml", "web/templates/web.yaml"}},
		"files by name":        {[]string{"*.tmpl.yaml", "web.yaml"}, []string{"a.yaml", "chart/values.yaml"}},
		"directories by name":  {[]string{"templates"}, []string{"a.yaml", "b.tmpl.yaml", "chart/values.yaml"}},
		"by path":              {[]string{"chart/templates/", "*/values.yaml"}, []string{"a.yaml", "b.tmpl.yaml", "web/templates/web.yaml"}},
		"not the directory -f": {[]string{"k8s"}, []string{"a.yaml", "b.tmpl.yaml", "chart/templates/web.yaml", "chart/values.yaml", "web/templates/web.yaml"}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, out, _ := lint(t, cli.Options{Files: []string{"k8s"}, Recursive: true, Exclude: tt.patterns}, cli.JSON, "")
			var findings []cli.Finding
			if err := json.Unmarshal([]byte(out), &findings); err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, f := range findings {
				got = append(got, strings.TrimPrefix(filepath.ToSlash(f.File), "k8s/"))
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("files that were read (-want +got):\n%s", diff)
			}
		})
	}
	status, out, _ := lint(t, cli.Options{Files: []string{"k8s"}, Exclude: []string{"*"}}, cli.Text, "")
	if want := "k8s: error: must contain *.yaml, *.yml or *.json files that --exclude does not match\n"; status != cli.Unusable || out != want {
		t.Errorf("everything is excluded: status %d, %q, want %q", status, out, want)
	}
	for _, o := range []cli.Options{
		{Files: []string{"k8s"}, Exclude: []string{"["}},
		{Files: []string{"-"}, Facts: []string{"-"}, Stdin: strings.NewReader("")},
	} {
		if status, err := cli.Lint(t.Context(), o, cli.Text, io.Discard, io.Discard); status != cli.Unusable || err == nil {
			t.Errorf("options %+v: status %d, error %v", o, status, err)
		}
	}
}

// TestFactsThatCannotBeRead shows that a file of facts is not silently left out.
func TestFactsThatCannotBeRead(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "facts.yaml", "a: [\n")
	status, out, _ := lint(t, cli.Options{Facts: []string{"facts.yaml", "nofile.yaml"}}, cli.Text, "kind: X\n")
	const want = "nofile.yaml: error: no such file or directory\nfacts.yaml:2: error: document 1: did not find expected node content\n"
	if status != cli.Unusable || out != want {
		t.Errorf("status %d, findings\n%s\nwant\n%s", status, out, want)
	}
}

// TestLineOfALateFinding shows that the position in a long stream is right, also inside a string.
func TestLineOfALateFinding(t *testing.T) {
	const object = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  values.yaml: |\n    a: b\n    podAnnotations:\n      keyvault.io/secret: a\n"
	text := strings.Repeat(strings.ReplaceAll(object, "keyvault.io", "example.com")+"---\n", 50) + object
	_, out, _ := lint(t, cli.Options{}, cli.Text, text)
	if want := "<stdin>:458:7: warning: ConfigMap a (document 51): "; !strings.HasPrefix(out, want) {
		t.Errorf("got\n%s\nwant %s", out, want)
	}
}

// TestControlCharacters shows that a manifest cannot control the terminal of its reader.
func TestControlCharacters(t *testing.T) {
	_, out, _ := lint(t, cli.Options{}, cli.Text, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"a\u001b[2J\nb","annotations":{"keyvault.io/\u001b[31m":"a"}}}`)
	if !strings.Contains(out, `a\u001b[2J\nb`) || strings.Count(out, "\n") != 1 || strings.Contains(out, "\x1b") {
		t.Errorf("got %q", out)
	}
}

// TestPatchFile shows that a list, such as a file with a JSON Patch, is looked through as well.
func TestPatchFile(t *testing.T) {
	_, out, _ := lint(t, cli.Options{}, cli.Text,
		"- op: test\n- op: add\n  path: /spec/template/metadata/annotations/key-vault.io~1secrets\n  value: a\n")
	const want = "<stdin>:3:3: warning: document 1: [UnknownKey] [1].path: spec.template.metadata.annotations[key-vault.io/secrets]: " +
		"Forbidden: is not a key of akv-injector, which ignores it; write keyvault.io/secrets\n"
	if out != want {
		t.Errorf("got\n%s\nwant\n%s", out, want)
	}
}

// TestSARIF checks the properties that the schema of SARIF 2.1.0 requires
// (https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json), and
// where findings are located.
func TestSARIF(t *testing.T) {
	t.Chdir(t.TempDir())
	write(t, "k 8s/web.yaml", "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  annotations:\n    keyvault.io/secret: a\n")
	write(t, "broken.yaml", "a: [")
	absolute, err := filepath.Abs("k 8s/web.yaml")
	if err != nil {
		t.Fatal(err)
	}
	status, out, _ := lint(t, cli.Options{Files: []string{"k 8s/web.yaml", "broken.yaml", "nofile.yaml"}}, cli.SARIF,
		"---\n# Source: shop/templates/web.yaml\napiVersion: v1\nkind: Service\nmetadata: {name: web, annotations: {keyvault.io/class: a}}\n")
	if status != cli.Unusable {
		t.Errorf("status %d, want that of a file that cannot be read", status)
	}
	var log any
	if err := json.Unmarshal([]byte(out), &log); err != nil {
		t.Fatal(err)
	}
	if version := at(t, log, "version"); version != "2.1.0" {
		t.Errorf("version is %v", version)
	}
	at(t, log, "runs", 0, "tool", "driver", "name")
	rules := map[any]bool{}
	for i := range at(t, log, "runs", 0, "tool", "driver", "rules").([]any) { //nolint:forcetypeassert // the test then panics
		rules[at(t, log, "runs", 0, "tool", "driver", "rules", i, "id")] = true
		at(t, log, "runs", 0, "tool", "driver", "rules", i, "help", "text")
	}
	type location struct{ URI, Rule, Level, Line, Logical any }
	var got []location
	for i := range at(t, log, "runs", 0, "results").([]any) { //nolint:forcetypeassert // as above
		result := at(t, log, "runs", 0, "results", i)
		at(t, result, "message", "text")
		place := at(t, result, "locations", 0)
		found := location{
			URI:  at(t, place, "physicalLocation", "artifactLocation", "uri"),
			Rule: at(t, result, "ruleId"), Level: at(t, result, "level"),
		}
		if strings.Contains(fmt.Sprint(place), "region") {
			found.Line = at(t, place, "physicalLocation", "region", "startLine")
		}
		if strings.Contains(fmt.Sprint(place), "logicalLocations") {
			found.Logical = at(t, place, "logicalLocations", 0, "fullyQualifiedName")
		}
		got = append(got, found)
		if !rules[found.Rule] {
			t.Errorf("there is no rule %s", found.Rule)
		}
	}
	want := []location{
		{"nofile.yaml", "Unreadable", "error", nil, nil},
		{"k%208s/web.yaml", "UnknownKey", "error", 6.0, "Pod web metadata.annotations[keyvault.io/secret]"},
		{"broken.yaml", "Unreadable", "error", 2.0, nil},
		{"shop/templates/web.yaml", "NoEffect", "warning", nil, "Service web metadata.annotations[keyvault.io/class]"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
	if _, out, _ = lint(t, cli.Options{Files: []string{absolute}}, cli.SARIF, ""); !strings.Contains(out, `"uri": "file://`) {
		t.Errorf("the URI of %s is not absolute:\n%s", absolute, out)
	}
	if _, out, _ = lint(t, cli.Options{}, cli.SARIF, "kind: X\n"); !strings.Contains(out, `"results": []`) {
		t.Errorf("a log without findings has no list of results:\n%s", out)
	}
}

// at returns the value at a path of names and indices.
func at(t *testing.T, value any, path ...any) any {
	t.Helper()
	for _, token := range path {
		var found any
		switch token := token.(type) {
		case string:
			if object, ok := value.(map[string]any); ok {
				found = object[token]
			}
		case int:
			if list, ok := value.([]any); ok && token < len(list) {
				found = list[token]
			}
		}
		if found == nil || found == "" {
			t.Fatalf("%v of %v is missing in %v", token, path, value)
		}
		value = found
	}
	return value
}

// TestChartsOfOthers shows that lint says nothing about manifests like those of well-known charts.
func TestChartsOfOthers(t *testing.T) {
	files, err := filepath.Glob("testdata/charts/*")
	if err != nil || len(files) < 15 {
		t.Fatalf("list charts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if status, out, _ := lint(t, cli.Options{Namespace: "shop", FailOn: cli.Warning}, cli.Text, string(text)); status != cli.Fine || out != "" {
			t.Errorf("%s: status %d\n%s", file, status, out)
		}
	}
}
