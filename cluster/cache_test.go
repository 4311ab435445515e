package cluster_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

var (
	_ facts.Source                   = (*cluster.Cache)(nil)
	_ manager.Runnable               = (*cluster.Cache)(nil)
	_ manager.LeaderElectionRunnable = (*cluster.Cache)(nil)
	_ healthz.Checker                = (*cluster.Cache)(nil).Ready
)

const (
	shop = `
apiVersion: v1
kind: Namespace
metadata:
  name: shop
  labels: {keyvault.io/injection: enabled, identity.io/enforce: bound, team: red}
  annotations: {keyvault.io/vault: shop-kv, kubectl.kubernetes.io/last-applied-configuration: "{}"}
  managedFields: [{manager: kubectl}]`
	blobSA = `
apiVersion: v1
kind: ServiceAccount
metadata:
  name: blob-sa
  namespace: shop
  annotations: {azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90, azure.workload.identity/tenant-id: t, other: x}`
	defaultSA = `{apiVersion: v1, kind: ServiceAccount, metadata: {name: default, namespace: shop}}`
	keyVault  = `
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: key-vault, namespace: shop}
spec: {provider: azure, parameters: {keyvaultName: shop-kv, tenantID: t, objects: "array: ['{objectName: db, objectType: secret}']"}}`
	blobBinding = `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: blob-binding, namespace: shop}
spec: {selector: access-blob}`
)

var (
	keyVaultClass = &class.Class{Name: "key-vault", Provider: "azure", Vault: "shop-kv", Objects: []class.Object{{Name: "db", Type: "secret", File: "db"}}}
	blob          = &facts.ServiceAccount{Name: "blob-sa", ClientID: "0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90", TenantID: "t"}
	everything    = facts.Needs{Classes: []string{"key-vault"}, ServiceAccount: "default", NamedServiceAccount: "blob-sa", Selector: "access-blob"}
	allOfIt       = facts.Answer{
		Classes: []*class.Class{keyVaultClass}, ServiceAccount: &facts.ServiceAccount{Name: "default"}, NamedServiceAccount: blob, Bound: true,
		Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa", "default"}, Selectors: []string{"access-blob"}},
	}
)

// follow starts a Cache that ends with the test.
func follow(t *testing.T, server *apiServer, log logr.Logger) *cluster.Cache {
	t.Helper()
	return followWithin(t, server, log, time.Hour, time.Hour, time.Hour, time.Hour)
}

// followWithin is follow with limits, as [cluster.Cache.SetLimits] has them.
func followWithin(t *testing.T, server *apiServer, log logr.Logger, probe, age, failing, label time.Duration) *cluster.Cache {
	t.Helper()
	live, err := cluster.NewLive(server.config)
	if err != nil {
		t.Fatal(err)
	}
	cached := cluster.NewCache(live, log)
	cached.SetLimits(probe, age, failing, label)
	run(t, cached)
	return cached
}

// run runs a Cache until the test ends.
func run(t *testing.T, cached *cluster.Cache) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	var running sync.WaitGroup
	running.Go(func() {
		if err := cached.Start(ctx); err != nil {
			t.Errorf("follow the cluster: %v", err)
		}
	})
	t.Cleanup(func() {
		stop()
		running.Wait()
	})
}

func awaitSync(t *testing.T, cached *cluster.Cache) {
	t.Helper()
	eventually(t, func() string {
		if err := cached.Ready(nil); err != nil {
			return err.Error()
		}
		return ""
	})
}

func lookUp(t *testing.T, source facts.Source, needs facts.Needs, fresh bool) facts.Answer {
	t.Helper()
	got, err := source.Facts(t.Context(), "shop", needs, fresh)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestCacheFollows(t *testing.T) {
	classNeeds := facts.Needs{Classes: []string{"key-vault", "other"}}
	for name, test := range map[string]struct {
		change func(*apiServer)
		needs  facts.Needs
		want   facts.Answer
	}{
		"objects that exist at the start": {
			needs: everything,
			want:  allOfIt,
		},
		"a class that is created, sorted by name": {
			change: func(s *apiServer) { s.apply(strings.Replace(keyVault, "name: key-vault", "name: another", 1)) },
			needs:  facts.Needs{Classes: []string{"another"}},
			want: facts.Answer{
				Classes:   []*class.Class{{Name: "another", Provider: "azure", Vault: "shop-kv", Objects: keyVaultClass.Objects}},
				Available: facts.Available{Classes: []string{"another", "key-vault"}, ServiceAccounts: []string{"blob-sa", "default"}, Selectors: []string{"access-blob"}},
			},
		},
		"a class that changes": {
			change: func(s *apiServer) { s.apply(strings.ReplaceAll(keyVault, "shop-kv", "other-kv")) },
			needs:  classNeeds,
			want: facts.Answer{
				Classes:   []*class.Class{{Name: "key-vault", Provider: "azure", Vault: "other-kv", Objects: keyVaultClass.Objects}},
				Available: allOfIt.Available,
			},
		},
		"a class that cannot be decoded": {
			change: func(s *apiServer) { s.apply(strings.Replace(keyVault, "keyvaultName: shop-kv", "keyvaultName: 1", 1)) },
			needs:  classNeeds,
			want: facts.Answer{
				Classes:   []*class.Class{{Name: "key-vault", Provider: "azure", Invalid: "a field is of another type than the driver has there"}},
				Available: allOfIt.Available,
			},
		},
		"a class that is deleted": {
			change: func(s *apiServer) { s.remove(classes, "shop", "key-vault") },
			needs:  classNeeds,
			want:   facts.Answer{Classes: []*class.Class{}, Available: facts.Available{ServiceAccounts: []string{"blob-sa", "default"}, Selectors: []string{"access-blob"}}},
		},
		"a ServiceAccount that loses its annotations": {
			change: func(s *apiServer) { s.apply(strings.Replace(defaultSA, "default", "blob-sa", 1)) },
			needs:  facts.Needs{ServiceAccount: "blob-sa"},
			want:   facts.Answer{ServiceAccount: &facts.ServiceAccount{Name: "blob-sa"}, Available: allOfIt.Available},
		},
		"a ServiceAccount that is deleted": {
			change: func(s *apiServer) { s.remove(serviceAccounts, "shop", "default") },
			needs:  facts.Needs{ServiceAccount: "default"},
			want:   facts.Answer{Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa"}, Selectors: []string{"access-blob"}}},
		},
		"a binding whose selector changes": {
			change: func(s *apiServer) { s.apply(strings.Replace(blobBinding, "access-blob", "new", 1)) },
			needs:  facts.Needs{Selector: "new"},
			want:   facts.Answer{Bound: true, Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa", "default"}, Selectors: []string{"new"}}},
		},
		"a binding that loses its selector": {
			change: func(s *apiServer) { s.apply(strings.Replace(blobBinding, "access-blob", `""`, 1)) },
			needs:  facts.Needs{Selector: "access-blob"},
			want:   facts.Answer{Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa", "default"}}},
		},
		"no object of another namespace": {
			change: func(s *apiServer) {
				for _, manifest := range []string{keyVault, blobBinding} {
					s.apply(strings.Replace(manifest, "namespace: shop", "namespace: other", 1))
				}
				s.remove(classes, "shop", "key-vault")
				s.remove(bindings, "shop", "blob-binding")
			},
			needs: everything,
			want: facts.Answer{
				Classes: []*class.Class{}, ServiceAccount: allOfIt.ServiceAccount, NamedServiceAccount: blob,
				Available: facts.Available{ServiceAccounts: []string{"blob-sa", "default"}},
			},
		},
	} {
		for mode, plain := range map[string]bool{"streamed": false, "listed": true} {
			t.Run(name+", "+mode, func(t *testing.T) {
				t.Parallel()
				server := startAPIServer(t, shop, blobSA, defaultSA, keyVault, blobBinding)
				server.plain = plain
				cached := follow(t, server, logr.Discard())
				awaitSync(t, cached)
				if test.change != nil {
					test.change(server)
				}
				server.takeRequests()
				eventually(t, func() string { return cmp.Diff(test.want, lookUp(t, cached, test.needs, false)) })
				if requests := server.takeRequests(); len(requests) > 0 {
					t.Errorf("requests: %v", requests)
				}
			})
		}
	}
}

func TestCacheFollowsNamespaces(t *testing.T) {
	server := startAPIServer(t, shop)
	cached := follow(t, server, logr.Discard())
	awaitSync(t, cached)
	expect := func(want facts.Namespace) {
		t.Helper()
		eventually(t, func() string {
			got, err := cached.Namespace(t.Context(), "shop", false)
			if err != nil {
				t.Fatal(err)
			}
			return cmp.Diff(want, got)
		})
	}
	expect(facts.Namespace{
		Name:        "shop",
		Labels:      map[string]string{"keyvault.io/injection": "enabled", "identity.io/enforce": "bound"},
		Annotations: map[string]string{"keyvault.io/vault": "shop-kv"},
	})
	server.apply(`{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: always}}}`)
	expect(facts.Namespace{Name: "shop", Labels: map[string]string{"keyvault.io/injection": "always"}})
	server.remove(namespaces, "", "shop")
	expect(facts.Namespace{})
}

// TestNoDriver removes the definition of the classes, whose watch goes on: the API server may end it
// seconds later.
func TestNoDriver(t *testing.T) {
	t.Parallel()
	server := startAPIServer(t, shop, defaultSA)
	cached := follow(t, server, logr.Discard())
	awaitSync(t, cached)
	for range 2 {
		for _, want := range []bool{false, true} {
			eventually(t, func() string {
				if got := lookUp(t, cached, everything, false).Available.NoDriver; got != want {
					return fmt.Sprintf("no driver: %t, want %t", got, want)
				}
				return ""
			})
			if !want {
				server.remove(definitions, "", classes+".secrets-store.csi.x-k8s.io")
			}
		}
		server.learn(classes, "secrets-store.csi.x-k8s.io")
	}
}

// TestCacheWithoutKinds creates and removes the kinds that a cluster may not have. Nothing is
// logged.
func TestCacheWithoutKinds(t *testing.T) {
	for resource, group := range map[string]string{classes: "secrets-store.csi.x-k8s.io", bindings: "aadpodidentity.k8s.io"} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t, shop, defaultSA, blobSA)
			server.forget(resource)
			var log lines
			cached := follow(t, server, funcr.New(log.add, funcr.Options{}))
			awaitSync(t, cached)
			found := func() bool {
				got := lookUp(t, cached, everything, false)
				return (resource == classes && len(got.Classes) == 1) || (resource == bindings && got.Bound)
			}
			for range 3 {
				if found() {
					t.Fatal("found an object of a kind that does not exist")
				}
				server.learn(resource, group)
				server.apply(keyVault, blobBinding)
				eventually(t, func() string {
					if !found() {
						return "object not found"
					}
					return ""
				})
				server.forget(resource)
				eventually(t, func() string {
					if found() {
						return "object still found"
					}
					return ""
				})
				server.remove(definitions, "", resource+"."+group)
			}
			if got := log.all(); len(got) > 0 {
				t.Errorf("logged: %v", got)
			}
		})
	}
}

func TestCacheReportsWhyItIsNotReady(t *testing.T) {
	server := startAPIServer(t, shop, defaultSA, blobSA, keyVault, blobBinding)
	server.fail(serviceAccounts, http.StatusForbidden)
	var log lines
	cached := follow(t, server, funcr.New(log.add, funcr.Options{}))
	eventually(t, func() string {
		err := cached.Ready(nil)
		const want = "read ServiceAccounts: failed to list ServiceAccounts: the server says Forbidden"
		if err == nil {
			t.Fatal("ready without ServiceAccounts")
		}
		return cmp.Diff(want, err.Error())
	})
	server.takeRequests()
	eventually(t, func() string {
		if tries := strings.Count(strings.Join(server.takeRequests(), "\n"), "/serviceaccounts "); tries == 0 {
			return "not retried"
		}
		return ""
	})
	if got := log.all(); len(got) != 1 {
		t.Errorf("want one line for the same error, got %q", got)
	}
	server.fail(serviceAccounts, 0)
	if diff := cmp.Diff(allOfIt.NamedServiceAccount, lookUp(t, cached, everything, false).NamedServiceAccount); diff != "" {
		t.Errorf("answers before it is ready are not from the API server (-want +got):\n%s", diff)
	}
	awaitSync(t, cached)
}

// TestCacheReportsStaleness shows that a Cache stays ready while a kind cannot be read, and that
// its metric reports it.
func TestCacheReportsStaleness(t *testing.T) {
	for behaviour, status := range map[string]int{
		"requests are forbidden": http.StatusForbidden,
		"requests are throttled": http.StatusTooManyRequests, // the reflector reports no error
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t, shop, defaultSA)
			server.forget(bindings) // a kind that does not exist is not stale
			cached := follow(t, server, logr.Discard())
			registry := prometheus.NewPedanticRegistry()
			cached.Register(registry)
			awaitSync(t, cached)
			if diff := cmp.Diff(map[string]bool{"Namespaces": false, "ServiceAccounts": false, "SecretProviderClasses": false, "AzureIdentityBindings": false}, stale(t, registry)); diff != "" {
				t.Errorf("stale from the start (-want +got):\n%s", diff)
			}
			server.fail(serviceAccounts, status)
			server.disconnect()
			eventually(t, func() string {
				if !stale(t, registry)["ServiceAccounts"] {
					return "not stale"
				}
				return ""
			})
			if err := cached.Ready(nil); err != nil {
				t.Errorf("no longer ready: %v", err)
			}
			server.fail(serviceAccounts, 0)
			eventually(t, func() string {
				if stale(t, registry)["ServiceAccounts"] {
					return "still stale"
				}
				return ""
			})
		})
	}
}

// stale returns for each kind whether the metric is above 0.
func stale(t *testing.T, registry prometheus.Gatherer) map[string]bool {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]bool{}
	for _, family := range families {
		if family.GetName() != "akv_injector_facts_stale_seconds" {
			continue
		}
		for _, metric := range family.GetMetric() {
			got[metric.GetLabel()[0].GetValue()] = metric.GetGauge().GetValue() > 0
		}
	}
	return got
}

func TestCacheReadsAPIServerIfFresh(t *testing.T) {
	server := startAPIServer(t, shop)
	cached := follow(t, server, logr.Discard())
	awaitSync(t, cached)
	server.silence()
	server.apply(strings.Replace(shop, "keyvault.io/injection: enabled", "keyvault.io/injection: always", 1), defaultSA, blobSA, keyVault, blobBinding)
	if got := lookUp(t, cached, everything, false); got.Bound {
		t.Error("the cache is not stale, so this test proves nothing")
	}
	got := lookUp(t, cached, everything, true)
	if diff := cmp.Diff([]any{allOfIt.Classes, allOfIt.ServiceAccount, blob, true}, []any{got.Classes, got.ServiceAccount, got.NamedServiceAccount, got.Bound}); diff != "" {
		t.Errorf("fresh facts (-want +got):\n%s", diff)
	}
	namespace, err := cached.Namespace(t.Context(), "shop", true)
	if err != nil || namespace.Labels[api.Injection] != api.InjectionAlways {
		t.Errorf("fresh namespace: %v, %v", namespace, err)
	}
}

// TestCacheWaitsForLabels looks up namespaces without the injector's labels with fresh. The lookup
// waits for the watch, and sends no request.
func TestCacheWaitsForLabels(t *testing.T) {
	const bare = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}"
	for behaviour, test := range map[string]struct {
		before, after string
		want          bool
	}{
		"it gets a label":                         {before: bare, after: shop, want: true},
		"it is created with a label":              {after: shop, want: true},
		"it gets no label":                        {before: bare},
		"it does not exist":                       {},
		"it gets a label after another namespace": {before: bare, after: "apiVersion: v1\nkind: Namespace\nmetadata: {name: other}\n---\n" + shop, want: true},
		"only another namespace gets a label":     {before: bare, after: "apiVersion: v1\nkind: Namespace\nmetadata: {name: other, labels: {keyvault.io/injection: enabled}}"},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t)
			if test.before != "" {
				server.apply(test.before)
			}
			wait := 100 * time.Millisecond
			if test.want {
				wait = time.Minute
			}
			cached := followWithin(t, server, logr.Discard(), time.Hour, time.Hour, time.Hour, wait)
			awaitSync(t, cached)
			server.takeRequests()
			found := make(chan facts.Namespace)
			go func() {
				namespace, err := cached.Namespace(t.Context(), "shop", true)
				if err != nil {
					t.Error(err)
				}
				found <- namespace
			}()
			if test.after != "" {
				server.apply(strings.Split(test.after, "---\n")...)
			}
			if namespace := <-found; namespace.OptedIn() != test.want {
				t.Errorf("found %v", namespace)
			}
			for _, request := range server.takeRequests() {
				known := test.want && request == "/api/v1/namespaces/shop" // sent after the label was known
				if !strings.Contains(request, "watch") && !known {
					t.Errorf("request %s", request)
				}
			}
		})
	}
}

// TestCacheGivesNoOldFacts shows that lookups fail once the API server has not answered for too
// long, and only then.
func TestCacheGivesNoOldFacts(t *testing.T) {
	server := startAPIServer(t, shop, defaultSA)
	var logged lines
	cached := followWithin(t, server, funcr.New(logged.add, funcr.Options{}), 5*time.Millisecond, 100*time.Millisecond, time.Hour, time.Hour)
	awaitSync(t, cached)
	for range 50 { // watches without events are not an error
		time.Sleep(5 * time.Millisecond)
		if _, err := cached.Namespace(t.Context(), "shop", false); err != nil {
			t.Fatal(err)
		}
	}
	server.fail(namespaces, http.StatusServiceUnavailable)
	const want = "the API server has not answered for 0 s, so the facts about the cluster may be out of date"
	eventually(t, func() string {
		if err := cached.Ready(nil); err == nil || err.Error() != want {
			return fmt.Sprintf("ready: %v", err)
		}
		return ""
	})
	if _, err := cached.Namespace(t.Context(), "shop", false); err == nil || err.Error() != want {
		t.Errorf("a namespace: %v", err)
	}
	if _, err := cached.Facts(t.Context(), "shop", everything, true); err == nil || err.Error() != want {
		t.Errorf("facts: %v", err)
	}
	server.fail(namespaces, 0)
	awaitSync(t, cached)
	if got := lookUp(t, cached, everything, false); got.ServiceAccount == nil {
		t.Error("no facts after the API server answers again")
	}
	if text := logged.all(); len(text) < 2 || !strings.Contains(text[0], "The API server does not answer") || !strings.Contains(text[len(text)-1], "answers again") {
		t.Errorf("logged %q", text)
	}
}

// TestCacheNeverAnswered shows that facts become too old also if no probe has ever succeeded.
func TestCacheNeverAnswered(t *testing.T) {
	server := startAPIServer(t, shop)
	server.fail("kube-system", http.StatusTooManyRequests)
	cached := followWithin(t, server, logr.Discard(), 5*time.Millisecond, 100*time.Millisecond, time.Hour, time.Hour)
	eventually(t, func() string {
		if _, err := cached.Namespace(t.Context(), "shop", false); err == nil || !strings.Contains(err.Error(), "has not answered") {
			return fmt.Sprintf("got %v", err)
		}
		return ""
	})
}

// TestCacheReadsWhatItCannotWatch shows that lookups read single objects while a watch fails.
func TestCacheReadsWhatItCannotWatch(t *testing.T) {
	server := startAPIServer(t, shop, defaultSA)
	cached := followWithin(t, server, logr.Discard(), time.Hour, time.Hour, 0, time.Hour)
	awaitSync(t, cached)
	server.silence()
	server.apply(blobSA)
	if got := lookUp(t, cached, everything, false); got.NamedServiceAccount != nil {
		t.Error("the cache is not stale, so this test proves nothing")
	}
	server.fail(classes, http.StatusForbidden)
	server.disconnect()
	eventually(t, func() string {
		server.fail(classes, http.StatusForbidden)
		got, err := cached.Facts(t.Context(), "shop", facts.Needs{NamedServiceAccount: "blob-sa"}, false)
		if err != nil || got.NamedServiceAccount == nil {
			return fmt.Sprintf("found %v, %v", got.NamedServiceAccount, err)
		}
		return ""
	})
}

// lines are the lines of a log.
type lines struct {
	mu   sync.Mutex
	text []string
}

func (l *lines) add(_, args string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = append(l.text, args)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text
}
