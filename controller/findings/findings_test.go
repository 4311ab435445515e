package findings_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"github.com/akv-injector/akv-injector/cluster"
	"github.com/akv-injector/akv-injector/controller/findings"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/inject"
)

// finding is a Finder that runs until the test ends or stop is called.
type finding struct {
	*findings.Finder

	registry *prometheus.Registry
	stop     func()
}

// start starts a Finder. Events go to client.
func start(t *testing.T, server *apiServer, client *fake.Clientset, window time.Duration) *finding {
	t.Helper()
	live, err := cluster.NewLive(server.config())
	if err != nil {
		t.Fatal(err)
	}
	f := &finding{registry: prometheus.NewRegistry()}
	cached := cluster.NewCache(live, logr.Discard())
	f.Finder = findings.New(findings.Options{
		Live: live, Cache: cached, Client: client,
		Excludes: func(namespace string) bool { return namespace == "kube-system" },
		Defaults: inject.Defaults{}, Log: logr.Discard(), Metrics: f.registry,
	})
	f.SetDelays(time.Millisecond, time.Millisecond, window)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 2)
	go func() { ended <- cached.Start(ctx) }()
	go func() { ended <- f.Start(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		for range cap(ended) {
			if err := <-ended; err != nil {
				t.Error(err)
			}
		}
	})
	t.Cleanup(f.stop)
	return f
}

// wait waits until done returns true.
func wait(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); {
		if time.Now().After(end) {
			t.Fatalf("timed out waiting for %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// settled waits until all changes of the server are reviewed, and all events are written.
func (f *finding) settled(t *testing.T, kept int) {
	t.Helper()
	wait(t, fmt.Sprintf("%d kept objects, reviewed", kept), func() bool { return f.Kept() == kept && f.Idle() })
}

// events returns the events as "namespace/kind/name: note", sorted.
func events(t *testing.T, client *fake.Clientset) []string {
	t.Helper()
	list, err := client.EventsV1().Events("").List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var texts []string
	for i := range list.Items {
		e := &list.Items[i]
		if e.Type != "Warning" || e.ReportingController != "akv-injector" || !strings.HasPrefix(e.Note, "["+e.Reason+"] ") || len(e.Note) > 1024 {
			t.Errorf("event %+v", e)
		}
		texts = append(texts, e.Namespace+"/"+e.Regarding.Kind+"/"+e.Regarding.Name+": "+e.Note)
	}
	slices.Sort(texts)
	return texts
}

// counts returns the samples of akv_injector_findings that are not zero.
func (f *finding) counts(t *testing.T) map[string]float64 {
	t.Helper()
	families, err := f.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			if value := m.GetGauge().GetValue(); family.GetName() == "akv_injector_findings" && value != 0 {
				counts[m.GetLabel()[0].GetValue()] = value
			}
		}
	}
	return counts
}

const (
	optedIn = `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: enabled}}}`
	plain   = `{apiVersion: v1, kind: Namespace, metadata: {name: shop}}`
	account = `
---
{apiVersion: v1, kind: ServiceAccount, metadata: {name: blob-sa, annotations: {azure.workload.identity/client-id: 0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90}}}`
	// request is the request of a healthy pod.
	request = `keyvault.io/vault: shop-kv, keyvault.io/secrets: db-password, identity.io/name: blob-sa, identity.io/tenant-id: 72f988bf-86f1-41af-91ab-2d7cd011db47`
	// inherited is what a pod template inherits from a workload with that request.
	inherited = `keyvault.io/inherited: "identity.io/name=\"blob-sa\"\nidentity.io/tenant-id=\"72f988bf-86f1-41af-91ab-2d7cd011db47\"\nkeyvault.io/secrets=\"db-password\"\nkeyvault.io/vault=\"shop-kv\""`
)

// workload returns a workload with annotations in its metadata and in its template.
func workload(apiVersion, kind, name, own, template string) string {
	return fmt.Sprintf(`
---
apiVersion: %s
kind: %s
metadata: {name: %s, annotations: {%s}}
spec: {template: {metadata: {annotations: {%s}}, spec: {containers: [{name: app, image: app}]}}}
`, apiVersion, kind, name, own, template)
}

// podOf returns a pod with labels and annotations; if owner is not empty, with a controller.
func podOf(name, labels, annotations, owner string) string {
	if owner != "" {
		owner = "ownerReferences: [{controller: true, " + owner + "}], "
	}
	return fmt.Sprintf(`
---
apiVersion: v1
kind: Pod
metadata: {%sname: %s, labels: {%s}, annotations: {%s}}
spec: {serviceAccountName: blob-sa, containers: [{name: app, image: app}]}
`, owner, name, labels, annotations)
}

const (
	hash       = `pod-template-hash: 7d8f`
	ofWeb      = `apiVersion: apps/v1, kind: ReplicaSet, name: web-7d8f, uid: web-7d8f`
	past       = "before namespace shop opted in or while the API server did not call the injector"
	uninjected = "[NotInjected] metadata.labels[keyvault.io/injected]: Required value: the pod requests injection and was created without it, " + past + "; "
	notOptedIn = "Forbidden: has no effect in namespace shop, which lacks label keyvault.io/injection; run: kubectl label namespace shop keyvault.io/injection=enabled, then restart the pods"
)

func TestFindings(t *testing.T) {
	for behaviour, test := range map[string]struct {
		objects string
		kept    int
		// want are the events without their namespaces. Each is the start of the text, and after … the end:
		// packages api and policy have tests of the whole texts.
		want   []string
		counts map[string]float64
	}{
		"a healthy workload has none": {
			objects: optedIn + account + workload("apps/v1", "Deployment", "web", request, inherited),
			kept:    1,
		},
		"objects without annotations are not kept": {
			objects: plain + workload("apps/v1", "Deployment", "web", "a: b", "keyvault.io/status: x") + podOf("app", "", "", ""),
		},
		"a workload in a namespace that did not opt in": {
			objects: plain + workload("apps/v1", "Deployment", "web", request, ""),
			kept:    1,
			want:    []string{"Deployment/web: [NoEffect] metadata.annotations: " + notOptedIn},
			counts:  map[string]float64{"NoEffect": 1},
		},
		"an annotated template in a namespace that did not opt in": {
			objects: plain + workload("batch/v1", "Job", "once", "", request),
			kept:    1,
			want:    []string{"Job/once: [NoEffect] spec.template.metadata.annotations: " + notOptedIn},
			counts:  map[string]float64{"NoEffect": 1},
		},
		"a namespace that opted out": {
			objects: `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: disabled}}}` +
				workload("apps/v1", "DaemonSet", "agent", request, ""),
			kept: 1,
			want: []string{"DaemonSet/agent: [NoEffect] metadata.annotations: Forbidden: has no effect in namespace shop, which has label " +
				"keyvault.io/injection: disabled; run: kubectl label --overwrite namespace shop keyvault.io/injection=enabled, then restart the pods"},
			counts: map[string]float64{"NoEffect": 1},
		},
		"a namespace whose label is misspelt": {
			objects: `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: "true"}}}` +
				workload("apps/v1", "StatefulSet", "db", request, ""),
			kept:   1,
			want:   []string{`StatefulSet/db: [UnknownInjection] namespaces[shop].metadata.labels[keyvault.io/injection]: Unsupported value: "true": `},
			counts: map[string]float64{"UnknownInjection": 1},
		},
		"an excluded namespace": {
			objects: `{apiVersion: v1, kind: Namespace, metadata: {name: kube-system, labels: {keyvault.io/injection: enabled}}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: kube-system, name: app, annotations: {keyvault.io/class: c}}, spec: {containers: [{name: app}]}}
---
{apiVersion: v1, kind: Pod, metadata: {namespace: kube-system, name: out, annotations: {keyvault.io/inject: "false"}}, spec: {containers: [{name: app}]}}`,
			kept: 2,
			want: []string{"Pod/app: [NoEffect] metadata.annotations: Forbidden: has no effect in namespace kube-system, " +
				"which the API server does not send to the injector; use another namespace"},
			counts: map[string]float64{"NoEffect": 1},
		},
		"what opts out, has ended or has a controller has none": {
			objects: plain + workload("apps/v1", "Deployment", "out", request+`, keyvault.io/inject: "false"`, "") + `
---
{apiVersion: batch/v1, kind: Job, metadata: {name: ended, annotations: {keyvault.io/class: c}}, spec: {template: {spec: {containers: []}}}, status: {conditions: [{type: Complete, status: "True"}]}}
---
{apiVersion: apps/v1, kind: ReplicaSet, metadata: {name: web-1, annotations: {keyvault.io/class: c}, ownerReferences: [{apiVersion: apps/v1, kind: Deployment, name: web, uid: u, controller: true}]}, spec: {}}
---
{apiVersion: v1, kind: Pod, metadata: {name: static, annotations: {keyvault.io/class: c, kubernetes.io/config.mirror: x}}, spec: {containers: []}}
---
{apiVersion: v1, kind: Pod, metadata: {name: gone, deletionTimestamp: "2026-01-01T00:00:00Z", annotations: {keyvault.io/class: c}}, spec: {containers: []}}`,
			kept: 1,
		},
		"an identity that is not found": {
			objects: optedIn + workload("apps/v1", "Deployment", "web", "identity.io/name: blob-sa", `keyvault.io/inherited: "identity.io/name=\"blob-sa\""`),
			kept:    1,
			want:    []string{`Deployment/web: [ServiceAccountNotFound] metadata.annotations[identity.io/name]: Not found: "blob-sa": `},
			counts:  map[string]float64{"ServiceAccountNotFound": 1},
		},
		"a mistake that would reject the workload now": {
			objects: optedIn + workload("apps/v1", "Deployment", "web", "", "keyvault.io/secret: a"),
			kept:    1,
			want:    []string{"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/secret]: Forbidden: "},
			counts:  map[string]float64{"UnknownKey": 1},
		},
		"a violation of policy": {
			objects: `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {identity.io/enforce: required}}}` +
				workload("apps/v1", "Deployment", "web", "", `keyvault.io/inject: "false"`),
			kept:   1,
			want:   []string{"Deployment/web: [IdentityRequired] spec.template.metadata.annotations[identity.io/name]: Required value: "},
			counts: map[string]float64{"IdentityRequired": 1},
		},
		"a template that does not inherit": {
			objects: optedIn + account + workload("apps/v1", "Deployment", "web", request, "") + workload("batch/v1", "Job", "once", request, "") +
				workload("apps/v1", "ReplicaSet", "bare", request, ""),
			kept: 3,
			want: []string{
				"Deployment/web: [NotInjected] spec.template.metadata.annotations[keyvault.io/inherited]: Required value: the pod template does not inherit " +
					"the annotations that the Deployment has, which was written " + past + "; run: kubectl -n shop rollout restart deployment/web",
				"Job/once: [NotInjected] spec.template.metadata.annotations[keyvault.io/inherited]: Required value: the pod template does not inherit " +
					"the annotations that the Job has, which was written " + past + "; delete the Job and create it again",
				"ReplicaSet/bare: [NotInjected] spec.template.metadata.annotations[keyvault.io/inherited]: Required value: the pod template does not inherit " +
					"the annotations that the ReplicaSet has, which was written " + past + "; write it again: kubectl -n shop get replicaset/bare -o yaml | kubectl replace -f -",
			},
			counts: map[string]float64{"NotInjected": 3},
		},
		"a pod without injection": {
			objects: optedIn + account + podOf("app", "", request, ""),
			kept:    1,
			want:    []string{"Pod/app: " + uninjected + "delete the pod and create it again"},
			counts:  map[string]float64{"NotInjected": 1},
		},
		"a pod without injection, which would be rejected now": {
			objects: optedIn + account + podOf("app", "", "identity.io/mode: x", ""),
			kept:    1,
			want: []string{
				`Pod/app: [InvalidValue] metadata.annotations[identity.io/mode]: Unsupported value: "x": `,
				"Pod/app: " + uninjected + "delete the pod and create it again",
			},
			counts: map[string]float64{"NotInjected": 1, "InvalidValue": 1},
		},
		"pods of a Deployment without injection have one": {
			objects: optedIn + account + workload("apps/v1", "Deployment", "web", request, inherited) +
				podOf("web-a", hash+`, keyvault.io/injected: "true"`, inherited, ofWeb) + podOf("web-b", hash, inherited, ofWeb) + podOf("web-c", hash, inherited, ofWeb),
			kept:   4,
			want:   []string{"Pod/web-b: " + uninjected + "run: kubectl -n shop rollout restart deployment/web"},
			counts: map[string]float64{"NotInjected": 1},
		},
		"pods of a workload in a namespace that did not opt in have one": {
			objects: plain + workload("apps/v1", "Deployment", "web", "", request) + podOf("web-a", hash, request, ofWeb) + podOf("web-b", hash, request, ofWeb),
			kept:    3,
			want: []string{
				"Deployment/web: [NoEffect] spec.template.metadata.annotations: " + notOptedIn,
				"Pod/web-a: [NoEffect] metadata.annotations: " + notOptedIn,
			},
			counts: map[string]float64{"NoEffect": 2},
		},
		"warnings about a workload are not repeated for its pods": {
			objects: optedIn + account + workload("apps/v1", "Deployment", "web", "", "identity.io/mode: none, identity.io/name: x") +
				podOf("web-a", hash+`, keyvault.io/injected: "true"`, "identity.io/mode: none, identity.io/name: x", ofWeb),
			kept:   2,
			want:   []string{`Deployment/web: [NoEffect] spec.template.metadata.annotations[identity.io/name]: Forbidden: `},
			counts: map[string]float64{"NoEffect": 1},
		},
		"warnings about pods whose workload is of another kind": {
			objects: optedIn + account + podOf("web-a", `keyvault.io/injected: "true"`, "identity.io/mode: none, identity.io/name: x", ofWeb) +
				podOf("web-b", `keyvault.io/injected: "true"`, "identity.io/mode: none, identity.io/name: x", ofWeb),
			kept:   2,
			want:   []string{`Pod/web-a: [NoEffect] metadata.annotations[identity.io/name]: Forbidden: `},
			counts: map[string]float64{"NoEffect": 1},
		},
		"warnings about a ReplicaSet without a Deployment are not repeated for its pods": {
			objects: optedIn + account + workload("apps/v1", "ReplicaSet", "bare", "", "identity.io/mode: none, identity.io/name: x") +
				podOf("bare-a", `keyvault.io/injected: "true"`, "identity.io/mode: none, identity.io/name: x",
					"apiVersion: apps/v1, kind: ReplicaSet, name: bare, uid: /apis/apps/v1/namespaces/shop/replicasets/bare"),
			kept:   2,
			want:   []string{`ReplicaSet/bare: [NoEffect] spec.template.metadata.annotations[identity.io/name]: Forbidden: `},
			counts: map[string]float64{"NoEffect": 1},
		},
		"a CronJob and a Job of it": {
			objects: optedIn + account + `
---
{apiVersion: batch/v1, kind: CronJob, metadata: {name: nightly, annotations: {` + request + `}}, spec: {jobTemplate: {spec: {template: {spec: {containers: [{name: app}]}}}}}}` +
				podOf("nightly-1-a", "", request, "apiVersion: batch/v1, kind: Job, name: nightly-1, uid: nightly-1"),
			kept: 2,
			want: []string{
				"CronJob/nightly: [NotInjected] spec.jobTemplate.spec.template.metadata.annotations[keyvault.io/inherited]: … kubectl -n shop get cronjob/nightly -o yaml | kubectl replace -f -",
				"Pod/nightly-1-a: " + uninjected + "delete the pod, and its controller creates another",
			},
			counts: map[string]float64{"NotInjected": 2},
		},
		"a bare pod that policy rejects": {
			objects: `{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: enabled, identity.io/enforce: required}}}` +
				podOf("app", `keyvault.io/injected: "true"`, `keyvault.io/inject: "false"`, ""),
			kept:   1,
			want:   []string{"Pod/app: [IdentityRequired] metadata.annotations[identity.io/name]: Required value: "},
			counts: map[string]float64{"IdentityRequired": 1},
		},
		"an injected pod has none": {
			objects: optedIn + account + podOf("app", `keyvault.io/injected: "true"`, request, ""),
			kept:    1,
		},
		"mistakes in a Deployment are not repeated for its pods": {
			objects: optedIn + workload("apps/v1", "Deployment", "web", "", "keyvault.io/a: x") + podOf("web-a", hash, "keyvault.io/a: x", ofWeb),
			kept:    2,
			want: []string{
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/a]: ",
				"Pod/web-a: " + uninjected + "run: kubectl -n shop rollout restart deployment/web",
			},
			counts: map[string]float64{"UnknownKey": 1, "NotInjected": 1},
		},
		"an injected pod in a namespace that opted out later": {
			objects: plain + podOf("app", `keyvault.io/injected: "true"`, request, ""),
			kept:    1,
		},
		"findings of pods with a controller have one event for each Reason": {
			objects: optedIn + podOf("web-a", "", "keyvault.io/a: x, keyvault.io/b: x, keyvault.io/env: x", ofWeb),
			kept:    1,
			want: []string{
				"Pod/web-a: [InvalidValue] metadata.annotations[keyvault.io/env]: ",
				"Pod/web-a: " + uninjected + "delete the pod, and its controller creates another",
				"Pod/web-a: [UnknownKey] metadata.annotations[keyvault.io/a]: ",
			},
			counts: map[string]float64{"InvalidValue": 1, "NotInjected": 1, "UnknownKey": 1},
		},
		"a controller whose name is no name": {
			objects: optedIn + account + podOf("app", "", request, `apiVersion: apps/v1, kind: StatefulSet, name: "x; reboot\e[31m", uid: u`),
			kept:    1,
			want:    []string{"Pod/app: " + uninjected + "delete the pod, and its controller creates another"},
			counts:  map[string]float64{"NotInjected": 1},
		},
		"more findings than events": {
			objects: optedIn + workload("apps/v1", "Deployment", "web", "",
				"keyvault.io/a: x, keyvault.io/b: x, keyvault.io/c: x, keyvault.io/d: x, keyvault.io/e: x, keyvault.io/f: x, keyvault.io/env: x"),
			kept: 1,
			want: []string{
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/a]: ",
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/b]: ",
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/c]: ",
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/d]: ",
				"Deployment/web: [UnknownKey] spec.template.metadata.annotations[keyvault.io/e]: … and 2 more: akv-injector lint shows them all",
			},
			counts: map[string]float64{"UnknownKey": 1, "InvalidValue": 1},
		},
	} {
		for _, streamed := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, streamed=%t", behaviour, streamed), func(t *testing.T) {
				t.Parallel()
				server, client := startAPIServer(t, streamed), fake.NewClientset()
				server.apply(t, test.objects)
				// A sentinel, so that there is something to wait for.
				server.apply(t, `{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: other, name: sentinel, annotations: {keyvault.io/class: c}}, spec: {}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other}}`)
				f := start(t, server, client, time.Minute)
				f.settled(t, test.kept+1)
				var got []string
				for _, text := range events(t, client) {
					if _, text, _ := strings.Cut(text, "/"); !strings.HasPrefix(text, "Deployment/sentinel: ") {
						got = append(got, text)
					}
				}
				slices.Sort(test.want)
				for i, text := range got[:min(len(got), len(test.want))] {
					start, end, _ := strings.Cut(test.want[i], "…")
					if strings.HasPrefix(text, start) && strings.HasSuffix(text, end) {
						got[i] = test.want[i]
					}
				}
				if diff := cmp.Diff(test.want, got); diff != "" {
					t.Errorf("events (-want +got):\n%s", diff)
				}
				want := map[string]float64{"NoEffect": 1}
				for reason, n := range test.counts {
					want[reason] += n
				}
				if diff := cmp.Diff(want, f.counts(t)); diff != "" {
					t.Errorf("akv_injector_findings (-want +got):\n%s", diff)
				}
			})
		}
	}
}

// TestChanges follows a workload from a namespace that did not opt in to its injection, by two
// Finders at once and after a restart. No event is written twice.
func TestChanges(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	server.apply(t, plain+account+workload("apps/v1", "Deployment", "web", request, "")+podOf("web-a", hash, "", ofWeb))
	first, second := start(t, server, client, time.Minute), start(t, server, client, time.Minute)
	both := func(kept int, counts map[string]float64) {
		t.Helper()
		for _, f := range []*finding{first, second} {
			wait(t, fmt.Sprintf("findings %v", counts), func() bool { return cmp.Equal(f.counts(t), counts) })
			f.settled(t, kept)
		}
	}
	noEffect, notInjected := map[string]float64{"NoEffect": 1}, map[string]float64{"NotInjected": 1}
	both(1, noEffect)
	server.apply(t, optedIn)
	both(1, notInjected)
	server.apply(t, plain)
	both(1, noEffect)
	first.stop()
	first = start(t, server, client, time.Minute)
	both(1, noEffect)
	server.apply(t, optedIn)
	server.apply(t, workload("apps/v1", "Deployment", "web", request, inherited))
	both(1, map[string]float64{})
	server.apply(t, podOf("web-b", hash, inherited, ofWeb))
	both(2, notInjected)
	server.delete("/api/v1/namespaces/shop/pods/web-b")
	both(1, map[string]float64{})
	server.delete("/apis/apps/v1/namespaces/shop/deployments/web")
	both(0, map[string]float64{})
	if got := events(t, client); len(got) != 3 {
		t.Errorf("events:\n%s\nwant one about each of the 3 findings", strings.Join(got, "\n"))
	}
}

// TestFacts adds what a workload refers to. The finding goes away without a change of the workload.
func TestFacts(t *testing.T) {
	for fact, object := range map[string]string{
		"keyvault.io/class: c, identity.io/mode: none": `{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: c}, spec: {provider: azure, parameters: {useVMManagedIdentity: "true", keyvaultName: shop-kv, tenantID: 72f988bf-86f1-41af-91ab-2d7cd011db47, objects: "array: [\"objectName: a\\nobjectType: secret\"]"}}}`,
		"identity.io/name: blob-sa":                    account,
		"identity.io/name: a": `
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: a}
spec: {selector: a}`,
	} {
		t.Run(fact, func(t *testing.T) {
			t.Parallel()
			server, client := startAPIServer(t, true), fake.NewClientset()
			server.apply(t, optedIn+workload("apps/v1", "Deployment", "web", "", fact))
			f := start(t, server, client, time.Minute)
			rejecting := func() []string {
				reasons := slices.Collect(maps.Keys(f.counts(t)))
				return slices.DeleteFunc(reasons, func(r string) bool { return r == "PodIdentityRetired" || r == "IdentityMismatch" })
			}
			f.settled(t, 1)
			if len(rejecting()) == 0 {
				t.Fatal("the workload has no finding")
			}
			server.apply(t, object)
			wait(t, "the finding to go away", func() bool { return len(rejecting()) == 0 })
		})
	}
}

// TestRelist deletes an object, and replaces another one, while that cannot be watched.
func TestRelist(t *testing.T) {
	for _, streamed := range []bool{true, false} {
		server, client := startAPIServer(t, streamed), fake.NewClientset()
		server.apply(t, plain+workload("apps/v1", "Deployment", "web", request, "")+workload("apps/v1", "Deployment", "api", request, "")+
			podOf("db-0", "", request, "apiVersion: apps/v1, kind: StatefulSet, name: db, uid: first"))
		f := start(t, server, client, time.Minute)
		f.settled(t, 3)
		server.lose("/apis/apps/v1/namespaces/shop/deployments/web")
		f.settled(t, 2)
		server.apply(t, podOf("db-0", "", request, "apiVersion: apps/v1, kind: StatefulSet, name: db, uid: second"))
		wait(t, "the event about the second pod", func() bool { return len(events(t, client)) == 4 })
		f.settled(t, 2)
		if diff := cmp.Diff(map[string]float64{"NoEffect": 2}, f.counts(t)); diff != "" {
			t.Errorf("akv_injector_findings (-want +got):\n%s", diff)
		}
	}
}

// TestEventsAreLimited has a namespace with more findings than a Finder may write events about, and
// another namespace with one finding.
func TestEventsAreLimited(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	var objects strings.Builder
	objects.WriteString(plain)
	for i := range findings.MaxEvents {
		objects.WriteString(workload("apps/v1", "Deployment", fmt.Sprintf("web-%d", i), "keyvault.io/class: c", ""))
	}
	server.apply(t, objects.String())
	f := start(t, server, client, time.Hour)
	count := func(namespace string) int {
		list, err := client.EventsV1().Events(namespace).List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return len(list.Items)
	}
	wait(t, "half of the events", func() bool { return count("shop") >= findings.MaxEvents/2 })
	wait(t, "all findings", func() bool { return f.counts(t)["NoEffect"] == findings.MaxEvents })
	server.apply(t, `{apiVersion: apps/v1, kind: Deployment, metadata: {namespace: other, name: web, annotations: {keyvault.io/class: c}}, spec: {}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: other}}`)
	wait(t, "the event of the other namespace", func() bool { return count("other") == 1 })
	if n := count("shop"); n > findings.MaxEvents/2 {
		t.Errorf("%d events of one namespace, want at most half of %d", n, findings.MaxEvents)
	}
}

// TestReadsOnlyWhatIsRequested checks that objects without findings of their own, and updates that
// change nothing, cost no request.
func TestReadsOnlyWhatIsRequested(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	web := optedIn + account + workload("apps/v1", "Deployment", "web", request, inherited)
	web = strings.Replace(web, "metadata: {name: web,", "metadata: {generation: 7, name: web,", 1)
	server.apply(t, web+podOf("web-a", hash+`, keyvault.io/injected: "true"`, inherited, ofWeb)+
		podOf("web-b", hash+`, keyvault.io/injected: "true"`, inherited, ofWeb))
	f := start(t, server, client, time.Minute)
	f.settled(t, 3)
	server.apply(t, strings.Replace(web[strings.Index(web, "---\napiVersion: apps/v1"):], "spec: {template", "status: {replicas: 2}\nspec: {template", 1)+
		workload("apps/v1", "Deployment", "another", request, inherited))
	f.settled(t, 4)
	server.mu.Lock()
	defer server.mu.Unlock()
	if server.reads != 2 {
		t.Errorf("%d objects were read, want each Deployment once", server.reads)
	}
}

// TestReviewedAgain changes a fact that does not matter. The workload is reviewed again, and its event
// is not.
func TestReviewedAgain(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	server.apply(t, optedIn+workload("apps/v1", "Deployment", "web", "", "keyvault.io/secret: a"))
	f := start(t, server, client, time.Minute)
	f.settled(t, 1)
	server.apply(t, account)
	wait(t, "another review", func() bool {
		server.mu.Lock()
		defer server.mu.Unlock()
		return server.reads == 2
	})
	f.settled(t, 1)
	created := slices.DeleteFunc(client.Actions(), func(a clienttesting.Action) bool { return a.GetVerb() != "create" })
	if len(created) != 1 {
		t.Errorf("%d events were sent, want 1", len(created))
	}
}

// TestFailedEvents has the first error of the API server for an event, and how often the event is sent.
func TestFailedEvents(t *testing.T) {
	events := schema.GroupResource{Group: "events.k8s.io", Resource: "events"}
	terminating := apierrors.NewForbidden(events, "", errors.New("the namespace is being terminated"))
	terminating.ErrStatus.Details.Causes = []metav1.StatusCause{{Type: corev1.NamespaceTerminatingCause}}
	for behaviour, test := range map[string]struct {
		err  error
		sent int
	}{
		"an internal error is retried":        {apierrors.NewInternalError(errors.New("etcd")), 2},
		"a missing right is retried":          {apierrors.NewForbidden(events, "", errors.New("RBAC")), 2},
		"an event that exists is enough":      {apierrors.NewAlreadyExists(events, "x"), 1},
		"a deleted namespace gets no event":   {apierrors.NewNotFound(events, "x"), 1},
		"a namespace that ends gets no event": {terminating, 1},
	} {
		t.Run(behaviour, func(t *testing.T) {
			server, client := startAPIServer(t, true), fake.NewClientset()
			server.apply(t, plain+workload("apps/v1", "Deployment", "web", request, ""))
			sent := 0
			client.PrependReactor("create", "events", func(clienttesting.Action) (bool, runtime.Object, error) {
				sent++
				return sent == 1, nil, test.err
			})
			f := start(t, server, client, time.Minute)
			f.settled(t, 1)
			f.stop()
			if sent != test.sent {
				t.Errorf("the event was sent %d times, want %d", sent, test.sent)
			}
		})
	}
}

// TestGoneDuringReview deletes a workload while it is reviewed.
func TestGoneDuringReview(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	server.apply(t, optedIn+workload("apps/v1", "Deployment", "web", "", "keyvault.io/secret: a"))
	started, gone := make(chan *finding, 1), make(chan struct{})
	server.onRead = sync.OnceFunc(func() {
		f := <-started
		server.delete("/apis/apps/v1/namespaces/shop/deployments/web")
		wait(t, "the deletion", func() bool { return f.Kept() == 0 })
		close(gone)
	})
	f := start(t, server, client, time.Minute)
	started <- f
	<-gone
	server.apply(t, workload("apps/v1", "Deployment", "next", "", "keyvault.io/secret: a"))
	f.settled(t, 1)
	if diff := cmp.Diff(map[string]float64{"UnknownKey": 1}, f.counts(t)); diff != "" {
		t.Errorf("akv_injector_findings (-want +got):\n%s", diff)
	}
}

// TestTextIsEscaped has annotations with control and format characters.
func TestTextIsEscaped(t *testing.T) {
	server, client := startAPIServer(t, true), fake.NewClientset()
	var objects strings.Builder
	objects.WriteString(optedIn + account)
	for i := range api.Keys {
		for j, value := range []string{`\e[31mred\nx\u202E`, `a=b\e[2J\u202E`, `x,\ay=\bz`, `- objectName: \e\n  env: \u202E\n`, `keyvault.io/x=\"\e\"`} {
			objects.WriteString(workload("apps/v1", "Deployment", fmt.Sprintf("web-%d-%d", i, j), "", api.Keys[i].Name+`: "`+value+`"`))
		}
	}
	server.apply(t, objects.String())
	f := start(t, server, client, time.Millisecond)
	f.settled(t, 5*(len(api.Keys)-2)) // not of keyvault.io/status and keyvault.io/restarted-for
	texts := events(t, client)
	if len(texts) < 3*len(api.Keys) {
		t.Errorf("only %d events", len(texts))
	}
	for _, text := range texts {
		if strings.ContainsFunc(text, func(r rune) bool { return !strconv.IsPrint(r) }) {
			t.Errorf("%q has characters that do not print", text)
		}
	}
}

// TestStreamMemory decodes large objects. What is kept of them does not depend on their size.
func TestStreamMemory(t *testing.T) {
	const n = 500
	spec := `"spec": {"template": {"spec": {"containers": [` + strings.Repeat(`{"name": "app", "env": [{"name": "A", "value": "b"}]},`, 2000) + `{}]}}}`
	list := func(annotation string) io.Reader {
		readers := []io.Reader{strings.NewReader(`{"items": [`)}
		for i := range n {
			readers = append(readers, strings.NewReader(fmt.Sprintf(`{"metadata": {"namespace": "shop", "name": "web-%d", "uid": "%d", "annotations": {%q: "x"}}, %s},`, i, i, annotation, spec)))
		}
		return io.MultiReader(append(readers, strings.NewReader(`{}]}`))...)
	}
	for annotation, want := range map[string]int{"example.com/a": 0, "keyvault.io/class": n} {
		var before, after goruntime.MemStats
		text := list(annotation)
		goruntime.GC()
		goruntime.ReadMemStats(&before)
		kept, err := findings.DecodeDeployments(text)
		text = nil //nolint:ineffassign,wastedassign // only what is kept remains
		goruntime.GC()
		goruntime.ReadMemStats(&after)
		if err != nil || len(kept) != want {
			t.Errorf("%d kept: %v", len(kept), err)
		}
		// The readers of the text, a kilobyte each, are gone then, so this is an upper bound.
		if each := (int64(after.HeapAlloc) - int64(before.HeapAlloc)) / n; each > 2<<10 {
			t.Errorf("%s: %d bytes for each object", annotation, each)
		}
		if each := (after.TotalAlloc - before.TotalAlloc) / n; each > 8<<10 {
			t.Errorf("%s: %d bytes allocated for each object of %d KB", annotation, each, len(spec)>>10)
		}
		goruntime.KeepAlive(kept)
	}
}
