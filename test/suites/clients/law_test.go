package clients_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
)

// TestLaw checks an invariant: after any edits by a client and by hand, opt-outs and outages, an
// apply that reaches the API server as an update restores the request of the manifest.
//
// A run has edits that move keys between the workload and its template, or undos, but not both. An
// undo can restore a key of the template that no client removes, if neither its manifest nor its
// last one has the key.
func TestLaw(t *testing.T) {
	const rounds = 10
	var runs []*random
	for i, tool := range slices.Sorted(maps.Keys(clients)) {
		for j, kind := range []string{"Deployment", []string{"StatefulSet", "DaemonSet", "CronJob"}[i%3]} {
			r := &random{Rand: rand.New(rand.NewPCG(uint64(i), uint64(j))), moves: (i+j)%2 == 0 || kind == "CronJob", optedIn: true}
			r.flow = &flow{T: t, namespace: newNamespace(t, "law-"+tool+"-"+strings.ToLower(kind), kind, true), client: clients[tool], last: workload{kind: kind}}
			r.edit()
			r.again()
			runs = append(runs, r)
		}
	}
	for round := range rounds {
		outage := round == 3 || round == 7
		if outage {
			if err := server.Stop(); err != nil {
				t.Fatal(err)
			}
		}
		var running sync.WaitGroup
		for _, r := range runs {
			running.Go(func() { r.step(outage) })
		}
		running.Wait()
		if outage {
			start(t)
		}
	}
	for _, r := range runs {
		t.Run(r.name, func(t *testing.T) {
			t.Parallel()
			r.T = t
			if !r.optedIn {
				r.optIn(t)
			}
			l := r.changed()
			if t.Failed() {
				t.Logf("after\n%s\nmanifest:\n%s\ntemplate:\n%s", strings.Join(r.log, "\n"), r.last.manifest(), l.pod)
			}
			if diff := cmp.Diff(l.pod, r.again().pod); diff != "" {
				t.Errorf("the same manifest again changes the template (-before +after):\n%s", diff)
			}
		})
	}
}

// random is a workload that is edited at random.
type random struct {
	*flow
	*rand.Rand

	moves, optedIn bool
	log            []string
}

// values are the possible values of the workload's annotations.
var values = map[string][]string{
	"identity.io/mode":       {"none", "workload-identity"},
	"keyvault.io/class":      {"late", "later, latest"},
	"keyvault.io/env":        {"auto", "explicit"},
	"keyvault.io/mount-path": {"/é", "/a b"},
	"keyvault.io/secrets":    {"A=a", "# \"a\\b\",\t'c'\nA=a\r\nB=b\n", ""},
}

func pick[T any](r *random, list []T) T { return list[r.IntN(len(list))] }

// edit changes the manifest at random.
func (r *random) edit() {
	own, template := annotations{}, annotations{}
	for _, key := range slices.Sorted(maps.Keys(values)) {
		value := pick(r, values[key])
		if !r.moves || key == "keyvault.io/class" { // without a class the items need a vault
			own[key] = value
			continue
		}
		switch r.IntN(5) {
		case 0, 1:
			own[key] = value
		case 2:
			template[key] = value
		case 3:
			own[key], template[key] = value, pick(r, values[key])
		}
	}
	if len(template) == 0 && r.IntN(2) == 0 {
		template = nil
	}
	r.last.own, r.last.template = own, template
	r.last.note += "x"
}

// step makes one random change. Applies and edits may fail while the injector is down.
func (r *random) step(outage bool) {
	r.Helper()
	var what string
	var err error
	switch n := r.IntN(12); {
	case n < 5:
		r.edit()
		what = "apply " + fmt.Sprint(r.last.own, r.last.template)
		_, err = r.client(r.Context(), r.T, r.name, r.last.manifest())
	case n < 7:
		key := pick(r, slices.Sorted(maps.Keys(r.last.own)))
		what = "annotate " + key
		err = r.kubectl(r.T, "annotate", "--overwrite", r.kind, "app", key+"="+pick(r, values[key]))
	case n < 9:
		what = "patch the template"
		value := pick(r, []string{`null`, `"a"`, `"keyvault.io/env=\"auto\""`})
		patch := `{"metadata":{"annotations":{"` + api.Inherited + `":` + value + `}}}`
		if patch = `{"spec":{"template":` + patch + `}}`; r.kind == "CronJob" {
			patch = `{"spec":{"jobTemplate":` + patch + `}}`
		}
		err = r.kubectl(r.T, "patch", r.kind, "app", "--type=merge", "--patch="+patch)
	case n < 10 && !r.moves:
		what = "undo"
		err = r.kubectl(r.T, "rollout", "undo", r.kind, "app")
	case outage:
	case r.optedIn:
		what = "opt out"
		r.optOut(r.T)
		r.optedIn = false
	default:
		what = "opt in"
		r.optIn(r.T)
		r.optedIn = true
	}
	r.log = append(r.log, fmt.Sprint(what, ": ", err))
}
