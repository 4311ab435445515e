package api_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
)

const guid = "72f988bf-86f1-41af-91ab-2d7cd011db47"

// defaults is the request without annotations.
var defaults = api.Request{Mode: "auto", MountPath: "/mnt/secrets-store", EnvMode: "explicit", EnvSource: "secret", SecretType: "Opaque", OnConflict: "keep", OnRotation: "ignore"}

func TestParseRequest(t *testing.T) {
	type annotations = map[string]string
	for behaviour, test := range map[string]struct {
		pod, namespace annotations
		want           func(*api.Request)
		origins        map[string]api.Origin
	}{
		"no annotations": {},
		"every key": {
			pod: annotations{
				"identity.io/name": " access-blob ", "identity.io/mode": "workload-identity", "identity.io/client-id": guid, "identity.io/tenant-id": strings.ToUpper(guid),
				"keyvault.io/secrets": "a", "keyvault.io/vault": "team-kv", "keyvault.io/mount-path": "/etc/kv/", "keyvault.io/containers": "app, !side*",
				"keyvault.io/cloud": "AzureChinaCloud", "keyvault.io/env-source": "file", "keyvault.io/secret-name": "tls",
				"keyvault.io/secret-type": "kubernetes.io/tls", "keyvault.io/env": "auto", "keyvault.io/on-conflict": "override", "keyvault.io/on-rotation": "restart",
				"keyvault.io/inject": "false", "keyvault.io/status": "forged", "keyvault.io/restarted-for": "forged",
			},
			want: func(r *api.Request) {
				r.Identity, r.Mode, r.ClientID, r.TenantID = "access-blob", "workload-identity", guid, strings.ToUpper(guid)
				r.Items, r.Vault, r.MountPath, r.Containers = []api.Item{{Name: "a"}}, "team-kv", "/etc/kv", selector(t, "app", "!side*")
				r.Cloud, r.EnvSource, r.SecretName, r.SecretType = "AzureChinaCloud", "file", "tls", "kubernetes.io/tls"
				r.EnvMode, r.OnConflict, r.OnRotation, r.OptedOut = "auto", "override", "restart", true
			},
			origins: map[string]api.Origin{api.IdentityName: api.FromPod, api.Class: api.Unset, api.Status: api.Unset, "other": api.Unset},
		},
		"the pod's value wins over the namespace's": {
			pod: annotations{"keyvault.io/vault": "pod-kv"}, namespace: annotations{"keyvault.io/vault": "default-kv", "identity.io/name": "team"},
			want:    func(r *api.Request) { r.Vault, r.Identity = "pod-kv", "team" },
			origins: map[string]api.Origin{api.Vault: api.FromPod, api.IdentityName: api.FromNamespace, api.Env: api.Unset},
		},
		"an empty value of the pod unsets a default": {
			pod: annotations{"identity.io/name": "", "keyvault.io/mount-path": ""}, namespace: annotations{"identity.io/name": "team", "keyvault.io/mount-path": "/x"},
			want:    func(*api.Request) {},
			origins: map[string]api.Origin{api.IdentityName: api.Unset, api.MountPath: api.Unset},
		},
		"an empty default is ignored":   {namespace: annotations{"identity.io/name": "", "keyvault.io/vault": " "}},
		"an invalid default is ignored": {namespace: annotations{"identity.io/mode": "pod"}, origins: map[string]api.Origin{api.IdentityMode: api.Unset}},
		"existing classes in their order": {
			pod: annotations{"keyvault.io/class": "b , a.c"}, want: func(r *api.Request) { r.Classes = []string{"b", "a.c"} },
		},
		"a namespace's classes for a pod's items": {
			pod: annotations{"keyvault.io/secrets": "x/a"}, namespace: annotations{"keyvault.io/class": "x"},
			want: func(r *api.Request) { r.Classes, r.Items = []string{"x"}, []api.Item{{Name: "a", VaultOrClass: "x"}} },
		},
		"a Windows path": {pod: annotations{"keyvault.io/mount-path": `C:\kv\`}, want: func(r *api.Request) { r.MountPath = `C:\kv` }},
		"foreign keys":   {pod: annotations{"keyvault.example.com/secrets": "a", "identity.iot/name": "b"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			request, errs, _ := api.ParseRequest(api.Annotations{Pod: test.pod, Namespace: test.namespace, NamespaceName: "team-a"})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			want := defaults
			if test.want != nil {
				test.want(&want)
			}
			if diff := cmp.Diff(want, request, sameRequest); diff != "" {
				t.Errorf("request differs (-want +got):\n%s", diff)
			}
			for key, origin := range test.origins {
				if got := request.OriginOf(key); got != origin {
					t.Errorf("%s is from the %s, want %s", key, got, origin)
				}
			}
		})
	}
}

func TestRequestMistakes(t *testing.T) {
	type annotations = map[string]string
	for behaviour, test := range map[string]struct {
		pod, namespace annotations
		path           func(string) *field.Path
		errs, warnings string
	}{
		"a misspelt key": {
			pod:  annotations{"keyvault.io/secret": "a"},
			errs: "[UnknownKey] metadata.annotations[keyvault.io/secret]: Forbidden: must be a key of akv-injector; did you mean keyvault.io/secrets?\n",
		},
		"a key of the namespace on a pod": {
			pod: annotations{"identity.io/enforce": "bound", "keyvault.io/allowed-vaults": "*"},
			errs: "[UnknownKey] metadata.annotations[identity.io/enforce]: Forbidden: must be a label of the Namespace\n" +
				"[UnknownKey] metadata.annotations[keyvault.io/allowed-vaults]: Forbidden: must be an annotation of the Namespace\n",
		},
		"a label of the namespace among its annotations": {
			namespace: annotations{"keyvault.io/injection": "enabled", "keyvault.io/allowed-vaults": "*"},
			warnings:  "[NamespaceDefaultInvalid] namespaces[team-a].metadata.annotations[keyvault.io/injection]: Forbidden: must be a label of the namespace, not an annotation\n",
		},
		"an invalid default is a warning": {
			namespace: annotations{"keyvault.io/env": "yes"},
			warnings:  `[NamespaceDefaultInvalid] namespaces[team-a].metadata.annotations[keyvault.io/env]: Unsupported value: "yes": supported values: "explicit", "auto"` + "\n",
		},
		"an invalid default that the pod overrides": {pod: annotations{"keyvault.io/env": "auto", "keyvault.io/secrets": "kv1/a"}, namespace: annotations{"keyvault.io/env": "yes"}},
		"values of closed sets must match exactly": {
			pod: annotations{"keyvault.io/inject": "False", "keyvault.io/on-conflict": " keep", "identity.io/mode": "Auto"},
			errs: `[InvalidValue] metadata.annotations[identity.io/mode]: Unsupported value: "Auto": supported values: "auto", "pod-identity", "workload-identity", "identity-binding", "none"` + "\n" +
				`[InvalidValue] metadata.annotations[keyvault.io/on-conflict]: Unsupported value: " keep": supported values: "keep", "fail", "override"` + "\n" +
				`[InvalidValue] metadata.annotations[keyvault.io/inject]: Unsupported value: "False": supported values: "true", "false"` + "\n",
		},
		"a blank value": {
			pod:  annotations{"identity.io/name": " \n"},
			errs: `[InvalidValue] metadata.annotations[identity.io/name]: Invalid value: " \n": must not be blank; write "" to unset the namespace's default` + "\n",
		},
		"names and ids": {
			pod: annotations{"identity.io/name": "-x", "identity.io/client-id": "x", "keyvault.io/vault": "https://kv.vault.azure.net"},
			errs: `[InvalidValue] metadata.annotations[identity.io/name]: Invalid value: "-x": must be at most 253 letters, digits, - _ or ., with a letter or digit at both ends` + "\n" +
				`[InvalidValue] metadata.annotations[identity.io/client-id]: Invalid value: "x": must be a GUID, such as 72f988bf-86f1-41af-91ab-2d7cd011db47` + "\n" +
				`[InvalidValue] metadata.annotations[keyvault.io/vault]: Invalid value: "https://kv.vault.azure.net": must be 3 to 24 letters, digits or -, starting with a letter, not a URL` + "\n",
		},
		"mistakes are in the order of the keys": {
			pod: annotations{"keyvault.io/class": "A,b,b", "keyvault.io/secrets": "a.b"},
			errs: `[InvalidItem] metadata.annotations[keyvault.io/secrets][0].objectName: Invalid value: "a.b": must be 1 to 127 letters, digits or -` + "\n" +
				`[InvalidValue] metadata.annotations[keyvault.io/class][0]: Invalid value: "A": must be the name of a SecretProviderClass: lower case letters, digits, - and .; write a` + "\n" +
				`[InvalidValue] metadata.annotations[keyvault.io/class][2]: Duplicate value: "b"` + "\n",
		},
		"a long value is cut": {
			pod:  annotations{"identity.io/client-id": strings.Repeat("ä", 40)},
			errs: `[InvalidValue] metadata.annotations[identity.io/client-id]: Invalid value: "` + strings.Repeat("ä", 30) + `…": must be a GUID, such as 72f988bf-86f1-41af-91ab-2d7cd011db47` + "\n",
		},
		"the path of the annotation in a template": {
			pod: annotations{"keyvault.io/env": "x"},
			path: func(key string) *field.Path {
				return field.NewPath("spec", "template", "metadata", "annotations").Key(key)
			},
			errs: `[InvalidValue] spec.template.metadata.annotations[keyvault.io/env]: Unsupported value: "x": supported values: "explicit", "auto"` + "\n",
		},
		"keys without effect": {
			pod: annotations{"keyvault.io/vault": "team-kv", "keyvault.io/env": "auto"}, namespace: annotations{"keyvault.io/containers": "app"},
			warnings: "[NoEffect] metadata.annotations[keyvault.io/vault]: Forbidden: has no effect without keyvault.io/secrets or keyvault.io/class\n" +
				"[NoEffect] metadata.annotations[keyvault.io/env]: Forbidden: has no effect without keyvault.io/secrets or keyvault.io/class\n",
		},
		"keys without effect with a class": {
			pod: annotations{"keyvault.io/class": "c", "keyvault.io/vault": "team-kv", "keyvault.io/on-conflict": "fail"},
			warnings: "[NoEffect] metadata.annotations[keyvault.io/vault]: Forbidden: has no effect with keyvault.io/class: the class names its vault\n" +
				"[NoEffect] metadata.annotations[keyvault.io/on-conflict]: Forbidden: has no effect without keyvault.io/secrets\n",
		},
		"no warning about effects if the pod opts out": {pod: annotations{"keyvault.io/inject": "false", "keyvault.io/vault": "team-kv"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			_, errs, warnings := api.ParseRequest(api.Annotations{Pod: test.pod, Namespace: test.namespace, NamespaceName: "team-a", Path: test.path})
			if diff := cmp.Diff(lines(test.errs), messages(errs)); diff != "" {
				t.Errorf("errors differ (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(lines(test.warnings), messages(warnings)); diff != "" {
				t.Errorf("warnings differ (-want +got):\n%s", diff)
			}
		})
	}
}

func lines(text string) []string {
	return strings.Split(text, "\n")[:strings.Count(text, "\n")]
}

func TestMountPaths(t *testing.T) {
	for path, wrong := range map[string]string{
		"/mnt": "", "/mnt/a b": "", "/a/": "", `C:\kv`: "", "D:/kv/x": "", `C:\a/b`: "",
		"mnt": "absolute", "./mnt": "absolute", "C:kv": "absolute", "~/kv": "absolute",
		"/": "below the root", `C:\`: "below the root", "//": "below the root",
		"/a/../b": "segments", "/a//b": "segments", "/a/.": "segments", `C:\a\..\b`: "segments",
		"/a:b": "colon", `/a\b`: "backslash", "/a\nb": "control character", `C:\a:b`: "colon",
		"/a /b": "space", "/a/ b": "space", "/a /": "space",
	} {
		_, errs, _ := api.ParseRequest(api.Annotations{Pod: map[string]string{api.MountPath: path}})
		if ok := len(errs) == 0; ok != (wrong == "") || !ok && !strings.Contains(errs[0].Detail, wrong) {
			t.Errorf("mount path %q has errors %v, want %q", path, errs, wrong)
		}
	}
}

// TestPrinting shows what FuzzParseRequest does not check: the printed text, and that it is in the
// inline form if possible.
func TestPrinting(t *testing.T) {
	for behaviour, test := range map[string]struct{ wrote, want string }{
		"items inline, separated by commas":    {"A=a as b/c\n\n# x\nkv1/cert:d@" + version, "A=a as b/c, kv1/cert:d@" + version},
		"a structured list in the inline form": {"- objectName: a\n  env: A\n", "A=a"},
		"fields without an inline form":        {"- objectName: a\n  filePermission: 0400\n- objectName: b\n  containers: [x]\n", `[{"objectName":"a","filePermission":"0400"},{"objectName":"b","containers":["x"]}]`},
		"a path with a comma":                  {`[{"objectName":"a","objectAlias":"b,c"}]`, `[{"objectName":"a","objectAlias":"b,c"}]`},
		"a path with as":                       {`[{"objectName":"a","objectAlias":"b as c"}]`, `[{"objectName":"a","objectAlias":"b as c"}]`},
		"a name that starts with a hyphen":     {`[{"objectName":"-a"}]`, `[{"objectName":"-a"}]`},
		"a name that ends with a hyphen":       {`[{"objectName":"a"},{"objectName":"b-"}]`, "a, b-"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			request, errs, _ := api.ParseRequest(api.Annotations{Pod: map[string]string{api.Secrets: test.wrote, api.Vault: "team-kv"}})
			if len(errs) > 0 {
				t.Fatal(errs)
			}
			if diff := cmp.Diff(map[string]string{api.Secrets: test.want, api.Vault: "team-kv"}, request.Annotations()); diff != "" {
				t.Errorf("annotations differ (-want +got):\n%s", diff)
			}
		})
	}
	request := defaults
	if got := request.Annotations(); len(got) > 0 {
		t.Errorf("defaults are printed as %q", got)
	}
}

func TestAsked(t *testing.T) {
	for behaviour, test := range map[string]struct {
		key           string
		asked, isAKey bool
	}{
		"a key of the request":      {api.Secrets, true, true},
		"another key of it":         {api.IdentityMode, true, true},
		"an unknown key":            {"keyvault.io/secret", true, false},
		"a key of the namespace":    {api.AllowedNames, true, false},
		"the status annotation":     {api.Status, false, false},
		"a foreign key":             {"example.com/secrets", false, false},
		"a key that ends like ours": {"x.keyvault.io/secrets", false, false},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := api.Asked(map[string]string{test.key: ""}); got != test.asked {
				t.Errorf("Asked is %t", got)
			}
			if got := api.IsRequestKey(test.key); got != test.isAKey {
				t.Errorf("IsRequestKey is %t", got)
			}
		})
	}
}

func TestEcho(t *testing.T) {
	for behaviour, test := range map[string]struct{ in, want string }{
		"unchanged up to 64 bytes": {strings.Repeat("a", 64), strings.Repeat("a", 64)},
		"cut above 64 bytes":       {strings.Repeat("a", 65), strings.Repeat("a", 61) + "…"},
		"cut between characters":   {strings.Repeat("ä", 33), strings.Repeat("ä", 30) + "…"},
		"cut before a long one":    {strings.Repeat("a", 60) + "😀😀", strings.Repeat("a", 60) + "…"},
		"nothing of invalid UTF-8": {strings.Repeat("\x80", 65), "…"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			if got := api.Echo(test.in); got != test.want {
				t.Errorf("Echo(%q) is %q, want %q", test.in, got, test.want)
			}
		})
	}
}
