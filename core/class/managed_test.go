package class_test

import (
	"maps"
	"regexp"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

const guid = "72f988bf-86f1-41af-91ab-2d7cd011db47"

func request() class.Request {
	return class.Request{
		Vault: "team-kv", TenantID: guid, Mode: api.ModeWorkloadIdentity, ClientID: guid,
		Items: []api.Item{
			{Name: "db-password", Env: "DB_PASSWORD"},
			{Name: "edge-cert", Alias: "tls/edge.pem", Type: "secret", Format: "pem", Encoding: "utf-8", Permission: "0400", History: 2, Version: "6a1f0c00000000000000000000abcdef"},
			{Name: "0123", Type: "key"},
		},
		Data: synced(0, 1),
	}
}

// synced returns the keys of the items of request.
func synced(items ...int) []class.SecretData {
	data := make([]class.SecretData, len(items))
	for i, file := range items {
		data[i].ObjectName = [...]string{"db-password", "tls/edge.pem/0", "0123"}[file]
		data[i].Key = class.SecretKey(data[i].ObjectName)
	}
	return data
}

// golden is the class for request. If it changes, an upgrade of the injector gives pods another
// class than before.
const golden = `apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  labels:
    app.kubernetes.io/managed-by: akv-injector
  name: kv-ac3ecf4d48
spec:
  parameters:
    clientID: 72f988bf-86f1-41af-91ab-2d7cd011db47
    keyvaultName: team-kv
    objects: |
      array:
      - |
        objectName: "0123"
        objectType: key
      - |
        objectName: "db-password"
        objectType: secret
      - |
        objectName: "edge-cert"
        objectType: secret
        objectAlias: "tls/edge.pem"
        objectVersion: "6a1f0c00000000000000000000abcdef"
        objectVersionHistory: 2
        objectFormat: pem
        objectEncoding: utf-8
        filePermission: "0400"
    tenantID: 72f988bf-86f1-41af-91ab-2d7cd011db47
  provider: azure
  secretObjects:
  - data:
    - key: db-password
      objectName: db-password
    - key: tls.edge.pem.0
      objectName: tls/edge.pem/0
    secretName: kv-ac3ecf4d48
    type: Opaque
`

func TestManagedGolden(t *testing.T) {
	spc := class.Managed(request())
	text, err := yaml.Marshal(spc)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(golden, string(text)); diff != "" {
		t.Errorf("class differs (-want +got):\n%s", diff)
	}
	read := class.Read(spc)
	wantObjects := []class.Object{
		{Name: "0123", Type: "key", File: "0123"},
		{Name: "db-password", Type: "secret", File: "db-password"},
		{Name: "edge-cert", Type: "secret", File: "tls/edge.pem/0"},
	}
	if diff := cmp.Diff(wantObjects, read.Objects); diff != "" || read.Invalid != "" {
		t.Errorf("read back, %s it differs (-want +got):\n%s", read.Invalid, diff)
	}
}

func TestManagedMode(t *testing.T) {
	base := map[string]string{"keyvaultName": "team-kv", "tenantID": guid}
	for mode, want := range map[api.Mode]map[string]string{
		api.ModePodIdentity:      {"usePodIdentity": "true"},
		api.ModeWorkloadIdentity: {"clientID": guid},
		api.ModeIdentityBinding:  {"clientID": guid, "useAzureTokenProxy": "true"},
		api.ModeNone:             {"useVMManagedIdentity": "true", "userAssignedIdentityID": guid},
	} {
		t.Run(string(mode), func(t *testing.T) {
			r := request()
			r.Mode = mode
			got := class.Managed(r).Spec.Parameters
			delete(got, "objects")
			maps.Copy(want, base)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("parameters differ (-want +got):\n%s", diff)
			}
		})
	}
}

// TestManagedName shows which requests get the same class.
func TestManagedName(t *testing.T) {
	name := class.Managed(request()).Name
	if !regexp.MustCompile(`^kv-[0-9a-f]{10}$`).MatchString(name) {
		t.Fatalf("name is %s", name)
	}
	same := map[string]func(r *class.Request){
		"items in another order":        func(r *class.Request) { slices.Reverse(r.Items) },
		"synced items in another order": func(r *class.Request) { slices.Reverse(r.Data) },
		"another env var, and a vault in the item": func(r *class.Request) {
			r.Items[0].Env, r.Items[0].VaultOrClass, r.Items[2].Env = "OTHER", "team-kv", "UNUSED"
		},
		"a vault and a version in upper case": func(r *class.Request) {
			r.Vault, r.Items[1].Version = "Team-KV", "6A1F0C00000000000000000000ABCDEF"
		},
		"an explicit type secret":         func(r *class.Request) { r.Items[0].Type = "secret" },
		"no client id, with pod identity": nil,
	}
	for behaviour, change := range same {
		t.Run(behaviour, func(t *testing.T) {
			a, b := request(), request()
			if change != nil {
				change(&b)
			} else {
				a.Mode, b.Mode, b.ClientID = api.ModePodIdentity, api.ModePodIdentity, ""
			}
			if diff := cmp.Diff(class.Managed(a), class.Managed(b)); diff != "" {
				t.Errorf("classes differ (-first +second):\n%s", diff)
			}
		})
	}

	names := map[string]string{name: "the request itself"}
	for what, change := range map[string]func(r *class.Request){
		"vault":                func(r *class.Request) { r.Vault = "other-kv" },
		"tenant":               func(r *class.Request) { r.TenantID = "00000000-86f1-41af-91ab-2d7cd011db47" },
		"client":               func(r *class.Request) { r.ClientID = "00000000-86f1-41af-91ab-2d7cd011db47" },
		"pod identity":         func(r *class.Request) { r.Mode = api.ModePodIdentity },
		"identity binding":     func(r *class.Request) { r.Mode = api.ModeIdentityBinding },
		"no item":              func(r *class.Request) { r.Items, r.Data = r.Items[:2], synced(0, 1) },
		"name":                 func(r *class.Request) { r.Items[2].Name = "0124" },
		"type":                 func(r *class.Request) { r.Items[2].Type = "cert" },
		"alias":                func(r *class.Request) { r.Items[0].Alias = "password" },
		"version":              func(r *class.Request) { r.Items[1].Version = "" },
		"history":              func(r *class.Request) { r.Items[1].History = 3 },
		"format":               func(r *class.Request) { r.Items[1].Format = "pfx" },
		"encoding":             func(r *class.Request) { r.Items[1].Encoding = "" },
		"permission":           func(r *class.Request) { r.Items[1].Permission = "0440" },
		"another cloud":        func(r *class.Request) { r.Cloud = "AzureChinaCloud" },
		"another Secret":       func(r *class.Request) { r.SecretName = "tls" },
		"another type":         func(r *class.Request) { r.SecretType = "kubernetes.io/tls" },
		"nothing synced":       func(r *class.Request) { r.Data = nil },
		"the first synced":     func(r *class.Request) { r.Data = synced(0) },
		"the second synced":    func(r *class.Request) { r.Data = synced(1) },
		"the third synced":     func(r *class.Request) { r.Data = synced(2) },
		"all synced":           func(r *class.Request) { r.Data = synced(0, 1, 2) },
		"the first and third":  func(r *class.Request) { r.Data = synced(0, 2) },
		"the second and third": func(r *class.Request) { r.Data = synced(1, 2) },
	} {
		r := request()
		change(&r)
		spc := class.Managed(r)
		if other, taken := names[spc.Name]; taken {
			t.Errorf("%s gives the name of %s", what, other)
		}
		names[spc.Name] = what
		if len(r.Data) == 0 && spc.Spec.SecretObjects != nil {
			t.Errorf("%s: the class has Secrets %v, want none", what, spc.Spec.SecretObjects)
		}
	}
}

func TestManagedLeavesItsRequest(t *testing.T) {
	r := request()
	class.Managed(r)
	sameSelector := cmp.Comparer(func(a, b api.Selector) bool { return a.String() == b.String() })
	if diff := cmp.Diff(request(), r, sameSelector); diff != "" {
		t.Errorf("request is modified (-before +after):\n%s", diff)
	}
}

func TestSecretKey(t *testing.T) {
	for file, want := range map[string]string{"db-password": "db-password", "tls/ca.pem": "tls.ca.pem", "a/b/0": "a.b.0"} {
		if got := class.SecretKey(file); got != want {
			t.Errorf("key of %s is %s, want %s", file, got, want)
		}
	}
}

func TestIsManagedName(t *testing.T) {
	for name, want := range map[string]bool{
		"kv-ac3ecf4d48": true, "kv-0123456789": true,
		"": false, "kv-": false, "kv-ac3ecf4d4": false, "kv-ac3ecf4d480": false, "kv-AC3ECF4D48": false, "kv-ac3ecf4d4g": false, "ac3ecf4d48": false, "my-kv-ac3ecf4d48": false,
	} {
		if got := class.IsManagedName(name); got != want {
			t.Errorf("IsManagedName(%q) is %t", name, got)
		}
	}
}

// TestIsIntact shows that IsIntact detects every edit of a managed class.
func TestIsIntact(t *testing.T) {
	withoutEnv := request()
	withoutEnv.Data = nil
	named := request()
	named.SecretName, named.SecretType, named.Cloud = "tls", "kubernetes.io/tls", "AzureChinaCloud"
	for _, r := range []class.Request{request(), withoutEnv, named} {
		if spc := class.Managed(r); !class.IsIntact(spc) {
			t.Errorf("a new class is not intact: %v", spc)
		}
	}
	for edit, change := range map[string]func(*class.SecretProviderClass){
		"another name":     func(c *class.SecretProviderClass) { c.Name = "kv-0123456789" },
		"another provider": func(c *class.SecretProviderClass) { c.Spec.Provider = "vault" },
		"another vault":    func(c *class.SecretProviderClass) { c.Spec.Parameters["keyvaultName"] = "other-kv" },
		"a parameter more": func(c *class.SecretProviderClass) { c.Spec.Parameters["useVMManagedIdentity"] = "true" },
		"a parameter less": func(c *class.SecretProviderClass) { delete(c.Spec.Parameters, "clientID") },
		"no parameters":    func(c *class.SecretProviderClass) { c.Spec.Parameters = nil },
		"another Secret":   func(c *class.SecretProviderClass) { c.Spec.SecretObjects[0].SecretName = "other" },
		"another type":     func(c *class.SecretProviderClass) { c.Spec.SecretObjects[0].Type = "kubernetes.io/tls" },
		"another key":      func(c *class.SecretProviderClass) { c.Spec.SecretObjects[0].Data[0].Key = "other" },
		"another file":     func(c *class.SecretProviderClass) { c.Spec.SecretObjects[0].Data[0].ObjectName = "other" },
		"a Secret more": func(c *class.SecretProviderClass) {
			c.Spec.SecretObjects = append(c.Spec.SecretObjects, c.Spec.SecretObjects[0])
		},
		"no Secret":              func(c *class.SecretProviderClass) { c.Spec.SecretObjects = nil },
		"a Secret that is empty": func(c *class.SecretProviderClass) { c.Spec.SecretObjects[0].Data = nil },
	} {
		t.Run(edit, func(t *testing.T) {
			spc := class.Managed(request())
			change(spc)
			if class.IsIntact(spc) {
				t.Errorf("IsIntact is true for an edited class: %v", spc)
			}
		})
	}
	empty := class.Managed(withoutEnv)
	empty.Spec.SecretObjects = []class.SecretObject{{SecretName: empty.Name, Type: "Opaque"}}
	if class.IsIntact(empty) {
		t.Error("IsIntact is true for a class with an empty Secret")
	}
}
