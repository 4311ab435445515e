package check_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"flag"
	"maps"
	"math/big"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/cli/check"
	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/cli/report"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/deploy"
	"github.com/akv-injector/akv-injector/internal/fakeapi"
)

const (
	mutating   = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations/akv-injector"
	validating = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations/akv-injector"
	injector   = "/apis/apps/v1/namespaces/akv-injector-system/deployments/akv-injector"
	driver     = "/apis/apps/v1/namespaces/kube-system/daemonsets/aks-secrets-store-csi-driver"
	provider   = "/apis/apps/v1/namespaces/kube-system/daemonsets/aks-secrets-store-provider-azure"
	csiDriver  = "/apis/storage.k8s.io/v1/csidrivers/secrets-store.csi.k8s.io"
	issued     = "/apis/cert-manager.io/v1/namespaces/akv-injector-system/certificates/akv-injector"
	dryRun     = "POST /api/v1/namespaces/shop/pods"
)

// authority returns a CA certificate in PEM that is valid until the given time.
func authority(t *testing.T, until time.Time) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: until, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// start serves the cluster in testdata, with the webhook configurations of this version.
func start(t *testing.T) *fakeapi.Server {
	t.Helper()
	text, err := os.ReadFile("testdata/cluster.yaml")
	if err != nil {
		t.Fatal(err)
	}
	server := fakeapi.Start(t, string(text))
	for _, file := range []string{"mutating", "validating"} {
		text, err := deploy.Kustomize.ReadFile("kustomize/" + file + "-webhook-configuration.yaml")
		if err != nil {
			t.Fatal(err)
		}
		server.Apply(t, string(text))
	}
	setBundles(t, server, authority(t, time.Date(2098, 1, 1, 0, 0, 0, 0, time.UTC)))
	return server
}

// setBundles sets the CA bundle of all webhooks.
func setBundles(t *testing.T, server *fakeapi.Server, bundle []byte) {
	t.Helper()
	for _, path := range []string{mutating, validating} {
		server.Edit(t, path, eachWebhook(func(webhook map[string]any) {
			clientConfig(webhook)["caBundle"] = base64.StdEncoding.EncodeToString(bundle)
		}))
	}
}

// eachWebhook returns a change of all webhooks of a configuration.
func eachWebhook(change func(webhook map[string]any)) func(map[string]any) {
	return func(object map[string]any) {
		for _, webhook := range fakeapi.Items(object, "webhooks") {
			change(fakeapi.Map(webhook))
		}
	}
}

// firstWebhook returns a change of the first webhook of a configuration.
func firstWebhook(change func(webhook map[string]any)) func(map[string]any) {
	return func(object map[string]any) { change(fakeapi.Map(object, "webhooks", 0)) }
}

func clientConfig(webhook map[string]any) map[string]any {
	return fakeapi.Map(webhook, "clientConfig")
}

// set returns a change of a field, by its path.
func set(value any, path ...string) func(map[string]any) {
	return func(object map[string]any) {
		for _, name := range path[:len(path)-1] {
			object = fakeapi.Map(object, name)
		}
		object[path[len(path)-1]] = value
	}
}

// options are the options for a server.
func options(t *testing.T, server *fakeapi.Server) check.Options {
	t.Helper()
	reader, err := kube.NewReader(server.Config)
	if err != nil {
		t.Fatal(err)
	}
	return check.Options{
		Reader: reader, Version: "v1.2.3",
		Defaults: func(args []string) (inject.Defaults, error) {
			for _, arg := range args {
				if tenant, ok := strings.CutPrefix(arg, "--tenant-id="); ok {
					return inject.Defaults{TenantID: tenant}, nil
				}
			}
			return inject.Defaults{}, nil
		},
	}
}

// lines prints a report as one text for each line of it, with its details and commands.
func lines(t *testing.T, r *report.Report) []string {
	t.Helper()
	var b bytes.Buffer
	if err := r.Print(&b, report.Text); err != nil {
		t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(b.String(), "\n"), "\n")
}

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares a report with a file of testdata.
func golden(t *testing.T, name string, r *report.Report) {
	t.Helper()
	got := strings.Join(lines(t, r), "\n") + "\n"
	if *update {
		if err := os.WriteFile("testdata/"+name, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(got, "\n")); diff != "" {
		t.Errorf("%s (-want +got)\n%s", name, diff)
	}
}

func run(t *testing.T, server *fakeapi.Server, change func(*check.Options)) *report.Report {
	t.Helper()
	o := options(t, server)
	if change != nil {
		change(&o)
	}
	r, err := check.Installation(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func preflight(t *testing.T, server *fakeapi.Server) *report.Report {
	t.Helper()
	r, err := check.Preflight(t.Context(), options(t, server))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestHealthy prints the whole report about a cluster in which everything works.
func TestHealthy(t *testing.T) {
	server := start(t)
	server.Apply(t, "{apiVersion: v1, kind: Namespace, metadata: {name: shop, labels: {keyvault.io/injection: enabled}}}")
	server.Answer(dryRun, http.StatusUnprocessableEntity, refusal(`admission webhook \"pods.akv-injector.io\" denied the request: …`))
	r := run(t, server, func(o *check.Options) { o.DryRunIn = "shop" })
	golden(t, "healthy.txt", r)
	if r.State() != report.OK {
		t.Errorf("the state is %s", r.State())
	}
	server.Delete(t, mutating)
	server.Delete(t, validating)
	r = preflight(t, server)
	golden(t, "preflight.txt", r)
	if r.State() != report.OK {
		t.Errorf("the state before the installation is %s", r.State())
	}
}

// more ends a list that is too long.
var more = regexp.MustCompile(`and \d+ more$`)

// soon is when a certificate expires that should have been renewed.
var soon = time.Now().Add(36 * time.Hour).UTC()

func refusal(message string) string {
	return `{"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 422, "reason": "Invalid", "message": "` + message + `"}`
}

// difference returns the lines of the report that a healthy cluster does not have.
func difference(t *testing.T, r *report.Report, healthy []string) []string {
	t.Helper()
	var different []string
	for _, line := range lines(t, r) {
		if !slices.Contains(healthy, line) && line != "" {
			different = append(different, strings.TrimSpace(line))
		}
	}
	return different
}

// wanted is what a report must say about a cluster that a test broke.
type wanted struct {
	State report.State `json:"state"`
	// Lines are those that the report of a healthy cluster does not have.
	Lines []string `json:"lines"`
}

// TestBroken breaks one thing at a time. The report must differ from that of a healthy cluster in
// exactly the lines of testdata/broken.yaml.
func TestBroken(t *testing.T) {
	testBroken(t, "testdata/broken.yaml", start, breakages, check.Installation)
}

// TestPreflight does the same before the installation.
func TestPreflight(t *testing.T) {
	bare := func(t *testing.T) *fakeapi.Server {
		t.Helper()
		server := start(t)
		server.Delete(t, mutating)
		server.Delete(t, validating)
		return server
	}
	testBroken(t, "testdata/preflight.yaml", bare, obstacles, check.Preflight)
}

func testBroken(
	t *testing.T, file string, start func(*testing.T) *fakeapi.Server, breakages map[string]breakage,
	check func(context.Context, check.Options) (*report.Report, error),
) {
	t.Helper()
	want, got := map[string]wanted{}, map[string]wanted{}
	text, err := os.ReadFile(file)
	if err == nil {
		err = yaml.UnmarshalStrict(text, &want)
	}
	if err != nil {
		t.Fatal(err)
	}
	var healthy []string
	breakages[""] = all()
	for _, behaviour := range slices.Sorted(maps.Keys(breakages)) {
		server := start(t)
		o := options(t, server)
		breakages[behaviour](t, server, &o)
		r, err := check(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if behaviour == "" { // the first
			healthy = lines(t, r)
			continue
		}
		got[behaviour] = wanted{r.State(), difference(t, r, healthy)}
		for i, line := range got[behaviour].Lines {
			line = strings.ReplaceAll(line, soon.Format(time.DateOnly), "SOON")
			got[behaviour].Lines[i] = more.ReplaceAllString(line, "and some more") // the chart decides
		}
	}
	if *update {
		text, err := yaml.Marshal(got)
		if err == nil {
			err = os.WriteFile(file, text, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}
