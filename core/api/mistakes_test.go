package api_test

import (
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
)

// TestWhatPeopleWrite has common mistakes. Each gives one error that ends with the corrected value,
// and the corrected value is accepted.
func TestWhatPeopleWrite(t *testing.T) {
	const version = "0123456789abcdef0123456789abcdef"
	for _, test := range [][2]string{
		{"DB_PASSWORD: db-password", "DB_PASSWORD=db-password"},
		{"DB_PASSWORD:db-password", "DB_PASSWORD=db-password"},
		{"A=a;B=b", "A=a, B=b"},
		{"A=a; B=b;", "A=a, B=b"},
		{"A=a;", "A=a"},
		{`"A=a"`, "A=a"},
		{"'A=a'", "A=a"},
		{"A='db-password'", "A=db-password"},
		{"A=`db-password`", "A=db-password"},
		{"A=\u201cdb-password\u201d", "A=db-password"},
		{"secret: db-password", "secret:db-password"},
		{"A=db\u2013password", "A=db-password"},
		{"A=a\u00a0as\u00a0b", "A=a as b"},
		{"A=\ufeffa", "A=a"},
		{"db-password -> DB_PASSWORD", "DB_PASSWORD=db-password"},
		{"DB_PASSWORD => db-password", "DB_PASSWORD=db-password"},
		{"db-password\u2192DB_PASSWORD", "DB_PASSWORD=db-password"},
		{"A=a AS conf/a", "A=a as conf/a"},
		{"A=shop-kv.vault.azure.net/a", "A=shop-kv/a"},
		{"shop-kv.vault.azure.cn/cert:a", "shop-kv/cert:a"},
		{"A=db_password", "A=db-password"},
		{"shop-kv/db_password@" + version, "shop-kv/db-password@" + version},
		{"https://shop-kv.vault.azure.net/secrets/a", "shop-kv/a"},
		{"A=https://shop-kv.vault.azure.net:443/keys/a/" + version, "A=shop-kv/key:a@" + version},
		{"A=https://shop-kv.vault.usgovcloudapi.net/certificates/a", "A=shop-kv/cert:a"},
		{"array:\n  - |\n    objectName: a\n    objectType: secret\n", "a"},
		{"# theirs\narray:\n- |\n  objectName: a\n  objectType: cert\n", "cert:a"},
		{"objects: |\n  array:\n    - |\n      objectName: a\n      objectVersion: \"\"\n", "a"},
		{"https://shop-kv.vault.azure.net/secrets/a/" + version + "?x=1", "shop-kv/a@" + version},
		{"A=https://shop-kv.vault.azure.net/secrets/a as b", "A=shop-kv/a as b"},
		{"array:\n- objectName: a\n  filePermission: '0400'\n", `[{"objectName":"a","filePermission":"0400"}]`},
	} {
		written, want := test[0], test[1]
		t.Run(written, func(t *testing.T) {
			err := only(t, map[string]string{api.Secrets: written, api.Vault: "team-kv"})
			_, got, _ := strings.Cut(err.Detail, "; write ")
			if got == "" {
				_, got, _ = strings.Cut(err.Detail, "write ")
			}
			if got != want {
				t.Errorf("message is %q, want the suffix %q", err.Detail, want)
			}
			if _, errs, _ := api.ParseRequest(api.Annotations{Pod: map[string]string{api.Secrets: want, api.Vault: "team-kv"}}); len(errs) > 0 {
				t.Errorf("the corrected value is rejected: %v", errs)
			}
		})
	}
}

// TestWhatPeopleWriteElsewhere has other mistakes, with a part of the one error.
func TestWhatPeopleWriteElsewhere(t *testing.T) {
	for behaviour, test := range map[string]struct{ key, value, want string }{
		"a template":                     {api.Vault, "${VAULT}", "has ${VAULT}, which was not replaced"},
		"a template among items":         {api.Secrets, "A={{ .Values.name }}", "has {{ .Values.name }}, which"},
		"a template of Kubernetes":       {api.IdentityClientID, "$(CLIENT_ID)", "has $(CLIENT_ID), which"},
		"a placeholder":                  {api.IdentityTenantID, "<TENANT_ID>", "has <TENANT_ID>, which"},
		"a vault's address":              {api.Vault, "https://team-kv.vault.azure.net/", "; write team-kv"},
		"a vault's host":                 {api.Vault, "team-kv.vault.azure.net", "; write team-kv"},
		"a host of another cloud":        {api.Vault, "team-kv.vault.azure.cn", "; write team-kv, which needs keyvault.io/cloud: AzureChinaCloud"},
		"an address of another cloud":    {api.Secrets, "A=https://kv1.vault.usgovcloudapi.net/secrets/a", "name, which needs keyvault.io/cloud: AzureUSGovernmentCloud; write A=kv1/a"},
		"a vault's resource id":          {api.Vault, "/subscriptions/x/resourceGroups/y/providers/Microsoft.KeyVault/vaults/team-kv", "; write team-kv"},
		"a vault with an underscore":     {api.Vault, "team_kv", "; write team-kv"},
		"an env var instead of a mode":   {api.Env, "DB_PASSWORD", "write keyvault.io/secrets: DB_PASSWORD=OBJECT"},
		"another name of a field":        {api.Secrets, "- name: a", "did you mean objectName?"},
		"an octal mode as a number":      {api.Secrets, "- objectName: a\n  filePermission: 256", `write it in octal and in quotes, "0400"`},
		"a mode in quotes":               {api.Secrets, `[{"objectName":"a","filePermission":"420"}]`, `"0644"`},
		"an object in a structured item": {api.Secrets, "- objectName: db_password", "; write db-password"},
		"a vault in a structured item":   {api.Secrets, "- objectName: a\n  vault: team_kv", "; write team-kv"},
		"a mode in capitals":             {api.Env, "AUTO", "supported values"},
		"a field under two names":        {api.Secrets, "- {name: b, objectName: a}", "did you mean objectName?"},
		"a long provider's text":         {api.Secrets, "array:\n" + strings.Repeat("- objectName: a-name-that-is-long\n", 50), "its objects as items, the first as a-name-that-is-long"},
		"very many mistakes in one item": {api.Secrets, strings.Repeat("A: b;", 5000), "no semicolon"},
		"a connection string":            {api.Secrets, "A=Server=db1;Database=app;Uid=sa;Pwd=Hunter2", "may be a secret: "},
		"a password in quotes":           {api.Secrets, "A='Hunter2'", "may be a secret: "},
		"a password in two quotes":       {api.Secrets, "A='pa''ss'", "may be a secret: "},
		"a placeholder with spaces":      {api.Secrets, "A=${very secret value}", "has a placeholder, which"},
		"a value that may be a secret":   {api.Secrets, "A=Sup3r$ecret!Pa55", "the value is not shown, since it may be a secret"},
		"a character that is not ASCII":  {api.Secrets, "A=pässword", "character 2 is U+00E4; the value is not shown"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := map[string]string{api.Vault: "team-kv", test.key: test.value}
			err := only(t, pod)
			if !strings.Contains(err.Detail, test.want) {
				t.Errorf("message is %q, want %q in it", err.Detail, test.want)
			}
			if len(err.Error()) > 1024 {
				t.Errorf("the message has %d bytes", len(err.Error()))
			}
			if strings.Contains(test.want, "may be a secret") && strings.Contains(err.Error(), test.value[2:]) {
				t.Errorf("the message %q has the value", err)
			}
		})
	}
}

// TestWhatPeopleWriteWithAClass has mistakes in items of existing classes.
func TestWhatPeopleWriteWithAClass(t *testing.T) {
	for written, want := range map[string]string{
		"A=https://shop-kv.vault.azure.net/secrets/a":                         "A=a",
		"array:\n- objectName: a\n  objectAlias: b\n  filePermission: '0400'": "b",
	} {
		err := only(t, map[string]string{api.Secrets: written, api.Class: "app"})
		if !strings.HasSuffix(err.Detail, "write "+want) {
			t.Errorf("message for %q is %q, want the suffix %q", written, err.Detail, want)
		}
	}
	if _, errs, _ := api.ParseRequest(api.Annotations{Pod: map[string]string{api.Secrets: "A=db_password", api.Class: "app"}}); len(errs) != 1 || strings.Contains(errs[0].Detail, "db-password") {
		t.Errorf("a file of a class may have a name with _, but the message suggests another: %v", errs)
	}
}

// only returns the error of a request, which must be the only one.
func only(t *testing.T, pod map[string]string) *field.Error {
	t.Helper()
	_, errs, _ := api.ParseRequest(api.Annotations{Pod: pod})
	if len(errs) != 1 {
		t.Fatalf("%d errors, want 1: %v", len(errs), errs)
	}
	return errs[0]
}
