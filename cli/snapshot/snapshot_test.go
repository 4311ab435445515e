package snapshot_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	discoveryfake "k8s.io/client-go/discovery/fake"
	"k8s.io/client-go/dynamic/fake"
	clienttesting "k8s.io/client-go/testing"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cli"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/snapshot"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

const objects = `
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {keyvault.io/injection: enabled, team: shop}, annotations: {keyvault.io/vault: shop-kv}}
---
apiVersion: v1
kind: Namespace
metadata: {name: other, labels: {team: other}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: other, namespace: other}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: default, namespace: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: app, namespace: shop, annotations: {azure.workload.identity/client-id: 00000000-0000-0000-0000-000000000001}}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: shop, namespace: shop}
spec:
  provider: azure
  parameters: {keyvaultName: shop-kv, tenantID: t, clientID: 00000000-0000-0000-0000-000000000001, objects: "array: ['{objectName: a, objectType: secret}']", password: x}
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata: {name: kv-0123456789, namespace: shop, labels: {app.kubernetes.io/managed-by: akv-injector}}
spec: {provider: azure}
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata: {name: blob, namespace: shop}
spec: {selector: access-blob, azureIdentity: blob}
`

// reader returns a Reader of the objects. It must not get or list the denied resources.
func reader(t *testing.T, denied ...string) *kube.Reader {
	t.Helper()
	var all []runtime.Object
	for text := range strings.SplitSeq(objects, "\n---\n") {
		var object unstructured.Unstructured
		if err := yaml.Unmarshal([]byte(text), &object.Object); err != nil {
			t.Fatal(err)
		}
		all = append(all, &object)
	}
	client := fake.NewSimpleDynamicClientWithCustomListKinds(runtime.NewScheme(), map[schema.GroupVersionResource]string{
		kube.Namespaces: "NamespaceList", kube.ServiceAccounts: "ServiceAccountList",
		class.Resource: "SecretProviderClassList", facts.BindingResource: "AzureIdentityBindingList",
	}, all...)
	for _, resource := range denied {
		client.PrependReactor("*", resource, func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(schema.GroupResource{Resource: resource}, "", nil)
		})
	}
	discovered := &clienttesting.Fake{Resources: []*metav1.APIResourceList{{
		GroupVersion: "v1", APIResources: []metav1.APIResource{{Name: "namespaces"}, {Name: "serviceaccounts"}},
	}}}
	return &kube.Reader{Dynamic: client, Discovery: &discoveryfake.FakeDiscovery{Fake: discovered}}
}

func TestWrite(t *testing.T) {
	const shop = `---
apiVersion: v1
kind: Namespace
metadata:
  annotations:
    keyvault.io/vault: shop-kv
  labels:
    keyvault.io/injection: enabled
  name: shop
---
apiVersion: v1
kind: ServiceAccount
metadata:
  annotations:
    azure.workload.identity/client-id: 00000000-0000-0000-0000-000000000001
  name: app
  namespace: shop
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: default
  namespace: shop
---
apiVersion: secrets-store.csi.x-k8s.io/v1
kind: SecretProviderClass
metadata:
  name: shop
  namespace: shop
spec:
  parameters:
    clientID: 00000000-0000-0000-0000-000000000001
    keyvaultName: shop-kv
    objects: 'array: [''{objectName: a, objectType: secret}'']'
    tenantID: t
  provider: azure
---
apiVersion: aadpodidentity.k8s.io/v1
kind: AzureIdentityBinding
metadata:
  name: blob
  namespace: shop
spec:
  selector: access-blob
`
	const head = "# What akv-injector lint --facts needs to know of %s, written by akv-injector facts.\n# There are no secrets in this file.\n"
	tests := map[string]struct {
		namespaces []string
		want       string
	}{
		"one namespace": {[]string{"shop"}, strings.ReplaceAll(head, "%s", "namespaces shop") + shop},
		"all namespaces, of the others only the Namespace": {
			nil, strings.ReplaceAll(head, "%s", "all namespaces") + "---\napiVersion: v1\nkind: Namespace\nmetadata:\n  name: other\n" + shop,
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			if err := snapshot.Write(t.Context(), reader(t), tt.namespaces, &out); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, out.String()); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
}

// TestLintWithFacts shows that lint finds in the facts what it would find in the cluster.
func TestLintWithFacts(t *testing.T) {
	var known, findings, summary bytes.Buffer
	if err := snapshot.Write(t.Context(), reader(t), []string{"shop", "other"}, &known); err != nil {
		t.Fatal(err)
	}
	t.Chdir(t.TempDir())
	if err := os.WriteFile("facts.yaml", known.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	pods := `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"fine","namespace":"shop","annotations":{"keyvault.io/class":"shop","identity.io/name":"app"}},"spec":{"containers":[{"name":"app"}]}}
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"wrong","namespace":"shop","annotations":{"keyvault.io/class":"shop-class","identity.io/name":"app"}}}
{"apiVersion":"v1","kind":"Pod","metadata":{"name":"closed","namespace":"other","annotations":{"keyvault.io/class":"shop"}}}`
	o := cli.Options{Files: []string{"-"}, Stdin: strings.NewReader(pods), Facts: []string{"facts.yaml"}}
	if status, err := cli.Lint(t.Context(), o, cli.Text, &findings, &summary); status != cli.Rejected || err != nil {
		t.Errorf("status %d, error %v", status, err)
	}
	for i, want := range []string{
		`Pod wrong (document 2): [ClassNotFound]`, "available here: shop\n",
		`Pod closed (document 3): [NoEffect]`, "kubectl label namespace other keyvault.io/injection=enabled\n",
	} {
		if !strings.Contains(findings.String(), want) {
			t.Errorf("%d: %q is not in the findings:\n%s", i, want, &findings)
		}
	}
	if strings.Contains(findings.String(), "Pod fine") {
		t.Errorf("the pod that has all is reported:\n%s", &findings)
	}
}

func TestFailures(t *testing.T) {
	tests := map[string]struct {
		namespaces []string
		denied     string
		want       string
	}{
		"a namespace that does not exist":  {[]string{"shop", "gone"}, "", "namespace gone does not exist"},
		"no right to a namespace":          {[]string{"shop"}, "namespaces", "may not get namespaces"},
		"no right to list ServiceAccounts": {[]string{"shop"}, "serviceaccounts", "may not list serviceaccounts in namespace shop"},
		"no right to all namespaces":       {nil, "serviceaccounts", "may not list serviceaccounts"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			err := snapshot.Write(t.Context(), reader(t, tt.denied), tt.namespaces, &out)
			if err == nil || !strings.Contains(err.Error(), tt.want) || out.Len() > 0 {
				t.Errorf("error %v, want %q; output\n%s", err, tt.want, &out)
			}
			if _, ok := errors.AsType[*kube.Denied](err); ok != (tt.denied != "") {
				t.Errorf("error %v is a missing right: %t", err, ok)
			}
		})
	}
}
