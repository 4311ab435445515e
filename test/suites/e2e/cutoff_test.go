package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	"k8s.io/client-go/tools/clientcmd"
)

// TestCutOff disconnects an injector from the API server, and lowers a ceiling meanwhile. The
// injector may admit what the ceiling now excludes for at most 30 seconds. After that it answers
// with an error, so that the failurePolicy applies, and is not ready.
func TestCutOff(t *testing.T) {
	t.Parallel()
	const namespace = "cut-off"
	newGoverned(t, namespace, `{identity.io/enforce: bound}`, `{identity.io/allowed-names: "access-*"}`, document(binding))
	line := newLine(t, strings.TrimPrefix(plane.Config.Host, "https://"))
	config, err := clientcmd.LoadFromFile(filepath.Join(server.Dir, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	for cluster := range maps.Values(config.Clusters) {
		cluster.Server = "https://" + line.Addr().String()
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	if err := clientcmd.WriteToFile(*config, kubeconfig); err != nil {
		t.Fatal(err)
	}
	r := startReplica(t, "--kubeconfig="+kubeconfig)
	r.waitReady(t)
	client, body := caller(t, false), creation(t, namespace, bound("uses", "access-blob"))
	judge := func(ctx context.Context) (code int, allowed bool, err error) {
		return judged(ctx, client, "https://"+r.address+"/validate/pods", body)
	}
	if code, allowed, err := judge(t.Context()); err != nil || code != http.StatusOK || !allowed {
		t.Fatalf("the pod is not admitted before the cut: %d, %t, %v", code, allowed, err)
	}

	line.cut(true)
	cut := time.Now()
	newGoverned(t, namespace, `{identity.io/enforce: bound}`, `{identity.io/allowed-names: "team-*"}`)
	for time.Since(cut) < 33*time.Second {
		if code, allowed, err := judge(t.Context()); err == nil && code == http.StatusOK && allowed && time.Since(cut) > 30*time.Second {
			t.Fatalf("after %s the pod is still admitted", time.Since(cut))
		}
		time.Sleep(time.Second / 4) // limits the rate of reviews; the loop ends by the clock
	}
	if code, _, err := judge(t.Context()); err != nil || code != http.StatusInternalServerError {
		t.Errorf("a review gets status %d, %v, want 500", code, err)
	}
	waitForProbe(t, r, "/readyz", http.StatusInternalServerError, "[-]cluster failed")
	_, metrics, err := get(t.Context(), "http://"+r.metrics+"/metrics")
	if err != nil {
		t.Fatal(err)
	}
	if age := regexp.MustCompile(`(?m)^akv_injector_facts_age_seconds (.+)$`).FindStringSubmatch(metrics); age == nil {
		t.Error("the metric of the age is missing")
	} else if seconds, err := strconv.ParseFloat(age[1], 64); err != nil || seconds < 25 {
		t.Errorf("the metric gives an age of %s seconds: %v", age[1], err)
	}

	line.cut(false)
	waitForProbe(t, r, "/readyz", http.StatusOK)
	if code, allowed, err := judge(t.Context()); err != nil || code != http.StatusOK || allowed {
		t.Errorf("after the connection is restored, the pod is admitted: %d, %t, %v", code, allowed, err)
	}
}

// judged sends a review of a pod's creation, and returns the HTTP status and whether the pod is
// allowed.
func judged(ctx context.Context, client *http.Client, url string, body []byte) (code int, allowed bool, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, url, bytes.NewReader(body))
	if err != nil {
		return 0, false, err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := client.Do(request)
	if err != nil {
		return 0, false, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil || response.StatusCode != http.StatusOK {
		return response.StatusCode, false, err
	}
	var answer admissionv1.AdmissionReview
	if err := json.Unmarshal(text, &answer); err != nil {
		return response.StatusCode, false, fmt.Errorf("decode %s: %w", text, err)
	}
	return response.StatusCode, answer.Response != nil && answer.Response.Allowed, nil
}

// line forwards connections to an address. While it is cut it forwards no bytes and keeps
// connections open.
type line struct {
	net.Listener

	mu    sync.Mutex
	whole sync.Cond
	isCut bool
}

func newLine(t *testing.T, address string) *line {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := &line{Listener: listener}
	l.whole.L = &l.mu
	var running sync.WaitGroup
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(func() {
		cancel()
		_ = listener.Close()
		l.cut(false)
		running.Wait()
	})
	running.Go(func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", address)
			if err != nil {
				_ = near.Close()
				continue
			}
			for _, ends := range [][2]net.Conn{{near, far}, {far, near}} {
				running.Go(func() {
					defer context.AfterFunc(ctx, func() { _ = ends[0].Close() })()
					l.pass(ends[0], ends[1])
				})
			}
		}
	})
	return l
}

// pass copies bytes from one connection to the other until either is closed.
func (l *line) pass(from, to net.Conn) {
	defer to.Close()
	defer from.Close()
	buffer := make([]byte, 64<<10)
	for {
		n, err := from.Read(buffer)
		l.mu.Lock()
		for l.isCut {
			l.whole.Wait()
		}
		l.mu.Unlock()
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (l *line) cut(is bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.isCut = is
	l.whole.Broadcast()
}
