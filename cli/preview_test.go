package cli_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// asking is the format of a pod with a request, for its name.
const asking = `apiVersion: v1
kind: Pod
metadata:
  name: %s
  annotations:
    identity.io/name: shop
    identity.io/mode: pod-identity
spec: {}
`

func TestInjectLeavesTheRestByteForByte(t *testing.T) {
	injected := injectText(t, fmt.Sprintf(asking, "a"))
	tests := map[string]struct{ before, after string }{
		"comments and odd space":         {"# head  \n\nkind:   ConfigMap\t# kind\ndata: {a:   'b',\n  c: d}   \n\n\n---\n", "---   # tail\n# nothing but this\n\n"},
		"a document without a newline":   {"---\n", "---\n{kind:  ConfigMap}"},
		"end markers and directives":     {"%YAML 1.1\n---\nkind: ConfigMap\n...\n# between\n---\n", "...\n"},
		"carriage returns":               {"kind: ConfigMap\r\ndata:\r\n  a:  b\r\n---\r\n", "---\r\nkind:   ConfigMap\r\n"},
		"a byte order mark":              {"\uFEFFkind:  ConfigMap\n---\n", ""},
		"empty documents":                {"---\n---\n\n---\n", "---\n---\n"},
		"JSON":                           {"---\n{ \"kind\":\"ConfigMap\" }\n---\n", "---\n{\"kind\" : \"ConfigMap\"}\n"},
		"other YAML values":              {"- op: add\n---\nimage:   x\n---\njust text\n---\n", "---\n[]\n"},
		"block scalars":                  {"kind: ConfigMap\ndata:\n  a: |+\n    x  \n\n     ---\n  b: >-\n    folded\n    text\n---\n", "---\nkind: ConfigMap\ndata: {on: yes, mode: 0400}\n"},
		"aliases and merges":             {"x: &x {a: 1}\ny:\n  <<: *x\nkind: ConfigMap\n---\n", ""},
		"pods without a request":         {"kind:   Pod\napiVersion: v1\nspec:   {containers: []}\n---\n", ""},
		"pods of other kinds and groups": {"kind:   Deployment\napiVersion: example.com/v1\nspec: 7\n---\n", ""},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := injectText(t, tt.before+fmt.Sprintf(asking, "a")+tt.after)
			if diff := cmp.Diff(tt.before+injected+tt.after, got); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

// injectText returns the output of inject for a text on standard input.
func injectText(t *testing.T, text string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(text)}
	if status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr); status != cli.Fine || err != nil {
		t.Fatalf("status %d, error %v\n%s", status, err, &stderr)
	}
	return stdout.String()
}

func TestFiles(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, name := range []string{"b.yaml", "a.yml", "c.json", "note.txt", "sub/d.yaml", "sub/.e.yaml", "none/readme.md"} {
		text := "kind: " + name + "\n"
		if strings.HasSuffix(name, "json") {
			text = `{"kind":"` + name + `"}`
		}
		write(t, filepath.Join("dir", name), text)
	}
	write(t, "bom.yaml", "\uFEFFkind: bom\n")
	write(t, "marked.yaml", "---\nkind: marked")
	write(t, "x.json", `{"kind":"x"}`)
	write(t, "y.json", "{\"kind\":\"y\"}\n{\"kind\":\"z\"}\n")
	write(t, "empty.yaml", "")
	tests := map[string]struct {
		files     []string
		recursive bool
		want      string
	}{
		"a directory, sorted by name":             {[]string{"dir"}, false, "kind: a.yml\n---\nkind: b.yaml\n---\n{\"kind\":\"c.json\"}"},
		"a directory with subdirectories":         {[]string{"dir"}, true, "kind: a.yml\n---\nkind: b.yaml\n---\n{\"kind\":\"c.json\"}\n---\nkind: sub/.e.yaml\n---\nkind: sub/d.yaml\n"},
		"a file with any name":                    {[]string{"dir/note.txt"}, false, "kind: note.txt\n"},
		"files in their order, and stdin":         {[]string{"marked.yaml", "-", "bom.yaml"}, false, "---\nkind: marked\n---\nkind: stdin\n---\nkind: bom\n"},
		"a file that is given twice":              {[]string{"dir/note.txt", "bom.yaml", "./dir/note.txt", "bom.yaml"}, false, "kind: note.txt\n---\nkind: bom\n"},
		"only JSON has no markers":                {[]string{"x.json", "y.json"}, false, "{\"kind\":\"x\"}\n{\"kind\":\"y\"}\n{\"kind\":\"z\"}\n"},
		"JSON next to YAML has a marker for each": {[]string{"y.json", "bom.yaml"}, false, "---\n{\"kind\":\"y\"}\n---\n{\"kind\":\"z\"}\n---\nkind: bom\n"},
		"an empty file":                           {[]string{"empty.yaml", "bom.yaml", "empty.yaml"}, false, "kind: bom\n"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			options := cli.Options{Files: tt.files, Recursive: tt.recursive, Stdin: strings.NewReader("kind: stdin\n")}
			if status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr); status != cli.Fine || err != nil {
				t.Fatalf("status %d, error %v\n%s", status, err, &stderr)
			}
			if diff := cmp.Diff(tt.want, stdout.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
}

func TestStatus(t *testing.T) {
	dir := t.TempDir()
	fine := filepath.Join(dir, "fine.yaml")
	write(t, fine, fmt.Sprintf(asking, "a"))
	rejected := filepath.Join(dir, "rejected.yaml")
	write(t, rejected, strings.Replace(fmt.Sprintf(asking, "a"), "shop", "no/name", 1))
	broken := filepath.Join(dir, "broken.yaml")
	write(t, broken, "a: b: c\n")
	empty := filepath.Join(dir, "empty")
	if err := os.Mkdir(empty, 0o700); err != nil {
		t.Fatal(err)
	}
	tests := map[string]struct {
		files []string
		want  cli.Status
		// usage is true if there is an error instead of findings.
		usage bool
	}{
		"only warnings":                  {[]string{fine}, cli.Fine, false},
		"a rejection":                    {[]string{fine, rejected}, cli.Rejected, false},
		"a rejection and a broken file":  {[]string{rejected, broken}, cli.Unusable, false},
		"a file that does not exist":     {[]string{fine, filepath.Join(dir, "missing.yaml")}, cli.Unusable, false},
		"a directory without manifests":  {[]string{empty}, cli.Unusable, false},
		"no files":                       {nil, cli.Unusable, true},
		"standard input twice":           {[]string{"-", "-"}, cli.Unusable, true},
		"standard input that is not set": {[]string{"-"}, cli.Unusable, true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			for _, diff := range []bool{false, true} {
				var stdout, stderr bytes.Buffer
				status, err := cli.Inject(t.Context(), cli.Options{Files: tt.files}, diff, &stdout, &stderr)
				if status != tt.want || (err != nil) != tt.usage {
					t.Errorf("inject: status %d, error %v, want status %d, error %t", status, err, tt.want, tt.usage)
				}
				if status != cli.Fine && stdout.Len() > 0 {
					t.Errorf("inject printed manifests despite an error: %s", &stdout)
				}
				if !tt.usage && stderr.Len() == 0 {
					t.Error("inject printed no findings")
				}
			}
			var stdout bytes.Buffer
			if status, err := cli.Lint(t.Context(), cli.Options{Files: tt.files}, cli.Text, &stdout, io.Discard); status != tt.want || (err != nil) != tt.usage {
				t.Errorf("lint: status %d, error %v, want status %d, error %t", status, err, tt.want, tt.usage)
			}
		})
	}
}

func TestLintFormats(t *testing.T) {
	const bad = "apiVersion: v1\nkind: Pod\nmetadata: {name: a, annotations: {identity.io/mode: \"x\\r\\n,%:\"}}\n"
	tests := map[string]struct {
		format cli.Format
		text   string
		want   string
	}{
		"text, no findings":   {cli.Text, "kind: X\n", ""},
		"JSON, no findings":   {cli.JSON, "kind: X\n", "[]\n"},
		"GitHub, no findings": {cli.GitHub, "kind: X\n", ""},
		"GitHub's escapes": {
			cli.GitHub, bad,
			`::error title=akv-injector%3A InvalidValue::Pod a: metadata.annotations[identity.io/mode]: Unsupported value: "x\r\n,%25:": supported values: ` +
				`"auto", "pod-identity", "workload-identity", "identity-binding", "none"` + "\n",
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout bytes.Buffer
			options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(tt.text)}
			if _, err := cli.Lint(t.Context(), options, tt.format, &stdout, io.Discard); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, stdout.String()); diff != "" {
				t.Errorf("output (-want +got):\n%s", diff)
			}
		})
	}
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader("")}
	if status, err := cli.Lint(t.Context(), options, "xml", &bytes.Buffer{}, io.Discard); status != cli.Unusable || err == nil {
		t.Errorf("an unknown format: status %d, error %v", status, err)
	}
}

// cluster is a Source with one namespace that is opted in, and one class and ServiceAccount in
// every namespace.
type cluster struct{ err error }

func (c cluster) Namespace(_ context.Context, name string, _ bool) (facts.Namespace, error) {
	switch name {
	case "open":
		return facts.Namespace{Name: name, Labels: map[string]string{"kubernetes.io/metadata.name": name, api.Injection: api.InjectionEnabled}}, c.err
	case "closed":
		return facts.Namespace{Name: name, Labels: map[string]string{"kubernetes.io/metadata.name": name}}, c.err
	}
	return facts.Namespace{}, c.err
}

func (c cluster) Facts(_ context.Context, _ string, needs facts.Needs, _ bool) (facts.Answer, error) {
	facts := facts.Answer{Available: facts.Available{Classes: []string{"theirs"}}}
	for _, name := range needs.Classes {
		if name == "theirs" || name == "both" {
			facts.Classes = append(facts.Classes, &class.Class{Name: name, Provider: class.Provider, ClientID: "0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90", Objects: []class.Object{{Name: "in-cluster", Type: "secret", File: "in-cluster"}}})
		}
	}
	return facts, c.err
}

func TestCluster(t *testing.T) {
	const classes = "apiVersion: secrets-store.csi.x-k8s.io/v1\nkind: SecretProviderClass\nmetadata: {name: both}\nspec:\n  provider: azure\n  parameters: {clientID: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90, objects: 'array: [\"objectName: in-file\"]'}\n---\n"
	pod := func(namespace, class, secret string) string {
		return "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: " + namespace + "\n  annotations: {keyvault.io/class: " + class + ", keyvault.io/secrets: " + secret +
			"}\nspec:\n  containers:\n  - name: app\n"
	}
	offline := cli.Options{}
	online := cli.Options{Cluster: cluster{}}
	tests := map[string]struct {
		options  cli.Options
		text     string
		want     cli.Status
		findings []string
		injected bool
	}{
		"a class of the cluster":          {online, pod("open", "theirs", "in-cluster"), cli.Fine, nil, true},
		"a class that is in neither":      {online, pod("open", "thiers", "in-cluster"), cli.Rejected, []string{"did you mean theirs?\n"}, false},
		"a class of the files wins":       {online, strings.ReplaceAll(classes, "both}", "both, namespace: open}") + pod("open", "both", "in-file"), cli.Fine, nil, true},
		"a namespace that did not opt in": {online, pod("closed", "theirs", "in-cluster"), cli.Fine, []string{"[NoEffect]", "lacks label keyvault.io/injection"}, false},
		"a namespace that is in neither":  {online, pod("new", "theirs", "in-cluster"), cli.Fine, nil, true},
		"a namespace of the files wins": {
			online, "apiVersion: v1\nkind: Namespace\nmetadata: {name: closed, labels: {keyvault.io/injection: enabled}}\n---\n" + pod("closed", "theirs", "in-cluster"), cli.Fine, nil, true,
		},
		"offline, a class that may be in the cluster": {offline, pod("open", "theirs", "in-cluster"), cli.Rejected, []string{"add SecretProviderClass theirs of namespace open to the files, or use --cluster or --facts"}, false},
		"offline, a class with a similar name":        {offline, strings.ReplaceAll(classes, "both}", "both, namespace: open}") + pod("open", "boht", "x"), cli.Rejected, []string{"did you mean both?\n"}, false},
		"objects without a namespace":                 {cli.Options{Namespace: "open"}, classes + pod("open", "both", "in-file"), cli.Fine, nil, true},
		"a class of another namespace":                {offline, classes + pod("open", "both", "in-file"), cli.Rejected, []string{"in namespace open"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			tt.options.Files, tt.options.Stdin = []string{"-"}, strings.NewReader(tt.text)
			status, err := cli.Inject(t.Context(), tt.options, false, &stdout, &stderr)
			if status != tt.want || err != nil {
				t.Fatalf("status %d, error %v, want status %d\n%s", status, err, tt.want, &stderr)
			}
			for _, finding := range tt.findings {
				if !strings.Contains(stderr.String(), finding) {
					t.Errorf("%q is not in the findings:\n%s", finding, &stderr)
				}
			}
			if got := strings.Contains(stdout.String(), `keyvault.io/injected: "true"`); got != tt.injected {
				t.Errorf("injected is %t, want %t:\n%s", got, tt.injected, &stdout)
			}
		})
	}
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(pod("open", "theirs", "x")), Cluster: cluster{errors.New("no route")}}
	var stdout, stderr bytes.Buffer
	if status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr); status != cli.Unusable || err == nil || stdout.Len()+stderr.Len() > 0 {
		t.Errorf("a cluster that can't be reached: status %d, error %v", status, err)
	}
}

type brokenPipe struct{}

func (brokenPipe) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestOutputThatCanNotBeWritten(t *testing.T) {
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader("kind: X\n")}
	if status, err := cli.Inject(t.Context(), options, false, brokenPipe{}, &bytes.Buffer{}); status != cli.Unusable || !errors.Is(err, os.ErrClosed) {
		t.Errorf("status %d, error %v", status, err)
	}
}

func TestDiffOfAFileThatIsNoTerminalHasNoColours(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "diff"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	options := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(fmt.Sprintf(asking, "a"))}
	if _, err := cli.Inject(t.Context(), options, true, f, &bytes.Buffer{}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(f.Name())
	if err != nil {
		t.Fatal(err)
	}
	if len(text) == 0 || bytes.Contains(text, []byte("\x1b")) {
		t.Errorf("the diff is %q", text)
	}
}
