package class_test

import (
	"maps"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
)

// FuzzRead reads classes with arbitrary content: the injector reads every class of the cluster, and
// any tenant may write one.
func FuzzRead(f *testing.F) {
	f.Add("azure", "array:\n- |\n  objectName: a\n  objectType: secret\n", "a", "k")
	f.Add("azure", "array: [&a {objectName: *a}]", "", "")
	f.Add("azure", "%TAG !e! tag:x\n---\narray: [!e!a a]", "", "")
	f.Add("azure", "array:\n- \"{objectVersionHistory: 99999999999999999999}\"", "a/0", "k")
	f.Add("vault", "- objectName: a", "a", "k")
	for _, objects := range attacks.Objects {
		f.Add("azure", objects, "a", "k")
	}
	f.Fuzz(func(t *testing.T, provider, objects, file, key string) {
		var c *class.Class
		limit := attacks.Factor*len(objects) + attacks.Free
		size := attacks.Allocated(limit, func() {
			c = class.Read(&class.SecretProviderClass{Spec: class.Spec{
				Provider: provider, Parameters: map[string]string{"objects": objects},
				SecretObjects: []class.SecretObject{{SecretName: "s", Type: "Opaque", Data: []class.SecretData{{ObjectName: file, Key: key}}}},
			}})
		})
		if size > limit {
			t.Errorf("%d bytes were allocated for %d", size, len(objects))
		}
		if c.Invalid != "" && len(c.Objects) > 0 {
			t.Errorf("class is invalid (%s), but has objects", c.Invalid)
		}
		if len(c.Objects) > len(objects)/len("- a") {
			t.Errorf("%d objects in %d bytes", len(c.Objects), len(objects))
		}
	})
}

// FuzzManaged compares the objects of a managed class with the requested item: no value may break
// the YAML or add an object.
func FuzzManaged(f *testing.F) {
	f.Add("db", "tls/edge.pem", "6a1f", "0400")
	f.Add("0123", "true", "null", "1e3")
	f.Add("a\"\\", "b\u0085- |\u2028  objectName: c", "\x00\x7f\ufeff\u00e9", "😀")
	f.Fuzz(func(t *testing.T, name, alias, version, permission string) {
		for _, s := range []string{name, alias, version, permission} {
			if name == "" || !utf8.ValidString(s) || strings.TrimSpace(s) != s || len(s) > 250 {
				return // the parser returns no such item
			}
		}
		item := api.Item{Name: name, Alias: alias, Version: version, Permission: permission}
		spc := class.Managed(class.Request{Vault: "team-kv", TenantID: guid, Mode: api.ModePodIdentity, Items: []api.Item{item}})
		objects := spc.Spec.Parameters["objects"]
		if i := strings.IndexFunc(objects, func(r rune) bool { return r != '\n' && (r < ' ' || r > '~') }); i >= 0 {
			t.Errorf("not all is printable ASCII: %q", objects[i:])
		}
		var list struct{ Array []string }
		if err := yaml.Unmarshal([]byte(objects), &list); err != nil || len(list.Array) != 1 {
			t.Fatalf("%d objects, %v, in:\n%s", len(list.Array), err, objects)
		}
		var got map[string]string
		if err := yaml.Unmarshal([]byte(list.Array[0]), &got); err != nil {
			t.Fatalf("%v, in:\n%s", err, objects)
		}
		want := map[string]string{"objectName": name, "objectType": "secret", "objectAlias": alias, "objectVersion": strings.ToLower(version), "filePermission": permission}
		maps.DeleteFunc(want, func(_, value string) bool { return value == "" })
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("object (-requested +printed):\n%s", diff)
		}
		back := class.Read(spc)
		if diff := cmp.Diff([]class.Object{{Name: name, Type: "secret", File: item.File()}}, back.Objects); diff != "" || back.Invalid != "" {
			t.Errorf("read back, %s it differs (-want +got):\n%s", back.Invalid, diff)
		}
	})
}
