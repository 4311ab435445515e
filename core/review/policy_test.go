package review_test

import (
	"context"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
)

// cluster is a source with a stale cache.
type cluster struct {
	cached, live map[string]string // the namespace's labels
	known, bound bool              // a binding, in the cache and live
	class        *class.Class      // only live
	reads        int               // of fresh facts
}

func (c *cluster) Namespace(_ context.Context, name string, fresh bool) (facts.Namespace, error) {
	labels := c.cached
	if fresh {
		c.reads++
		labels = c.live
	}
	return facts.Namespace{Name: name, Labels: labels}, nil
}

func (c *cluster) Facts(_ context.Context, _ string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	found := facts.Answer{Bound: needs.Selector != "" && c.known}
	if fresh {
		found.Bound = needs.Selector != "" && c.bound
		if c.class != nil {
			found.Classes = []*class.Class{c.class}
		}
	}
	return found, nil
}

// TestInjectDecidesTwice checks that a pod is rejected, or not injected, only on fresh facts, and that
// the API server is read for no other pod.
func TestInjectDecidesTwice(t *testing.T) {
	const guid = "0d4b7f2e-6c1a-4f0e-9a53-5b1c3e8f7a90"
	enabled := map[string]string{api.Injection: "enabled"}
	app := &class.Class{Name: "app", Provider: class.Provider, ClientID: guid}
	requesting := func(annotations map[string]string) pods.Subject {
		return pods.SubjectOf(&pods.Pod{
			Meta: &pods.Meta{Annotations: annotations},
			Spec: pods.Spec{Containers: []pods.Container{{Name: "app"}}},
		})
	}
	for behaviour, test := range map[string]struct {
		cluster cluster
		request map[string]string
		want    inject.Outcome
		reads   int
	}{
		"a class that is not in the cache yet": {cluster{cached: enabled, live: enabled, class: app}, map[string]string{api.Class: "app"}, inject.Injected, 1},
		"a class that does not exist":          {cluster{cached: enabled, live: enabled}, map[string]string{api.Class: "app"}, inject.Invalid, 1},
		"a label that is not in the cache yet": {cluster{live: enabled, class: app}, map[string]string{api.Class: "app"}, inject.Injected, 1},
		"a value that is wrong in any case":    {cluster{cached: enabled, live: enabled}, map[string]string{api.IdentityMode: "x"}, inject.Invalid, 0},
		"a binding in the cache":               {cluster{cached: enabled, live: enabled, known: true}, map[string]string{api.IdentityName: "blob"}, inject.Injected, 0},
	} {
		t.Run(behaviour, func(t *testing.T) {
			result, err := review.Reviewer{Source: &test.cluster}.Inject(t.Context(), requesting(test.request), "team-a")
			if err != nil || result.Outcome != test.want || test.cluster.reads != test.reads {
				t.Errorf("outcome is %s after %d reads, error %v, errors %v; want %s after %d",
					result.Outcome, test.cluster.reads, err, result.AllErrors(), test.want, test.reads)
			}
		})
	}
}

// TestNothingIsSaidOnStaleFacts shows that the API server is read before a pod is rejected or gets
// a warning, and only then.
func TestNothingIsSaidOnStaleFacts(t *testing.T) {
	enforced, warned := map[string]string{api.Enforce: "required"}, map[string]string{api.Warn: "required"}
	for behaviour, test := range map[string]struct {
		cluster cluster
		pod     *pods.Pod
		want    inject.Outcome
		found   int // errors and warnings
		reads   int
	}{
		"a binding in the cache":                 {cluster{cached: enforced, live: enforced, known: true, bound: true}, bound("blob"), inject.Allowed, 0, 0},
		"a binding that is not in the cache yet": {cluster{cached: enforced, live: enforced, bound: true}, bound("blob"), inject.Allowed, 0, 1},
		"a binding that does not exist":          {cluster{cached: enforced, live: enforced}, bound("blob"), inject.Forbidden, 1, 1},
		"a level that was removed":               {cluster{cached: enforced, live: map[string]string{api.Injection: "enabled"}}, bound("blob"), inject.Allowed, 0, 1},
		"a level that is no longer enforced":     {cluster{cached: enforced, live: warned}, bound("blob"), inject.Allowed, 1, 1},
		"a label that is not in the cache yet":   {cluster{live: enforced}, bound("blob"), inject.Forbidden, 1, 1},
		"a namespace without a label":            {cluster{}, bound("blob"), inject.Allowed, 0, 1},
		"a class that is not in the cache yet":   {cluster{cached: warned, live: warned, known: true, bound: true, class: &class.Class{Name: "app"}}, mounting(bound("blob"), "app"), inject.Allowed, 0, 1},
	} {
		t.Run(behaviour, func(t *testing.T) {
			v, err := review.Reviewer{Source: &test.cluster}.PodPolicy(t.Context(), pods.SubjectOf(test.pod), nil, "team-a")
			if err != nil {
				t.Fatal(err)
			}
			if v.Outcome != test.want || len(v.Errors)+len(v.Warnings) != test.found {
				t.Errorf("verdict is %+v, want %s and %d errors and warnings", v, test.want, test.found)
			}
			if test.cluster.reads != test.reads {
				t.Errorf("the API server was read %d times, want %d", test.cluster.reads, test.reads)
			}
		})
	}
}

// TestWrongWorkloads shows that policy reports nothing for a workload with wrong annotations: the
// mutating webhook has reported these, and the workload has no pods.
func TestWrongWorkloads(t *testing.T) {
	w := decode(t, `{"kind":"Deployment","metadata":{"annotations":{"keyvault.io/env":"everything"}},"spec":{"template":{"metadata":{},"spec":{"containers":[{"name":"app"}]}}}}`)
	labels := map[string]string{api.Enforce: "required", api.Injection: "enabled"}
	v, err := review.Reviewer{Source: &cluster{cached: labels, live: labels}}.WorkloadPolicy(t.Context(), w, "team-a")
	if err != nil || v.Outcome != inject.NotRequested || len(v.Errors)+len(v.Warnings) > 0 {
		t.Errorf("verdict is %+v, %v; want none", v, err)
	}
}

// TestPolicyLeavesItsInput shows that policy does not modify its input when it adds the labels that
// annotations cause.
func TestPolicyLeavesItsInput(t *testing.T) {
	const template = `"spec":{"template":{"metadata":{"labels":{"app":"a"},"annotations":{"identity.io/name":"blob","identity.io/mode":"pod-identity"}},"spec":{"containers":[{"name":"app"}]}}}`
	w := decode(t, `{"kind":"Deployment","metadata":{},`+template+`}`)
	before := decode(t, `{"kind":"Deployment","metadata":{},`+template+`}`)
	labels := map[string]string{api.Enforce: "required", api.Injection: "enabled"}
	v, err := review.Reviewer{Source: &cluster{cached: labels, live: labels}}.WorkloadPolicy(t.Context(), w, "team-a")
	if err != nil || v.Outcome != inject.Allowed || len(v.Errors) > 0 || len(v.Warnings) != 1 {
		t.Errorf("verdict is %+v, %v; want one warning", v, err)
	}
	if diff := cmp.Diff(before, w); diff != "" {
		t.Errorf("the workload is modified (-before +after):\n%s", diff)
	}
}

// bound returns a pod with the label of AAD pod identity.
func bound(to string) *pods.Pod {
	return &pods.Pod{Meta: &pods.Meta{Labels: map[string]string{api.PodIdentityBinding: to}}}
}

// mounting adds a volume of a class to a pod.
func mounting(pod *pods.Pod, name string) *pods.Pod {
	pod.Spec.Volumes = []pods.Volume{{CSI: &pods.CSI{Driver: class.Driver, Attributes: map[string]string{class.Attribute: name}}}}
	return pod
}
