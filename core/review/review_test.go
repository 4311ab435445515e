package review_test

import (
	"context"
	"errors"
	"testing"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// TestWorkloadLifecycle has sequences of reviews that the corpus does not cover.
func TestWorkloadLifecycle(t *testing.T) {
	const (
		wrong = `"annotations":{"keyvault.io/env":"everything"}`
		right = `"annotations":{"keyvault.io/env":"auto"}`
		spec  = `"spec":{"template":{"metadata":{},"spec":{"containers":[{"name":"app"}]}}}`
		heir  = `"spec":{"template":{"metadata":{"annotations":{"keyvault.io/inherited":"keyvault.io/env=\"auto\""}},"spec":{"containers":[{"name":"app"}]}}}`
	)
	for behaviour, test := range map[string]struct {
		object, old                  string
		want                         inject.Outcome
		operations, errors, warnings int
	}{
		"a new workload with a mistake is rejected": {
			object: `{"kind":"Deployment","metadata":{` + wrong + `},` + spec + `}`, want: inject.Invalid, errors: 1,
		},
		"an update that adds a mistake is rejected": {
			object: `{"kind":"Deployment","metadata":{` + wrong + `},` + spec + `}`, old: `{"kind":"Deployment","metadata":{` + right + `},` + spec + `}`, want: inject.Invalid, errors: 1,
		},
		"an old mistake is a warning, and is not handed down": {
			object: `{"kind":"Deployment","metadata":{` + wrong + `},` + spec + `}`, old: `{"kind":"Deployment","metadata":{` + wrong + `},` + spec + `}`, want: inject.Unchanged, warnings: 1,
		},
		"the template keeps what it inherited, even if the client does not send it": {
			object: `{"kind":"Deployment","metadata":{` + wrong + `},` + spec + `}`, old: `{"kind":"Deployment","metadata":{` + wrong + `},` + heir + `}`, want: inject.Injected, operations: 1, warnings: 1,
		},
		"a workload that is being deleted is not reviewed": {
			object: `{"kind":"Deployment","metadata":{"deletionTimestamp":"2026-01-01T00:00:00Z",` + wrong + `},` + spec + `}`, old: `{"kind":"Deployment","metadata":{},` + spec + `}`, want: inject.NotRequested,
		},
		"a new Job's template gets its annotations": {
			object: `{"kind":"Job","metadata":{` + right + `},` + spec + `}`, want: inject.Injected, operations: 1, warnings: 1,
		},
		"the template of an existing Job is not changed": {
			object: `{"kind":"Job","metadata":{` + right + `},` + spec + `}`, old: `{"kind":"Job","metadata":{},` + spec + `}`, want: inject.NotRequested,
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			w := decode(t, test.object)
			var old *pods.Workload
			if test.old != "" {
				old = decode(t, test.old)
			}
			v, err := review.Reviewer{Source: &facts.Objects{}}.Workload(t.Context(), w, old, "team-a")
			if err != nil {
				t.Fatal(err)
			}
			if v.Outcome != test.want || len(v.Operations) != test.operations || len(v.Errors) != test.errors || len(v.Warnings) != test.warnings {
				t.Errorf("verdict is %s with %d operations, errors %v, warnings %v; want %s with %d, %d, %d",
					v.Outcome, len(v.Operations), v.Errors, v.Warnings, test.want, test.operations, test.errors, test.warnings)
			}
		})
	}
}

func decode(t *testing.T, object string) *pods.Workload {
	t.Helper()
	var w pods.Workload
	if err := pods.Decode([]byte(object), &w); err != nil {
		t.Fatal(err)
	}
	return &w
}

// outOfReach is a source whose lookups fail.
type outOfReach struct{ facts.Objects }

func (*outOfReach) Facts(context.Context, string, facts.Needs, bool) (facts.Answer, error) {
	return facts.Answer{}, errors.New("no answer")
}

// TestUpdatesWhileLookupsFail shows that an update that changes no annotation of the request is
// admitted while lookups fail, and that other reviews return an error.
func TestUpdatesWhileLookupsFail(t *testing.T) {
	const (
		before = `{"kind":"Deployment","metadata":{"annotations":{"keyvault.io/class":"c"}},"spec":{"replicas":1,"template":{"spec":{"containers":[{"name":"app"}]}}}}`
		scaled = `{"kind":"Deployment","metadata":{"annotations":{"keyvault.io/class":"c"}},"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"app"}]}}}}`
		asked  = `{"kind":"Deployment","metadata":{"annotations":{"keyvault.io/class":"d"}},"spec":{"replicas":1,"template":{"spec":{"containers":[{"name":"app"}]}}}}`
	)
	away := review.Reviewer{Source: &outOfReach{}}
	v, err := away.Workload(t.Context(), decode(t, scaled), decode(t, before), "team-a")
	if err != nil || len(v.Errors) > 0 || len(v.Warnings) != 1 || api.ReasonOf(v.Warnings[0]) != api.LookupFailed {
		t.Errorf("an update of replicas: %+v, %v; want it to be admitted with a warning", v, err)
	}
	// The client does not send what the template inherited.
	const inherited = `{"kind":"Deployment","metadata":{"annotations":{"keyvault.io/class":"c"}},"spec":{"template":{"metadata":{"annotations":{"keyvault.io/inherited":"keyvault.io/class=\"c\""}},"spec":{"containers":[{"name":"app"}]}}}}`
	if v, err := away.Workload(t.Context(), decode(t, scaled), decode(t, inherited), "team-a"); err != nil || len(v.Operations) != 2 || len(v.Warnings) != 1 {
		t.Errorf("an update without what the template inherited: %+v, %v; want that to be restored", v, err)
	}
	for behaviour, old := range map[string]*pods.Workload{"a creation": nil, "an update of the request": decode(t, before)} {
		if v, err := away.Workload(t.Context(), decode(t, asked), old, "team-a"); err == nil {
			t.Errorf("%s: %+v; want an error", behaviour, v)
		}
	}
}
