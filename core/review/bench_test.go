package review_test

import (
	"context"
	"testing"

	"github.com/go-json-experiment/json"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
	"github.com/akv-injector/akv-injector/core/review"
	"github.com/akv-injector/akv-injector/internal/corpus"
	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
)

// demanding is a source whose namespaces have all policies, and which has managed classes.
type demanding struct {
	facts.Source
	managed []*class.Class
}

func (d *demanding) Namespace(ctx context.Context, name string, fresh bool) (facts.Namespace, error) {
	namespace, err := d.Source.Namespace(ctx, name, fresh)
	namespace.Labels = map[string]string{api.Injection: api.InjectionEnabled, api.Enforce: "required", api.Warn: "required", api.Audit: "required"}
	namespace.Annotations = map[string]string{api.AllowedVaults: "*-kv,*", api.AllowedNames: "checkout,settlement,access-*", api.Exempt: "system-*"}
	return namespace, err
}

func (d *demanding) Facts(ctx context.Context, namespace string, needs facts.Needs, fresh bool) (facts.Answer, error) {
	found, err := d.Source.Facts(ctx, namespace, needs, fresh)
	found.Classes = append(found.Classes, d.managed...)
	return found, err
}

// BenchmarkPolicy checks decoded, injected pods against the policy of a namespace with all
// policies. The managed class exists, or does not exist yet, as for the first pod that mounts it.
func BenchmarkPolicy(b *testing.B) {
	for _, recorded := range reviews.All() {
		request, err := recorded.Request()
		if err != nil {
			b.Fatal(err)
		}
		source, err := reviews.Facts()
		if err != nil {
			b.Fatal(err)
		}
		subject := pods.SubjectOf(&request.Pod)
		result, err := review.Reviewer{Source: source}.Inject(b.Context(), subject, request.Namespace)
		if err != nil || result.Outcome != inject.Injected {
			b.Fatalf("outcome %s, %v", result.Outcome, err)
		}
		injected := corpus.WholePod{Meta: &request.Object.ObjectMeta, Spec: request.Object.Spec}
		injected.Mutate(&result.Change)
		text, err := json.Marshal(&injected)
		if err != nil {
			b.Fatal(err)
		}
		pod := &pods.Pod{}
		if err := pods.Decode(text, pod); err != nil {
			b.Fatal(err)
		}
		there := &demanding{Source: source}
		for _, spc := range result.Classes {
			there.managed = append(there.managed, class.Read(spc))
		}
		sources := map[string]*demanding{"there": there}
		if len(result.Classes) > 0 {
			sources["new"] = &demanding{Source: source}
		}
		for name, source := range sources {
			b.Run("review="+recorded.Size+"/class="+name, func(b *testing.B) {
				b.ReportAllocs()
				for b.Loop() {
					v, err := review.Reviewer{Source: source}.PodPolicy(b.Context(), pods.SubjectOf(pod), nil, request.Namespace)
					if err != nil || v.Outcome != inject.Allowed {
						b.Fatalf("outcome %s, %v, %v", v.Outcome, err, v.Errors)
					}
				}
			})
		}
	}
}
