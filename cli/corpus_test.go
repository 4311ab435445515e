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

// TestCorpus walks the archives of internal/corpus/testdata through the command line: what it
// prints is what the webhook makes of the object and, for a workload, of the pod that its template
// makes.
func TestCorpus(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range archives {
		if a.Old != nil {
			continue // the command line sees creations alone
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
				// A pod names its workload's annotation, which is among the files here.
				own := strings.ReplaceAll(ofOthers.ReplaceAllString(text, ""), "workload.metadata", "metadata")
				if !strings.Contains(strings.ReplaceAll(stderr.String(), "workload.metadata", "metadata"), own) {
					t.Errorf("it doesn't tell of\n%s\nbut of\n%s", text, &stderr)
				}
			}
			for _, text := range strings.FieldsFunc(a.Wanted["policy-errors"], func(r rune) bool { return r == '\n' }) {
				// What an annotation brings about, the command line shows there, and a pod's review
				// at what came of it.
				reason, message, _ := strings.Cut(text, " ")
				_, message, _ = strings.Cut(message, ": ")
				if !strings.Contains(stderr.String(), reason) || !strings.Contains(stderr.String(), message) {
					t.Errorf("it doesn't tell of\n%s\nbut of\n%s", text, &stderr)
				}
				errs = append(errs, text)
			}
			if refused.MatchString(a.Wanted["policy-warnings"]) && !a.IsPod() {
				errs = append(errs, a.Wanted["policy-warnings"]) // of the workload; the command line refuses it as its pods will be
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

// ofOthers is the start of a path into a Namespace or ServiceAccount, which the command line shows
// at that object.
var ofOthers = regexp.MustCompile(`(namespaces|serviceaccounts)\[[^]]*\]\.`)

// refused ends the errors for which policy rejects pods: a level that is enforced, or a ceiling.
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

// applied is an object after a patch that has an operation a line.
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

// checkHolds checks that among the objects that kubectl would read from text is want, an object of
// subject's kind and name.
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
	t.Errorf("it is not among what was printed:\n%s", text)
}

func value(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	return v
}
