package cli_test

import (
	"bytes"
	"encoding/json"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// TestCorpus runs the archives of internal/corpus/testdata on the command line. The output must be
// the object after the patches of the webhook: that of the object and, for a workload, that of a
// pod of its template.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if a.Old != nil {
			continue // the command line reviews only creations
		}
		t.Run(a.Name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			options := cli.Options{Files: []string{"-"}, Stdin: bytes.NewReader(input(t, a.Path)), Namespace: a.Namespace()}
			status, err := cli.Inject(t.Context(), options, false, &stdout, &stderr)
			if err != nil {
				t.Fatal(err)
			}
			var errs []string
			for _, name := range []string{"errors", "pod-errors"} {
				errs = append(errs, strings.FieldsFunc(a.Wanted[name], func(r rune) bool { return r == '\n' })...)
			}
			for _, text := range errs {
				// The review of a pod has the path of its workload's annotation;
				// here the workload is a file.
				own := strings.ReplaceAll(ofOthers.ReplaceAllString(text, ""), "workload.metadata", "metadata")
				found := strings.ReplaceAll(stderr.String(), "workload.metadata", "metadata")
				found = strings.ReplaceAll(found, ofWorkload, "")
				if !strings.Contains(found, own) {
					t.Errorf("want the finding\n%s\ngot\n%s", text, &stderr)
				}
			}
			for _, text := range strings.FieldsFunc(a.Wanted["policy-errors"], func(r rune) bool { return r == '\n' }) {
				// The command line reports a violation at the annotation that
				// causes it. The review of the injected pod reports it at the
				// injected label or volume.
				reason, message, _ := strings.Cut(text, " ")
				_, message, _ = strings.Cut(message, ": ")
				if !strings.Contains(stderr.String(), reason) || !strings.Contains(stderr.String(), message) {
					t.Errorf("want the finding\n%s\ngot\n%s", text, &stderr)
				}
				errs = append(errs, text)
			}
			if refused.MatchString(a.Wanted["policy-warnings"]) && !a.IsPod() {
				errs = append(errs, a.Wanted["policy-warnings"]) // of the workload; the command line rejects it, since its pods would be rejected
			}
			if rejected := status == cli.Rejected; status == cli.Unusable || rejected != (len(errs) > 0) {
				t.Fatalf("status %d, want errors %q, got\n%s", status, errs, &stderr)
			}
			if len(errs) > 0 {
				return
			}
			want := corpus.JSON(a.Subject)
			for _, name := range []string{"patch", "pod-patch"} {
				want = applied(t, want, a.Wanted[name])
			}
			checkHolds(t, stdout.Bytes(), a.Subject, want)
			checkInjectedAgain(t, stdout.String(), a.Namespace())
		})
	}
}

// ofOthers matches the start of a path in a Namespace or ServiceAccount. The command line reports
// the finding at that object.
var ofOthers = regexp.MustCompile(`(namespaces|serviceaccounts)\[[^]]*\]\.`)

// ofWorkload is the part of a message about an annotation of a workload that its pods do not inherit.
const ofWorkload = ", which has no effect on a pod"

// refused matches the end of errors that reject a pod: an enforced level, or a ceiling.
var refused = regexp.MustCompile(`; (required by namespace label identity\.io/enforce=|namespace annotation )`)

func input(t *testing.T, path string) []byte {
	t.Helper()
	archive, err := txtar.ParseFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range archive.Files {
		if f.Name == "input.yaml" {
			return f.Data
		}
	}
	t.Fatal("there is no input.yaml")
	return nil
}

// applied returns an object after a patch with one operation a line.
func applied(t *testing.T, object []byte, patch string) []byte {
	t.Helper()
	if patch == "" {
		return object
	}
	patched, err := corpus.ApplyText(object, []byte("["+strings.ReplaceAll(strings.TrimSpace(patch), "\n", ",")+"]"))
	if err != nil {
		t.Fatal(err)
	}
	return patched
}

// checkHolds checks that the object with subject's kind and name in text is want, as kubectl parses
// it.
func checkHolds(t *testing.T, text []byte, subject *unstructured.Unstructured, want []byte) {
	t.Helper()
	objects, err := corpus.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range objects {
		if o.GetKind() == subject.GetKind() && o.GetName() == subject.GetName() && o.GetGenerateName() == subject.GetGenerateName() {
			if diff := cmp.Diff(value(t, want), value(t, corpus.JSON(o))); diff != "" {
				t.Errorf("object (-want +got):\n%s", diff)
			}
			return
		}
	}
	t.Errorf("the output does not have the object:\n%s", text)
}

func value(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}
