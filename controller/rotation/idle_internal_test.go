package rotation

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/events"
	clocktesting "k8s.io/utils/clock/testing"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/core/jsonstream"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

// idleCluster has a workload whose pod mounts version v2. OWN is the annotation of the workload, and
// WINDOW that of the namespace.
const idleCluster = `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: secretproviderclasses.secrets-store.csi.x-k8s.io}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keyvault.io/injection: enabled}, annotations: {keyvault.io/restart-window: "WINDOW"}}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: kv, namespace: shop}
spec:
  provider: azure
  parameters: {keyvaultName: payments, objects: "array:\n- |\n  objectName: db\n  objectType: secret\n"}
  secretObjects: [{secretName: kv, type: Opaque, data: [{objectName: db, key: db}]}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: app, namespace: shop, annotations: {keyvault.io/restarted-for: OWN}}
spec: {replicas: 1, template: {metadata: {}, spec: {containers: [{name: app}]}}}
status: {replicas: 1, updatedReplicas: 1, availableReplicas: 1}
---
apiVersion: v1
kind: Pod
metadata:
  name: app-1
  namespace: shop
  labels: {pod-template-hash: abc}
  annotations: {keyvault.io/on-rotation: restart}
  ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: app-abc, uid: "1", controller: true}]
spec:
  containers: [{name: app, env: [{name: DB, valueFrom: {secretKeyRef: {name: kv, key: db}}}]}]
  volumes: [{name: keyvault, csi: {driver: secrets-store.csi.k8s.io, volumeAttributes: {secretProviderClass: kv}}}]
`

const (
	idlePod = `{"metadata":{"name":"app-1","namespace":"shop","labels":{"pod-template-hash":"abc"},
"annotations":{"keyvault.io/on-rotation":"restart"},
"ownerReferences":[{"apiVersion":"apps/v1","kind":"ReplicaSet","name":"app-abc","controller":true}]}}`
	idleStatus = `{"metadata":{"name":"s","namespace":"shop","creationTimestamp":"2026-03-01T00:00:00Z",
"managedFields":[{"time":"2026-03-01T01:00:00Z"}]},"status":{"mounted":true,"podName":"app-1","secretProviderClassName":"kv",
"objects":[{"id":"secret/db","version":"v2"}]}}`
)

// TestHour counts the writes of an hour, by a clock of the test.
func TestHour(t *testing.T) {
	for behaviour, test := range map[string]struct {
		own, window string
		want        int
	}{
		"the version is recorded":                   {"payments/secret/db@v2", "00:00-24:00", 0},
		"a restart is due, and the window is not":   {"payments/secret/db@v1", "05:00-06:00", 0},
		"the version is not recorded":               {"payments/secret/other@v1", "05:00-06:00", 1},
		"a window that cannot be parsed stays shut": {"payments/secret/db@v1", "at night", 0},
	} {
		server := fakeapi.Start(t, strings.NewReplacer("OWN", test.own, "WINDOW", test.window).Replace(idleCluster))
		live, err := cluster.NewLive(server.Config)
		if err != nil {
			t.Fatal(err)
		}
		r := New(Options{
			Live: live, Cache: cluster.NewCache(live, logr.Discard()), Client: kubernetes.NewForConfigOrDie(server.Config),
			Events: events.NewFakeRecorder(10), MaxConcurrent: 1, Timeout: time.Minute, Log: logr.Discard(), Metrics: prometheus.NewRegistry(),
		})
		now := clocktesting.NewFakeClock(time.Date(2026, time.March, 1, 2, 0, 0, 0, time.UTC))
		r.clock, r.due, r.active = now, map[workload]*pending{}, map[workload]*activity{}
		var reader jsonstream.Reader
		reader.Reset(strings.NewReader(idlePod), 1<<20)
		pod, _ := kindsWith(nil).readPod(&reader)
		reader.Reset(strings.NewReader(idleStatus), 1<<20)
		status, _ := readStatus(&reader)
		if err := errors.Join(
			(&store[*podObject]{table: r.table, put: r.table.putPod}).Add(pod),
			(&store[*statusObject]{table: r.table, put: r.table.putStatus}).Add(status),
		); err != nil {
			t.Fatal(err)
		}
		for range 20 { // few steps, since the reads of a namespace are limited
			now.Step(3 * time.Minute)
			r.step(t.Context())
		}
		if got := server.Calls("PATCH /apis/apps/v1/namespaces/shop/deployments/app"); got != test.want {
			t.Errorf("%s: %d writes, want %d", behaviour, got, test.want)
		}
	}
}
