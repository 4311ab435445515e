package report_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/cli/report"
)

func hostile() *report.Report {
	var r report.Report
	r.Section("Empty")
	s := r.Section("Pod shop/web")
	s.OK("fine")
	s.Unknown("not readable").Run("kubectl", "auth", "can-i", "get", "pods")
	s.Broken("an event says %s", "\x1b[2J\u202ebad\nline \U000e0001 \x9b").Detail("what\tit means").Run("kubectl", "delete", "pod", "web; rm -rf /", "it's")
	s.Broken("another")
	return &r
}

func TestText(t *testing.T) {
	const want = `Pod shop/web
  ✓ fine
  ? not readable
    $ kubectl auth can-i get pods
  ✗ an event says \u001b[2J\u202ebad\nline \udb40\udc01 �   <-- first broken link
      what\tit means
    $ kubectl delete pod 'web; rm -rf /' 'it'"'"'s'
  ✗ another
`
	var b strings.Builder
	if err := hostile().Print(&b, report.Text); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("a report as text (-want +got)\n%s", diff)
	}
}

func TestFormats(t *testing.T) {
	for format, want := range map[report.Format]string{
		report.JSON: `"first": true`,
		report.YAML: `first: true`,
	} {
		var b strings.Builder
		if err := hostile().Print(&b, format); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(b.String(), want) || strings.Contains(b.String(), "\x1b") || strings.Contains(b.String(), "Empty") {
			t.Errorf("format %s must mark the first broken line, escape controls and omit empty sections:\n%s", format, b.String())
		}
	}
	if err := hostile().Print(&strings.Builder{}, "xml"); err == nil {
		t.Error("an unknown format must be an error")
	}
}

func TestState(t *testing.T) {
	for want, states := range map[report.State][]report.State{
		report.OK:      {report.OK, report.Info, report.Warning},
		report.Unknown: {report.OK, report.Unknown},
		report.Broken:  {report.Unknown, report.Broken, report.OK},
	} {
		var r report.Report
		s := r.Section("Pod")
		for _, state := range states {
			s.Add(state, "a line")
		}
		if got := r.State(); got != want {
			t.Errorf("the state of a report with %v is %s, want %s", states, got, want)
		}
	}
}

func TestAddFlags(t *testing.T) {
	var r report.Report
	line := r.Section("Pod").Broken("not ready").Run("kubectl", "get", "pods").Run("az", "account", "show")
	r.AddFlags([]string{"--context", "a b"}, "kubectl")
	r.AddFlags(nil, "az")
	if diff := cmp.Diff([]string{"kubectl get pods --context 'a b'", "az account show"}, line.Next); diff != "" {
		t.Errorf("commands with a flag for kubectl (-want +got)\n%s", diff)
	}
}
