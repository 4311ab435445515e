package cluster_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// managed returns a managed class in namespace shop that a ReplicaSet owns.
func managed(t *testing.T) *class.SecretProviderClass {
	t.Helper()
	spc := class.Managed(class.Request{Vault: "shop-kv", TenantID: "t", Mode: api.ModePodIdentity, Items: []api.Item{{Name: "db"}}, Data: []class.SecretData{{ObjectName: "db", Key: "db"}}})
	spc.Namespace = "shop"
	spc.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "app", UID: "1"}}
	return spc
}

func manifest(t *testing.T, spc *class.SecretProviderClass) string {
	t.Helper()
	text, err := yaml.Marshal(spc)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestManagedClass(t *testing.T) {
	owners := managed(t).OwnerReferences
	for behaviour, test := range map[string]struct {
		change func(*class.SecretProviderClass)
		edit   [2]string // of the manifest
		want   *cluster.ManagedClass
	}{
		"as it was created":            {want: &cluster.ManagedClass{Owners: owners, Ours: true, Intact: true}},
		"with a value changed":         {edit: [2]string{"shop-kv", "other-kv"}, want: &cluster.ManagedClass{Owners: owners, Ours: true}},
		"with an unknown field":        {edit: [2]string{"type: Opaque", "type: Opaque\n    labels: {a: b}"}, want: &cluster.ManagedClass{Owners: owners, Ours: true}},
		"with a value of another type": {edit: [2]string{"keyvaultName: shop-kv", "keyvaultName: 1"}, want: &cluster.ManagedClass{Owners: owners, Ours: true}},
		"without its label": {
			change: func(c *class.SecretProviderClass) { c.Labels = nil }, want: &cluster.ManagedClass{Owners: owners, Intact: true},
		},
		"without its label, but with our field manager": {
			change: func(c *class.SecretProviderClass) {
				c.Labels, c.ManagedFields = nil, []metav1.ManagedFieldsEntry{{Manager: "kubectl"}, {Manager: "akv-injector"}}
			},
			want: &cluster.ManagedClass{Owners: owners, Ours: true},
		},
		"of another manager": {
			change: func(c *class.SecretProviderClass) {
				c.Labels, c.OwnerReferences = map[string]string{class.ManagedByLabel: "Helm"}, nil
				c.ManagedFields = []metav1.ManagedFieldsEntry{{Manager: "helm"}}
			},
			want: &cluster.ManagedClass{Intact: true},
		},
		"of another name": {change: func(c *class.SecretProviderClass) { c.Name = "kv" }},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			spc := managed(t)
			if test.change != nil {
				test.change(spc)
			}
			text := manifest(t, spc)
			if edited := strings.Replace(text, test.edit[0], test.edit[1], 1); test.edit[0] != "" {
				if edited == text {
					t.Fatalf("nothing to edit in\n%s", text)
				}
				text = edited
			}
			server := startAPIServer(t, shop, text)
			cached := follow(t, server, logr.Discard())
			if err := cached.AwaitFilled(t.Context()); err != nil {
				t.Fatal(err)
			}
			read, err := live(t, server).ManagedClass(t.Context(), "shop", spc.Name)
			if err != nil {
				t.Fatal(err)
			}
			for source, got := range map[string]*cluster.ManagedClass{"cached": cached.ManagedClass("shop", spc.Name), "live": read} {
				if got != nil && got.ResourceVersion == "" {
					t.Errorf("%s: the class has no resource version", source)
				}
				if got != nil {
					got = &cluster.ManagedClass{Owners: got.Owners, Ours: got.Ours, Intact: got.Intact}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("%s: class (-want +got):\n%s", source, diff)
				}
			}
		})
	}
}

// TestOnClass creates, changes and deletes a class, and removes the kind.
func TestOnClass(t *testing.T) {
	server := startAPIServer(t, shop)
	source := live(t, server)
	cached := cluster.NewCache(source, logr.Discard())
	var mu sync.Mutex
	calls := map[types.NamespacedName]int{}
	cached.OnClass(func(namespace, name string) {
		mu.Lock()
		defer mu.Unlock()
		calls[types.NamespacedName{Namespace: namespace, Name: name}]++
	})
	run(t, cached)
	spc := managed(t)
	key := types.NamespacedName{Namespace: "shop", Name: spc.Name}
	for _, step := range []struct {
		what  string
		do    func()
		of    types.NamespacedName
		exist bool
	}{
		{"the start", func() {}, types.NamespacedName{}, false},
		{"a new class", func() { server.apply(manifest(t, spc)) }, key, true},
		{"an edited class", func() { server.apply(strings.Replace(manifest(t, spc), "shop-kv", "other-kv", 1)) }, key, true},
		{"a deleted class", func() { server.remove(classes, "shop", spc.Name) }, key, false},
		{"a class again", func() { server.apply(manifest(t, spc)) }, key, true},
		{"a removed kind", func() { server.forget(classes) }, types.NamespacedName{}, false},
	} {
		mu.Lock()
		before := calls[step.of]
		mu.Unlock()
		if step.what == "the start" {
			before = 0
		}
		step.do()
		eventually(t, func() string {
			mu.Lock()
			defer mu.Unlock()
			if calls[step.of] <= before {
				return "no call after " + step.what
			}
			if exist := cached.ManagedClass("shop", spc.Name) != nil; exist != step.exist {
				return fmt.Sprintf("class exists: %t, after %s", exist, step.what)
			}
			return ""
		})
	}
}
