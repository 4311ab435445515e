package e2e_test

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/retry"

	"github.com/akv-injector/akv-injector/test/harness/certmanager"
	"github.com/akv-injector/akv-injector/test/harness/chart"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// serviceHost is the DNS name that the API server verifies in the serving certificate.
const serviceHost = configuration + "." + injectorNamespace + ".svc"

// guarded is an injected namespace of a secured cluster.
const guarded = "guarded"

var (
	certificates        = schema.GroupVersionResource{Group: "cert-manager.io", Version: "v1", Resource: "certificates"}
	certificateRequests = certificates.GroupVersion().WithResource("certificaterequests")
	issuers             = certificates.GroupVersion().WithResource("issuers")
)

// securedCluster is a cluster for a test of certificates. Its API server calls the injector by the
// Service's name, and so verifies that name in the certificate.
type securedCluster struct {
	*ownCluster
	balancer   *balancer
	kubeconfig string                       // the injector's
	chain      []*unstructured.Unstructured // cert-manager objects of the chart
}

// startSecuredCluster starts a cluster with the objects that the chart renders for values. It
// leaves out the Deployment, which processes replace, and cert-manager's objects, whose CRDs do not
// exist yet.
func startSecuredCluster(t *testing.T, values map[string]any, options controlplane.Options) *securedCluster {
	t.Helper()
	options.Binaries, options.TempDir, options.BeforeControllers = plane.Binaries, t.TempDir(), controlplane.InstallCRDs
	started, err := controlplane.Start(t.Context(), options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
	})
	c := &securedCluster{ownCluster: &ownCluster{ControlPlane: started}, balancer: startBalancer(t)}
	quiet := rest.CopyConfig(c.Config)
	quiet.WarningHandlerWithContext = rest.NoWarnings{}
	if c.client, err = kubernetes.NewForConfig(quiet); err != nil {
		t.Fatal(err)
	}
	if c.objects, err = dynamic.NewForConfig(quiet); err != nil {
		t.Fatal(err)
	}
	// On a busy machine a late answer must not count as a failure.
	if err := errors.Join(
		unstructured.SetNestedField(values, int64(30), "webhook", "timeoutSeconds"),
		unstructured.SetNestedField(values, c.balancer.port(), "service", "port"),
	); err != nil {
		t.Fatal(err)
	}
	rendered, err := chart.Render(t.Context(), chart.Options{Values: values})
	if err != nil {
		t.Fatal(err)
	}
	c.install(t, document(`{apiVersion: v1, kind: Namespace, metadata: {name: akv-injector-system}}`))
	for _, object := range rendered {
		switch {
		case object.GroupVersionKind().Group == certificates.Group:
			c.chain = append(c.chain, object)
		case object.GetKind() == "Service":
			c.install(t, in(document(`{apiVersion: v1, kind: Service, metadata: {name: akv-injector}, spec: {type: ExternalName, externalName: localhost}}`), injectorNamespace))
		case object.GetKind() != "Deployment":
			c.install(t, object)
		}
	}
	c.install(t,
		document(`{apiVersion: v1, kind: Namespace, metadata: {name: guarded, labels: {keyvault.io/injection: enabled}}}`),
		in(document(`{apiVersion: v1, kind: ServiceAccount, metadata: {name: default}}`), guarded),
	)
	c.install(t, in(document(class), guarded), in(document(binding), guarded))
	c.kubeconfig = c.writeKubeconfig(t)
	return c
}

// install applies objects.
func (c *securedCluster) install(t *testing.T, list ...*unstructured.Unstructured) {
	t.Helper()
	if _, err := chart.Apply(t.Context(), c.Config, list, metav1.PatchOptions{Force: new(true)}); err != nil {
		t.Fatal(err)
	}
}

// writeKubeconfig writes a kubeconfig with the rights of the injector's ServiceAccount, and returns
// its path.
func (c *securedCluster) writeKubeconfig(t *testing.T) string {
	t.Helper()
	token, err := c.Kubectl(t.Context(), "create", "token", configuration, "--namespace", injectorNamespace, "--duration=24h").Output()
	if err != nil {
		t.Fatal(err)
	}
	config, err := clientcmd.LoadFromFile(c.Kubeconfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, user := range config.AuthInfos {
		user.Token = strings.TrimSpace(string(token))
	}
	file := filepath.Join(c.Dir, "injector.kubeconfig")
	if err := clientcmd.WriteToFile(*config, file); err != nil {
		t.Fatal(err)
	}
	return file
}

// serving is an injector that the balancer sends connections to.
type serving struct {
	*replica
	log string
}

// startReplica starts an injector that the balancer sends connections to, and stops it when the
// test ends. It does not wait until the injector is ready.
func (c *securedCluster) startReplica(t *testing.T, args ...string) *serving {
	t.Helper()
	addresses, err := process.FreeAddresses(3)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	r := &serving{
		replica: &replica{address: addresses[0], metrics: addresses[1], probes: addresses[2]},
		log:     filepath.Join(dir, "akv-injector.log"),
	}
	r.Process, err = process.Start(dir, binary, append([]string{
		"serve", "--kubeconfig=" + c.kubeconfig, "--namespace=" + injectorNamespace,
		"--webhook-bind-address=" + r.address, "--metrics-bind-address=" + r.metrics, "--health-probe-bind-address=" + r.probes,
	}, args...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		c.balancer.remove(r.address)
		if err := r.Stop(); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(r.log)
		if err != nil || bytes.Contains(text, []byte("is forbidden: User ")) {
			t.Errorf("the injector lacks a right, or its log can't be read: %v", err)
		}
	})
	c.balancer.add(r.address)
	return r
}

// serial returns the serial number of the certificate that is served at an address.
func serial(t *testing.T, address string) string {
	t.Helper()
	number, err := servedSerial(address)
	if err != nil {
		t.Fatal(err)
	}
	return number
}

func servedSerial(address string) (string, error) {
	// Reads the certificate only, does not verify it.
	conn, err := tls.Dial("tcp", address, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return conn.ConnectionState().PeerCertificates[0].SerialNumber.Text(16), nil
}

// waitForStanding waits until the last line of the log about the state of the certificate has the
// message and the reasons.
func (r *serving) waitForStanding(t *testing.T, message string, reasons ...string) {
	t.Helper()
	waitFor(t, "the log to say "+message, func(context.Context) error {
		text, err := os.ReadFile(r.log)
		if err != nil {
			return err
		}
		var last struct{ Msg, Reason string }
		for line := range strings.Lines(string(text)) {
			var entry struct{ Msg, Reason string }
			if json.Unmarshal([]byte(line), &entry) == nil && slices.Contains([]string{standsReady, standsWaiting, standsUnready}, entry.Msg) {
				last = entry
			}
		}
		missing := func(reason string) bool { return !strings.Contains(last.Reason, reason) }
		if last.Msg != message || slices.ContainsFunc(reasons, missing) {
			return fmt.Errorf("the last line is %s: %s", last.Msg, last.Reason)
		}
		return nil
	})
}

// creates returns an error unless the API server creates a pod and the injector injects it.
func (c *securedCluster) creates(ctx context.Context) error {
	asked := in(document(pod), guarded)
	asked.SetName("")
	asked.SetGenerateName("app-")
	got, err := resource(c.objects, asked, guarded).Create(ctx, asked, metav1.CreateOptions{})
	if err == nil && got.GetLabels()["keyvault.io/injected"] != "true" {
		err = errors.New("the pod is not injected")
	}
	return err
}

// certManager builds cert-manager's controller program. The first build takes minutes.
var certManager = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Minute)
	defer cancel()
	return certmanager.Build(ctx)
})

// startCertManager starts cert-manager without some of its controllers. It stops when stop is
// called or the test ends.
func (c *securedCluster) startCertManager(t *testing.T, without ...string) (stop func()) {
	t.Helper()
	program, err := certManager()
	if err != nil {
		t.Fatal(err)
	}
	started, err := certmanager.Start(c.ControlPlane, program, without...)
	if err != nil {
		t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		if err := started.Stop(); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// setCondition sets a condition in the status of one of cert-manager's objects.
func (c *securedCluster) setCondition(t *testing.T, resource schema.GroupVersionResource, name, kind, reason, message string) {
	t.Helper()
	in := c.objects.Resource(resource).Namespace(injectorNamespace)
	if err := retry.RetryOnConflict(retry.DefaultBackoff, func() error {
		object, err := in.Get(t.Context(), name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		conditions, _, err := unstructured.NestedSlice(object.Object, "status", "conditions")
		if err != nil {
			return err
		}
		conditions = slices.DeleteFunc(conditions, func(c any) bool { return c.(map[string]any)["type"] == kind }) //nolint:forcetypeassert // the CRD defines it so
		conditions = append(conditions, map[string]any{
			"type": kind, "status": "True", "reason": reason, "message": message, "lastTransitionTime": time.Now().UTC().Format(time.RFC3339),
		})
		if err := unstructured.SetNestedSlice(object.Object, conditions, "status", "conditions"); err != nil {
			return err
		}
		_, err = in.UpdateStatus(t.Context(), object, metav1.UpdateOptions{})
		return err
	}); err != nil {
		t.Fatalf("set condition %s of %s: %v", kind, name, err)
	}
}

// renew requests a new certificate as `cmctl renew` does.
func (c *securedCluster) renew(t *testing.T, certificate string) {
	t.Helper()
	c.setCondition(t, certificates, certificate, "Issuing", "ManuallyTriggered", "Certificate re-issuance manually triggered")
}

// renewed requests a new certificate, and returns when the Secret has it.
func (c *securedCluster) renewed(t *testing.T, certificate, secret string) {
	t.Helper()
	before, err := c.issued(t.Context(), secret)
	if err != nil {
		t.Fatal(err)
	}
	c.renew(t, certificate)
	waitFor(t, "the renewed certificate", func(ctx context.Context) error {
		after, err := c.issued(ctx, secret)
		if err == nil && bytes.Equal(before, after) {
			err = errors.New("the Secret still has the previous certificate")
		}
		return err
	})
}

// issued returns the certificate in a Secret.
func (c *securedCluster) issued(ctx context.Context, secret string) ([]byte, error) {
	got, err := c.client.CoreV1().Secrets(injectorNamespace).Get(ctx, secret, metav1.GetOptions{})
	if err != nil {
		return nil, err
	}
	return got.Data[corev1.TLSCertKey], nil
}

// balancer replaces the Service and kube-proxy: each connection goes to the next replica.
type balancer struct {
	listener net.Listener

	mu          sync.Mutex
	replicas    []string
	connections int
	open        map[*net.TCPConn]struct{}
}

func startBalancer(t *testing.T) *balancer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	b := &balancer{listener: listener, open: map[*net.TCPConn]struct{}{}}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go b.pass(conn.(*net.TCPConn)) //nolint:forcetypeassert // the listener is TCP
		}
	}()
	return b
}

func (b *balancer) port() int64 { return int64(b.listener.Addr().(*net.TCPAddr).Port) } //nolint:forcetypeassert // the listener is TCP

func (b *balancer) add(replica string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas = append(b.replicas, replica)
}

func (b *balancer) remove(replica string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.replicas = slices.DeleteFunc(b.replicas, func(r string) bool { return r == replica })
}

func (b *balancer) all() []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.replicas)
}

func (b *balancer) pass(front *net.TCPConn) {
	b.mu.Lock()
	if len(b.replicas) == 0 {
		b.mu.Unlock()
		_ = front.Close()
		return
	}
	to := b.replicas[b.connections%len(b.replicas)]
	b.connections++
	b.open[front] = struct{}{}
	b.mu.Unlock()
	defer func() {
		_ = front.Close()
		b.mu.Lock()
		delete(b.open, front)
		b.mu.Unlock()
	}()
	back, err := net.Dial("tcp", to)
	if err != nil {
		return
	}
	defer back.Close()
	go func() {
		_, _ = io.Copy(front, back)
		_ = front.CloseWrite()
	}()
	_, _ = io.Copy(back, front)
}

// renew closes all connections gracefully, so that the next requests start with handshakes, and
// returns when the API server has closed its ends. No request may be in flight.
func (b *balancer) renew(ctx context.Context) error {
	return process.Until(ctx, func(context.Context) error {
		b.mu.Lock()
		defer b.mu.Unlock()
		// Some appear later: a request may finish before the connection that was opened for it.
		for conn := range b.open {
			_ = conn.CloseWrite()
		}
		if n := len(b.open); n > 0 {
			return fmt.Errorf("%d connections are open", n)
		}
		return nil
	})
}

func (b *balancer) opened() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.connections
}

// load creates pods in waves. Each wave reaches the injector over new connections, since open
// connections keep the certificate that they started with.
type load struct {
	cluster *securedCluster
	before  int // connections
	stop    func()

	bundles []bundle // seen in the webhook configurations, by time

	mu                     sync.Mutex
	waves, created, failed int
	handshakes, late       int
	errors                 map[string]int
}

// bundle is the CA bundle that API servers use from a time on.
type bundle struct {
	since time.Time
	pem   []byte
}

// lag is how much later another API server of the cluster may read a new CA bundle. The one under
// test needs milliseconds.
const lag = time.Second

// wave is how many pods are created at the same time.
const wave = 8

// startLoad creates pods until the load is stopped or the test ends.
func (c *securedCluster) startLoad(t *testing.T) *load {
	t.Helper()
	ctx, stopping, ended := t.Context(), make(chan struct{}), make(chan struct{})
	l := &load{cluster: c, before: c.balancer.opened(), errors: map[string]int{}}
	l.stop = sync.OnceFunc(func() {
		close(stopping)
		<-ended
	})
	t.Cleanup(l.stop)
	go func() {
		defer close(ended)
		steady := time.NewTicker(20 * time.Millisecond)
		defer steady.Stop()
		for {
			select {
			case <-stopping:
				return
			case <-steady.C:
			}
			l.wave(ctx)
			if err := errors.Join(c.balancer.renew(ctx), l.handshake(ctx)); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
		}
	}()
	return l
}

func (l *load) wave(ctx context.Context) {
	var creations sync.WaitGroup
	for range wave {
		creations.Go(func() {
			err := l.cluster.creates(ctx)
			l.mu.Lock()
			defer l.mu.Unlock()
			l.created++
			if err != nil {
				l.failed++
				_, why, _ := strings.Cut(err.Error(), "failed calling webhook ")
				l.errors[cmp.Or(why, err.Error())]++
			}
		})
	}
	creations.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waves++
}

// handshake connects to each replica and counts the certificates that an API server would reject
// that reads the CA bundle late.
func (l *load) handshake(ctx context.Context) error {
	now := time.Now()
	pem, err := l.cluster.bundles(ctx)
	if err != nil {
		return err
	}
	if n := len(l.bundles); n == 0 || !bytes.Equal(l.bundles[n-1].pem, pem) {
		l.bundles = append(l.bundles, bundle{now, pem})
	}
	known := l.bundles[0]
	for _, b := range l.bundles {
		if b.since.Before(now.Add(-lag)) {
			known = b
		}
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(known.pem)
	for _, address := range l.cluster.balancer.all() {
		conn, err := tls.Dial("tcp", address, &tls.Config{RootCAs: roots, ServerName: serviceHost})
		l.mu.Lock()
		l.handshakes++
		if err != nil {
			l.late++
		}
		l.mu.Unlock()
		if err == nil {
			_ = conn.Close()
		}
	}
	return nil
}

// meet waits until a complete wave has finished.
func (l *load) meet(t *testing.T) {
	t.Helper()
	l.mu.Lock()
	begun := l.waves
	l.mu.Unlock()
	waitFor(t, "a wave of pods", func(context.Context) error {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.waves < begun+2 { // the first may have started earlier
			return fmt.Errorf("%d waves", l.waves)
		}
		return nil
	})
}

// failures returns how many creations have failed so far.
func (l *load) failures() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// String returns the figures of a load that was stopped.
func (l *load) String() string {
	return fmt.Sprintf("%d pods created in %d waves by %d connections, %d failed; %d handshakes with a CA bundle that is %s old, %d failed",
		l.created, l.waves, l.cluster.balancer.opened()-l.before, l.failed, l.handshakes, lag, l.late)
}
