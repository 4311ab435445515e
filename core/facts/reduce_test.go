package facts_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/internal/corpus"
)

// TestReduceKeepsFacts shows that decisions are the same on reduced objects: it reduces the objects
// around the pods of the corpus.
func TestReduceKeepsFacts(t *testing.T) {
	archives, err := corpus.Load()
	if err != nil {
		t.Fatal(err)
	}
	reduced := map[string]int{}
	for _, a := range archives {
		for _, object := range a.Objects {
			small := facts.Reduce(object)
			if small == nil {
				continue
			}
			reduced[object.GetKind()]++
			if diff := cmp.Diff(read(t, object), read(t, small)); diff != "" {
				t.Errorf("%s: facts of %s %s (-whole +reduced):\n%s", a.Name, object.GetKind(), object.GetName(), diff)
			}
		}
	}
	for _, kind := range []string{"Namespace", "ServiceAccount", class.Kind, "AzureIdentityBinding"} {
		if reduced[kind] == 0 {
			t.Errorf("no %s was reduced", kind)
		}
	}
}

// read returns the fact that an object is.
func read(t *testing.T, object *unstructured.Unstructured) any {
	t.Helper()
	switch object.GetKind() {
	case "Namespace":
		return facts.ReadNamespace(object)
	case "ServiceAccount":
		return facts.ReadServiceAccount(object)
	case class.Kind:
		c, _ := facts.ReadClass(object) // an invalid class is a fact as well
		return c
	default:
		return facts.ReadSelector(object)
	}
}

func TestReduceLeavesOut(t *testing.T) {
	tests := map[string]struct{ object, want string }{
		"labels and annotations of others": {
			`{apiVersion: v1, kind: Namespace, metadata: {name: a, uid: x, labels: {team: a, keyvault.io/injection: enabled}, annotations: {note: secret}}, status: {phase: Active}}`,
			`{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {keyvault.io/injection: enabled}}}`,
		},
		"everything else of a ServiceAccount": {
			`{apiVersion: v1, kind: ServiceAccount, metadata: {name: a, namespace: b, annotations: {azure.workload.identity/client-id: x, token: secret}}, secrets: [{name: token}], imagePullSecrets: [{name: p}]}`,
			`{apiVersion: v1, kind: ServiceAccount, metadata: {name: a, namespace: b, annotations: {azure.workload.identity/client-id: x}}, imagePullSecrets: [{name: p}]}`,
		},
		"parameters of a class that Azure's provider does not have": {
			`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: a}, spec: {provider: azure, parameters: {keyvaultName: kv, password: secret}}}`,
			`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: a}, spec: {provider: azure, parameters: {keyvaultName: kv}}}`,
		},
		"the parameters of another provider": {
			`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: a}, spec: {provider: vault, parameters: {token: secret}, secretObjects: [{secretName: s}]}}`,
			`{apiVersion: secrets-store.csi.x-k8s.io/v1, kind: SecretProviderClass, metadata: {name: a}, spec: {provider: vault, secretObjects: [{secretName: s}]}}`,
		},
		"the identity of a binding": {
			`{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {name: a}, spec: {azureIdentity: x, selector: s}}`,
			`{apiVersion: aadpodidentity.k8s.io/v1, kind: AzureIdentityBinding, metadata: {name: a}, spec: {selector: s}}`,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(decode(t, tt.want), facts.Reduce(decode(t, tt.object))); diff != "" {
				t.Errorf("reduced object (-want +got):\n%s", diff)
			}
		})
	}
	if got := facts.Reduce(decode(t, `{apiVersion: v1, kind: Secret, metadata: {name: a}, data: {a: c2VjcmV0}}`)); got != nil {
		t.Errorf("a Secret is reduced to %v, want nil", got)
	}
}

func decode(t *testing.T, text string) *unstructured.Unstructured {
	t.Helper()
	var object unstructured.Unstructured
	if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
		t.Fatal(err)
	}
	return &object
}
