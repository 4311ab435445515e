package provider_test

import (
	"encoding/json"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// surroundings are the objects in the fuzzed pod's namespace.
const surroundings = `
apiVersion: v1
kind: Namespace
metadata: {name: fuzz, labels: {keyvault.io/injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: default
  namespace: fuzz
  annotations: {azure.workload.identity/client-id: ` + client + `, azure.workload.identity/tenant-id: ` + tenant + `}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: blob, namespace: fuzz}
spec: {azureIdentity: blob, selector: access-blob}
`

// version and other are versions of objects.
const (
	version = "6a1f0c6a1f0c6a1f0c6a1f0c6a1f0c6a"
	other   = "00000000000000000000000000000001"
)

// requests are seeds of the fuzz tests. Each of them can be mounted.
var requests = map[string]string{
	"one line":                            "KEYVAULT_SECRET=secret-425",
	"paths, several vaults and all types": "A=a as p/q/r.txt, B=other-kv/b, cert:edge-ca as tls/ca.pem, Third-KV/key:signing, other-kv/key:b as keys/b",
	"versions of one secret, and its name in capitals": "a@" + version + ", a as older/a, A as upper, secret:a@" + other + " as other",
	"a version in capitals, with a history":            "- {objectName: a, objectVersion: 6A1F0C6A1F0C6A1F0C6A1F0C6A1F0C6A, objectVersionHistory: 3}",
	"names that YAML reads as other types":             "1e3, 0123, true, null, no, -a as 0x10, 12345678901234567890",
	"a certificate in every form, in several modes": `
- {objectName: edge, objectFormat: pem, objectAlias: tls/edge.pem, filePermission: "0400", env: EDGE}
- {objectName: edge, objectFormat: pfx, objectAlias: tls/edge.pfx.base64, filePermission: 440}
- {objectName: edge, objectFormat: pfx, objectEncoding: base64, objectAlias: tls/edge.pfx, filePermission: "0000"}
- {objectName: edge, objectType: cert, objectFormat: pem, objectAlias: tls/edge.crt, filePermission: "777"}
- {objectName: edge, objectType: key, objectFormat: pem}
`,
	"a secret in every encoding, as JSON": `[
{"objectName": "raw", "objectEncoding": "hex", "objectAlias": "hex"}, {"objectName": "raw", "objectEncoding": "base64", "objectAlias": "b64"},
{"objectName": "raw", "objectEncoding": "utf-8", "objectAlias": "text", "env": "RAW"}, {"objectName": "raw", "objectFormat": "pem", "objectEncoding": "hex"}]`,
	"histories, with several pages and from a version": `
- {objectName: old, objectVersionHistory: 1}
- {objectName: old, objectVersionHistory: 2, objectAlias: two, env: TWO}
- {objectName: old, objectVersionHistory: 30, objectAlias: deep/er, filePermission: "0600"}
- {objectName: old, objectVersionHistory: 3, objectVersion: ` + version + `, objectAlias: since}
- {objectName: signing, objectType: key, objectVersionHistory: 2}
- {objectName: edge, objectType: cert, objectVersionHistory: 2, objectVersion: ` + other + `}
`,
	"paths that YAML reads as other types": `
- {objectName: z, objectAlias: "a b/ü \"q\" '# é.txt"}
- {objectName: y, objectAlias: "%TAG 😀 - |"}
- {objectName: x, objectAlias: "{{ .x }}$(Y)&*!?@` + "`" + `"}
- {objectName: w, objectAlias: "- x"}
`,
	"one vault in several spellings":    "Team-KV/a, team-kv/b as B, TEAM-KV/key:c",
	everySecret:                         "db-password, jwt as keys/jwt, NAMED=0-length, key:signing, cert:edge-ca, other-kv/db-user",
	"paths in another order than names": "z=z, y=y, x=x as b, w=w as a/b, v as a/a, u as A/a, t as a.b",
}

// everySecret is the name of the request with keyvault.io/env: auto.
const everySecret = "an env var of every secret"

// TestRequests mounts the classes of each request in each mode.
func TestRequests(t *testing.T) {
	for name, secrets := range requests {
		for _, mode := range modes {
			t.Run(name+" by "+string(mode), func(t *testing.T) {
				s := fuzzed(t, secrets, "team-kv", string(mode), name == everySecret, true)
				if len(s.classes) == 0 {
					t.Fatal("no managed class")
				}
				s.check(t)
			})
		}
	}
}

var modes = []api.Mode{api.ModeAuto, api.ModePodIdentity, api.ModeWorkloadIdentity, api.ModeIdentityBinding, api.ModeNone}

// maxVersions limits the versions in one fuzz input.
const maxVersions = 100

// FuzzManagedClass mounts the classes of arbitrary annotations. A request that admission accepts
// must never fail at the node, and the pod must get exactly what it requests.
func FuzzManagedClass(f *testing.F) {
	for _, name := range slices.Sorted(maps.Keys(requests)) {
		for _, mode := range modes {
			f.Add(requests[name], "team-kv", string(mode), name == everySecret, false)
		}
	}
	f.Fuzz(func(t *testing.T, secrets, vault, mode string, everyEnv, anonymous bool) {
		s := fuzzed(t, secrets, vault, mode, everyEnv, anonymous)
		versions := 0
		for _, item := range s.request.Items {
			versions += item.History
		}
		if versions > maxVersions {
			return
		}
		s.check(t)
		if t.Failed() {
			for _, spc := range s.classes {
				t.Logf("class %s: %v", spc.Name, spc.Spec.Parameters)
			}
		}
	})
}

// FuzzItems makes items from valid values of each field, selected by choices. alias is the path of
// the last item and may be invalid.
func FuzzItems(f *testing.F) {
	for seed := range 48 {
		choices := make([]byte, 64)
		state := uint32(seed)*2654435761 + 1
		for i := range choices {
			state = state*1664525 + 1013904223
			choices[i] = byte(state >> 24)
		}
		f.Add(choices, []string{"", "tls/edge.pem", "", "a b", "é", ".x"}[seed%6])
	}
	f.Fuzz(func(t *testing.T, choices []byte, alias string) {
		g := generator{choices: choices}
		mode := g.pick("pod-identity", "workload-identity", "identity-binding", "none", "auto")
		anonymous := g.pick("y", "n") == "y"
		items := g.items()
		if alias != "" {
			items[len(items)-1]["objectAlias"] = alias
		}
		text, err := json.Marshal(items)
		if err != nil {
			t.Fatal(err)
		}
		s := fuzzed(t, string(text), "team-kv", mode, false, anonymous)
		if alias == "" && len(s.classes) == 0 {
			t.Error("no managed class")
		}
		s.check(t)
		slices.Reverse(items)
		backwards, err := json.Marshal(items)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(names(s), names(fuzzed(t, string(backwards), "team-kv", mode, false, anonymous))); diff != "" {
			t.Errorf("the same items in another order give other classes (-first +last):\n%s", diff)
		}
		if t.Failed() {
			t.Logf("by %s: items %s", mode, text)
		}
	})
}

// names returns the names of a subject's managed classes, sorted.
func names(s *subject) []string {
	var names []string
	for _, spc := range s.classes {
		names = append(names, spc.Name)
	}
	slices.Sort(names)
	return names
}

// generator selects values by its choices. After the last choice it selects the first value of
// everything.
type generator struct {
	choices []byte
}

func (g *generator) pick(values ...string) string {
	if len(g.choices) == 0 {
		return values[0]
	}
	choice := int(g.choices[0]) % len(values)
	g.choices = g.choices[1:]
	return values[choice]
}

// items returns up to eight items, each with its own path and env var.
func (g *generator) items() []map[string]any {
	var items []map[string]any
	for len(items) == 0 || (len(items) < 8 && len(g.choices) > 0) {
		number := strconv.Itoa(len(items))
		fields := map[string]string{
			"objectName":     g.pick("db", "edge", "DB", "0", "null", "-"),
			"objectAlias":    g.pick("", "tls/", "z/y/", "0x", "~") + number + g.pick("", ".pem", "/a"),
			"objectType":     g.pick("", "secret", "key", "cert"),
			"objectVersion":  g.pick("", "", version, other),
			"filePermission": g.pick("", "0400", "644", "0000", "777"),
			"vault":          g.pick("", "other-kv", "Third-KV"),
			"env":            g.pick("", "E"+number),
			"objectFormat":   g.pick("", "pem"),
		}
		if kind := fields["objectType"]; kind == "" || kind == api.TypeSecret {
			fields["objectFormat"] = g.pick("", "pem", "pfx")
			fields["objectEncoding"] = g.pick("", "utf-8", "base64", "hex")
		}
		if fields["env"] != "" { // the path becomes a key of a Secret
			fields["objectAlias"] = strings.ReplaceAll(fields["objectAlias"], "~", "")
		}
		item := make(map[string]any)
		for name, value := range fields {
			if value != "" {
				item[name] = value
			}
		}
		if history := g.pick("", "0", "1", "2", "5"); history != "" {
			item["objectVersionHistory"] = json.Number(history)
		}
		items = append(items, item)
	}
	return items
}

// fuzzed returns an injected pod with annotations. If anonymous, it names no client id.
func fuzzed(t *testing.T, secrets, vault, mode string, everyEnv, anonymous bool) *subject {
	t.Helper()
	annotations := map[string]string{api.Secrets: secrets, api.Vault: vault, api.IdentityMode: mode, api.IdentityTenantID: tenant}
	if everyEnv {
		annotations[api.Env] = string(api.EnvAuto)
	}
	switch {
	case mode == string(api.ModePodIdentity):
		annotations[api.IdentityName] = "access-blob"
	case !anonymous:
		annotations[api.IdentityClientID] = client
	}
	pod, err := json.Marshal(corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: "p", Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "i"}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	objects, err := corpus.Decode([]byte(surroundings))
	if err != nil {
		t.Fatal(err)
	}
	var source facts.Objects
	for _, object := range objects {
		if err := source.Add(object, "fuzz"); err != nil {
			t.Fatal(err)
		}
	}
	s, err := injected(t.Context(), &source, pod, "fuzz", inject.Defaults{AllowVMIdentity: true})
	if err != nil {
		t.Fatal(err)
	}
	return s
}
