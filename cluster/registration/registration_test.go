package registration_test

import (
	"bytes"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/akv-injector/akv-injector/cluster/registration"
)

var (
	service = types.NamespacedName{Namespace: "akv-injector-system", Name: "akv-injector"}
	second  = types.NamespacedName{Namespace: "team", Name: "akv-injector"}
)

type (
	configuration = admissionregistrationv1.MutatingWebhookConfiguration
	webhook       = admissionregistrationv1.MutatingWebhook
)

func newConfiguration(name string, webhooks ...webhook) *configuration {
	return &configuration{ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: webhooks}
}

// ofPods returns a webhook that reviews pods.
func ofPods(name string, calls admissionregistrationv1.WebhookClientConfig) webhook {
	fail := admissionregistrationv1.Fail
	return webhook{
		Name: name, ClientConfig: calls, FailurePolicy: &fail,
		Rules: []admissionregistrationv1.RuleWithOperations{{Rule: admissionregistrationv1.Rule{Resources: []string{"pods"}}}},
	}
}

func at(service types.NamespacedName) admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{Service: &admissionregistrationv1.ServiceReference{Namespace: service.Namespace, Name: service.Name}}
}

func atURL(url string) admissionregistrationv1.WebhookClientConfig {
	return admissionregistrationv1.WebhookClientConfig{URL: &url}
}

// selecting returns another program's webhook with an object selector.
func selecting(selector metav1.LabelSelector, resources ...string) webhook {
	w := ofPods("mutation.azure-workload-identity.io", at(types.NamespacedName{Namespace: "kube-system", Name: "azure-wi"}))
	w.ObjectSelector, w.Rules[0].Resources = &selector, resources
	return w
}

func labelled(key string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{key: "true"}}
}

func demanding(key string, operator metav1.LabelSelectorOperator, values ...string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: key, Operator: operator, Values: values}}}
}

func open(w webhook) webhook {
	ignore := admissionregistrationv1.Ignore
	w.FailurePolicy = &ignore
	return w
}

func TestCheck(t *testing.T) {
	const use = "azure.workload.identity/use"
	const azure = "azure-wi-webhook-mutating-webhook-configuration"
	own := ofPods("pods.akv-injector.io", at(service))
	type problem = registration.Problem
	for name, test := range map[string]struct {
		configurations []*configuration
		want           []problem
	}{
		"one configuration that calls this injector is fine": {
			configurations: []*configuration{newConfiguration("akv-injector", own)},
		},
		"a configuration that calls a URL is fine": {
			configurations: []*configuration{newConfiguration("akv-injector", ofPods("pods.akv-injector.io", atURL("https://192.0.2.7/mutate/pods")))},
		},
		"no configuration calls an injector": {
			configurations: []*configuration{newConfiguration(azure, selecting(labelled(use), "pods"))},
			want:           []problem{{Type: registration.Absent}},
		},
		"a configuration without webhooks calls no injector": {
			configurations: []*configuration{newConfiguration("akv-injector")},
			want:           []problem{{Type: registration.Absent}},
		},
		"only another injector's Service is called": {
			configurations: []*configuration{newConfiguration("akv-injector", ofPods("pods.akv-injector.io", at(second)))},
			want: []problem{{
				Type: registration.Elsewhere, Configuration: "akv-injector",
				Found: "it calls Service team/akv-injector, and no configuration calls Service akv-injector-system/akv-injector, which is this injector",
			}},
		},
		"another injector is called too, before this one": {
			configurations: []*configuration{
				newConfiguration("akv-injector", own),
				newConfiguration("a-second", ofPods("pods.akv-injector.io", at(second))),
			},
			want: []problem{{
				Type: registration.Doubled, Configuration: "a-second",
				Found: "it calls Service team/akv-injector, and MutatingWebhookConfiguration akv-injector calls Service akv-injector-system/akv-injector: both review each pod",
			}},
		},
		"a second configuration calls this injector too, with other webhook names": {
			configurations: []*configuration{newConfiguration("akv-injector", own), newConfiguration("copy", ofPods("pods.example.com", at(service)))},
			want: []problem{{
				Type: registration.Doubled, Configuration: "copy",
				Found: "it calls Service akv-injector-system/akv-injector, and MutatingWebhookConfiguration akv-injector calls Service akv-injector-system/akv-injector: both review each pod",
			}},
		},
		"a second configuration calls a URL": {
			configurations: []*configuration{newConfiguration("akv-injector", own), newConfiguration("local", ofPods("pods.akv-injector.io", atURL("https://192.0.2.7")))},
			want: []problem{{
				Type: registration.Doubled, Configuration: "local",
				Found: "it calls https://192.0.2.7, and MutatingWebhookConfiguration akv-injector calls Service akv-injector-system/akv-injector: both review each pod",
			}},
		},
		"Azure's webhook comes after": {
			configurations: []*configuration{newConfiguration(azure, selecting(labelled(use), "pods")), newConfiguration("akv-injector", own)},
		},
		"Azure's webhook comes before": {
			configurations: []*configuration{newConfiguration("zz-akv-injector", own), newConfiguration(azure, selecting(labelled(use), "pods"))},
			want: []problem{{
				Type: registration.Late, Configuration: "zz-akv-injector",
				Found: "it sorts after " + azure + ", which selects pods by the label " + use + ": that webhook is not called for pods that get the label from the injector",
			}},
		},
		"a webhook that selects by a label of the injector must come after": {
			configurations: []*configuration{
				newConfiguration("a", selecting(demanding("aadpodidbinding", metav1.LabelSelectorOpExists), "*")),
				newConfiguration("aa", selecting(demanding("keyvault.io/injected", metav1.LabelSelectorOpIn, "true"), "*/*")),
				newConfiguration("akv-injector", own),
			},
			want: []problem{{Type: registration.Late, Configuration: "akv-injector"}, {Type: registration.Late, Configuration: "akv-injector"}},
		},
		"selectors that match pods without the label, and webhooks of other objects, may come before": {
			configurations: []*configuration{
				newConfiguration("a", selecting(demanding(use, metav1.LabelSelectorOpDoesNotExist), "pods")),
				newConfiguration("aa", selecting(demanding(use, metav1.LabelSelectorOpNotIn, "true"), "pods")),
				newConfiguration("aaa", selecting(labelled("app"), "pods"), selecting(labelled(use), "deployments"), ofPods("all.example.com", atURL("https://192.0.2.7"))),
				newConfiguration("akv-injector", own),
			},
		},
		"a webhook that fails open is a problem": {
			configurations: []*configuration{newConfiguration("akv-injector", own, open(own), open(ofPods("always.pods.akv-injector.io", at(service))))},
			want: []problem{{
				Type: registration.FailsOpen, Configuration: "akv-injector",
				Found: "failurePolicy is Ignore in pods.akv-injector.io, always.pods.akv-injector.io: while the injector does not answer, objects are admitted without what they request",
			}},
		},
		"the failure policy of another program is not checked": {
			configurations: []*configuration{newConfiguration("akv-injector", own), newConfiguration(azure, open(selecting(labelled(use), "pods")))},
		},
		"all problems are reported together": {
			configurations: []*configuration{
				newConfiguration("b-akv-injector", open(own)), newConfiguration("c", ofPods("pods.akv-injector.io", at(second))),
				newConfiguration(azure, selecting(labelled(use), "pods")),
			},
			want: []problem{
				{Type: registration.Late, Configuration: "b-akv-injector"},
				{Type: registration.FailsOpen, Configuration: "b-akv-injector"},
				{Type: registration.Doubled, Configuration: "c"},
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := registration.Check(service, test.configurations)
			for i, f := range got {
				if f.Found == "" || f.Fix == "" {
					t.Errorf("problem %d lacks Found or Fix: %+v", i, f)
				}
				if i < len(test.want) && test.want[i].Found == "" {
					got[i].Found = ""
				}
			}
			if diff := cmp.Diff(test.want, got, cmpopts.IgnoreFields(problem{}, "Fix")); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

// TestDocs checks that docs/coexistence.md has a heading for each type of problem.
func TestDocs(t *testing.T) {
	text, err := os.ReadFile("../../docs/coexistence.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range []registration.ProblemType{
		registration.Absent, registration.Elsewhere, registration.Late, registration.Doubled, registration.FailsOpen,
	} {
		if !bytes.Contains(text, []byte("\n### "+string(problem)+"\n")) {
			t.Errorf("no heading %s", problem)
		}
	}
}
