package api_test

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/internal/corpus/attacks"
)

// sameRequest compares requests without their origins.
var sameRequest = cmpopts.IgnoreUnexported(api.Request{})

// fuzzedKeys are the keys that FuzzParseRequest sets. Bit i of its masks is for the key with index
// i.
var fuzzedKeys = [...]string{
	api.Secrets, api.Class, api.Vault, api.MountPath, api.Containers, api.Env, api.OnConflict, api.Inject,
	api.IdentityName, api.IdentityMode, api.IdentityClientID, api.IdentityTenantID, api.OnRotation, api.EnvSource, api.SecretName, api.SecretType,
}

// FuzzParseRequest parses arbitrary annotations. A request without errors must pass validate, which
// shares no code with the parser, and must be the same after it is printed and parsed again.
func FuzzParseRequest(f *testing.F) {
	const all, none = 0xFFFF, 0
	structured := "- objectName: edge-cert\n  objectAlias: tls/edge.pem\n  objectFormat: pem\n  objectEncoding: utf-8\n  filePermission: \"0400\"\n  objectVersionHistory: 2\n  env: EDGE_CERT\n  containers: [app, '!side*']\n"
	for _, seed := range []struct{ secrets, class, vault, mountPath, containers, env, onConflict, inject, name, mode, clientID, tenantID, key string }{
		{secrets: "KEYVAULT_SECRET=secret-425", class: "key-vault-secret", name: "access-blob"},
		{secrets: "DB_PASSWORD=db-password, shared-kv/cert:edge-ca as tls/ca.pem,\n# rotated by hand\njwt@6a1f0c6a1f0c6a1f0c6a1f0c6a1f0c6a", vault: "team-kv", env: "auto", onConflict: "override"},
		{secrets: structured, vault: "team-kv", mountPath: "/etc/secrets/", containers: "app, !istio-*", mode: "workload-identity", clientID: "72f988bf-86f1-41af-91ab-2d7cd011db47", tenantID: "72f988bf-86f1-41af-91ab-2d7cd011db47"},
		{secrets: `[{"objectName":"a","vault":"other-kv"},{"objectName":"b","objectAlias":"c d, e as f"}]`, vault: "team-kv", mountPath: `C:\mnt\kv`, inject: "false"},
		{secrets: "first/a as b, A=b", class: "first, second", mode: "identity-binding", key: "keyvault.io/secret"},
		{secrets: "-a", vault: "kv", key: "identity.io/enforce", inject: "yes", env: "x", onConflict: "y", containers: "a,,b"},
		{secrets: "{objectName: &a x, containers: [*a]}", vault: "team-kv", mountPath: "/a /"},
		{secrets: "A=a#b.c, B=b", vault: "team-kv", env: "auto", key: "keyvault.io/env-source", name: "file"},
		{secrets: "n as a\u00a0b, n as as as as", vault: "team-kv", env: "auto"},
	} {
		for _, masks := range [][2]uint16{{all, none}, {none, all}, {0x0F0F, 0xF0F0}} {
			f.Add(masks[0], masks[1], seed.secrets, seed.class, seed.vault, seed.mountPath, seed.containers, seed.env, seed.onConflict, seed.inject,
				seed.name, seed.mode, seed.clientID, seed.tenantID, seed.key)
		}
	}
	for _, secrets := range attacks.Secrets {
		f.Add(uint16(all), uint16(none), secrets, "", "team-kv", "", "", "", "", "", "", "", "", "", "")
	}
	f.Fuzz(func(t *testing.T, pod, namespace uint16, secrets, class, vault, mountPath, containers, env, onConflict, inject, name, mode, clientID, tenantID, key string) {
		annotations := api.Annotations{Pod: map[string]string{}, Namespace: map[string]string{}, NamespaceName: "team-a"}
		for i, value := range []string{secrets, class, vault, mountPath, containers, env, onConflict, inject, name, mode, clientID, tenantID} {
			if !utf8.ValidString(value) {
				return // annotations come from JSON
			}
			if pod&(1<<i) != 0 {
				annotations.Pod[fuzzedKeys[i]] = value
			}
			if namespace&(1<<i) != 0 {
				annotations.Namespace[fuzzedKeys[i]] = value
			}
		}
		if key != "" {
			annotations.Pod[key] = name
			annotations.Namespace[key] = vault
		}
		var request api.Request
		var errs, warnings field.ErrorList
		written := len(key) + len(name) + len(vault)
		for _, all := range []map[string]string{annotations.Pod, annotations.Namespace} {
			for _, value := range all {
				written += len(value)
			}
		}
		limit := attacks.Factor*written + attacks.Free
		if size := attacks.Allocated(limit, func() { request, errs, warnings = api.ParseRequest(annotations) }); size > limit {
			t.Errorf("%d bytes were allocated for %d", size, written)
		}
		for _, err := range slices.Concat(errs, warnings) {
			if api.ReasonOf(err) == "" || err.Field == "" || err.Error() == "" {
				t.Errorf("%v has no reason or field", err)
			}
		}
		again, errsAgain, warningsAgain := api.ParseRequest(annotations)
		if !cmp.Equal(request, again, sameRequest) || !cmp.Equal(messages(errs), messages(errsAgain)) || !cmp.Equal(messages(warnings), messages(warningsAgain)) {
			t.Errorf("parsing %q over %q twice gives different requests", annotations.Pod, annotations.Namespace)
		}
		if len(errs) > 0 {
			return
		}
		if err := validate(&request); err != nil {
			t.Errorf("%q over %q is accepted with %v", annotations.Pod, annotations.Namespace, err)
		}
		printed := request.Annotations()
		back, errs, _ := api.ParseRequest(api.Annotations{Pod: printed})
		if len(errs) > 0 {
			t.Errorf("%q, printed as %q, is rejected: %v", annotations.Pod, printed, errs)
		} else if diff := cmp.Diff(request, back, sameRequest); diff != "" {
			t.Errorf("%q, printed as %q, gives another request (-first +printed):\n%s", annotations.Pod, printed, diff)
		}
	})
}

func messages(errs field.ErrorList) []string {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = api.Message(err)
	}
	return texts
}

const (
	digits  = "0123456789"
	letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	hex     = digits + "abcdefABCDEF"
)

// consists reports whether s has a length within the limits and only characters of set.
func consists(s, set string, shortest, longest int) bool {
	return len(s) >= shortest && len(s) <= longest && strings.Trim(s, set) == ""
}

func isGUID(s string) bool {
	parts := strings.Split(s, "-")
	return len(parts) == 5 && consists(parts[0], hex, 8, 8) && consists(parts[1], hex, 4, 4) && consists(parts[2], hex, 4, 4) &&
		consists(parts[3], hex, 4, 4) && consists(parts[4], hex, 12, 12)
}

func isVault(s string) bool {
	return consists(s, letters+digits+"-", 3, 24) && strings.ContainsAny(s[:1], letters)
}

// validate checks a request by the rules in docs/annotations.md, in code that the parser does not
// share.
func validate(r *api.Request) error {
	switch {
	case r.Identity != "" && (!consists(r.Identity, letters+digits+"-_.", 1, 253) || strings.Trim(r.Identity, "-_.") != r.Identity):
		return fmt.Errorf("identity %q", r.Identity)
	case !slices.Contains([]api.Mode{"auto", "pod-identity", "workload-identity", "identity-binding", "none"}, r.Mode):
		return fmt.Errorf("mode %q", r.Mode)
	case r.ClientID != "" && !isGUID(r.ClientID), r.TenantID != "" && !isGUID(r.TenantID):
		return fmt.Errorf("ids %q, %q", r.ClientID, r.TenantID)
	case r.Vault != "" && !isVault(r.Vault):
		return fmt.Errorf("vault %q", r.Vault)
	case r.EnvMode != "explicit" && r.EnvMode != "auto":
		return fmt.Errorf("env %q", r.EnvMode)
	case r.OnConflict != "keep" && r.OnConflict != "fail" && r.OnConflict != "override":
		return fmt.Errorf("on-conflict %q", r.OnConflict)
	case r.OnRotation != "ignore" && r.OnRotation != "restart":
		return fmt.Errorf("on-rotation %q", r.OnRotation)
	case r.EnvSource != "secret" && r.EnvSource != "file":
		return fmt.Errorf("env-source %q", r.EnvSource)
	case r.SecretName != "" && len(validation.IsDNS1123Subdomain(r.SecretName)) > 0:
		return fmt.Errorf("secret-name %q", r.SecretName)
	case len(r.Items) > 100:
		return fmt.Errorf("%d items", len(r.Items))
	}
	folder, windows := r.MountPath, false
	if len(folder) > 2 && folder[1] == ':' && strings.ContainsAny(folder[:1], letters) {
		folder, windows = strings.ReplaceAll(folder[2:], `\`, "/"), true
	}
	if folder == "/" || !path.IsAbs(folder) || path.Clean(folder) != folder || strings.Contains(folder, ":") || (!windows && strings.Contains(folder, `\`)) {
		return fmt.Errorf("mount path %q", r.MountPath)
	}
	for i, name := range r.Classes {
		if len(validation.IsDNS1123Subdomain(name)) > 0 || slices.Contains(r.Classes[:i], name) {
			return fmt.Errorf("class %q", name)
		}
	}
	if err := validateSelector(r.Containers); err != nil {
		return err
	}
	taken := map[string]string{} // files and folders of each vault
	for i, item := range r.Items {
		if err := errors.Join(validateItem(r, item), validateSelector(item.Containers)); err != nil {
			return fmt.Errorf("item %d: %w", i, err)
		}
		if len(r.Classes) > 0 {
			continue
		}
		vault := strings.ToLower(r.VaultOf(item))
		file := vault + "/" + item.Path()
		if taken[file] != "" {
			return fmt.Errorf("item %d: path %q is a %s already", i, item.Path(), taken[file])
		}
		taken[file] = "file"
		for folder := path.Dir(file); folder != vault; folder = path.Dir(folder) {
			if taken[folder] == "file" {
				return fmt.Errorf("item %d: path %q is inside a file", i, item.Path())
			}
			taken[folder] = "folder"
		}
	}
	return nil
}

func validateItem(r *api.Request, i api.Item) error {
	secret := i.Type == "" || i.Type == "secret"
	file := i.Path()
	switch {
	case !consists(i.Name, letters+digits+"-", 1, 127):
		return fmt.Errorf("object %q", i.Name)
	case i.Type != "" && i.Type != "secret" && i.Type != "key" && i.Type != "cert":
		return fmt.Errorf("type %q", i.Type)
	case i.Version != "" && !consists(i.Version, hex, 32, 32):
		return fmt.Errorf("version %q", i.Version)
	case i.Format != "" && i.Format != "pem" && (i.Format != "pfx" || !secret):
		return fmt.Errorf("format %q", i.Format)
	case i.Encoding != "" && (!secret || i.Encoding != "utf-8" && i.Encoding != "base64" && i.Encoding != "hex"):
		return fmt.Errorf("encoding %q", i.Encoding)
	case i.Permission != "" && !consists(strings.TrimPrefix(i.Permission, "0"), "01234567", 2, 3):
		return fmt.Errorf("permission %q", i.Permission)
	case i.Env != "" && (!consists(i.Env, letters+digits+"_", 1, 1<<20) || strings.ContainsAny(i.Env[:1], digits)):
		return fmt.Errorf("env %q", i.Env)
	case i.History < 0 || i.History > 100:
		return fmt.Errorf("history %d", i.History)
	case file == "" || path.IsAbs(file) || strings.Contains(file, "..") || path.Clean(file) != file || strings.ContainsAny(file, "\\:\n\x00"):
		return fmt.Errorf("path %q", file)
	}
	if len(r.Classes) > 0 {
		if i.VaultOrClass != "" && !slices.Contains(r.Classes, i.VaultOrClass) {
			return fmt.Errorf("class %q", i.VaultOrClass)
		}
		if i.Version+i.Format+i.Encoding+i.Permission != "" || i.History != 0 {
			return errors.New("sets a field that the class sets")
		}
		return nil
	}
	if !isVault(r.VaultOf(i)) {
		return fmt.Errorf("vault %q", r.VaultOf(i))
	}
	if i.Property != "" && (i.Env == "" || r.EnvSource != "file" || !secret) {
		return fmt.Errorf("property %q", i.Property)
	}
	if env := i.EnvFor(r.EnvMode); env != "" && r.EnvSource == "secret" || r.SecretName != "" {
		key := i.SecretKey
		if key == "" {
			key = strings.ReplaceAll(i.File(), "/", ".")
		}
		if problems := validation.IsConfigMapKey(key); len(problems) > 0 {
			return fmt.Errorf("path %q of env %s: %v", file, env, problems)
		}
	}
	return nil
}

// validateSelector checks that a selector has valid patterns, and excludes what they exclude.
func validateSelector(s api.Selector) error {
	if s.All() {
		return nil
	}
	excluded := true
	for pattern := range strings.SplitSeq(s.String(), ",") {
		name := strings.TrimPrefix(pattern, "!")
		if _, err := path.Match(name, "any-name"); err != nil || name == "" {
			return fmt.Errorf("selector %q: %w", s, err)
		}
		excluded = excluded && pattern != name
		if pattern != name && s.Matches(strings.Trim(name, "*?")) && !strings.ContainsAny(name, "?[") {
			return fmt.Errorf("selector %q selects %s, which it excludes", s, name)
		}
	}
	if excluded && !s.Matches("-no-such-name-") && !strings.ContainsAny(s.String(), "*?[") {
		return fmt.Errorf("selector %q excludes a name that no pattern matches", s)
	}
	return nil
}
