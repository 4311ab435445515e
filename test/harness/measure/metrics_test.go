package measure_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

func TestParseMetrics(t *testing.T) {
	const text = `# HELP requests_total Requests, by reason.
# TYPE requests_total counter
requests_total{code="200",reason="a b"} 3
go_goroutines 1.5e+01
`
	want := map[string]float64{`requests_total{code="200",reason="a b"}`: 3, "go_goroutines": 15}
	got, err := measure.ParseMetrics(strings.NewReader(text))
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("error %v, metrics (-want +got):\n%s", err, diff)
	}
	if got, err := measure.ParseMetrics(strings.NewReader("requests_total many\n")); err == nil {
		t.Errorf("got %v, want an error", got)
	}
}
