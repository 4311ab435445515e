package provider_test

import (
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/Azure/secrets-store-csi-driver-provider-azure/pkg/auth"
	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/test/harness/keyvault"
)

// TestFailures compares the provider's errors with those in the documentation.
func TestFailures(t *testing.T) {
	const reader = "reader"
	for name, test := range map[string]struct {
		mode    api.Mode
		items   []api.Item
		readers []string
		tenant  string
		// without are the audiences for which the driver passes no token.
		without []string
		want    []string
	}{
		"a vault that the identity may not read": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db"}},
			want: []string{"failed to mount objects", "objectType:secret, objectName:db", "403 Forbidden", "ERROR CODE: Forbidden"},
		},
		"a vault of another tenant": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db"}}, readers: []string{client}, tenant: machine,
			want: []string{"401 Unauthorized", "AKV10032"},
		},
		"a missing secret and an existing one": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db"}, {Name: "missing"}}, readers: []string{client},
			want: []string{"objectType:secret, objectName:missing", "404 Not Found", "ERROR CODE: SecretNotFound"},
		},
		"a missing key": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db", Type: api.TypeKey}}, readers: []string{client},
			want: []string{"objectType:key, objectName:db", "ERROR CODE: KeyNotFound"},
		},
		"a missing certificate": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db", Type: api.TypeCert}}, readers: []string{client},
			want: []string{"objectType:cert, objectName:db", "ERROR CODE: CertificateNotFound"},
		},
		"a missing version": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db", Version: version}}, readers: []string{client},
			want: []string{"objectVersion:" + version, "ERROR CODE: SecretNotFound"},
		},
		"a value with another encoding": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "text", Encoding: "base64"}}, readers: []string{client},
			want: []string{"illegal base64 data"},
		},
		"a pod that no AzureIdentityBinding selects": {
			mode: api.ModePodIdentity, items: []api.Item{{Name: "db"}}, readers: []string{client},
			want: []string{"nmi response failed with status code: 404", "getting assigned identities for pod team-a/web"},
		},
		"an identity binding without access to the vault": {
			mode: api.ModeIdentityBinding, items: []api.Item{{Name: "db"}},
			want: []string{"403 Forbidden"},
		},
		"workload identity without tokenRequests in the CSIDriver object": {
			mode: api.ModeWorkloadIdentity, items: []api.Item{{Name: "db"}}, readers: []string{client}, without: audiences,
			want: []string{"failed to parse workload identity tokens"},
		},
		"an identity binding with tokenRequests for workload identity only": {
			mode: api.ModeIdentityBinding, items: []api.Item{{Name: "db"}}, readers: []string{client}, without: audiences[1:],
			want: []string{"failed to parse service account token for identity binding", auth.IdentityBindingTokenAudience},
		},
	} {
		t.Run(name, func(t *testing.T) {
			vault := keyvault.Vault{Tenant: tenant, Readers: append(test.readers, reader), Objects: []keyvault.Object{
				{Kind: keyvault.Secrets, Name: "db", Versions: []keyvault.Version{{ID: other, Value: "hunter2"}}},
				{Kind: keyvault.Secrets, Name: "text", Versions: []keyvault.Version{{ID: other, Value: "not base64!"}}},
			}}
			if test.tenant != "" {
				vault.Tenant = test.tenant
			}
			cloud.Clear()
			cloud.Put("team-kv", vault)
			spc := class.Managed(class.Request{Vault: "team-kv", TenantID: tenant, ClientID: client, Mode: test.mode, Items: test.items})
			dir := t.TempDir()
			from := sender{namespace: "team-a", pod: "web", serviceAccount: "web"}
			for _, audience := range audiences {
				if !slices.Contains(test.without, audience) {
					from.audiences = append(from.audiences, audience)
				}
			}
			files, err := from.publish(t.Context(), spc.Spec.Parameters, nil, dir)
			if err == nil {
				t.Fatalf("the provider mounts %d files, want an error", len(files))
			}
			for _, want := range test.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
			if entries, err := os.ReadDir(dir); err != nil || len(entries) > 0 {
				t.Errorf("the volume holds %v, %v; want nothing, not even the objects that were read", entries, err)
			}
			if strays := cloud.Take().Strays; len(strays) > 0 {
				t.Errorf("Azure does not know %q", strays)
			}
		})
	}
}

// TestBadPermission documents what the provider does with an invalid mode, and so why admission
// rejects it: the file gets mode 0.
func TestBadPermission(t *testing.T) {
	cloud.Clear()
	cloud.Put("team-kv", keyvault.Vault{Tenant: tenant, Readers: []string{client}, Objects: []keyvault.Object{
		{Kind: keyvault.Secrets, Name: "db", Versions: []keyvault.Version{{ID: other, Value: "hunter2"}}},
	}})
	parameters := map[string]string{
		"keyvaultName": "team-kv", "tenantID": tenant, "clientID": client,
		"objects": "array:\n- |\n  objectName: db\n  objectType: secret\n  filePermission: rw\n",
	}
	from := sender{namespace: "team-a", pod: "web", serviceAccount: "web", audiences: audiences}
	files, err := from.publish(t.Context(), parameters, nil, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	modes := map[string]int32{}
	for _, f := range files {
		modes[f.GetPath()] = f.GetMode()
	}
	if diff := cmp.Diff(map[string]int32{"db": 0}, modes); diff != "" {
		t.Errorf("modes (-want +got):\n%s", diff)
	}
}

// TestRejected publishes classes with one value changed. [class.Class.Rejected] must say of a class
// that the provider rejects it, and only then.
func TestRejected(t *testing.T) {
	cloud.Clear()
	cloud.Put("team-kv", keyvault.Vault{Tenant: tenant, Readers: []string{client}, Objects: []keyvault.Object{
		{Kind: keyvault.Secrets, Name: "db", Versions: []keyvault.Version{{ID: other, Value: "68756e74657232"}}},
	}})
	object := func(fields ...string) string {
		return "array:\n- |\n  objectName: db\n  objectType: secret\n" + strings.Join(fields, "\n") + "\n"
	}
	good := map[string]string{"keyvaultName": "team-kv", "tenantID": tenant, "clientID": client, "objects": object()}
	from := sender{namespace: "team-a", pod: "web", serviceAccount: "web", audiences: audiences}
	rejected := 0
	for parameter, values := range map[string][]string{
		"keyvaultName":         {"", " team-kv ", "kv", "team_kv", "https://team-kv.vault.azure.net"},
		"tenantID":             {"", " " + tenant},
		"cloudName":            {"", "azurepubliccloud", "AzurePublicCloud", "AzureGermanCloud2", "public"},
		"usePodIdentity":       {"", "false", "0", "yes", " no"},
		"useVMManagedIdentity": {"False", "off"},
		"useAzureTokenProxy":   {"F", "maybe"},
		"cloudEnvFileName":     {""},
		"objects": {
			"", " ", "- objectName: db", "array: db", "array: []", "array:\n- objectName: db\n", "array:\n- 'objectName: [db]'\n",
			"array:\n- |\n  objectType: secret\n", "array:\n- |\n  objectName: db\n", "array:\n- |\n  objectName: db\n  objectType: Secret\n",
			object("  objectFormat: PEM"), object("  objectFormat: pem"), object("  objectFormat: txt"),
			object("  objectEncoding: hex"), object("  objectEncoding: HEX"), object("  objectEncoding: utf8"),
			object("  objectAlias: a/b"), object("  objectAlias: /a"), object("  objectAlias: a/../b"), object("  objectAlias: a..b"),
			object("  objectVersionHistory: 1"), object("  unknown: field"),
			strings.Replace(object("  objectFormat: pfx"), "secret", "cert", 1), strings.Replace(object("  objectEncoding: hex"), "secret", "key", 1),
		},
	} {
		for _, value := range values {
			parameters := maps.Clone(good)
			parameters[parameter] = value
			_, err := from.publish(t.Context(), parameters, nil, t.TempDir())
			read := class.Read(&class.SecretProviderClass{Spec: class.Spec{Provider: class.Provider, Parameters: parameters}})
			if (err != nil) != (read.Rejected != "") {
				t.Errorf("%s: %q: the provider answers %v, and the class is rejected since %q", parameter, value, err, read.Rejected)
			}
			if err != nil {
				rejected++
			}
		}
	}
	if rejected < 20 {
		t.Errorf("the provider rejects %d classes, want more", rejected)
	}
}
