package chart_test

import (
	"path/filepath"
	"strings"
	"testing"

	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/test/harness/chart"
)

// TestRefusals renders wrong values with both versions of Helm. The error must name the value.
func TestRefusals(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		values    string
		namespace string
		want      []string
	}{
		"a misspelt value":                                {values: "replicaCont: 3", want: []string{"replicaCont"}},
		"a misspelt value in a group":                     {values: "webhook: {failurePolice: Fail}", want: []string{"webhook", "failurePolice"}},
		"a misspelt value three levels down":              {values: "certs: {certManager: {issuerRef: {nam: x}}}", want: []string{"issuerRef", "nam"}},
		"a misspelt field of a list's element":            {values: "tolerations: [{key: a, effec: NoSchedule}]", want: []string{"tolerations", "effec"}},
		"a word for a number":                             {values: "replicaCount: two", want: []string{"replicaCount", "integer"}},
		"no replica":                                      {values: "replicaCount: 0", want: []string{"replicaCount"}},
		"an unknown mode":                                 {values: "certs: {mode: acme}", want: []string{"certs", "mode", "cert-manager", "self-signed", "files"}},
		"a timeout that the API server rejects":           {values: "webhook: {timeoutSeconds: 31}", want: []string{"timeoutSeconds", "30"}},
		"an address without TLS":                          {values: "webhook: {url: 'http://192.0.2.7'}", want: []string{"webhook", "url"}},
		"an invalid digest":                               {values: "image: {digest: sha256:abc}", want: []string{"image", "digest"}},
		"a tenant id that is not a GUID":                  {values: "tenantID: contoso", want: []string{"tenantID"}},
		"a name that changes the order of webhooks":       {values: "nameOverride: zzz", want: []string{"nameOverride: must be empty", "azure-wi-webhook-mutating-webhook-configuration"}},
		"a full name":                                     {values: "fullnameOverride: zzz", want: []string{"fullnameOverride: must be empty"}},
		"the namespace kube-system":                       {namespace: "kube-system", want: []string{"must not be kube-system"}},
		"files without a Secret":                          {values: "certs: {mode: files}\nwebhook: {caBundle: Y2E=}", want: []string{"certs.files.secretName: must name"}},
		"files without a CA bundle":                       {values: "certs: {mode: files, files: {secretName: ours}}", want: []string{"webhook.caBundle: must be set"}},
		"a CA bundle that another component writes":       {values: "webhook: {caBundle: Y2E=}", want: []string{"webhook.caBundle: must be empty"}},
		"a canary where nothing is reviewed":              {values: "canary: {enabled: true, namespace: kube-public}", want: []string{"canary.namespace: must not be kube-public"}},
		"a canary without a Service":                      {values: "canary: {enabled: true}\nwebhook: {url: 'https://192.0.2.7'}", want: []string{"canary.enabled: must be false"}},
		"an interval without a unit":                      {values: "canary: {interval: 60}", want: []string{"canary", "interval"}},
		"a kind without a resource":                       {values: "workloads: {extra: [{group: argoproj.io, version: v1alpha1, kind: Rollout}]}", want: []string{"workloads.extra[0].resource: must be set"}},
		"a pod template outside spec":                     {values: "workloads: {extra: [{group: a.io, version: v1, kind: A, resource: as, template: template}]}", want: []string{"workloads", "template"}},
		"a limit from which GOMEMLIMIT can't be computed": {values: "resources: {limits: {memory: 512M}}", want: []string{"goMemLimit: must be set"}},
	}
	helms, err := programs()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range tests {
		for _, helm := range helms {
			t.Run(name+" by "+filepath.Base(helm), func(t *testing.T) {
				t.Parallel()
				var values map[string]any
				if err := yaml.Unmarshal([]byte(tt.values), &values); err != nil {
					t.Fatal(err)
				}
				_, err := chart.Render(t.Context(), chart.Options{Helm: helm, Namespace: tt.namespace, Values: values})
				if err == nil {
					t.Fatal("rendered")
				}
				for _, want := range tt.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q is not in: %v", want, err)
					}
				}
			})
		}
	}
}
