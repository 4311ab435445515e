package cluster_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

func live(t *testing.T, server *apiServer) *cluster.Live {
	t.Helper()
	l, err := cluster.NewLive(server.config)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func TestLive(t *testing.T) {
	const base = "/namespaces/shop/"
	var (
		getClass   = "/apis/secrets-store.csi.x-k8s.io/v1" + base + "secretproviderclasses/"
		getAccount = "/api/v1" + base + "serviceaccounts/"

		listClasses  = "/apis/secrets-store.csi.x-k8s.io/v1" + base + "secretproviderclasses labelSelector=app.kubernetes.io%2Fmanaged-by%21%3Dakv-injector&limit=500"
		listAccounts = "/api/v1" + base + "serviceaccounts limit=500"
		listBindings = "/apis/aadpodidentity.k8s.io/v1" + base + "azureidentitybindings limit=20"
	)
	for name, test := range map[string]struct {
		needs    facts.Needs
		fresh    bool
		forget   string
		want     facts.Answer
		requests []string
	}{
		"needed objects that exist": {
			needs: everything,
			want: facts.Answer{
				Classes: allOfIt.Classes, ServiceAccount: allOfIt.ServiceAccount, NamedServiceAccount: blob, Bound: true,
				Available: facts.Available{Selectors: []string{"access-blob"}},
			},
			requests: []string{getClass + "key-vault", getAccount + "default", getAccount + "blob-sa", listBindings},
		},
		"only needed objects, unless fresh": {
			needs:    facts.Needs{Classes: []string{"gone"}, ServiceAccount: "gone"},
			requests: []string{getClass + "gone", getAccount + "gone"},
		},
		"the names of classes if one is missing": {
			needs:    facts.Needs{Classes: []string{"key-vault", "gone"}},
			fresh:    true,
			want:     facts.Answer{Classes: allOfIt.Classes, Available: facts.Available{Classes: []string{"key-vault"}}},
			requests: []string{getClass + "key-vault", getClass + "gone", listClasses},
		},
		"no names if no object is missing": {
			needs:    facts.Needs{Classes: []string{"key-vault"}, ServiceAccount: "blob-sa"},
			fresh:    true,
			want:     facts.Answer{Classes: allOfIt.Classes, ServiceAccount: blob},
			requests: []string{getClass + "key-vault", getAccount + "blob-sa"},
		},
		"the names of identities if a ServiceAccount has no client id": {
			needs: facts.Needs{ServiceAccount: "default"},
			fresh: true,
			want: facts.Answer{
				ServiceAccount: allOfIt.ServiceAccount,
				Available:      facts.Available{ServiceAccounts: []string{"blob-sa", "default"}, Clients: []string{"blob-sa"}, Selectors: []string{"access-blob"}},
			},
			requests: []string{getAccount + "default", listBindings, listAccounts},
		},
		"the names of identities if no binding has the selector": {
			needs:    facts.Needs{Selector: "acces-blob"},
			fresh:    true,
			want:     facts.Answer{Available: facts.Available{ServiceAccounts: []string{"blob-sa", "default"}, Clients: []string{"blob-sa"}, Selectors: []string{"access-blob"}}},
			requests: []string{listBindings, listAccounts},
		},
		"classes in a cluster without the kind": {
			needs:    facts.Needs{Classes: []string{"key-vault"}},
			fresh:    true,
			forget:   classes,
			want:     facts.Answer{Available: facts.Available{NoDriver: true}},
			requests: []string{getClass + "key-vault", listClasses},
		},
		"bindings in a cluster without the kind": {
			needs:    facts.Needs{Selector: "access-blob"},
			forget:   bindings,
			requests: []string{listBindings},
		},
		"a class that would take more memory than it has bytes": {
			needs:    facts.Needs{Classes: []string{"dense"}},
			want:     facts.Answer{Classes: []*class.Class{{Name: "dense", Provider: "azure", Invalid: "must have fewer values"}}},
			requests: []string{getClass + "dense"},
		},
		"names that would leave the URL path": {
			needs: facts.Needs{Classes: []string{"../../../../api/v1/secrets/x", ""}, ServiceAccount: "../secrets/x", NamedServiceAccount: ".."},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t, shop, blobSA, defaultSA, keyVault, blobBinding)
			if slices.Contains(test.needs.Classes, "dense") {
				server.apply(`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {namespace: shop, name: dense}, spec: {secretObjects: [{data: [` + strings.Repeat("{},", 100_000) + `]}]}}`)
			}
			if test.forget != "" {
				server.forget(test.forget)
			}
			got := lookUp(t, live(t, server), test.needs, test.fresh)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.requests, server.takeRequests()); diff != "" {
				t.Errorf("requests (-want +got):\n%s", diff)
			}
		})
	}
}

func TestLiveNamespace(t *testing.T) {
	server := startAPIServer(t, shop)
	source := live(t, server)
	got, err := source.Namespace(t.Context(), "shop", false)
	if err != nil || !got.OptedIn() {
		t.Errorf("namespace that is opted in: %v, %v", got, err)
	}
	got, err = source.Namespace(t.Context(), "gone", false)
	if diff := cmp.Diff(facts.Namespace{}, got); diff != "" || err != nil {
		t.Errorf("namespace that does not exist: %v (-want +got):\n%s", err, diff)
	}
}

// TestLiveFailures shows that a failed request is an error: the object may exist.
func TestLiveFailures(t *testing.T) {
	for resource, want := range map[string]string{
		namespaces:      "read metadata of namespaces/shop: the server says Forbidden",
		classes:         "read secretproviderclasses/key-vault of namespace shop: the server says Forbidden",
		serviceAccounts: "read ServiceAccount default: the server says Forbidden",
		bindings:        "read azureidentitybindings of namespace shop: the server says Forbidden",
	} {
		t.Run(resource, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t, shop, blobSA, defaultSA, keyVault, blobBinding)
			server.fail(resource, http.StatusForbidden)
			source := live(t, server)
			_, err := source.Namespace(t.Context(), "shop", true)
			if resource != namespaces && err == nil {
				_, err = source.Facts(t.Context(), "shop", everything, true)
			}
			if !apierrors.IsForbidden(err) || err.Error() != want {
				t.Errorf("got error %q, want %q", err, want)
			}
		})
	}
	t.Run("context that ended", func(t *testing.T) {
		t.Parallel()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := live(t, startAPIServer(t, shop)).Facts(ctx, "shop", everything, true)
		if err == nil || !strings.Contains(err.Error(), context.Canceled.Error()) {
			t.Errorf("got error %v", err)
		}
	})
}

// TestLiveWithoutRightsAndKind shows that a kind that the cluster does not have counts as one without
// objects for a user without rights, too: the API server answers Forbidden in both cases.
func TestLiveWithoutRightsAndKind(t *testing.T) {
	server := startAPIServer(t, shop, defaultSA)
	for _, resource := range []string{classes, bindings} {
		server.forget(resource)
		server.fail(resource, http.StatusForbidden)
	}
	got := lookUp(t, live(t, server), facts.Needs{Classes: []string{"key-vault"}, Selector: "access-blob"}, true)
	want := facts.Answer{Available: facts.Available{NoDriver: true, ServiceAccounts: []string{"default"}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("facts (-want +got):\n%s", diff)
	}
}

func TestOverlay(t *testing.T) {
	ours := strings.ReplaceAll(keyVault, "shop-kv", "our-kv")
	ourClass := &class.Class{Name: "key-vault", Provider: "azure", Vault: "our-kv", Objects: keyVaultClass.Objects}
	for name, test := range map[string]struct {
		documents []string
		cached    []string
		forget    string
		needs     facts.Needs
		want      facts.Answer
		requests  int
	}{
		"only documents, if they have all objects": {
			documents: []string{ours, blobSA},
			cached:    []string{keyVault},
			needs:     facts.Needs{Classes: []string{"key-vault"}, NamedServiceAccount: "blob-sa"},
			want: facts.Answer{
				Classes: []*class.Class{ourClass}, NamedServiceAccount: blob,
				Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa"}, Clients: []string{"blob-sa"}},
			},
		},
		"the cluster for other objects": {
			documents: []string{ours},
			cached:    []string{keyVault, defaultSA, blobSA, blobBinding},
			needs:     everything,
			want: facts.Answer{
				Classes: []*class.Class{ourClass}, ServiceAccount: allOfIt.ServiceAccount, NamedServiceAccount: blob, Bound: true,
				Available: facts.Available{Classes: []string{"key-vault"}, ServiceAccounts: []string{"blob-sa", "default"}, Clients: []string{"blob-sa"}, Selectors: []string{"access-blob"}},
			},
			requests: 4,
		},
		"a binding in the documents, without requests": {
			documents: []string{blobBinding},
			needs:     facts.Needs{Selector: "access-blob"},
			want:      facts.Answer{Bound: true, Available: facts.Available{Selectors: []string{"access-blob"}}},
		},
		"a class that neither has, in a cluster without the kind": {
			documents: []string{ours},
			forget:    classes,
			needs:     facts.Needs{Classes: []string{"gone"}},
			want:      facts.Answer{Available: facts.Available{Classes: []string{"key-vault"}, NoDriver: true}},
			requests:  2,
		},
		"the names of both, without duplicates": {
			documents: []string{blobBinding, defaultSA},
			cached:    []string{blobBinding, defaultSA, blobSA},
			needs:     facts.Needs{Selector: "gone"},
			want:      facts.Answer{Available: facts.Available{Selectors: []string{"access-blob"}, ServiceAccounts: []string{"default", "blob-sa"}, Clients: []string{"blob-sa"}}},
			requests:  2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := startAPIServer(t, test.cached...)
			if test.forget != "" {
				server.forget(test.forget)
			}
			got := lookUp(t, facts.Overlay(objects(t, test.documents...), live(t, server)), test.needs, true)
			if diff := cmp.Diff(test.want, got); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
			if got := server.takeRequests(); len(got) != test.requests {
				t.Errorf("want %d requests, got %q", test.requests, got)
			}
		})
	}
}

func TestOverlayNamespace(t *testing.T) {
	const plain = `{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`
	for name, test := range map[string]struct {
		documents, cached []string
		want              bool
	}{
		"that the documents opt in":             {[]string{shop}, []string{plain}, true},
		"that the documents don't opt in":       {[]string{plain}, []string{shop}, false},
		"that the cluster opts in":              {nil, []string{shop}, true},
		"that the cluster does not opt in":      {nil, []string{plain}, false},
		"that is in neither counts as opted in": {nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			source := facts.Overlay(objects(t, test.documents...), live(t, startAPIServer(t, test.cached...)))
			got, err := source.Namespace(t.Context(), "shop", false)
			if err != nil || got.OptedIn() != test.want {
				t.Errorf("got %v, %v, want opted in: %v", got, err, test.want)
			}
		})
	}
	server := startAPIServer(t)
	server.fail(namespaces, http.StatusForbidden)
	if _, err := facts.Overlay(&facts.Objects{}, live(t, server)).Namespace(t.Context(), "shop", false); !apierrors.IsForbidden(err) {
		t.Errorf("got error %v from a cluster that rejects the request", err)
	}
}

// objects returns the objects of YAML documents.
func objects(t *testing.T, manifests ...string) *facts.Objects {
	t.Helper()
	var o facts.Objects
	for _, manifest := range manifests {
		if err := o.Add(decode(t, manifest), ""); err != nil {
			t.Fatal(err)
		}
	}
	return &o
}
