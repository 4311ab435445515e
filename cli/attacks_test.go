package cli_test

import (
	"encoding/json"
	"io"
	"strings"
	"testing"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
)

// TestAttacks shows that small manifests that would take much memory are rejected before they use
// it.
func TestAttacks(t *testing.T) {
	const limit = 200 << 20
	manifests := map[string]string{}
	for name, secrets := range attacks.Secrets {
		manifests["secrets: "+name] = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app","annotations":{"keyvault.io/secrets":` + quoted(t, secrets) +
			`}},"spec":{"containers":[{"name":"app"}]}}`
	}
	for name, objects := range attacks.Objects {
		manifests["objects: "+name] = `{"apiVersion":"secrets-store.csi.x-k8s.io/v1","kind":"SecretProviderClass","metadata":{"name":"app"},"spec":{"provider":"azure",` +
			`"parameters":{"objects":` + quoted(t, objects) + `}}}` + "\n---\n" + `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app","annotations":` +
			`{"keyvault.io/class":"app","keyvault.io/secrets":"A=a"}},"spec":{"containers":[{"name":"app"}]}}`
	}
	const pod = "apiVersion: v1\nkind: Pod\nmetadata: {name: app}\nspec:\n  containers: "
	for name, containers := range map[string]string{
		"mappings":               "[" + strings.Repeat("{},", 2_400_000) + "{}]",
		"as many as are read":    "[" + strings.Repeat("{},", 130_000) + "{}]",
		"a block":                "\n" + strings.Repeat("  - {}\n", 1_000_000),
		"aliases of a long text": "[&s \"" + strings.Repeat("s", 120_000) + `",` + strings.Repeat("*s,", 32_000) + "]",
		"aliases of aliases":     "[&a [x,x,x,x,x,x,x,x,x,x],&b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a],&c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b],&d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c],&e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d],[*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]]",
		"nested lists":           strings.Repeat("[", 9_000) + strings.Repeat("]", 9_000),
	} {
		manifests["containers: "+name] = pod + containers
	}
	manifests["containers: JSON"] = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app"},"spec":{"containers":[` + strings.Repeat("{},", 2_400_000) + `{}]}}`
	manifests["containers: JSON, as many as are read"] = `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"app"},"spec":{"containers":[` + strings.Repeat("{},", 400_000) + `{}]}}`
	for name, manifest := range manifests {
		t.Run(name, func(t *testing.T) {
			var status cli.Status
			var err error
			size := attacks.Allocated(limit, func() {
				status, err = cli.Lint(t.Context(), cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(manifest)}, cli.Text, io.Discard, io.Discard)
			})
			if err != nil || status == cli.Fine {
				t.Errorf("status %d, %v; want an error about the manifest", status, err)
			}
			if size > limit {
				t.Errorf("%d MiB are allocated for %d bytes", size>>20, len(manifest))
			}
		})
	}
}

func quoted(t *testing.T, text string) string {
	t.Helper()
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
