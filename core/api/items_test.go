package api_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
)

const version = "6a1f0c00000000000000000000abcdef"

// secretsPath is where the items of a pod are written.
var secretsPath = field.NewPath("metadata", "annotations").Key(api.Secrets)

// selector parses a valid selector.
func selector(t *testing.T, patterns ...string) api.Selector {
	t.Helper()
	s, err := api.ParseSelector(patterns)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestItems(t *testing.T) {
	for behaviour, test := range map[string]struct {
		value, class, source string
		want                 []api.Item
	}{
		"an object by its name":         {value: "db-password", want: []api.Item{{Name: "db-password"}}},
		"ENV= before it":                {value: "DB=db-password", want: []api.Item{{Name: "db-password", Env: "DB"}}},
		"space around = is ignored":     {value: " DB = db-password ", want: []api.Item{{Name: "db-password", Env: "DB"}}},
		"as PATH after it":              {value: "edge-ca as tls/ca.pem", want: []api.Item{{Name: "edge-ca", Alias: "tls/ca.pem"}}},
		"any space around as":           {value: "edge-ca\t as   ca.pem", want: []api.Item{{Name: "edge-ca", Alias: "ca.pem"}}},
		"a path with as and =":          {value: "n as as, m as a=b", want: []api.Item{{Name: "n", Alias: "as"}, {Name: "m", Alias: "a=b"}}},
		"a vault, a type and a version": {value: "shared-kv/cert:edge-ca@" + version, want: []api.Item{{Name: "edge-ca", VaultOrClass: "shared-kv", Type: "cert", Version: version}}},
		"everything at once":            {value: "CA=shared-kv/key:k@" + version + " as k.pem", want: []api.Item{{Name: "k", VaultOrClass: "shared-kv", Type: "key", Version: version, Env: "CA", Alias: "k.pem"}}},
		"empty items are ignored":       {value: ",a,,\n\n b ,\n", want: []api.Item{{Name: "a"}, {Name: "b"}}},
		"lines with # are comments":     {value: "a\n  # b, c\nd", want: []api.Item{{Name: "a"}, {Name: "d"}}},
		"a Windows line end is space":   {value: "a\r\nb\r\n", want: []api.Item{{Name: "a"}, {Name: "b"}}},
		"a YAML list with every field": {
			value: "- objectName: edge-cert\n  objectAlias: tls/edge.pem\n  objectType: secret\n  objectFormat: pfx\n  objectEncoding: base64\n  objectVersion: " + version +
				"\n  filePermission: 0400\n  objectVersionHistory: 3\n  env: EDGE\n  vault: other-kv\n  containers: [app, '!init']\n",
			want: []api.Item{{
				Name: "edge-cert", Alias: "tls/edge.pem", Type: "secret", Format: "pfx", Encoding: "base64", Version: version, Permission: "0400", History: 3,
				Env: "EDGE", VaultOrClass: "other-kv", Containers: selector(t, "app", "!init"),
			}},
		},
		"a JSON list":                             {value: `[{"objectName":"a"},{"objectName":"b","objectVersionHistory":0}]`, want: []api.Item{{Name: "a"}, {Name: "b"}}},
		"a single mapping is a list of one":       {value: `{"objectName":"a"}`, want: []api.Item{{Name: "a"}}},
		"the start of a YAML document":            {value: "---\n- objectName: a\n", want: []api.Item{{Name: "a"}}},
		"names that YAML reads as other types":    {value: "- objectName: 0400\n- objectName: true\n", want: []api.Item{{Name: "0400"}, {Name: "true"}}},
		"with a class, the class before the /":    {value: "P=my.class/a as b", class: "my.class", want: []api.Item{{Name: "a", VaultOrClass: "my.class", Env: "P", Alias: "b"}}},
		"with a class, env vars of any path":      {value: "P=a as b+c", class: "c", want: []api.Item{{Name: "a", Env: "P", Alias: "b+c"}}},
		"equal paths in different vaults":         {value: "a, other-kv/a", want: []api.Item{{Name: "a"}, {Name: "a", VaultOrClass: "other-kv"}}},
		"paths with the same prefix":              {value: "a, b as a-b, c as a.d", want: []api.Item{{Name: "a"}, {Name: "b", Alias: "a-b"}, {Name: "c", Alias: "a.d"}}},
		"a mode of three digits and one of four":  {value: "- {objectName: a, filePermission: '600'}\n- {objectName: b, filePermission: '0644'}", want: []api.Item{{Name: "a", Permission: "600"}, {Name: "b", Permission: "0644"}}},
		"a property":                              {value: "P=shared-kv/secret:db@" + version + "#auths.https://a.azurecr.io/v1/.auth as db.json", source: "file", want: []api.Item{{Name: "db", VaultOrClass: "shared-kv", Type: "secret", Version: version, Property: "auths.https://a.azurecr.io/v1/.auth", Env: "P", Alias: "db.json"}}},
		"a property in the structured form":       {value: "[{objectName: db, property: a.b, env: P}]", source: "file", want: []api.Item{{Name: "db", Property: "a.b", Env: "P"}}},
		"a file for an env var may have any path": {value: "P=a as b+c", source: "file", want: []api.Item{{Name: "a", Env: "P", Alias: "b+c"}}},
		"a key in the Secret":                     {value: "[{objectName: db, env: P, secretKey: tls.key}]", want: []api.Item{{Name: "db", Env: "P", SecretKey: "tls.key"}}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := map[string]string{api.Secrets: test.value, api.Vault: "team-kv"}
			if test.source != "" {
				pod[api.EnvSource] = test.source
			}
			if test.class != "" {
				pod[api.Class] = test.class
			}
			request, errs, _ := api.ParseRequest(api.Annotations{Pod: pod})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(test.want, request.Items); diff != "" {
				t.Errorf("items differ (-want +got):\n%s", diff)
			}
		})
	}
}

func TestItemMistakes(t *testing.T) {
	item := func(i int, name ...string) *field.Path {
		path := secretsPath.Index(i)
		for _, n := range name {
			path = path.Child(n)
		}
		return path
	}
	invalid := func(path *field.Path, detail string) *field.Error {
		return api.Because(api.InvalidItem, field.Invalid(path, nil, detail))
	}
	for behaviour, test := range map[string]struct {
		value, class, env string
		want              field.ErrorList
	}{
		"no item at all":                                    {value: "# none\n,", want: field.ErrorList{api.Because(api.InvalidItem, field.Required(secretsPath, "at least one item"))}},
		"an empty list":                                     {value: "[]", want: field.ErrorList{api.Because(api.InvalidItem, field.Required(secretsPath, "at least one item"))}},
		"too many items":                                    {value: strings.Repeat("a,", 101), want: field.ErrorList{api.Because(api.InvalidItem, field.TooMany(secretsPath, 101, 100))}},
		"every item with its number":                        {value: "ok, no_good, fine, a.b", want: field.ErrorList{invalid(item(1), "write no-good"), invalid(item(3, "objectName"), "1 to 127")}},
		"an object's name too long":                         {value: strings.Repeat("a", 128), want: field.ErrorList{invalid(item(0, "objectName"), "1 to 127")}},
		"nothing before =":                                  {value: "=a", want: field.ErrorList{invalid(item(0), "before =")}},
		"nothing after =":                                   {value: "A=", want: field.ErrorList{invalid(item(0, "objectName"), "1 to 127")}},
		"nothing before /":                                  {value: "/a", want: field.ErrorList{invalid(item(0), "before /")}},
		"nothing before :":                                  {value: ":a", want: field.ErrorList{invalid(item(0), "before :")}},
		"nothing after @":                                   {value: "a@", want: field.ErrorList{invalid(item(0), "after @")}},
		"two objects with a space between":                  {value: "a b", want: field.ErrorList{invalid(item(0), "a comma or a newline")}},
		"an env var that starts with a digit":               {value: "1A=a", want: field.ErrorList{invalid(item(0, "env"), "not starting with a digit")}},
		"a vault's name too short":                          {value: "kv/a", want: field.ErrorList{invalid(item(0, "vault"), "3 to 24")}},
		"a vault that starts with a digit":                  {value: "425-kv/a", want: field.ErrorList{invalid(item(0, "vault"), "starting with a letter")}},
		"an unknown type":                                   {value: "certificate:a", want: field.ErrorList{api.Because(api.InvalidItem, field.NotSupported[string](item(0, "objectType"), nil, nil))}},
		"a type in capitals":                                {value: "Secret:a", want: field.ErrorList{api.Because(api.InvalidItem, field.NotSupported[string](item(0, "objectType"), nil, nil))}},
		"a version too short":                               {value: "a@6a1f0c", want: field.ErrorList{invalid(item(0, "objectVersion"), "32 hex digits")}},
		"a path outside the mount":                          {value: "a as ../b", want: field.ErrorList{invalid(item(0, "objectAlias"), `".."`)}},
		"an absolute path":                                  {value: "a as /b", want: field.ErrorList{invalid(item(0, "objectAlias"), "relative")}},
		"an empty segment":                                  {value: "a as b//c", want: field.ErrorList{invalid(item(0, "objectAlias"), "empty")}},
		"a path that ends in a slash":                       {value: "a as b/", want: field.ErrorList{invalid(item(0, "objectAlias"), "empty")}},
		"a backslash":                                       {value: `a as b\c`, want: field.ErrorList{invalid(item(0, "objectAlias"), "backslash")}},
		"space around a segment":                            {value: `[{objectName: a, objectAlias: "b /c"}]`, want: field.ErrorList{invalid(item(0, "objectAlias"), "space")}},
		"a missing comma":                                   {value: "a as tls/ca.pem DB=db", want: field.ErrorList{invalid(secretsPath.Index(0), "comma")}},
		"a line separator in a path":                        {value: "a as b\u2028- c", want: field.ErrorList{invalid(secretsPath.Index(0), "comma")}},
		"a line separator in a structured path":             {value: `[{objectName: a, objectAlias: "b\u2028c"}]`, want: field.ErrorList{invalid(item(0, "objectAlias"), "printed")}},
		"a vault before the env var":                        {value: "prodkv/A=one", want: field.ErrorList{invalid(secretsPath.Index(0), "A=prodkv/one")}},
		"an address":                                        {value: "https://shop.vault.azure.net/secrets/a", want: field.ErrorList{invalid(secretsPath.Index(0), "write shop/a")}},
		"a mistake and a clash":                             {value: "b@1, a, a", want: field.ErrorList{invalid(item(0, "objectVersion"), "hex"), api.Because(api.InvalidItem, field.Duplicate(item(2, "objectAlias"), "a"))}},
		"a path too long for the driver":                    {value: "a as " + strings.Repeat("x/", 512) + "x", want: field.ErrorList{invalid(item(0, "objectAlias"), "1024 bytes")}},
		"a segment too long for a file system":              {value: "a as " + strings.Repeat("x", 256), want: field.ErrorList{invalid(item(0, "objectAlias"), "255 bytes")}},
		"a duplicate path":                                  {value: "a, b as a", want: field.ErrorList{api.Because(api.InvalidItem, field.Duplicate(item(1, "objectAlias"), nil))}},
		"a file where another needs a folder":               {value: "a, b as a/b", want: field.ErrorList{invalid(item(1, "objectAlias"), "path of item 0")}},
		"a folder where another is a file":                  {value: "b as a/b, a", want: field.ErrorList{invalid(item(1, "objectAlias"), "path of item 0")}},
		"a duplicate path in one vault, named in two cases": {value: "Team-KV/a, a", want: field.ErrorList{api.Because(api.InvalidItem, field.Duplicate(item(1, "objectAlias"), nil))}},
		"nothing after #":                                   {value: "A=a#", want: field.ErrorList{invalid(item(0), "after #")}},
		"a property with a synced Secret":                   {value: "A=a#b", want: field.ErrorList{api.Because(api.InvalidItem, field.Forbidden(item(0, "property"), "env-source must be file"))}},
		"a property without an env var":                     {value: "a#b", want: field.ErrorList{api.Because(api.InvalidItem, field.Forbidden(item(0, "property"), "must have an env var"))}},
		"a property with an empty name":                     {value: "A=a#b..c", want: field.ErrorList{invalid(item(0, "property"), "without empty names")}},
		"a property of a certificate":                       {value: "A=cert:a#b", want: field.ErrorList{invalid(item(0, "property"), "only an object of type secret")}},
		"a key in a Secret that is not synced":              {value: "[{objectName: a, secretKey: b}]", want: field.ErrorList{api.Because(api.InvalidItem, field.Forbidden(item(0, "secretKey"), "must become a key"))}},
		"a key in a Secret that is not valid":               {value: "[{objectName: a, env: A, secretKey: b/c}]", want: field.ErrorList{invalid(item(0, "secretKey"), "253 letters")}},
		"a key in the Secret of an existing class":          {value: "[{objectName: a, env: A, secretKey: b}]", class: "c", want: field.ErrorList{api.Because(api.InvalidItem, field.Forbidden(item(0, "secretKey"), "the class names the key"))}},
		"a path that is not valid as a Secret's key":        {value: "A=a as b+c", want: field.ErrorList{invalid(item(0, "objectAlias"), "a key of a Secret")}},
		"the same where env is auto":                        {value: "x, a as b+c", env: "auto", want: field.ErrorList{invalid(item(1, "objectAlias"), "a key of a Secret")}},
		"a path too long for a Secret's key":                {value: "A=a as " + strings.Repeat("abcdefg/", 31) + "abcdef", want: field.ErrorList{invalid(item(0, "objectAlias"), "at most 253")}},
		"a bad mode":                                        {value: "- {objectName: a, filePermission: '0800'}", want: field.ErrorList{invalid(item(0, "filePermission"), "octal")}},
		"a mode with special bits":                          {value: "- {objectName: a, filePermission: '4755'}", want: field.ErrorList{invalid(item(0, "filePermission"), "octal")}},
		"pfx of a certificate":                              {value: "- {objectName: a, objectType: cert, objectFormat: pfx}", want: field.ErrorList{invalid(item(0, "objectFormat"), "must be pem")}},
		"an unknown format":                                 {value: "- {objectName: a, objectFormat: der}", want: field.ErrorList{api.Because(api.InvalidItem, field.NotSupported[string](item(0, "objectFormat"), nil, nil))}},
		"an encoding of a key":                              {value: "- {objectName: a, objectType: key, objectEncoding: hex}", want: field.ErrorList{invalid(item(0, "objectEncoding"), "must be omitted")}},
		"an unknown encoding":                               {value: "- {objectName: a, objectEncoding: ascii}", want: field.ErrorList{api.Because(api.InvalidItem, field.NotSupported[string](item(0, "objectEncoding"), nil, nil))}},
		"a history that is not a number":                    {value: "- {objectName: a, objectVersionHistory: many}", want: field.ErrorList{invalid(item(0, "objectVersionHistory"), "whole number")}},
		"a history below zero":                              {value: "- {objectName: a, objectVersionHistory: -1}", want: field.ErrorList{invalid(item(0, "objectVersionHistory"), "between 0 and 100")}},
		"a history above the limit":                         {value: "- {objectName: a, objectVersionHistory: 101}", want: field.ErrorList{invalid(item(0, "objectVersionHistory"), "between 0 and 100")}},
		"an unknown field":                                  {value: "- {objectName: a, objectAliass: b}", want: field.ErrorList{api.Because(api.InvalidItem, field.Forbidden(item(0, "objectAliass"), "did you mean objectAlias"))}},
		"a field twice":                                     {value: "- {objectName: a, env: A, env: B}", want: field.ErrorList{api.Because(api.InvalidItem, field.Duplicate(item(0, "env"), nil))}},
		"an empty field":                                    {value: "- {objectName: a, env: ''}", want: field.ErrorList{invalid(item(0, "env"), "non-empty string")}},
		"a null field":                                      {value: "- {objectName: a, vault: null}", want: field.ErrorList{invalid(item(0, "vault"), "non-empty string")}},
		"a list instead of a string":                        {value: "- {objectName: [a]}", want: field.ErrorList{invalid(item(0, "objectName"), "must be a non-empty string")}},
		"no objectName":                                     {value: "- env: A", want: field.ErrorList{api.Because(api.InvalidItem, field.Required(item(0, "objectName"), "name of the object"))}},
		"a list of plain names":                             {value: "- a\n- b", want: field.ErrorList{invalid(item(0), "mapping"), invalid(item(1), "mapping")}},
		"invalid YAML":                                      {value: "[a: b", want: field.ErrorList{invalid(secretsPath, "YAML or JSON list")}},
		"a second document":                                 {value: "- objectName: a\n---\n- objectName: b", want: field.ErrorList{invalid(secretsPath, "only document")}},
		"something after a JSON list":                       {value: `[{"objectName":"a"}], b`, want: field.ErrorList{invalid(secretsPath, "YAML or JSON list")}},
		"a mapping instead of a list of containers":         {value: "- {objectName: a, containers: {b: c}}", want: field.ErrorList{invalid(item(0, "containers"), "list of container names")}},
		"an empty list of containers":                       {value: "- {objectName: a, containers: []}", want: field.ErrorList{invalid(item(0, "containers"), "at least one container")}},
		"every mistake of an item, by field":                {value: "1=x/y:z_@1 as ..", want: field.ErrorList{invalid(item(0, "objectName"), ""), invalid(item(0, "objectAlias"), ""), api.Because(api.InvalidItem, field.NotSupported[string](item(0, "objectType"), nil, nil)), invalid(item(0, "objectVersion"), ""), invalid(item(0, "env"), ""), invalid(item(0, "vault"), "")}},
		"with a class, what the class decides":              {class: "c", value: "- {objectName: a, objectVersion: " + version + ", objectVersionHistory: 2, objectFormat: pem, objectEncoding: hex, filePermission: '0400'}", want: forbidden(0, "objectVersion", "objectVersionHistory", "objectFormat", "objectEncoding", "filePermission")},
		"with classes, an item of another class":            {class: "c1,c2", value: "c3/a", want: field.ErrorList{invalid(item(0, "vault"), "did you mean c1")}},
		"with a class, an item of a vault":                  {class: "app-secrets", value: "team-kv/a", want: field.ErrorList{invalid(item(0, "vault"), "cannot name a vault")}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := map[string]string{api.Secrets: test.value, api.Vault: "team-kv"}
			if test.class != "" {
				pod[api.Class] = test.class
			}
			if test.env != "" {
				pod[api.Env] = test.env
			}
			_, errs, _ := api.ParseRequest(api.Annotations{Pod: pod})
			field.ErrorMatcher{}.ByType().ByField().ByOrigin().ByDetailSubstring().Test(t, test.want, errs)
			if len(test.want) == len(errs) {
				for i := range errs {
					if errs[i].Field != test.want[i].Field {
						t.Errorf("error %d is about %s, want %s: errors are in the order of the fields", i, errs[i].Field, test.want[i].Field)
					}
				}
			}
		})
	}
}

func forbidden(i int, names ...string) field.ErrorList {
	var errs field.ErrorList
	for _, name := range names {
		errs = append(errs, api.Because(api.InvalidItem, field.Forbidden(secretsPath.Index(i).Child(name), "the class sets it")))
	}
	return errs
}

func TestItemAnswers(t *testing.T) {
	for behaviour, test := range map[string]struct {
		item            api.Item
		path, file, env string // env is for mode auto
	}{
		"a secret":                                   {item: api.Item{Name: "db-password"}, path: "db-password", file: "db-password", env: "DB_PASSWORD"},
		"an alias is not used for the env var":       {item: api.Item{Name: "a-b", Alias: "x/y"}, path: "x/y", file: "x/y", env: "A_B"},
		"an explicit env var wins":                   {item: api.Item{Name: "a", Env: "own"}, path: "a", file: "a", env: "own"},
		"a key has no automatic env var":             {item: api.Item{Name: "a", Type: "key"}, path: "a", file: "a"},
		"a certificate with an explicit env var":     {item: api.Item{Name: "a", Type: "cert", Env: "CERT"}, path: "a", file: "a", env: "CERT"},
		"a name that starts with a digit":            {item: api.Item{Name: "2fa"}, path: "2fa", file: "2fa", env: "_2FA"},
		"a history of one is the file itself":        {item: api.Item{Name: "a", History: 1}, path: "a", file: "a", env: "A"},
		"a longer history is a folder, newest first": {item: api.Item{Name: "a", Alias: "b", History: 2}, path: "b", file: "b/0", env: "A"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := []string{test.item.Path(), test.item.File(), test.item.EnvFor(api.EnvAuto)}; !cmp.Equal(got, []string{test.path, test.file, test.env}) {
				t.Errorf("path, file and env var are %q, want %q", got, []string{test.path, test.file, test.env})
			}
			if got := test.item.EnvFor(api.EnvExplicit); got != test.item.Env {
				t.Errorf("explicit env var is %q, want %q", got, test.item.Env)
			}
		})
	}
}

// TestAttacks shows that a value that would be expensive to parse is rejected with a short message,
// before it uses memory.
func TestAttacks(t *testing.T) {
	for name, secrets := range attacks.Secrets {
		t.Run(name, func(t *testing.T) {
			const limit = 1 << 20
			var errs field.ErrorList
			size := attacks.Allocated(limit, func() {
				_, errs, _ = api.ParseRequest(api.Annotations{Pod: map[string]string{api.Secrets: secrets, api.Vault: "team-kv"}})
			})
			if size > limit {
				t.Errorf("%d bytes were allocated for %d", size, len(secrets))
			}
			if len(errs) != 1 || len(api.Message(errs[0])) > 1024 {
				t.Errorf("%d errors: %.1000v", len(errs), errs)
			}
		})
	}
}
