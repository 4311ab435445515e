package check_test

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cli/check"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

// startNamespaces serves the cluster with the namespaces of testdata.
func startNamespaces(t *testing.T) *fakeapi.Server {
	t.Helper()
	server := start(t)
	text, err := os.ReadFile("testdata/namespaces.yaml")
	if err != nil {
		t.Fatal(err)
	}
	// YAML anchors hold for one document; here they hold for the file.
	server.Apply(t, expand(t, string(text)))
	return server
}

// about returns the report without the sections before that of the namespaces.
func about(r *report.Report) *report.Report {
	at := slices.IndexFunc(r.Sections, func(s *report.Section) bool { return s.Title == "Namespaces" })
	return &report.Report{Sections: r.Sections[at:], Independent: true}
}

// TestNamespaces checks namespaces with one problem of each kind.
func TestNamespaces(t *testing.T) {
	server := startNamespaces(t)
	r := about(run(t, server, func(o *check.Options) { o.AllNamespaces = true }))
	golden(t, "namespaces.txt", r)
	if r.State() != report.Broken {
		t.Errorf("the state is %s", r.State())
	}
	r = about(run(t, server, func(o *check.Options) { o.Namespaces = []string{"fine", "nowhere"} }))
	golden(t, "one-namespace.txt", r)
}

// TestNamespacesInPart takes rights from the user. What is left must be judged correctly.
func TestNamespacesInPart(t *testing.T) {
	for right, want := range map[string][]string{
		"list namespaces":      {"? what pods need: not known: you may not list namespaces in all namespaces"},
		"list serviceaccounts": {"? what pods need: not known: you may not list serviceaccounts in all namespaces"},
		"list pods": {
			"? the pods: not known: you may not list pods in all namespaces",
			"· 3 namespaces opted in; 5 workloads and 0 pods request something",
		},
		"list cronjobs.batch": {
			"? the workloads: not known: you may not list cronjobs.batch in all namespaces",
			"· 3 namespaces opted in; 5 workloads and 9 pods request something",
		},
	} {
		server := startNamespaces(t)
		server.Deny(right)
		r := about(run(t, server, func(o *check.Options) { o.AllNamespaces = true }))
		var got []string
		for _, line := range lines(t, r)[1:] {
			if strings.HasPrefix(line, "  ?") || strings.HasPrefix(line, "  ·") {
				got = append(got, strings.TrimSpace(line))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("without the right to %s (-want +got)\n%s", right, diff)
		}
	}
}

// TestUnknownBindings does not report that an identity is not bound if a binding may exist.
func TestUnknownBindings(t *testing.T) {
	server := start(t)
	server.Apply(t, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: azureidentitybindings.aadpodidentity.k8s.io}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keyvault.io/injection: enabled, identity.io/enforce: bound}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec: {template: {metadata: {annotations: {identity.io/name: access-blob}}, spec: {containers: [{name: a, image: a}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: by-hand, namespace: shop}
spec: {template: {metadata: {labels: {aadpodidbinding: access-blob}}, spec: {containers: [{name: a, image: a}]}}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: wrong, namespace: shop}
spec: {template: {metadata: {annotations: {keyvault.io/class: gone}}, spec: {containers: [{name: a, image: a}]}}}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: access-blob, namespace: shop}
spec: {selector: access-blob}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: blob-sa, namespace: shop, annotations: {azure.workload.identity/client-id: 66666666-7777-8888-9999-000000000000}}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: blob-sa, namespace: shop}
spec: {selector: blob-sa}
---
apiVersion: v1
kind: Pod
metadata:
  name: bound
  namespace: shop
  labels: {keyvault.io/injected: "true", aadpodidbinding: blob-sa}
  annotations: {identity.io/name: blob-sa}
spec: {containers: [{name: a, image: a}]}
`)
	broken := func() []string {
		r := about(run(t, server, func(o *check.Options) { o.Namespaces = []string{"shop"} }))
		return slices.DeleteFunc(lines(t, r), func(line string) bool { return !strings.HasPrefix(line, "      ") })
	}
	want := []string{
		"      Deployment/wrong: [ClassNotFound] ",
		"      Pod/bound: identity blob-sa (1 pod)",
	}
	for _, rights := range []string{"all rights", "no right to list bindings"} {
		got := broken()
		if len(got) != 2 || !strings.HasPrefix(got[0], want[0]) || got[1] != want[1] {
			t.Errorf("with %s: %v", rights, got)
		}
		server.Deny("list azureidentitybindings.aadpodidentity.k8s.io")
	}
}

// TestUnknownDefaults does not report that a request lacks a tenant if the injector may have one.
func TestUnknownDefaults(t *testing.T) {
	const managed = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keyvault.io/injection: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop, annotations: {azure.workload.identity/client-id: 66666666-7777-8888-9999-000000000000}}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: shop}
spec:
  template:
    metadata: {annotations: {identity.io/name: web, keyvault.io/secrets: shop-kv/db-password}}
    spec: {containers: [{name: a, image: a}]}
`
	for name, tt := range map[string]struct {
		change func(*fakeapi.Server, *check.Options)
		state  report.State
	}{
		"the injector has a tenant":      {func(*fakeapi.Server, *check.Options) {}, report.OK},
		"the Deployment cannot be read":  {func(s *fakeapi.Server, _ *check.Options) { s.Deny("list deployments.apps") }, report.Unknown},
		"the injector has no tenant":     {func(_ *fakeapi.Server, o *check.Options) { o.Defaults = noDefaults }, report.Broken},
		"its arguments cannot be parsed": {func(_ *fakeapi.Server, o *check.Options) { o.Defaults = badDefaults }, report.Unknown},
	} {
		server := start(t)
		server.Apply(t, managed)
		r := run(t, server, func(o *check.Options) {
			o.AllNamespaces = true
			tt.change(server, o)
		})
		if state := about(r).State(); state != tt.state {
			t.Errorf("%s: the state is %s, want %s\n%s", name, state, tt.state, strings.Join(lines(t, about(r)), "\n"))
		}
	}
}

func noDefaults([]string) (inject.Defaults, error) { return inject.Defaults{}, nil }

func badDefaults([]string) (inject.Defaults, error) {
	return inject.Defaults{}, errors.New("--tenant-id: must be a GUID")
}

// TestMany bounds the report, and the work for many pods of one template.
func TestMany(t *testing.T) {
	server := start(t)
	server.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: enabled}}}")
	for i := range 12 {
		for j := range 100 {
			server.Apply(t, fmt.Sprintf(`
apiVersion: v1
kind: Pod
metadata:
  name: web-%[1]d-6d8f-%[2]d
  namespace: shop
  labels: {pod-template-hash: 6d8f}
  annotations: {keyvault.io/class: none-%[1]d}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: web-%[1]d-6d8f, uid: "1", controller: true}]
spec: {containers: [{name: a, image: a}]}
status: {phase: Running}
`, i, j))
		}
	}
	r := about(run(t, server, func(o *check.Options) { o.AllNamespaces = true }))
	golden(t, "many.txt", r)
}

// TestVaults estimates the requests to vaults.
func TestVaults(t *testing.T) {
	mount := func(server *fakeapi.Server, vault string, pods, objects int) {
		class := fmt.Sprintf("{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: %s, namespace: shop}, spec: "+
			"{provider: azure, parameters: {keyvaultName: %s, objects: %q}}}", vault, vault,
			"array:\n"+strings.Repeat("- |\n  objectName: a\n  objectType: secret\n", objects))
		server.Apply(t, class)
		for i := range pods {
			server.Apply(t, fmt.Sprintf("{apiVersion: v1, kind: Pod, metadata: {name: %s-%d, namespace: shop}, spec: {volumes: [{csi: "+
				"{driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: %s}}}]}}", vault, i, vault))
		}
	}
	want := map[string][]string{
		"rotation is on": {
			"  ! vault busy: about 12032 requests a minute from 80 volumes; Key Vault throttles a vault at 24,000 (4,000 in 10 s): mount fewer objects, or use more vaults",
			"    $ akv-injector list --all-namespaces --output csv",
			"  ✓ vault calm: about 16 requests a minute from 10 volumes",
		},
		"rotation is off":     {"  · rotation is off: pods read 2 vaults only when they start"},
		"rotation is unknown": {"  ✓ vault calm: about 16 requests a minute from 10 volumes, if rotation is on"},
	}
	for behaviour, breakIt := range map[string]breakage{
		"rotation is on":      all(),
		"rotation is off":     breakages["rotation is off"],
		"rotation is unknown": deny("list daemonsets.apps"),
	} {
		server := start(t)
		breakIt(t, server, nil)
		server.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop}}")
		mount(server, "calm", 10, 1)
		if behaviour != "rotation is unknown" {
			mount(server, "busy", 80, 187)
		}
		got := lines(t, about(run(t, server, func(o *check.Options) { o.AllNamespaces = true })))
		at := slices.Index(got, "Key Vault requests")
		if diff := cmp.Diff(want[behaviour], got[at+1:]); diff != "" {
			t.Errorf("%s (-want +got)\n%s", behaviour, diff)
		}
	}
}

// expand replaces the aliases of a YAML file, whose anchors may be in earlier documents.
func expand(t *testing.T, text string) string {
	t.Helper()
	var list strings.Builder
	for document := range strings.SplitSeq(text, "\n---\n") {
		list.WriteString("- " + strings.ReplaceAll(strings.TrimSpace(withoutComments(document)), "\n", "\n  ") + "\n")
	}
	var objects []any
	if err := yaml.Unmarshal([]byte(list.String()), &objects); err != nil {
		t.Fatal(err)
	}
	var documents []string
	for _, object := range objects {
		document, err := yaml.Marshal(object)
		if err != nil {
			t.Fatal(err)
		}
		documents = append(documents, string(document))
	}
	return strings.Join(documents, "---\n")
}

func withoutComments(document string) string {
	lines := strings.Split(document, "\n")
	return strings.Join(slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "#") }), "\n")
}
