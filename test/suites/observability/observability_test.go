// Package observability_test checks the alerts and the dashboard against the metrics that the
// injector and an API server expose.
package observability_test

import (
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql/parser"
)

const (
	alertsFile    = root + "/deploy/chart/files/alerts.yaml"
	dashboardFile = root + "/deploy/chart/files/dashboard.json"
	runbook       = "https://github.com/akv-injector/akv-injector/blob/main/docs/metrics.md#"
)

// alerts reads the rules with Prometheus' parser.
func alerts(t *testing.T) []rulefmt.Rule {
	t.Helper()
	groups, errs := rulefmt.ParseFile(alertsFile, false, model.LegacyValidation, parser.NewParser(parser.Options{}), slog.New(slog.DiscardHandler))
	if len(errs) > 0 {
		t.Fatal(errs)
	}
	var rules []rulefmt.Rule
	for _, group := range groups.Groups {
		rules = append(rules, group.Rules...)
	}
	return rules
}

// TestAlertsAskForWhatThereIs checks that some component exposes each series that an alert uses.
func TestAlertsAskForWhatThereIs(t *testing.T) {
	families := known(t)
	for _, rule := range alerts(t) {
		for _, err := range check(rule.Expr, families) {
			t.Errorf("%s: %v", rule.Alert, err)
		}
	}
}

// TestAlertsSayWhatToDo checks that each alert has a description, a section in docs/metrics.md and
// a test case.
func TestAlertsSayWhatToDo(t *testing.T) {
	page, err := os.ReadFile(filepath.Join(root, "docs", "metrics.md"))
	if err != nil {
		t.Fatal(err)
	}
	cases, err := os.ReadFile("testdata/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, rule := range alerts(t) {
		if severity := rule.Labels["severity"]; severity != "warning" && severity != "critical" {
			t.Errorf("%s: severity %q", rule.Alert, severity)
		}
		for _, name := range []string{"summary", "description"} {
			if text := rule.Annotations[name]; !strings.HasSuffix(text, ".") {
				t.Errorf("%s: %s %q, want sentences", rule.Alert, name, text)
			}
		}
		if got, want := rule.Annotations["runbook_url"], runbook+strings.ToLower(rule.Alert); got != want {
			t.Errorf("%s: runbook_url %s, want %s", rule.Alert, got, want)
		}
		if !bytes.Contains(page, []byte("\n### "+rule.Alert+"\n")) {
			t.Errorf("%s: docs/metrics.md has no such heading", rule.Alert)
		}
		if !bytes.Contains(cases, []byte(rule.Alert)) {
			t.Errorf("%s: no case in testdata/alerts.yaml", rule.Alert)
		}
	}
}

// TestAlertsFire runs `promtool test rules` and `promtool check rules`.
func TestAlertsFire(t *testing.T) {
	program := promtool(t)
	for _, args := range [][]string{{"check", "rules", "--lint-fatal", alertsFile}, {"test", "rules", "testdata/alerts.yaml"}} {
		if out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}

// promtool returns the path of the program that make builds into the user's cache folder, at the
// version that tools/promtool pins.
func promtool(t *testing.T) string {
	t.Helper()
	list := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Version}}", "github.com/prometheus/prometheus")
	list.Dir = filepath.Join(root, "tools", "promtool")
	version, err := list.Output()
	if err != nil {
		t.Fatalf("find the version of promtool: %v", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(cache, "akv-injector", "tools", "promtool-"+strings.TrimSpace(string(version))+"-"+runtime.Version())
	if _, err := os.Stat(program); err != nil {
		t.Fatalf("%v; run make tools to build it", err)
	}
	return program
}

// TestDashboard checks that some component exposes each series of the dashboard, and that the
// reader selects the data source.
func TestDashboard(t *testing.T) {
	text, err := os.ReadFile(dashboardFile)
	if err != nil {
		t.Fatal(err)
	}
	type dataSource struct{ UID string }
	var dashboard struct {
		UID    string
		Panels []struct {
			ID         int
			Type       string
			Title      string
			DataSource *dataSource
			Targets    []struct {
				Expr       string
				DataSource dataSource
			}
		}
	}
	if err := json.Unmarshal(text, &dashboard); err != nil {
		t.Fatal(err)
	}
	families := known(t)
	variables := strings.NewReplacer("$__rate_interval", "5m", "$job", "akv-injector")
	ids, shown := map[int]bool{}, 0
	for _, panel := range dashboard.Panels {
		if ids[panel.ID] {
			t.Errorf("%s: id %d is used twice", panel.Title, panel.ID)
		}
		ids[panel.ID] = true
		if panel.Type == "row" {
			continue
		}
		if panel.DataSource == nil || panel.DataSource.UID != "${datasource}" || len(panel.Targets) == 0 {
			t.Errorf("%s: must use the data source variable", panel.Title)
		}
		for _, target := range panel.Targets {
			shown++
			if target.DataSource.UID != "${datasource}" {
				t.Errorf("%s: data source %q is not the data source variable", panel.Title, target.DataSource.UID)
			}
			for _, err := range check(variables.Replace(target.Expr), families) {
				t.Errorf("%s: %v", panel.Title, err)
			}
		}
	}
	if dashboard.UID != "akv-injector" || shown == 0 {
		t.Errorf("dashboard %q shows %d expressions", dashboard.UID, shown)
	}
}

// TestPprof checks that profiles are served only with the flag.
func TestPprof(t *testing.T) {
	address := freeAddress(t)
	startInjector(t, "--pprof-bind-address="+address)
	if response := fetch(t, "http://"+address+"/debug/pprof/cmdline"); response.StatusCode != http.StatusOK {
		t.Errorf("profiles: status %d", response.StatusCode)
	}
	metrics := startInjector(t).metrics
	if response := fetch(t, strings.TrimSuffix(metrics, "/metrics")+"/debug/pprof/"); response.StatusCode != http.StatusNotFound {
		t.Errorf("profiles without the flag: status %d", response.StatusCode)
	}
}

// TestTracing checks that a review's span is a child of its caller's, and that the injector exports
// it when it stops.
func TestTracing(t *testing.T) {
	var mu sync.Mutex
	var sent []byte
	collector := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, body...)
	}))
	defer collector.Close()
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.URL)
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "3600000")
	injector := startInjector(t, "--tracing")
	review(t, injector)
	injector.stop()
	mu.Lock()
	defer mu.Unlock()
	for _, want := range []string{string(traceID), string(spanID), "POST /mutate/pods", "akv_injector.review.outcome"} {
		if !bytes.Contains(sent, []byte(want)) {
			t.Errorf("the collector did not get %q", want)
		}
	}
}

// TestTracingWithoutACollector checks that the injector starts, reviews and stops without a
// collector.
func TestTracingWithoutACollector(t *testing.T) {
	t.Setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://"+freeAddress(t))
	injector := startInjector(t, "--tracing")
	review(t, injector)
	start := time.Now()
	injector.stop()
	if took := time.Since(start); took > 15*time.Second {
		t.Errorf("stopping took %s", took)
	}
}

// traceID and spanID are the ids of the caller's span.
var traceID, spanID = []byte("trace-of-16-byte"), []byte("span-of8")

// review sends a review of a pod as soon as the injector accepts connections. The answer is an
// error, since the API server rejects all lookups.
func review(t *testing.T, i *injector) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}, Timeout: 20 * time.Second}
	defer client.CloseIdleConnections()
	const body = `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"version":"v1","kind":"Pod"},` +
		`"namespace":"shop","operation":"CREATE","object":{"metadata":{"name":"app"}}}}`
	for end := time.Now().Add(30 * time.Second); ; {
		request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, i.webhooks+"/mutate/pods?timeout=5s", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set("Content-Type", "application/json")
		request.Header.Set("Traceparent", fmt.Sprintf("00-%x-%x-01", traceID, spanID))
		response, err := client.Do(request)
		if err == nil {
			defer response.Body.Close()
			if response.StatusCode != http.StatusInternalServerError {
				t.Fatalf("status %d, want %d", response.StatusCode, http.StatusInternalServerError)
			}
			return
		}
		if time.Now().After(end) {
			t.Fatal(err)
		}
	}
}
