package observability_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

// root is the folder of the root module.
const root = "../../.."

// program is the injector, built once for all tests.
var program string

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "akv-injector")
		if err != nil {
			panic(err)
		}
		defer os.RemoveAll(dir)
		program = filepath.Join(dir, "akv-injector")
		cmd := exec.Command("go", "build", "-o", program, ".")
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			panic(err.Error() + "\n" + string(out))
		}
		return m.Run()
	}())
}

// configurations is the path of webhook configurations, and noConfigurations the API server's
// answer at it.
const configurations, noConfigurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
	`{"apiVersion":"admissionregistration.k8s.io/v1","kind":"MutatingWebhookConfigurationList","metadata":{"resourceVersion":"1"},"items":[]}`

// injector is a running injector. It stops when stop is called or the test ends.
type injector struct {
	metrics, webhooks string
	stop              func()
}

// startInjector runs the injector with an API server that has no webhook configurations and rejects
// all other requests.
func startInjector(t *testing.T, args ...string) *injector {
	t.Helper()
	apiserver := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != configurations || r.URL.Query().Has("watch") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, noConfigurations)
	}))
	t.Cleanup(apiserver.Close)
	dir := t.TempDir()
	writeCertificate(t, dir)
	kubeconfig := filepath.Join(dir, "kubeconfig")
	text := fmt.Sprintf(`{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c","user":"u"}}],`+
		`"users":[{"name":"u","user":{}}],"clusters":[{"name":"c","cluster":{"server":%q}}]}`, apiserver.URL)
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	metrics, webhooks := freeAddress(t), freeAddress(t)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	cmd := exec.CommandContext(ctx, program, append([]string{
		"serve", "--certs=files", "--cert-dir=" + dir, "--kubeconfig=" + kubeconfig, "--webhook-bind-address=" + webhooks,
		"--health-probe-bind-address=0", "--metrics-bind-address=" + metrics, "--drain-period=0s",
	}, args...)...)
	var log bytes.Buffer
	cmd.Stderr = &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	i := &injector{metrics: "http://" + metrics + "/metrics", webhooks: "https://" + webhooks, stop: sync.OnceFunc(func() {
		defer cancel()
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // the exit status only shows that it was stopped
	})}
	t.Cleanup(func() {
		i.stop()
		if t.Failed() {
			t.Logf("the injector's log:\n%s", &log)
		}
	})
	return i
}

// writeCertificate writes the loopback certificate of net/http/httptest.
func writeCertificate(t *testing.T, dir string) {
	t.Helper()
	server := httptest.NewTLSServer(nil)
	defer server.Close()
	certificate := server.TLS.Certificates[0]
	key, err := x509.MarshalPKCS8PrivateKey(certificate.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: certificate.Certificate[0]}, "tls.key": {Type: "PRIVATE KEY", Bytes: key}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// freeAddress returns an unused loopback address.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// fetch retries until the server answers.
func fetch(t *testing.T, url string) *http.Response {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); ; {
		response, err := http.Get(url)
		if err == nil {
			t.Cleanup(func() { _ = response.Body.Close() })
			return response
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}

// scrape returns the metrics of an injector with a canary and rotation, without reviews, after it has looked up
// its webhook configurations.
func scrape(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	url := startInjector(t, "--canary-namespace=canary", "--rotation").metrics
	parser := expfmt.NewTextParser(model.LegacyValidation)
	for end := time.Now().Add(30 * time.Second); ; {
		families, err := parser.TextToMetricFamilies(fetch(t, url).Body)
		if err != nil {
			t.Fatal(err)
		}
		if families["akv_injector_configuration_problems"] != nil || time.Now().After(end) {
			return families
		}
	}
}
