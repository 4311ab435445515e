package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestDemoPage checks that docs/demo.md has the scenes of this program. `make demo-page` writes the
// page.
func TestDemoPage(t *testing.T) {
	page, err := os.ReadFile(filepath.Join("..", "..", "..", "docs", "demo.md"))
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, part := range parts {
		for _, scene := range part.scenes {
			want = append(want, fmt.Sprintf("%d. %s", len(want)+1, scene.title))
		}
	}
	const last = "All checks passed"
	want = append(want, last)
	for line := range strings.Lines(string(page)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, last):
			got = append(got, last)
		case line != "" && line[0] >= '1' && line[0] <= '9' && strings.Contains(line, ". "):
			got = append(got, line)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("scenes (-want +got)\n%s", diff)
	}
}

func TestKnown(t *testing.T) {
	for behaviour, test := range map[string]struct {
		args []string
		want bool
	}{
		"no argument":                    {want: true},
		"two parts":                      {[]string{"faults", "stories"}, true},
		"a part that runs only if named": {[]string{"latency"}, true},
		"a command":                      {[]string{"build"}, true},
		"a command and a part":           {[]string{"build", "stories"}, false},
		"an unknown part":                {[]string{"stories", "storys"}, false},
		"a flag after the arguments":     {[]string{"stories", "--keep"}, false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if err := known(test.args); (err == nil) != test.want {
				t.Errorf("got error %v", err)
			}
		})
	}
}
