package serving_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/akv-injector/akv-injector/webhook/serving"
)

// TestWaiting counts how many requests of one peer wait when its bytes are in use.
func TestWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		done := make(chan struct{})
		handler := serving.NewCallers(false, prometheus.NewRegistry()).Handler(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { <-done }))
		var answered atomic.Int32
		for range 2000 {
			go func() {
				r := httptest.NewRequest(http.MethodPost, "/", http.NoBody)
				r.ContentLength, r.RemoteAddr = -1, "10.0.0.1:1"
				handler.ServeHTTP(httptest.NewRecorder(), r)
				answered.Add(1)
			}()
		}
		synctest.Wait()
		if got, want := answered.Load(), int32(2000-2-512); got != want {
			t.Errorf("%d requests are rejected at once, want %d", got, want)
		}
		close(done)
		time.Sleep(time.Minute)
	})
}

func TestPeers(t *testing.T) {
	for remote, want := range map[string]string{
		"10.1.2.3:4":            "10.1.2.3",
		"[::ffff:10.1.2.3]:4":   "10.1.2.3",
		"[2001:db8:1:2:3::4]:5": "2001:db8:1:2::",
		"[fe80::1%eth0]:5":      "fe80::",
		"@":                     "invalid IP",
	} {
		if got := serving.PeerOf(remote).String(); got != want {
			t.Errorf("%s counts as %s, want %s", remote, got, want)
		}
	}
}

// TestCallers shows how requests are handled by their size and by their client certificate.
func TestCallers(t *testing.T) {
	for behaviour, test := range map[string]struct {
		required, presented bool
		codes               []int // of concurrent requests of the largest size
	}{
		"without a certificate":                  {codes: []int{200, 503}},
		"with a certificate":                     {presented: true, codes: []int{200, 503}},
		"with a certificate that is required":    {required: true, presented: true, codes: []int{200, 503}},
		"without a certificate that is required": {required: true, codes: []int{403, 403}},
	} {
		t.Run(behaviour, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				registry := prometheus.NewRegistry()
				callers := serving.NewCallers(test.required, registry)
				done := make(chan struct{})
				var underWay atomic.Int32
				handler := callers.Handler(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
					underWay.Add(1)
					if _, err := io.Copy(io.Discard, r.Body); err != nil {
						t.Error(err)
					}
					<-done
				}))
				call := func(remote string, size int64) *httptest.ResponseRecorder {
					r := httptest.NewRequest(http.MethodPost, "/", unread{t, test.codes[0]})
					r.ContentLength, r.RemoteAddr, r.TLS = size, remote, &tls.ConnectionState{}
					if test.presented {
						r.TLS.VerifiedChains = [][]*x509.Certificate{{{}}}
					}
					w := httptest.NewRecorder()
					handler.ServeHTTP(w, r)
					return w
				}
				answers := make(chan int, 4)
				for range 2 { // the first peer sends two requests of 2 MiB at once
					go func() { answers <- call("10.0.0.1:1", -1).Code }()
				}
				synctest.Wait()
				if third := call("10.0.0.1:2", -1).Code; third != test.codes[1] {
					t.Errorf("a third request has status %d, want %d", third, test.codes[1])
				}
				go func() { answers <- call("10.0.0.1:3", 100).Code }()
				synctest.Wait()
				if test.codes[0] == http.StatusOK && underWay.Load() != 3 {
					t.Error("a small request waits for large ones")
				}
				close(done)
				for range 3 {
					if code := <-answers; code != test.codes[0] {
						t.Errorf("a request has status %d, want %d", code, test.codes[0])
					}
				}
				want := map[string]float64{"": 0, "busy": 1, "unauthenticated": 0, "connections": 0}
				if test.codes[1] == http.StatusForbidden {
					want["busy"], want["unauthenticated"] = 0, 4
				}
				if diff := cmp.Diff(want, gathered(t, registry)); diff != "" {
					t.Errorf("bytes in flight and rejected requests (-want +got):\n%s", diff)
				}
			})
		})
	}
}

// gathered returns the values of a registry's metrics by their label.
func gathered(t *testing.T, registry *prometheus.Registry) map[string]float64 {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]float64{}
	for _, family := range families {
		for _, m := range family.GetMetric() {
			label := ""
			for _, pair := range m.GetLabel() {
				label = pair.GetValue()
			}
			values[label] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return values
}

// unread is a body that must not be read before the caller is checked.
type unread struct {
	t    *testing.T
	code int
}

func (u unread) Read([]byte) (int, error) {
	if u.code == http.StatusForbidden {
		u.t.Error("the body is read")
	}
	return 0, io.EOF
}

// TestConnections shows that connections beyond a peer's share are closed, and that a closed
// connection frees its share.
func TestConnections(t *testing.T) {
	registry := prometheus.NewRegistry()
	callers := serving.NewCallers(false, registry)
	s := start(t, func(configure ...func(*tls.Config)) (*manager.Server, error) {
		return serving.NewSmallServer("127.0.0.1:0", echo, callers, 6, configure...)
	})
	dial := func(from string) net.Conn {
		dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}, Timeout: patience}
		conn, err := dialer.DialContext(t.Context(), "tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		return tls.Client(conn, &tls.Config{RootCAs: s.trusted, ServerName: "127.0.0.1", MinVersion: tls.VersionTLS13})
	}
	works := func(conn net.Conn) bool {
		_ = conn.SetDeadline(time.Now().Add(patience))
		_, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
		if err == nil {
			_, err = conn.Read(make([]byte, 1))
		}
		return err == nil
	}
	first, second, third := dial("127.0.0.1"), dial("127.0.0.1"), dial("127.0.0.1")
	defer second.Close()
	defer third.Close()
	if !works(first) || !works(second) || !works(third) || works(dial("127.0.0.1")) {
		t.Error("a peer must have exactly three of six connections")
	}
	other := dial("127.0.0.2")
	defer other.Close()
	if !works(other) || works(dial("127.0.0.2")) {
		t.Error("another peer must have exactly one connection")
	}
	_ = first.Close()
	waitFor(t, func() error {
		conn := dial("127.0.0.2")
		defer conn.Close()
		if !works(conn) {
			return errors.New("a closed connection does not free its share")
		}
		return nil
	})
	if got := gathered(t, registry)["connections"]; got < 2 {
		t.Errorf("%v connections are counted as rejected", got)
	}
}
