package cli_test

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

var workloads = regexp.MustCompile(`(?m)^[\s-]*"?kind"?: "?(?:Deployment|StatefulSet|DaemonSet|ReplicaSet|Job|CronJob|Pod)"?,?\r?$`)

// TestCharts injects manifests like those of well-known charts, with every workload annotated. Only
// the injection changes, and injecting again changes nothing.
func TestCharts(t *testing.T) {
	files, err := filepath.Glob("testdata/charts/*")
	if err != nil || len(files) < 15 {
		t.Fatalf("list charts: %v, %d found", err, len(files))
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			annotated := string(text)
			once := injected(t, annotated)
			if again := injected(t, once); again != once {
				t.Errorf("injecting again changes (-once +twice):\n%s", cmp.Diff(once, again))
			}
			before, after := objects(t, annotated), objects(t, once)
			after = after[:len(before)] // a managed class follows
			if diff := cmp.Diff(before, after); diff != "" {
				t.Errorf("something else changed (-before +after):\n%s", diff)
			}
			statuses, n := strings.Count(once, "keyvault.io/status"), len(workloads.FindAllString(annotated, -1))
			if requests := strings.Count(annotated, "INJECTED"); statuses != n || requests != n {
				t.Errorf("%d workloads have %d requests, and %d are injected", n, requests, statuses)
			}
		})
	}
}

func injected(t *testing.T, text string) string {
	t.Helper()
	var stdout, stderr bytes.Buffer
	status, err := cli.Inject(t.Context(), cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(text), Namespace: "shop"}, false, &stdout, &stderr)
	if err != nil || status != cli.Fine {
		t.Fatalf("status %d, %v\n%s\nof\n%s", status, err, &stderr, text)
	}
	return stdout.String()
}

// objects returns the objects of a text, without what is injected.
func objects(t *testing.T, text string) []map[string]any {
	t.Helper()
	list, err := corpus.Decode([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	var all []map[string]any
	for _, object := range list {
		items, _, _ := unstructured.NestedSlice(object.Object, "items")
		if len(items) == 0 {
			items = []any{object.Object}
		}
		for _, item := range items {
			object, ok := item.(map[string]any)
			if !ok || object["kind"] == "SecretProviderClass" {
				continue
			}
			strip(object)
			all = append(all, object)
		}
	}
	return all
}

// strip removes what is injected, and values that are empty without it.
func strip(value any) bool {
	switch value := value.(type) {
	case map[string]any:
		for key, member := range value {
			ours := key == "keyvault.io/injected" || key == "keyvault.io/status" || key == "keyvault.io/inherited" || key == "azure.workload.identity/use"
			if ours || strip(member) {
				delete(value, key)
				continue
			}
			if list, ok := member.([]any); ok {
				value[key] = kept(list)
				if len(kept(list)) == 0 {
					delete(value, key)
				}
			}
		}
		return len(value) == 0
	case []any:
		for _, element := range value {
			strip(element)
		}
	}
	return false
}

// kept returns the elements of a list that were not injected.
func kept(list []any) []any {
	var left []any
	for _, element := range list {
		object, ok := element.(map[string]any)
		if name, _ := object["name"].(string); ok && (name == "INJECTED" || strings.HasPrefix(name, "keyvault")) {
			continue
		}
		left = append(left, element)
	}
	return left
}
