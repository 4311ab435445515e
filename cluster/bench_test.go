package cluster_test

import (
	"context"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"github.com/go-logr/logr"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/facts"
)

// The size of a large cluster.
const (
	manyNamespaces = 2000
	perNamespace   = 5 // ServiceAccounts
)

// large returns a running Cache of a large cluster.
func large(b *testing.B, server *apiServer) (cached *cluster.Cache, stop func()) {
	b.Helper()
	live, err := cluster.NewLive(server.config)
	if err != nil {
		b.Fatal(err)
	}
	cached = cluster.NewCache(live, logr.Discard())
	ctx, cancel := context.WithCancel(b.Context())
	done := make(chan error, 1)
	go func() { done <- cached.Start(ctx) }()
	for cached.Ready(nil) != nil {
		runtime.Gosched()
	}
	return cached, func() {
		cancel()
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
}

// largeServer serves namespaces with a class, a binding and some ServiceAccounts each.
func largeServer(b *testing.B) *apiServer {
	b.Helper()
	var manifests []string
	for n := range manyNamespaces {
		namespace := fmt.Sprintf("namespace: team-%d", n)
		manifests = append(manifests, strings.Replace(shop, "name: shop", fmt.Sprintf("name: team-%d", n), 1),
			strings.Replace(keyVault, "namespace: shop", namespace, 1))
		for s := range perNamespace - 1 {
			manifests = append(manifests, strings.Replace(strings.Replace(defaultSA, "namespace: shop", namespace, 1), "default", fmt.Sprintf("sa-%d", s), 1))
		}
		manifests = append(manifests, strings.Replace(blobSA, "namespace: shop", namespace, 1), strings.Replace(blobBinding, "namespace: shop", namespace, 1))
	}
	return startAPIServer(b, manifests...)
}

// BenchmarkFacts measures the lookups of a review of a pod with a class and an identity.
func BenchmarkFacts(b *testing.B) {
	cached, stop := large(b, largeServer(b))
	defer stop()
	needs := facts.Needs{Classes: []string{"key-vault"}, ServiceAccount: "sa-1", NamedServiceAccount: "blob-sa", Selector: "access-blob"}
	b.ReportAllocs()
	for b.Loop() {
		namespace, err := cached.Namespace(b.Context(), "team-1234", false)
		if err != nil || !namespace.OptedIn() {
			b.Fatalf("namespace: %v, %v", namespace, err)
		}
		got, err := cached.Facts(b.Context(), "team-1234", needs, false)
		if err != nil || len(got.Classes) != 1 || got.NamedServiceAccount == nil {
			b.Fatalf("facts: %v, %v", got, err)
		}
	}
}

// BenchmarkMemory reports the heap size of a Cache, and how long its first lists take.
func BenchmarkMemory(b *testing.B) {
	server := largeServer(b)
	heap := func() uint64 {
		var stats runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&stats)
		return stats.HeapAlloc
	}
	for b.Loop() {
		b.StopTimer()
		before := heap()
		b.StartTimer()
		cached, stop := large(b, server)
		b.StopTimer()
		b.ReportMetric(float64(heap()-before)/(manyNamespaces*(3+perNamespace)), "B/object")
		b.ReportMetric(float64(heap()-before)/(1<<20), "MiB")
		runtime.KeepAlive(cached)
		stop()
		b.StartTimer()
	}
}
