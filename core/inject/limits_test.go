package inject_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
)

var enabled = facts.Namespace{Name: "team-a", Labels: map[string]string{api.Injection: "enabled"}}

// list formats each number below n.
func list(n int, format string) []string {
	texts := make([]string, n)
	for i := range texts {
		texts[i] = fmt.Sprintf(format, i)
	}
	return texts
}

// podOf returns a pod with n containers.
func podOf(n int, a annotations) *pods.Pod {
	pod := &pods.Pod{Meta: meta(a)}
	for _, name := range list(n, "c%d") {
		pod.Spec.Containers = append(pod.Spec.Containers, pods.Container{Name: name})
	}
	return pod
}

// messages returns the messages of errors or warnings.
func messages[E ~[]T, T interface{ error }](errs E) []string {
	texts := make([]string, len(errs))
	for i, err := range errs {
		texts[i] = err.Error()
	}
	return texts
}

// TestAdditions shows that a short request for a large change is rejected.
func TestAdditions(t *testing.T) {
	const tooMany = "must add at most 2000 env vars and mounts to all containers together; select fewer in keyvault.io/containers"
	existing := facts.Answer{Classes: []*class.Class{{Name: "a"}, {Name: "b"}}}
	items := strings.Join(list(99, "A%[1]d=team-kv/a%[1]d"), ",")
	managed := annotations{api.IdentityMode: "workload-identity", api.IdentityClientID: guid, api.IdentityTenantID: guid, api.Secrets: items}
	for behaviour, test := range map[string]struct {
		pod   *pods.Pod
		facts facts.Answer
		want  []string
	}{
		"the largest change": {pod: podOf(20, managed)},
		"one container more": {
			pod: podOf(21, managed), want: []string{"metadata.annotations[keyvault.io/secrets]: Too many: 2100: " + tooMany},
		},
		"mounts of classes alone": {
			pod: podOf(1001, annotations{api.Class: "a,b"}), facts: existing,
			want: []string{"metadata.annotations[keyvault.io/class]: Too many: 2002: " + tooMany},
		},
		"only selected containers count": {
			pod: podOf(1001, annotations{api.Class: "a,b", api.Containers: "!c0"}), facts: existing,
		},
	} {
		t.Run(behaviour, func(t *testing.T) {
			test.facts.ServiceAccount = &facts.ServiceAccount{Name: "default"}
			result := inject.NewPlan(pods.SubjectOf(test.pod), enabled, inject.Defaults{}).Decide(test.facts)
			got := messages(result.AllErrors())
			if len(test.want) != len(got) || !slices.Equal(test.want, got) {
				t.Errorf("errors differ (-want +got):\n%s", cmp.Diff(test.want, got))
			}
		})
	}
}

// TestLongAnswers shows that the size of the errors does not grow with the objects of a namespace.
func TestLongAnswers(t *testing.T) {
	const many = 20_000
	object := func(name, file string) class.Object { return class.Object{Name: name, Type: "secret", File: file} }
	same := &class.Class{Name: "a", Provider: class.Provider, Objects: []class.Object{object("a", "a")}}
	for i := range many {
		same.Objects = append(same.Objects, object("many", fmt.Sprintf("f%d", i)))
		same.Synced = append(same.Synced, class.Synced{File: "a", Secret: fmt.Sprintf("s%d", i), Key: "a"})
	}
	for behaviour, items := range map[string]string{
		"objects that an item may mean":    strings.TrimSuffix(strings.Repeat("many,", 100), ","),
		"keys that a file is synced to":    strings.Join(list(100, "A%d=a"), ","),
		"objects that do not exist":        strings.Join(list(100, "none%d"), ","),
		"containers that do not exist":     "- {objectName: a, containers: [" + strings.Join(list(100, "none%d"), ",") + "]}",
		"containers that are all excluded": "- {objectName: a, containers: ['!*']}",
	} {
		t.Run(behaviour, func(t *testing.T) {
			pod := podOf(2000, annotations{api.Class: "a", api.Secrets: items})
			result := inject.NewPlan(pods.SubjectOf(pod), enabled, inject.Defaults{}).Decide(facts.Answer{Classes: []*class.Class{same}})
			answer := strings.Join(messages(result.AllErrors()), "\n")
			if len(result.AllErrors()) == 0 || len(answer) > 30_000 {
				t.Errorf("%d errors have %d bytes: %s", len(result.AllErrors()), len(answer), api.Cut(answer, 500))
			}
			if offers := strings.Count(answer, "available here"); offers > 5 {
				t.Errorf("%d errors list available names", offers)
			}
		})
	}
}
