package clients_test

import (
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/injector"
)

// Annotations of the workloads. The objects that they name need not exist: a missing class is only
// a warning on a workload.
var (
	one  = annotations{"identity.io/mode": "none", "keyvault.io/env": "auto"}
	two  = annotations{"identity.io/mode": "none", "keyvault.io/class": "late", "keyvault.io/secrets": "# \"a\\b\",\té\nDB_PASSWORD=db-password\n"}
	none annotations
)

// flow is a workload that a client applies repeatedly.
type flow struct {
	*testing.T
	namespace

	client apply
	last   workload
}

// apply applies another manifest. Afterwards a pod must have the request of the manifest.
func (f *flow) apply(own, template annotations) live {
	f.Helper()
	f.last = workload{kind: f.kind, own: own, template: template, note: f.last.note}
	return f.again()
}

// again applies the last manifest.
func (f *flow) again() live {
	f.Helper()
	f.unchecked()
	l := f.read(f.T)
	if diff := cmp.Diff(f.last.request(), l.request); diff != "" {
		f.Errorf("a pod does not have the request of the manifest (-manifest +pod):\n%s", diff)
	}
	if l.inherited != l.should {
		f.Errorf("the template inherits %q, want %q from the metadata", l.inherited, l.should)
	}
	return l
}

// unchecked applies the last manifest without checks, for when the API server does not call the
// injector.
func (f *flow) unchecked() {
	f.Helper()
	if _, err := f.client(f.Context(), f.T, f.name, f.last.manifest()); err != nil {
		f.Fatal(err)
	}
}

// changed applies the last manifest with a change outside the request.
func (f *flow) changed() live {
	f.Helper()
	f.last.note += "x"
	return f.again()
}

// TestFlows changes workloads in the ways that users do, with every client.
func TestFlows(t *testing.T) {
	const same, other = true, false
	rollouts := func(f *flow, before, after live, want bool) {
		f.Helper()
		if got := before.pod == after.pod; got != want {
			f.Errorf("the template is the same: %t, want %t", got, want)
		}
	}
	for name, run := range map[string]func(f *flow){
		"unchanged": func(f *flow) {
			rollouts(f, f.apply(one, none), f.again(), same)
		},
		"a change of something else": func(f *flow) {
			rollouts(f, f.apply(one, none), f.changed(), same)
		},
		"values change": func(f *flow) {
			rollouts(f, f.apply(one, none), f.apply(two, none), other)
		},
		"annotations removed": func(f *flow) {
			rollouts(f, f.apply(one, none), f.apply(none, none), other)
		},
		"moved to the template": func(f *flow) {
			f.apply(one, none)
			rollouts(f, f.apply(none, one), f.again(), same)
		},
		"moved to the workload": func(f *flow) {
			f.apply(none, two)
			rollouts(f, f.apply(two, none), f.again(), same)
		},
		"in both and then in one": func(f *flow) {
			f.apply(one, two)
			f.apply(none, two)
			f.apply(one, none)
		},
		"an empty list in the template": func(f *flow) {
			before := f.apply(one, annotations{})
			rollouts(f, before, f.again(), same)
			rollouts(f, before, f.changed(), same)
		},
		"patched by hand": func(f *flow) {
			before := f.apply(one, none)
			if err := f.kubectl(f.T, "patch", f.kind, "app", "--type=merge", `--patch={"spec":{"template":{"metadata":{"annotations":{"keyvault.io/inherited":"a"}}}}}`); err != nil {
				f.Fatal(err)
			}
			rollouts(f, before, f.read(f.T), same)
			rollouts(f, before, f.again(), same)
		},
		"restarted for a new version": func(f *flow) {
			f.apply(one, none)
			const versions = `{"metadata":{"annotations":{"keyvault.io/restarted-for":"kv/secret/a@2"}}`
			if err := f.kubectl(f.T, "patch", f.kind, "app", "--type=merge", `--patch=`+versions+`,"spec":{"template":`+versions+`}}}`); err != nil {
				f.Fatal(err)
			}
			before := f.read(f.T)
			if !strings.Contains(before.pod, "kv/secret/a@2") {
				f.Errorf("the template is %s", before.pod)
			}
			rollouts(f, before, f.again(), same)
			rollouts(f, before, f.changed(), same)
		},
		"changed while opted out": func(f *flow) {
			f.apply(one, none)
			f.optOut(f.T)
			f.last.own = two
			f.unchecked()
			f.optIn(f.T)
			f.changed()
		},
		"opted in later and restarted": func(f *flow) {
			f.optOut(f.T)
			f.last = workload{kind: f.kind, own: one}
			f.unchecked()
			before := f.read(f.T)
			f.optIn(f.T)
			if err := f.kubectl(f.T, "rollout", "restart", f.kind, "app"); err != nil {
				f.Fatal(err)
			}
			rollouts(f, before, f.again(), other)
		},
	} {
		t.Run(name, func(t *testing.T) {
			for tool, client := range clients {
				t.Run(tool, func(t *testing.T) {
					t.Parallel()
					run(&flow{T: t, namespace: newNamespace(t, nameOf(t), "Deployment", true), client: client})
				})
			}
		})
	}
}

// nameOf returns a name for a test's namespace.
func nameOf(t *testing.T) string {
	t.Helper()
	return strings.NewReplacer("/", "-", "_", "-").Replace(strings.ToLower(t.Name()))
}

// TestOptInLater applies an unchanged manifest after its namespace has opted in.
// docs/annotations.md has a table of the results for each client.
func TestOptInLater(t *testing.T) {
	updates := map[string]bool{"kubectl server-side": true, "kubectl replace": true, "Helm 4": true, "Flux": true}
	for tool, client := range clients {
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			f := &flow{T: t, namespace: newNamespace(t, nameOf(t), "Deployment", false), client: client, last: workload{kind: "Deployment", own: one}}
			f.unchecked()
			before := f.read(t)
			f.optIn(t)
			f.unchecked()
			after := f.read(t)
			if got := after.pod != before.pod; got != updates[tool] {
				t.Errorf("the template changed: %t, want %t", got, updates[tool])
			}
			if updates[tool] && !maps.Equal(after.request, one) {
				t.Errorf("a pod requests %v", after.request)
			}
		})
	}
}

// TestKinds changes and undoes workloads of other kinds than Deployment.
func TestKinds(t *testing.T) {
	for _, kind := range []string{"StatefulSet", "DaemonSet", "CronJob"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			f := &flow{T: t, namespace: newNamespace(t, nameOf(t), kind, true), client: clients["kubectl"], last: workload{kind: kind}}
			f.apply(one, none)
			f.apply(none, one)
			f.apply(two, none)
			if kind == "CronJob" {
				return
			}
			waitForRevisions(t, f.namespace, 3)
			// The undo restores an old template and no metadata. The metadata wins.
			if err := f.kubectl(t, "rollout", "undo", kind, "app", "--to-revision=1"); err != nil {
				t.Fatal(err)
			}
			f.again()
			// This undo restores a template with the same annotations under their own
			// names. They belong to the author until the manifest is applied as an
			// update.
			if err := f.kubectl(t, "rollout", "undo", kind, "app", "--to-revision=2"); err != nil {
				t.Fatal(err)
			}
			if l := f.read(t); l.inherited != l.should {
				t.Errorf("the template inherits %q, want %q from the metadata", l.inherited, l.should)
			}
		})
	}
}

// TestJobs applies a Job again. That fails if the Job's template changes.
func TestJobs(t *testing.T) {
	for tool, client := range clients {
		if tool == "kubectl replace" {
			continue // it fails without the injector, too: the API server adds labels to the template
		}
		t.Run(tool, func(t *testing.T) {
			t.Parallel()
			for name, template := range map[string]annotations{"-a": none, "-b": {}} {
				f := &flow{T: t, namespace: newNamespace(t, nameOf(t)+name, "Job", true), client: client, last: workload{kind: "Job"}}
				before := f.apply(one, template)
				for _, after := range []live{f.again(), f.changed()} {
					if after.pod != before.pod {
						t.Errorf("the template was %s, and is %s", before.pod, after.pod)
					}
				}
			}
		})
	}
}

// TestOutage checks which changes succeed while the injector is down and its webhooks fail closed.
func TestOutage(t *testing.T) {
	flows := map[string]*flow{}
	for tool, client := range clients {
		f := &flow{T: t, namespace: newNamespace(t, nameOf(t)+tool, "Deployment", true), client: client, last: workload{kind: "Deployment"}}
		f.apply(one, none)
		flows[tool] = f
	}
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Run("changes during the outage", func(t *testing.T) {
		for tool, f := range flows {
			t.Run(tool, func(t *testing.T) {
				t.Parallel()
				f.T = t
				if tool != "kubectl replace" { // it removes the inherited annotation
					f.again()
					f.changed()
				}
				dry := kubectl("apply", "--server-side", "--force-conflicts", "--dry-run=server", "--field-manager=other")
				if _, err := dry(t.Context(), t, f.name, f.last.manifest()); err != nil {
					t.Error(err)
				}
				for _, args := range [][]string{
					{"label", f.kind, "app", "color=red"}, {"annotate", f.kind, "app", "color=red"}, {"scale", f.kind, "app", "--replicas=2"}, {"rollout", "restart", f.kind, "app"},
				} {
					if err := f.kubectl(t, args...); err != nil {
						t.Error(err)
					}
				}
				if err := f.kubectl(t, "annotate", "--overwrite", f.kind, "app", "keyvault.io/env=explicit"); err == nil {
					t.Error("a change of the request succeeded")
				}
			})
		}
	})
	start(t)
	for _, f := range flows {
		f.T = t
		f.changed()
	}
}

// start starts the injector again.
func start(t *testing.T) {
	t.Helper()
	started, err := injector.Start(t.Context(), plane, injector.Options{})
	if err != nil {
		t.Fatal(err)
	}
	server = started
	probe := newNamespace(t, fmt.Sprint("probe-", probes.Add(1)), "", false)
	probe.label(t, `"enabled"`)
	if err := injector.WaitUntilCalled(t.Context(), plane.Config, probe.name); err != nil {
		t.Fatal(err)
	}
}

var probes atomic.Int32
