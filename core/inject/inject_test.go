package inject_test

import (
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
)

// decideManaged decides about a pod that requests items of a managed class.
func decideManaged(t *testing.T, items, env string) inject.Result {
	t.Helper()
	pod := podOf(2, annotations{
		api.IdentityMode: "workload-identity", api.IdentityClientID: guid, api.IdentityTenantID: guid, api.Vault: "team-kv", api.Secrets: items, api.Env: env,
	})
	plan := inject.NewPlan(pods.SubjectOf(pod), enabled, inject.Defaults{})
	return plan.Decide(facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "default", ClientID: guid}})
}

// TestSecretKeys shows which key of a managed class's Secret an env var reads, and that the class
// syncs this key.
func TestSecretKeys(t *testing.T) {
	for behaviour, test := range map[string]struct {
		items, env string
		want       map[string]string // env vars and their keys
	}{
		"the file's name":                       {items: "A=db-password", want: map[string]string{"A": "db-password"}},
		"an alias with dots for slashes":        {items: "A=a as x/y/z.pem", want: map[string]string{"A": "x.y.z.pem"}},
		"the latest of a history":               {items: "- {objectName: a, objectVersionHistory: 3, env: A}", want: map[string]string{"A": "a.0"}},
		"the latest of a history with an alias": {items: "- {objectName: a, objectAlias: x/y, objectVersionHistory: 2, env: A}", want: map[string]string{"A": "x.y.0"}},
		"a history of one":                      {items: "- {objectName: a, objectVersionHistory: 1, env: A}", want: map[string]string{"A": "a"}},
		"only items with an env var":            {items: "A=a, b", want: map[string]string{"A": "a"}},
		"every secret if env is auto":           {items: "A=a, b-c, key:d, cert:e", env: "auto", want: map[string]string{"A": "a", "B_C": "b-c"}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			result := decideManaged(t, test.items, test.env)
			if result.Outcome != inject.Injected {
				t.Fatalf("outcome is %s: %v", result.Outcome, result.AllErrors())
			}
			synced := map[string]bool{}
			for _, s := range class.Read(result.Classes[0]).Synced {
				if s.Secret != result.Classes[0].Name {
					t.Errorf("class %s syncs Secret %s", result.Classes[0].Name, s.Secret)
				}
				synced[s.Key] = true
			}
			for i := range result.Change.Containers {
				got := map[string]string{}
				for _, v := range result.Change.Containers[i].Env {
					got[v.Name] = v.Key
					if !synced[v.Key] {
						t.Errorf("the class does not sync %s, only %v", v.Key, synced)
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("env vars of container %d differ (-want +got):\n%s", i, diff)
				}
			}
		})
	}
}

func TestSecretKeysCollide(t *testing.T) {
	for behaviour, test := range map[string]struct {
		items, env string
		collide    bool
	}{
		"a slash and a dot":         {items: "A=a as x/y, B=b as x.y", collide: true},
		"a history and an alias":    {items: "- {objectName: a, objectVersionHistory: 2, env: A}\n- {objectName: b, objectAlias: a.0, env: B}", collide: true},
		"env is auto":               {items: "a as x/y, b as x.y", env: "auto", collide: true},
		"not if only one is synced": {items: "A=a as x/y, b as x.y"},
		"not between vaults":        {items: "A=a as x/y, B=other-kv/b as x.y"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			result := decideManaged(t, test.items, test.env)
			if collide := len(result.Errors) > 0; collide != test.collide {
				t.Fatalf("errors are %v", result.AllErrors())
			}
			if test.collide && (api.ReasonOf(result.Errors[0]) != api.InvalidItem || !strings.Contains(result.Errors[0].Detail, "same Secret key as item 0")) {
				t.Errorf("error is %s", api.Message(result.Errors[0]))
			}
		})
	}
}

// TestSharedSecret looks up the classes that sync the Secret that a pod requests by name.
func TestSharedSecret(t *testing.T) {
	pod := podOf(1, annotations{
		api.IdentityMode: "pod-identity", api.IdentityName: "id", api.IdentityTenantID: guid, api.Vault: "team-kv",
		api.Secrets: "A=a", api.SecretName: "app",
	})
	pod.Meta.Controller = &pods.Owner{Kind: "ReplicaSet", Name: "web-5d9f8"}
	namespace := enabled
	namespace.Annotations = map[string]string{api.AllowedSecretNames: "*"}
	plan := inject.NewPlan(pods.SubjectOf(pod), namespace, inject.Defaults{})
	ours := plan.Decide(facts.Answer{Bound: true})
	if len(ours.Classes) != 1 {
		t.Fatalf("classes %v, errors %v", ours.Classes, ours.AllErrors())
	}
	for behaviour, test := range map[string]struct {
		syncing facts.Syncing
		// want is a part of the error; empty for none.
		want string
	}{
		"the class of the pod":                               {facts.Syncing{Class: ours.Classes[0].Name, Type: "Opaque", Workloads: []string{"other"}}, ""},
		"a former class of the workload, with the same type": {facts.Syncing{Class: "kv-0", Type: "Opaque", Workloads: []string{"web"}}, ""},
		"a former class of the workload, with another type": {
			facts.Syncing{Class: "kv-0", Type: "kubernetes.io/tls", Workloads: []string{"web"}},
			`secret-type]: Invalid value: "Opaque": must be kubernetes.io/tls, as in the former class of the workload, kv-0: ` +
				"the type of Secret app is immutable; a new type needs another keyvault.io/secret-name",
		},
		"a class of another workload": {
			facts.Syncing{Class: "kv-0", Type: "Opaque", Workloads: []string{"other"}}, "class kv-0 of workload other syncs it",
		},
		"a class of a user": {facts.Syncing{Class: "app", Type: "Opaque"}, "class app syncs it"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			result := plan.Decide(facts.Answer{Bound: true, Syncing: []facts.Syncing{test.syncing}})
			got := ""
			if errs := result.AllErrors(); len(errs) > 0 {
				got = errs[0].Error()
			}
			if !strings.Contains(got, test.want) || (got == "") != (test.want == "") {
				t.Errorf("error %q, want %q", got, test.want)
			}
		})
	}
}

// TestPrecedence shows whose tenant and client id a managed class has, in this order: pod,
// ServiceAccount, namespace, flag.
func TestPrecedence(t *testing.T) {
	id := func(digit string) string {
		return strings.ReplaceAll("00000000-0000-0000-0000-000000000000", "0", digit)
	}
	const pod, account, namespace, flag = "1", "2", "3", "4"
	for behaviour, test := range map[string]struct {
		written           string // the digits of the objects above that have ids
		tenant, client    string
		fromTenant, fromC string
	}{
		"the pod's first":           {written: "1234", tenant: pod, client: pod, fromTenant: "pod", fromC: "pod"},
		"then the ServiceAccount's": {written: "234", tenant: account, client: account, fromTenant: "serviceaccount", fromC: "serviceaccount"},
		"then the namespace's":      {written: "34", tenant: namespace, client: namespace, fromTenant: "namespace", fromC: "namespace"},
		"the flag's tenant last":    {written: "14", tenant: pod, client: pod, fromTenant: "pod", fromC: "pod"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			writes := func(who string) bool { return strings.Contains(test.written, who) }
			ids := func(who string, a annotations) annotations {
				if writes(who) {
					a[api.IdentityTenantID], a[api.IdentityClientID] = id(who), id(who)
				}
				return a
			}
			p := podOf(1, ids(pod, annotations{api.IdentityMode: "workload-identity", api.Secrets: "team-kv/a"}))
			ns := facts.Namespace{Name: "team-a", Labels: map[string]string{api.Injection: "enabled"}, Annotations: ids(namespace, annotations{})}
			sa := &facts.ServiceAccount{Name: "default"}
			if writes(account) {
				sa.TenantID, sa.ClientID = id(account), id(account)
			}
			result := inject.NewPlan(pods.SubjectOf(p), ns, inject.Defaults{TenantID: id(flag)}).Decide(facts.Answer{ServiceAccount: sa})
			if result.Outcome != inject.Injected {
				t.Fatalf("outcome is %s: %v", result.Outcome, result.AllErrors())
			}
			parameters := result.Classes[0].Spec.Parameters
			if parameters["tenantID"] != id(test.tenant) || parameters["clientID"] != id(test.client) {
				t.Errorf("tenant and client are %s and %s", parameters["tenantID"], parameters["clientID"])
			}
			var status inject.Status
			for _, e := range result.Change.Annotations {
				if e.Key == api.Status {
					if err := json.Unmarshal([]byte(e.Value), &status); err != nil {
						t.Fatal(err)
					}
				}
			}
			if status.From[api.IdentityTenantID] != test.fromTenant || status.From[api.IdentityClientID] != test.fromC {
				t.Errorf("the status has origins %v", status.From)
			}
		})
	}
	flagged := podOf(1, annotations{api.IdentityName: "x", api.IdentityMode: "pod-identity", api.Secrets: "team-kv/a"})
	result := inject.NewPlan(pods.SubjectOf(flagged), facts.Namespace{Labels: map[string]string{api.Injection: "enabled"}}, inject.Defaults{TenantID: id(flag)}).Decide(facts.Answer{Bound: true})
	if len(result.Classes) != 1 || result.Classes[0].Spec.Parameters["tenantID"] != id(flag) {
		t.Errorf("the flag's tenant is not used as the default: %v", result.AllErrors())
	}
}

// TestModeNone has pods without an identity, because of their annotation or the server's flag.
func TestModeNone(t *testing.T) {
	const noEffect = "metadata.annotations[identity.io/name]: Forbidden: has no effect, since the injector runs with identity mode none; set how to bind it in identity.io/mode"
	for behaviour, test := range map[string]struct {
		annotations annotations
		defaults    inject.Defaults
		want        inject.Outcome
		mounts      int
		warnings    []string
	}{
		"the node's identity reads the vault, and the name has no effect": {
			annotations: annotations{api.IdentityMode: "none", api.IdentityName: "foo", api.Vault: "team-kv", api.Secrets: "A=a"},
			defaults:    inject.Defaults{AllowVMIdentity: true, TenantID: guid}, want: inject.Injected, mounts: 1,
			warnings: []string{"metadata.annotations[identity.io/name]: Forbidden: has no effect with identity.io/mode none"},
		},
		"a name has no effect if the server binds no identity": {
			annotations: annotations{api.IdentityName: "foo"}, defaults: inject.Defaults{Mode: api.ModeNone}, want: inject.NotRequested, warnings: []string{noEffect},
		},
		"nor with a class": {
			annotations: annotations{api.IdentityName: "foo", api.Class: "a"}, defaults: inject.Defaults{Mode: api.ModeNone}, want: inject.Injected, mounts: 1, warnings: []string{noEffect},
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			facts := facts.Answer{Classes: []*class.Class{{Name: "a"}}}
			result := inject.NewPlan(pods.SubjectOf(podOf(1, test.annotations)), enabled, test.defaults).Decide(facts)
			if result.Outcome != test.want || len(result.Change.Volumes) != test.mounts {
				t.Errorf("outcome is %s with %d volumes: %v", result.Outcome, len(result.Change.Volumes), result.AllErrors())
			}
			if diff := cmp.Diff(test.warnings, messages(result.Warnings)); diff != "" {
				t.Errorf("warnings differ (-want +got):\n%s", diff)
			}
		})
	}
}

// TestMissed shows when a pod without an identity name is decided a second time on fresh facts.
func TestMissed(t *testing.T) {
	for behaviour, test := range map[string]struct {
		account *facts.ServiceAccount
		want    bool
	}{
		"a ServiceAccount that does not exist yet": {want: true},
		"a ServiceAccount without a client id":     {account: &facts.ServiceAccount{Name: "default"}},
		"a ServiceAccount with a client id":        {account: &facts.ServiceAccount{Name: "default", ClientID: guid}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			facts := facts.Answer{Classes: []*class.Class{{Name: "a"}}, ServiceAccount: test.account}
			result := inject.NewPlan(pods.SubjectOf(podOf(1, annotations{api.Class: "a"})), enabled, inject.Defaults{}).Decide(facts)
			if result.Outcome != inject.Injected || result.Missed != test.want {
				t.Errorf("outcome is %s, missed %t: %v", result.Outcome, result.Missed, result.AllErrors())
			}
		})
	}
}
