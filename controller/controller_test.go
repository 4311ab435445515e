package controller_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	ctrlconfig "sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/controller"
	"github.com/akv-injector/akv-injector/core/inject"
)

const namespace = `{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
	"metadata": {"name": "shop", "resourceVersion": "1", "labels": {"keyvault.io/injection": "enabled"}}}`

// answers has the answers to GET requests by path. Other lists are empty.
var answers = map[string]string{
	"/api/v1/namespaces": `{"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadataList",
		"metadata": {"resourceVersion": "1"}, "items": [` + namespace + `]}`,
	"/api/v1/namespaces/shop": namespace,
	// A pod that mounts a class, and that does not request it.
	"/api/v1/pods": `{"apiVersion": "v1", "kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": [{
		"metadata": {"namespace": "shop", "name": "app", "uid": "1", "resourceVersion": "1"},
		"spec": {"volumes": [{"name": "keyvault", "csi": {"driver": "secrets-store.csi.k8s.io",
			"volumeAttributes": {"secretProviderClass": "kv-0123456789"}}}]}}]}`,
}

// startAPIServer serves the answers, and watches without events.
func startAPIServer(t *testing.T) *rest.Config {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		answer := answers[r.URL.Path]
		switch parameters := r.URL.Query(); {
		case r.Method == http.MethodPost: // of an event
			w.WriteHeader(http.StatusCreated)
			fmt.Fprint(w, `{"apiVersion": "events.k8s.io/v1", "kind": "Event"}`)
		case parameters.Get("sendInitialEvents") != "": // clients fall back to lists
			w.WriteHeader(http.StatusUnprocessableEntity)
			fmt.Fprint(w, `{"apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Invalid", "code": 422}`)
		case parameters.Get("watch") != "":
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		case answer != "":
			fmt.Fprint(w, answer)
		default:
			fmt.Fprint(w, `{"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []}`)
		}
	}))
	t.Cleanup(server.Close)
	t.Cleanup(server.CloseClientConnections)
	return &rest.Config{Host: server.URL}
}

// count returns the value of a counter of the controller.
func count(t *testing.T, name string) float64 {
	t.Helper()
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if family.GetName() == name && strings.Contains(m.String(), `"managed-classes"`) {
				return m.GetCounter().GetValue()
			}
		}
	}
	return 0
}

// TestRetries checks that the library counts every failure and retry of a class, and that one line is
// logged.
func TestRetries(t *testing.T) {
	config := startAPIServer(t)
	var mu sync.Mutex
	var lines []map[string]any
	log := funcr.NewJSON(func(text string) {
		var line map[string]any
		if err := json.Unmarshal([]byte(text), &line); err != nil {
			t.Error(err)
		}
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}, funcr.Options{})
	live, err := cluster.NewLive(config)
	if err != nil {
		t.Fatal(err)
	}
	cached := cluster.NewCache(live, log)
	mgr, err := manager.New(config, manager.Options{
		Logger: log, Metrics: metricsserver.Options{BindAddress: "0"}, HealthProbeBindAddress: "0",
		Controller: ctrlconfig.Controller{SkipNameValidation: new(true)}, // for go test -count
	})
	if err != nil {
		t.Fatal(err)
	}
	options := controller.Options{
		Live: live, Cache: cached, Defaults: inject.Defaults{}, Log: log, Metrics: prometheus.NewRegistry(),
	}
	if err := errors.Join(mgr.Add(cached), controller.AddTo(mgr, options)); err != nil {
		t.Fatal(err)
	}
	const (
		failures = "controller_runtime_reconcile_errors_total"
		retries  = "workqueue_retries_total"
		want     = 4 // of each: reconciles that evaluate the pod, and that skip it
	)
	failed, retried := count(t, failures), count(t, retries)
	ctx, stop := context.WithTimeout(t.Context(), 30*time.Second)
	defer stop()
	ended := make(chan error, 1)
	go func() { ended <- mgr.Start(ctx) }()
	for count(t, failures) < failed+want || count(t, retries) < retried+want {
		select {
		case <-ctx.Done():
			t.Fatalf("%v failures and %v retries, want %d", count(t, failures)-failed, count(t, retries)-retried, want)
		case <-time.After(10 * time.Millisecond):
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	mu.Lock()
	defer mu.Unlock()
	var about []map[string]any
	for _, line := range lines {
		if line["class"] != nil || line["msg"] == "Reconciler error" {
			about = append(about, line)
		}
	}
	const message, why = "Class is not as its pods need it", "SecretProviderClass kv-0123456789 is missing and was not created, since "
	if len(about) != 1 || about[0]["msg"] != message || !strings.HasPrefix(fmt.Sprint(about[0]["why"]), why) {
		t.Errorf("log lines about the class: %v; want one", about)
	}
}
