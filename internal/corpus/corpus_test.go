package corpus_test

import (
	"flag"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/internal/corpus"
)

var update = flag.Bool("update", false, "rewrite the expected results of the archives")

// TestCore runs the archives on the core, without HTTP, files or clusters.
func TestCore(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		t.Run(a.Name, func(t *testing.T) {
			got, err := a.Review(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if *update {
				if err := a.Update(got); err != nil {
					t.Fatal(err)
				}
				return
			}
			if diff := cmp.Diff(a.Wanted, got); diff != "" {
				t.Errorf("Review differs (-want +got):\n%s", diff)
			}
		})
	}
}
