package explain_test

import (
	"bytes"
	"flag"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/tools/txtar"
	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/cli/explain"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

var update = flag.Bool("update", false, "rewrite the pages")

// now is the time of all archives.
var now = time.Date(2026, time.March, 2, 12, 0, 0, 0, time.UTC)

// TestPages compares the page of each archive in testdata. An archive has a sentence, and files:
//
//	target        KIND/NAME in namespace shop; then optional lines: issuer URL, sync-off, tenant-id GUID
//	denied        the resources that the user may not read; optional. "list X" also takes the right to get
//	              X, unless "only" is before it
//	cluster.yaml  the objects. After the comment "# base" they are merge patches (RFC 7386) of those
//	              in base.yaml, which is a healthy cluster; an object with a field removed removes one
//	page          the page, and its state
func TestPages(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatal("there must be archives", err)
	}
	base, err := os.ReadFile("testdata/base.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		t.Run(strings.TrimSuffix(filepath.Base(name), ".txtar"), func(t *testing.T) {
			archive, err := txtar.ParseFile(name)
			if err != nil {
				t.Fatal(err)
			}
			got := pageOf(t, archive, base)
			if *update {
				setPart(archive, "page", got)
				if err := os.WriteFile(name, txtar.Format(archive), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(part(archive, "page"), got); diff != "" {
				t.Errorf("%s(-want +got)\n%s", archive.Comment, diff)
			}
		})
	}
}

// pageOf returns the page that an archive gives.
func pageOf(t *testing.T, archive *txtar.Archive, base []byte) string {
	t.Helper()
	text := part(archive, "cluster.yaml")
	if strings.Contains(text, "# base\n") {
		text = string(base) + "\n---\n" + text
	}
	objects, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	server := fakeapi.Start(t, "")
	byName := map[string]*unstructured.Unstructured{}
	for _, object := range objects {
		id := object.GetKind() + " " + object.GetName()
		if before := byName[id]; before != nil {
			object = merge(t, before, object)
		}
		byName[id] = object
	}
	for _, object := range byName {
		if _, removed := object.Object["removed"]; !removed {
			server.Put(object)
		}
	}
	issuer, forbidden := "/.well-known/openid-configuration", `{"kind": "Status", "apiVersion": "v1", "reason": "Forbidden", "code": 403}`
	server.Answer("GET "+issuer, http.StatusForbidden, forbidden)
	for right := range strings.Lines(part(archive, "denied")) {
		if right = strings.TrimSpace(right); right == "list pods in all namespaces" {
			server.Answer("GET /api/v1/pods", http.StatusForbidden, forbidden)
		} else if list, ok := strings.CutPrefix(right, "only "); ok {
			server.Deny(list)
		} else {
			server.Deny(right, strings.Replace(right, "list ", "get ", 1))
		}
	}
	o := explain.Options{Now: now}
	for i, line := range strings.Split(strings.TrimSpace(part(archive, "target")), "\n") {
		word, value, _ := strings.Cut(line, " ")
		switch {
		case i == 0:
			if o.Target, err = explain.ParseTarget([]string{line}, "shop"); err != nil {
				t.Fatal(err)
			}
		case word == "issuer":
			server.Answer("GET "+issuer, http.StatusOK, `{"issuer": "`+value+`"}`)
		case word == "sync-off":
			server.Deny("create secrets system:serviceaccount:kube-system:secrets-store-csi-driver")
		case word == "tenant-id":
			o.Defaults = func([]string) (inject.Defaults, error) { return inject.Defaults{TenantID: value}, nil }
		}
	}
	server.Config.Wrap(func(next http.RoundTripper) http.RoundTripper { return onlyReads{t, next} })
	reader, err := kube.NewReader(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	r, err := explain.Explain(t.Context(), reader, o)
	if err != nil {
		t.Fatal(err)
	}
	state := r.State()
	var b bytes.Buffer
	if err := r.Print(&b, report.Text); err != nil {
		t.Fatal(err)
	}
	return b.String() + "\nstate: " + string(state) + "\n"
}

// onlyReads fails a test in which a request writes, or reads the value of a Secret.
type onlyReads struct {
	t    *testing.T
	next http.RoundTripper
}

func (o onlyReads) RoundTrip(r *http.Request) (*http.Response, error) {
	if r.Method != http.MethodGet && !strings.HasSuffix(r.URL.Path, "/subjectaccessreviews") {
		o.t.Errorf("%s %s must only read", r.Method, r.URL)
	}
	if strings.Contains(r.URL.Path, "/secrets/") && !strings.Contains(r.Header.Get("Accept"), "as=PartialObjectMetadata") {
		o.t.Errorf("%s must read the metadata of Secrets only", r.URL)
	}
	return o.next.RoundTrip(r)
}

// merge applies an object as a JSON Merge Patch (RFC 7386).
func merge(t *testing.T, object, patch *unstructured.Unstructured) *unstructured.Unstructured {
	t.Helper()
	text, err := object.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	change, err := patch.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	if text, err = jsonpatch.MergePatch(text, change); err != nil {
		t.Fatal(err)
	}
	merged := &unstructured.Unstructured{}
	if err := merged.UnmarshalJSON(text); err != nil {
		t.Fatal(err)
	}
	return merged
}

func part(archive *txtar.Archive, name string) string {
	for _, file := range archive.Files {
		if file.Name == name {
			return string(file.Data)
		}
	}
	return ""
}

func setPart(archive *txtar.Archive, name, text string) {
	archive.Files = slices.DeleteFunc(archive.Files, func(f txtar.File) bool { return f.Name == name })
	archive.Files = append(archive.Files, txtar.File{Name: name, Data: []byte(text)})
}
