package class_test

import (
	"fmt"
	"maps"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
)

func TestRead(t *testing.T) {
	type parameters = map[string]string
	for behaviour, test := range map[string]struct {
		spec class.Spec
		want class.Class // without its name, and with the default provider unless it sets one
	}{
		"vault and pod identity": {
			spec: class.Spec{Parameters: parameters{"keyvaultName": " team-kv ", "usePodIdentity": "true"}},
			want: class.Class{Vault: "team-kv", UsesPodIdentity: true},
		},
		"a client id is workload identity": {
			spec: class.Spec{Parameters: parameters{"clientID": guid, "usePodIdentity": "false"}},
			want: class.Class{ClientID: guid},
		},
		"a client id that is no GUID": {spec: class.Spec{Parameters: parameters{"clientID": "${ID}"}}, want: class.Class{InvalidClientID: "${ID}"}},
		"an invalid boolean is false": {spec: class.Spec{Parameters: parameters{"usePodIdentity": "yes"}}},
		"objects, with an alias as the file": {
			spec: class.Spec{Parameters: parameters{"objects": "array:\n  - |\n    objectName: a\n    objectType: secret\n  - |\n    objectName: b\n    objectType: cert\n    objectAlias: tls/b.pem\n    objectVersion: \"\"\n"}},
			want: class.Class{Objects: []class.Object{{Name: "a", Type: "secret", File: "a"}, {Name: "b", Type: "cert", File: "tls/b.pem"}}},
		},
		"objects in one line": {
			spec: class.Spec{Parameters: parameters{"objects": `array: ["objectName: a", '{"objectName": "b"}']`}},
			want: class.Class{Objects: []class.Object{{Name: "a", File: "a"}, {Name: "b", File: "b"}}},
		},
		"a history's newest file": {
			spec: class.Spec{Parameters: parameters{"objects": "array:\n- |\n  objectName: a\n  objectVersionHistory: 3\n- |\n  objectName: b\n  objectVersionHistory: 1\n"}},
			want: class.Class{Objects: []class.Object{{Name: "a", File: "a/0"}, {Name: "b", File: "b"}}},
		},
		"the keys of synced Secrets, in order": {
			spec: class.Spec{SecretObjects: []class.SecretObject{
				{SecretName: " s ", Type: "Opaque", Data: []class.SecretData{{ObjectName: " tls/b.pem ", Key: " b "}, {ObjectName: "a", Key: "a"}}},
				{SecretName: "t", Type: "kubernetes.io/tls", Data: []class.SecretData{{ObjectName: "a", Key: "tls.crt"}}},
			}},
			want: class.Class{Synced: []class.Synced{
				{File: "tls/b.pem", Secret: "s", Key: "b", Type: "Opaque"},
				{File: "a", Secret: "s", Key: "a", Type: "Opaque"},
				{File: "a", Secret: "t", Key: "tls.crt", Type: "kubernetes.io/tls"},
			}},
		},
		"what the driver does not sync": {
			spec: class.Spec{SecretObjects: []class.SecretObject{
				{Type: "Opaque", Data: []class.SecretData{{ObjectName: "a", Key: "no-name"}}},
				{SecretName: "s", Data: []class.SecretData{{ObjectName: "a", Key: "no-type"}}},
				{SecretName: "s", Type: "Opaque", Data: []class.SecretData{{ObjectName: "a", Key: ""}, {Key: "no-object"}}},
				{SecretName: "s", Type: "Opaque"},
			}},
			want: class.Class{Untyped: []class.Synced{{File: "a", Secret: "s", Key: "no-type"}}},
		},
		"objects of another provider are not read": {
			spec: class.Spec{Provider: "vault", Parameters: parameters{"objects": "- objectName: a\n  secretPath: x"}},
			want: class.Class{Provider: "vault"},
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			for _, provider := range []*string{&test.spec.Provider, &test.want.Provider} {
				if *provider == "" {
					*provider = "azure"
				}
			}
			test.want.Name = "c"
			got := class.Read(&class.SecretProviderClass{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Spec: test.spec})
			if len(got.Objects) == 0 {
				got.Objects = nil
			}
			got.Rejected = "" // see TestRejected
			if diff := cmp.Diff(&test.want, got); diff != "" {
				t.Errorf("class differs (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReadMistakes(t *testing.T) {
	for behaviour, test := range map[string]struct{ objects, want string }{
		"no YAML":                {"array: [", "spec.parameters.objects: "},
		"no array of strings":    {"array:\n- objectName: a\n", "spec.parameters.objects: "},
		"no list":                {"arry:\n- 'objectName: a'\n", `spec.parameters.objects must have a list "array"`},
		"an empty list":          {"array:\n", `spec.parameters.objects must have a list "array"`},
		"an object that is none": {"array:\n- 'objectName: a'\n- 'objectName: [b]'\n", "spec.parameters.objects: array[1]: "},
	} {
		t.Run(behaviour, func(t *testing.T) {
			c := read(test.objects)
			if !strings.HasPrefix(c.Invalid, test.want) || c.Objects != nil {
				t.Errorf("objects are %v, invalid since %q; want none, since %q…", c.Objects, c.Invalid, test.want)
			}
		})
	}
}

// TestRejected has classes that the Azure provider rejects; an empty answer is one that it accepts.
func TestRejected(t *testing.T) {
	objects := func(fields string) string {
		return "array:\n- |\n  " + strings.ReplaceAll(fields, "\n", "\n  ") + "\n"
	}
	for behaviour, test := range map[string]struct {
		parameters map[string]string // change those of a class that is accepted; "" removes one
		provider   string
		want       string
	}{
		"all that a class needs":                {},
		"no vault":                              {parameters: map[string]string{"keyvaultName": ""}, want: "spec.parameters.keyvaultName must be set"},
		"nothing":                               {parameters: map[string]string{"keyvaultName": " ", "tenantID": "", "objects": ""}, want: "spec.parameters.keyvaultName and spec.parameters.tenantID and spec.parameters.objects must be set"},
		"the old name of the tenant":            {parameters: map[string]string{"tenantID": "", "tenantId": guid}},
		"another provider":                      {parameters: map[string]string{"keyvaultName": ""}, provider: "aws"},
		"a vault's URL":                         {parameters: map[string]string{"keyvaultName": "https://team-kv.vault.azure.net"}, want: `spec.parameters.keyvaultName must be 3 to 24 letters, digits or -, is "https://team-kv.vault.azure.net"`},
		"a cloud":                               {parameters: map[string]string{"cloudName": "AzureChinaCloud"}},
		"no cloud":                              {parameters: map[string]string{"cloudName": "China"}, want: `spec.parameters.cloudName must be AzurePublicCloud, AzureUSGovernmentCloud, AzureChinaCloud or AzureStackCloud, is "China"`},
		"a boolean that is none":                {parameters: map[string]string{"usePodIdentity": "yes"}, want: `spec.parameters.usePodIdentity must be "true" or "false", is "yes"`},
		"two ways to sign in":                   {parameters: map[string]string{"usePodIdentity": "true", "useVMManagedIdentity": "true"}, want: `only one of usePodIdentity and useVMManagedIdentity in spec.parameters must be "true"`},
		"objects that cannot be read":           {parameters: map[string]string{"objects": "- objectName: a"}, want: `spec.parameters.objects: must have a list "array" of texts, each with the fields of an object below "- |"`},
		"objects that are mappings":             {parameters: map[string]string{"objects": "array:\n- objectName: a\n"}, want: `spec.parameters.objects: must have a list "array" of texts, each with the fields of an object below "- |"`},
		"an object without a name":              {parameters: map[string]string{"objects": objects("objectType: secret")}, want: "spec.parameters.objects: array[0]: objectName must be set"},
		"an object without a type":              {parameters: map[string]string{"objects": objects("objectName: a")}, want: `spec.parameters.objects: array[0]: objectType must be secret, key or cert, is ""`},
		"a type in the plural":                  {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: secrets")}, want: `spec.parameters.objects: array[0]: objectType must be secret, key or cert, is "secrets"`},
		"a format":                              {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: cert\nobjectFormat: PEM")}},
		"no format":                             {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: secret\nobjectFormat: der")}, want: `spec.parameters.objects: array[0]: objectFormat must be pem or pfx, is "der"`},
		"a format of secrets only":              {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: cert\nobjectFormat: pfx")}, want: "spec.parameters.objects: array[0]: objectFormat must be pem: only an object of type secret can be mounted as pfx"},
		"an encoding":                           {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: secret\nobjectEncoding: HEX")}},
		"no encoding":                           {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: secret\nobjectEncoding: utf8")}, want: `spec.parameters.objects: array[0]: objectEncoding must be utf-8, hex or base64, is "utf8"`},
		"an encoding of secrets only":           {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: key\nobjectEncoding: hex")}, want: "spec.parameters.objects: array[0]: objectEncoding must be left out: only an object of type secret has one"},
		"an alias out of the mount":             {parameters: map[string]string{"objects": objects("objectName: a\nobjectType: secret\nobjectAlias: ../a")}, want: `spec.parameters.objects: array[0]: objectAlias must be a relative path without "..", is "../a"`},
		"the parameters, then the first object": {parameters: map[string]string{"keyvaultName": "", "objects": objects("objectName: a")}, want: "spec.parameters.keyvaultName must be set"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if test.provider == "" {
				test.provider = class.Provider
			}
			spec := class.Spec{Provider: test.provider, Parameters: map[string]string{
				"keyvaultName": "team-kv", "tenantID": guid, "objects": objects("objectName: a\nobjectType: secret"),
			}}
			maps.Copy(spec.Parameters, test.parameters)
			if got := class.Read(&class.SecretProviderClass{Spec: spec}).Rejected; got != test.want {
				t.Errorf("rejected since %q, want %q", got, test.want)
			}
		})
	}
}

// TestReadIsBounded shows that time and memory are bounded by the length of a class. Without
// limits, each of these would take seconds or gigabytes.
func TestReadIsBounded(t *testing.T) {
	keys := func(n int) string {
		var b strings.Builder
		for i := range n {
			fmt.Fprintf(&b, "k%d: x\n", i)
		}
		return b.String()
	}
	for behaviour, test := range map[string]struct{ objects, want string }{
		"an object many times": {
			"x: &x |\n  objectName: a\n  #" + strings.Repeat("…", 100_000) + "\narray: [" + strings.Repeat("*x,", 900) + "]", "line 4: must have no aliases",
		},
		"an alias in an object":   {"array:\n- '{a: &a [b], c: *a}'", "array[0]: line 1: must have no aliases"},
		"too many objects":        {"array: [" + strings.Repeat("'{}',", 1001) + "]", "array: must have at most 1000 objects, has 1001"},
		"many keys":               {keys(5_000) + "array: []", "line 1: must have at most 100 keys, has 5001"},
		"the same key many times": {"array: [{" + strings.Repeat("a: b,", 5_000) + "}]", "line 1: must have at most 100 keys, has 5000"},
		"too many nodes":          {"array: [" + strings.Repeat("a,", 100_000) + "]", "must have at most 50000 lines, commas, colons and brackets, has 100002"},
		"a text that is too long": {"array: ['" + strings.Repeat("a", 1<<20) + "']", "must be at most 524288 bytes, is 1048587"},
		"many keys in an object":  {"array:\n- |\n  " + strings.ReplaceAll(keys(101), "\n", "\n  "), "array[0]: line 1: must have at most 100 keys, has 101"},
		"long tags":               {"%TAG !e! tag:" + strings.Repeat("x", 100_000) + "\n---\na: [" + strings.Repeat("!e!a a,", 10_000) + "]\narray: []", "must have no directives"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			c := read(test.objects)
			if want := "spec.parameters.objects: " + test.want; c.Invalid != want || c.Objects != nil {
				t.Errorf("%d objects, invalid since %q; want none, since %q", len(c.Objects), c.Invalid, want)
			}
		})
	}
	for name, objects := range attacks.Objects {
		t.Run(name, func(t *testing.T) {
			var c *class.Class
			limit := 10 * len(objects)
			if size := attacks.Allocated(limit, func() { c = read(objects) }); size > limit {
				t.Errorf("%d bytes were allocated for %d", size, len(objects))
			}
			if c.Invalid == "" || len(c.Invalid) > 1024 || c.Objects != nil {
				t.Errorf("%d objects, invalid since %q", len(c.Objects), c.Invalid)
			}
		})
	}
	if c := read("array:\n" + strings.Repeat("- {}\n", 100_000)); c.Invalid == "" || len(c.Invalid) > 1024 {
		t.Errorf("the reason has %d bytes", len(c.Invalid))
	}
}

// read reads an Azure class with that parameter "objects".
func read(objects string) *class.Class {
	return class.Read(&class.SecretProviderClass{Spec: class.Spec{Provider: "azure", Parameters: map[string]string{"objects": objects}}})
}
