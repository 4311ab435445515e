package e2e_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// get returns the status code and body at a URL.
func get(ctx context.Context, url string) (int, string, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	return response.StatusCode, string(body), err
}

// waitForProbe waits until a replica's probe answers with the status code and a body that contains
// says.
func waitForProbe(t *testing.T, r *replica, path string, code int, says ...string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%s to answer %d", path, code), func(ctx context.Context) error {
		got, body, err := get(ctx, "http://"+r.probes+path+"?verbose")
		if err != nil {
			return err
		}
		for _, text := range says {
			if !strings.Contains(body, text) {
				err = errors.Join(err, fmt.Errorf("it does not say %q", text))
			}
		}
		if got != code || err != nil {
			return fmt.Errorf("it answers %d, %s: %w", got, body, err)
		}
		return nil
	})
}

// roots returns the CAs in the injector's webhook configurations.
func roots(t *testing.T) *x509.CertPool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, bundle := range bundles(t.Context(), t) {
		pool.AppendCertsFromPEM(bundle)
	}
	return pool
}

// caller returns a client that calls as the API server does, over HTTP/2 or HTTP/1.1.
func caller(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots(t)}, Protocols: protocols, ExpectContinueTimeout: patience,
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// review is an AdmissionReview of a pod without annotations.
func review(t *testing.T, uid string) []byte {
	t.Helper()
	return bytes.Replace(creation(t, metav1.NamespaceDefault, bare("app")), []byte(`"uid":"any"`), []byte(`"uid":"`+uid+`"`), 1)
}

// creation is an AdmissionReview of a pod's creation.
func creation(t *testing.T, namespace string, pod *corev1.Pod) []byte {
	t.Helper()
	pod.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}
	body, err := json.Marshal(&admissionv1.AdmissionReview{
		TypeMeta: metav1.TypeMeta{APIVersion: "admission.k8s.io/v1", Kind: "AdmissionReview"},
		Request: &admissionv1.AdmissionRequest{
			UID: "any", Kind: metav1.GroupVersionKind{Version: "v1", Kind: "Pod"}, Namespace: namespace, Operation: admissionv1.Create,
			Object: runtime.RawExtension{Object: pod},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	return body
}

// answered decodes the answer to a review, and checks its uid and that it allows the pod.
func answered(response *http.Response, uid string) error {
	defer response.Body.Close()
	var got admissionv1.AdmissionReview
	if err := json.NewDecoder(response.Body).Decode(&got); err != nil {
		return fmt.Errorf("decode the answer, %s: %w", response.Status, err)
	}
	if got.Response == nil || got.Response.UID != types.UID(uid) || !got.Response.Allowed {
		return fmt.Errorf("the answer is %+v", got.Response)
	}
	return nil
}

// TestProtocols checks the protocols of the webhook server: HTTP/2 and HTTP/1.1, over TLS 1.3, or
// TLS 1.2 if configured.
func TestProtocols(t *testing.T) {
	t.Parallel()
	address := strings.TrimPrefix(server.URL, "https://")
	older := startReplica(t, "--tls-min-version=1.2")
	older.waitReady(t)
	for name, test := range map[string]struct {
		address string
		offer   uint16 // the client's newest TLS version
		want    uint16 // 0: the handshake fails
	}{
		"TLS 1.3 by default":                             {address, tls.VersionTLS13, tls.VersionTLS13},
		"TLS 1.2 is rejected by default":                 {address, tls.VersionTLS12, 0},
		"TLS 1.2 with --tls-min-version=1.2":             {older.address, tls.VersionTLS12, tls.VersionTLS12},
		"TLS 1.3 with --tls-min-version=1.2":             {older.address, tls.VersionTLS13, tls.VersionTLS13},
		"TLS 1.1 is rejected with --tls-min-version=1.2": {older.address, tls.VersionTLS11, 0},
	} {
		t.Run(name, func(t *testing.T) {
			dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS10, MaxVersion: test.offer, RootCAs: roots(t), NextProtos: []string{"h2", "http/1.1"}}}
			conn, err := dialer.DialContext(t.Context(), "tcp", test.address)
			if err != nil {
				if test.want != 0 || !strings.Contains(err.Error(), "protocol version") {
					t.Errorf("got %v, want %s", err, tls.VersionName(test.want))
				}
				return
			}
			defer conn.Close()
			state := conn.(*tls.Conn).ConnectionState() //nolint:forcetypeassert // DialContext returns a *tls.Conn
			if state.Version != test.want || state.NegotiatedProtocol != "h2" {
				t.Errorf("got %s and %s, want %s and h2", tls.VersionName(state.Version), state.NegotiatedProtocol, tls.VersionName(test.want))
			}
		})
	}
	for major, http2 := range map[int]bool{1: false, 2: true} {
		t.Run(fmt.Sprintf("a review over HTTP/%d", major), func(t *testing.T) {
			response, err := caller(t, http2).Post(server.URL+"/mutate/pods?timeout=5s", "application/json", bytes.NewReader(review(t, "uid")))
			if err != nil {
				t.Fatal(err)
			}
			if response.ProtoMajor != major {
				t.Errorf("answered by %s", response.Proto)
			}
			if err := answered(response, "uid"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestReadiness starts a replica that cannot reach the API server, and connects it later. The
// replica must not serve a certificate before that.
func TestReadiness(t *testing.T) {
	t.Parallel()
	gate := newGate(t)
	r := startReplica(t, "--kubeconfig="+gate.kubeconfig(t))
	waitForProbe(t, r, "/healthz", http.StatusOK, "[+]ping ok")
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]certificate failed", "[-]cluster failed")
	if _, err := tls.Dial("tcp", r.address, &tls.Config{RootCAs: roots(t)}); err == nil {
		t.Error("a certificate is served before the Secret was read")
	}
	gate.open()
	waitForProbe(t, r, "/readyz", http.StatusOK, "[+]certificate ok", "[+]cluster ok")
	waitForProbe(t, r, "/healthz", http.StatusOK, "[+]ping ok")
}

// gate is a proxy between an injector and the API server. Connections wait until it is opened.
type gate struct {
	listener net.Listener
	opened   chan struct{}
}

func newGate(t *testing.T) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{listener: listener, opened: make(chan struct{})}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go g.pass(t.Context(), conn)
		}
	}()
	return g
}

func (g *gate) open() { close(g.opened) }

func (g *gate) pass(ctx context.Context, conn net.Conn) {
	defer conn.Close()
	select {
	case <-g.opened:
	case <-ctx.Done():
		return
	}
	behind, err := net.Dial("tcp", strings.TrimPrefix(plane.Config.Host, "https://"))
	if err != nil {
		return
	}
	defer behind.Close()
	go func() {
		_, _ = io.Copy(behind, conn)
		_ = behind.Close()
	}()
	_, _ = io.Copy(conn, behind)
}

// kubeconfig returns the injector's kubeconfig with the gate as server.
func (g *gate) kubeconfig(t *testing.T) string {
	t.Helper()
	config, err := clientcmd.LoadFromFile(filepath.Join(server.Dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	for _, cluster := range config.Clusters {
		cluster.Server = "https://" + g.listener.Addr().String()
	}
	file := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// TestShutdown stops a replica while it has received parts of several reviews. All reviews must get
// answers.
func TestShutdown(t *testing.T) {
	t.Parallel()
	r := startReplica(t)
	r.waitReady(t)
	const reviews = 20
	begun, ended := make(chan struct{}), make(chan error, reviews)
	finish := make(chan struct{})
	for i := range reviews {
		client, uid := caller(t, i%2 == 0), fmt.Sprint("uid-", i)
		request := slowReview(t, "https://"+r.address, uid, begun, finish)
		go func() {
			response, err := client.Do(request)
			if err == nil {
				err = answered(response, uid)
			}
			ended <- err
		}()
	}
	for range reviews {
		select {
		case <-begun:
		case err := <-ended:
			t.Fatalf("a review ended before it was sent: %v", err)
		}
	}
	if err := syscall.Kill(r.PID(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the replica to accept no more connections", func(context.Context) error {
		conn, err := net.Dial("tcp", r.address)
		if err == nil {
			return errors.Join(errors.New("it accepted one"), conn.Close())
		}
		return nil
	})
	close(finish)
	for range reviews {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	select {
	case <-r.Done():
		if err := r.Stop(); err == nil || !strings.Contains(err.Error(), "exit status 0") {
			t.Errorf("the replica did not exit with status 0: %v", err)
		}
	case <-time.After(patience):
		t.Error("the replica does not exit")
	}
}

// slowReview is a request that sends half of a review, and the rest when finish is closed.
func slowReview(t *testing.T, url, uid string, begun chan<- struct{}, finish <-chan struct{}) *http.Request {
	t.Helper()
	body := review(t, uid)
	reader, text := io.Pipe()
	go func() {
		_, _ = text.Write(body[:len(body)/2])
		<-finish
		_, _ = text.Write(body[len(body)/2:])
		_ = text.Close()
	}()
	// The injector sends 100 Continue when it starts to read.
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{Got100Continue: func() { begun <- struct{}{} }})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/mutate/pods", reader)
	if err != nil {
		t.Fatal(err)
	}
	request.ContentLength = int64(len(body))
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Expect", "100-continue")
	return request
}

// TestDryRun checks that the API server calls the injector for dry runs, which needs sideEffects:
// None, and that dry runs store nothing.
func TestDryRun(t *testing.T) {
	t.Parallel()
	newNamespace(t, "dry-run", "enabled", surroundings()...)
	for _, text := range []string{pod, deployment} {
		object := document(text)
		got, err := resource(objects, object, "dry-run").Create(t.Context(), in(object, "dry-run"), metav1.CreateOptions{DryRun: []string{metav1.DryRunAll}})
		if err != nil {
			t.Fatal(err)
		}
		if object.GetKind() == "Deployment" {
			object = podOf(t, got)
			if !strings.Contains(object.GetAnnotations()["keyvault.io/inherited"], `keyvault.io/class="key-vault-secret"`) {
				t.Errorf("the Deployment's annotations are not handed down: %v", got)
			}
		} else if got.GetLabels()["keyvault.io/injected"] != "true" {
			t.Errorf("the pod is not injected: %v", got)
		}
		if _, err := resource(objects, got, "dry-run").Get(t.Context(), got.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("the dry run stored a %s: %v", got.GetKind(), err)
		}
	}
	reviews := logged(t, "dry-run")
	if len(reviews) < 2 {
		t.Errorf("%d reviews are logged, want one of the pod and one of the Deployment", len(reviews))
	}
	for _, review := range reviews {
		if review["dryRun"] != true {
			t.Errorf("a dry run is not logged as dry run: %v", review)
		}
	}
}

// TestLog requires one log line with these fields for each review, and no text of the author's in
// it except names.
func TestLog(t *testing.T) {
	t.Parallel()
	const namespace, canary = "logging", "canary"
	newNamespace(t, namespace, "enabled", surroundings()...)
	right := strings.NewReplacer("KEYVAULT_SECRET", canary, "image: nginx", "image: "+canary).Replace(pod)
	wrong := strings.NewReplacer("name: app, annotations: {", "name: wrong, annotations: {keyvault.io/"+canary+": "+canary+", keyvault.io/mount-path: "+canary+", ").Replace(right)
	if err := apply(t.Context(), namespace, document(right)); err != nil {
		t.Fatal(err)
	}
	if err := apply(t.Context(), namespace, document(wrong)); !apierrors.IsInvalid(err) {
		t.Fatalf("the API server answers %v, want a rejection", err)
	}
	var lines []string
	waitFor(t, "two reviews in the log", func(context.Context) error {
		text, err := os.ReadFile(filepath.Join(server.Dir, "akv-injector.log"))
		if err != nil {
			return err
		}
		lines = nil
		for line := range strings.Lines(string(text)) {
			if strings.Contains(line, `"namespace":"`+namespace+`"`) {
				lines = append(lines, line)
			}
		}
		if len(lines) < 2 {
			return fmt.Errorf("it has %d reviews", len(lines))
		}
		return nil
	})
	changing := regexp.MustCompile(`"(ts|uid|seconds)":("[^"]+"|[0-9.e-]+)`)
	var got []string
	for _, line := range lines {
		got = append(got, changing.ReplaceAllString(line, `"$1":…`))
	}
	want := []string{
		`{"level":"info","ts":…,"logger":"webhook","msg":"Reviewed","path":"/mutate/pods","uid":…,"kind":"Pod","namespace":"logging","name":"app","operation":"CREATE","dryRun":false,"outcome":"injected","reason":"","warnings":1,"seconds":…}` + "\n",
		`{"level":"info","ts":…,"logger":"webhook","msg":"Reviewed","path":"/mutate/pods","uid":…,"kind":"Pod","namespace":"logging","name":"wrong","operation":"CREATE","dryRun":false,"outcome":"invalid","reason":"UnknownKey","warnings":0,"seconds":…}` + "\n",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("log (-want +got):\n%s", diff)
	}
	if text, err := os.ReadFile(filepath.Join(server.Dir, "akv-injector.log")); err != nil || bytes.Contains(text, []byte(canary)) {
		t.Errorf("the log has text of the author's, or can't be read: %v", err)
	}
}

// TestMetrics compares the metrics with the log and with the served certificate.
func TestMetrics(t *testing.T) {
	t.Parallel()
	r := startReplica(t)
	r.waitReady(t)
	caller := caller(t, true)
	for i := range 3 {
		response, err := caller.Post("https://"+r.address+"/mutate/pods", "application/json", bytes.NewReader(review(t, "uid")))
		if err != nil {
			t.Fatal(err)
		}
		if err := answered(response, "uid"); err != nil {
			t.Fatalf("review %d: %v", i, err)
		}
	}
	response, err := caller.Post("https://"+r.address+"/mutate/workloads", "application/json", strings.NewReader("{"))
	if err != nil {
		t.Fatal(err)
	}
	_ = response.Body.Close()
	code, body, err := get(t.Context(), "http://"+r.metrics+"/metrics")
	if err != nil || code != http.StatusOK {
		t.Fatalf("metrics: %d, %v", code, err)
	}
	samples := map[string]float64{}
	for scanner := bufio.NewScanner(strings.NewReader(body)); scanner.Scan(); {
		name, value, _ := strings.Cut(scanner.Text(), " ")
		if number, err := strconv.ParseFloat(value, 64); err == nil && name != "#" {
			samples[name] = number
		}
	}
	for name, want := range map[string]float64{
		`akv_injector_reviews_total{outcome="not-requested",path="/mutate/pods",reason=""}`:  3,
		`akv_injector_reviews_total{outcome="injected",path="/mutate/pods",reason=""}`:       0,
		`akv_injector_reviews_total{outcome="malformed",path="/mutate/workloads",reason=""}`: 1,
		`akv_injector_review_duration_seconds_count{path="/mutate/pods"}`:                    3,
		`akv_injector_ca_bundle_mismatch`:                                                    0,
		`controller_runtime_webhook_requests_total{code="200",webhook="/mutate/pods"}`:       3,
		`controller_runtime_webhook_requests_total{code="400",webhook="/mutate/workloads"}`:  1,
	} {
		if got, ok := samples[name]; !ok || got != want {
			t.Errorf("%s is %v (found: %t), want %v", name, got, ok, want)
		}
	}
	expiry := time.Unix(int64(samples["akv_injector_serving_certificate_expiry_seconds"]), 0)
	if served := servedBy(t, r.address).NotAfter; !expiry.Equal(served) {
		t.Errorf("the metrics say that the certificate expires on %s, it says %s", expiry, served)
	}
}

// TestOutage stops the injector and starts another. In between, only requests that need injection
// may fail.
func TestOutage(t *testing.T) {
	const namespace = "outage"
	newNamespace(t, namespace, "enabled", surroundings()...)
	if err := apply(t.Context(), namespace, document(deployment)); err != nil {
		t.Fatal(err)
	}
	waitForPods(t, namespace, 1, anyPod)
	if err := server.Stop(); err != nil {
		t.Fatal(err)
	}
	t.Run("an annotated pod is rejected", func(t *testing.T) {
		err := apply(t.Context(), namespace, document(strings.Replace(pod, "name: app", "name: asks", 1)))
		if want := "failed calling webhook"; !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("the API server answers %v, want %q", err, want)
		}
	})
	t.Run("an annotated workload is rejected", func(t *testing.T) {
		err := apply(t.Context(), namespace, document(strings.Replace(deployment, "name: app", "name: asks", 1)))
		if !apierrors.IsInternalError(err) {
			t.Errorf("the API server answers %v, want a failure", err)
		}
	})
	t.Run("any pod is rejected with injection: always", func(t *testing.T) {
		newNamespace(t, "outage-always", "always")
		if err := apply(t.Context(), "outage-always", document(strings.Replace(pod, "annotations: "+annotations, "annotations: {}", 1))); !apierrors.IsInternalError(err) {
			t.Errorf("the API server answers %v, want a failure", err)
		}
	})
	t.Run("a pod without annotations is created", func(t *testing.T) {
		if err := apply(t.Context(), namespace, document(strings.Replace(pod, "annotations: "+annotations, "labels: {app: other}", 1))); err != nil {
			t.Error(err)
		}
	})
	t.Run("a workload without annotations is created", func(t *testing.T) {
		other := strings.NewReplacer("annotations: "+annotations, "labels: {app: other}", "name: app", "name: other").Replace(deployment)
		if err := apply(t.Context(), namespace, document(other)); err != nil {
			t.Error(err)
		}
	})
	t.Run("an annotated pod in a namespace that has not opted in is created", func(t *testing.T) {
		newNamespace(t, "outage-elsewhere", "")
		if err := apply(t.Context(), "outage-elsewhere", document(pod)); err != nil {
			t.Error(err)
		}
	})
	t.Run("a mirror pod is created", func(t *testing.T) {
		mirror := `{apiVersion: v1, kind: Pod, metadata: {name: mirror, annotations: {kubernetes.io/config.mirror: hash, keyvault.io/class: none}}, spec: {nodeName: node, automountServiceAccountToken: false, containers: [{name: app, image: nginx}]}}`
		if err := apply(t.Context(), namespace, document(mirror)); err == nil {
			t.Error("a user who is not a node created a mirror pod")
		}
		node := rest.CopyConfig(plane.Config)
		node.Impersonate = rest.ImpersonationConfig{UserName: "system:node:node", Groups: []string{"system:nodes", "system:masters"}}
		byNode, err := dynamic.NewForConfig(node)
		if err != nil {
			t.Fatal(err)
		}
		object := in(document(mirror), namespace)
		if _, err := resource(byNode, object, namespace).Create(t.Context(), object, metav1.CreateOptions{}); err != nil {
			t.Error(err)
		}
	})
	// The Deployment's next pods can be created only after the outage.
	scale := []byte(`{"spec":{"replicas":3}}`)
	if _, err := client.AppsV1().Deployments(namespace).Patch(t.Context(), "app", types.MergePatchType, scale, metav1.PatchOptions{}, "scale"); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the ReplicaSet to fail", func(ctx context.Context) error {
		events, err := client.CoreV1().Events(namespace).List(ctx, metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
		if err == nil && len(events.Items) == 0 {
			err = errors.New("no such event")
		}
		return err
	})
	if err := startServer(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := apply(t.Context(), namespace, document(strings.Replace(pod, "name: app", "name: asks", 1))); err != nil {
		t.Errorf("after the outage: %v", err)
	}
	for _, pod := range waitForPods(t, namespace, 4, labelled) {
		if err := injected(&pod); err != nil {
			t.Error(err)
		}
	}
}
