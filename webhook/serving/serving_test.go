package serving_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/go-logr/logr"
	"github.com/go-logr/logr/funcr"
	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/util/cert"
	"sigs.k8s.io/controller-runtime/pkg/manager"

	"github.com/akv-injector/akv-injector/webhook/serving"
)

// patience is how long a test waits for a condition.
const patience = time.Minute

// never is a limit that no test reaches.
const never = time.Hour

// server is a server that runs until its test ends.
type server struct {
	address string
	trusted *x509.CertPool
}

// start runs the server that build returns, with a new certificate.
func start(t *testing.T, build func(...func(*tls.Config)) (*manager.Server, error)) *server {
	t.Helper()
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.X509KeyPair(certificate, key)
	if err != nil {
		t.Fatal(err)
	}
	s := &server{trusted: x509.NewCertPool()}
	s.trusted.AppendCertsFromPEM(certificate)
	built, err := build(func(c *tls.Config) { c.Certificates = []tls.Certificate{pair} })
	if err != nil {
		t.Fatal(err)
	}
	s.address = built.Listener.Addr().String()
	ctx, stop := context.WithCancel(logr.NewContext(context.Background(), logr.Discard()))
	ended := make(chan error, 1)
	go func() { ended <- built.Start(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("the server ended: %v", err)
		}
	})
	return s
}

// anyone returns limits that require no client certificate.
func anyone() *serving.Callers {
	return serving.NewCallers(false, prometheus.NewRegistry())
}

// impatient starts a server with short limits.
func impatient(t *testing.T, idle, body, answer time.Duration) *server {
	t.Helper()
	return start(t, func(configure ...func(*tls.Config)) (*manager.Server, error) {
		return serving.NewImpatientServer("127.0.0.1:0", echo, idle, body, answer, configure...)
	})
}

// client returns a client for one version of HTTP that reuses its connections.
func (s *server) client(t *testing.T, http2 bool) *http.Client {
	t.Helper()
	protocols := &http.Protocols{}
	protocols.SetHTTP1(!http2)
	protocols.SetHTTP2(http2)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.trusted, MinVersion: tls.VersionTLS13}, Protocols: protocols}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// dial opens a connection and sends no request.
func (s *server) dial(t *testing.T) *tls.Conn {
	t.Helper()
	conn, err := tls.Dial("tcp", s.address, &tls.Config{RootCAs: s.trusted, MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return conn
}

// ask sends a request, and reports whether it reused a connection.
func (s *server) ask(t *testing.T, client *http.Client, body string) (response *http.Response, reused bool) {
	t.Helper()
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) { reused = info.Reused }})
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+s.address+"/mutate/pods", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	response, err = client.Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		t.Fatal(err)
	}
	return response, reused
}

// echo responds with the body of the request.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusRequestTimeout)
		return
	}
	_, _ = w.Write(body)
})

func TestDrain(t *testing.T) {
	for name, http2 := range map[string]bool{"HTTP/1.1": false, "HTTP/2": true} {
		t.Run(name, func(t *testing.T) {
			drain := &serving.Drain{Period: never}
			s := start(t, func(configure ...func(*tls.Config)) (*manager.Server, error) {
				return serving.NewServer("127.0.0.1:0", drain.Handler(echo), anyone(), configure...)
			})
			client := s.client(t, http2)
			s.ask(t, client, "before")
			if response, reused := s.ask(t, client, "before"); !reused || response.Close {
				t.Errorf("the second request reuses the connection: %t, and closes it: %t; want true, false", reused, response.Close)
			}
			if err := drain.Ready(nil); err != nil {
				t.Errorf("not ready before the drain: %v", err)
			}

			ctx, stop := context.WithCancel(t.Context())
			_, end := drain.Outlast(ctx)
			defer end()
			stop()
			waitFor(t, func() error {
				if drain.Ready(nil) == nil {
					return errors.New("still ready")
				}
				return nil
			})
			// The old connection gets one more response, then each request opens a new
			// connection.
			for i, want := range []bool{true, false, false} {
				response, reused := s.ask(t, client, "meanwhile")
				if response.StatusCode != http.StatusOK || reused != want {
					t.Errorf("request %d of the drain: %s, connection reused: %t, want %t", i, response.Status, reused, want)
				}
				if !http2 && !response.Close {
					t.Errorf("request %d of the drain: the response has no Connection: close", i)
				}
			}
		})
	}
}

func TestDrainLasts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log []string
		drain := &serving.Drain{Period: 15 * time.Second, Log: funcr.New(func(_, args string) { log = append(log, args) }, funcr.Options{})}
		ctx, stop := context.WithCancel(t.Context())
		longer, end := drain.Outlast(ctx)
		defer end()
		time.Sleep(time.Minute)
		if longer.Err() != nil || drain.Ready(nil) != nil {
			t.Fatal("the drain began before its context ended")
		}
		stop()
		begin := time.Now()
		<-longer.Done()
		if took := time.Since(begin); took != drain.Period {
			t.Errorf("the drain took %s, want %s", took, drain.Period)
		}
		synctest.Wait()
		want := []string{`"level"=0 "msg"="Draining" "period"="15s"`, `"level"=0 "msg"="Drained" "answered"=0`}
		if fmt.Sprint(log) != fmt.Sprint(want) {
			t.Errorf("logged %q, want %q", log, want)
		}
	})
}

func TestNothingDrainsAfterTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		drain := &serving.Drain{Period: 15 * time.Second, Log: funcr.New(func(_, args string) { t.Errorf("logged %s", args) }, funcr.Options{})}
		ctx, stop := context.WithCancel(t.Context())
		longer, end := drain.Outlast(ctx)
		end()
		if longer.Err() == nil {
			t.Error("the context has not ended")
		}
		stop()
		synctest.Wait()
		if err := drain.Ready(nil); err != nil {
			t.Error(err)
		}
	})
}

func TestDrainCounts(t *testing.T) {
	logged := make(chan string, 10)
	drain := &serving.Drain{Period: 50 * time.Millisecond, Log: funcr.New(func(_, args string) { logged <- args }, funcr.Options{})}
	handler := drain.Handler(echo)
	ask := func() { handler.ServeHTTP(discard{}, newRequest(t)) }
	ask()
	ctx, stop := context.WithCancel(t.Context())
	longer, end := drain.Outlast(ctx)
	defer end()
	stop()
	<-logged // the drain has begun
	ask()
	ask()
	<-longer.Done()
	if got, want := <-logged, `"level"=0 "msg"="Drained" "answered"=2`; got != want {
		t.Errorf("logged %s, want %s", got, want)
	}
}

func TestLimits(t *testing.T) {
	t.Run("a header that does not end is not waited for", func(t *testing.T) {
		s := impatient(t, 50*time.Millisecond, never, never)
		conn := s.dial(t)
		if _, err := io.WriteString(conn, "POST /mutate/pods HTTP/1.1\r\nHost: "+s.address+"\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		closed(t, conn)
	})
	t.Run("a second header that does not end is not waited for either", func(t *testing.T) {
		s := impatient(t, 50*time.Millisecond, never, never)
		conn := s.dial(t)
		post(t, s, conn)
		if _, err := io.WriteString(conn, "POST /mutate/pods HTTP/1.1\r\nHost: "+s.address+"\r\nX-Slow: "); err != nil {
			t.Fatal(err)
		}
		closed(t, conn)
	})
	t.Run("a body that does not end is not waited for", func(t *testing.T) {
		s := impatient(t, never, 50*time.Millisecond, never)
		conn := s.dial(t)
		if _, err := io.WriteString(conn, "POST /mutate/pods HTTP/1.1\r\nHost: "+s.address+"\r\nContent-Length: 10\r\n\r\nslow"); err != nil {
			t.Fatal(err)
		}
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusRequestTimeout {
			t.Errorf("answered by %s, want 408", response.Status)
		}
	})
	t.Run("a handshake that does not come is not waited for", func(t *testing.T) {
		s := impatient(t, never, never, 50*time.Millisecond)
		conn, err := net.Dial("tcp", s.address)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		closed(t, conn)
	})
	t.Run("an idle connection is closed", func(t *testing.T) {
		s := impatient(t, 50*time.Millisecond, never, never)
		conn := s.dial(t)
		post(t, s, conn)
		closed(t, conn)
	})
	t.Run("a connection without a request is closed as an idle one is", func(t *testing.T) {
		s := impatient(t, 50*time.Millisecond, never, never)
		closed(t, s.dial(t))
	})
	t.Run("a header that is too long is refused", func(t *testing.T) {
		s := impatient(t, never, never, never)
		request := newRequest(t)
		request.URL.Host, request.RequestURI = s.address, ""
		request.URL.Scheme = "https"
		request.Header.Set("X-Long", strings.Repeat("x", 32<<10))
		response, err := s.client(t, false).Do(request)
		if err != nil {
			t.Fatal(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
			t.Errorf("answered by %s, want 431", response.Status)
		}
	})
	t.Run("an address that is taken is an error", func(t *testing.T) {
		s := impatient(t, never, never, never)
		if _, err := serving.NewServer(s.address, echo, anyone()); err == nil {
			t.Error("NewServer returned no error")
		}
	})
}

// TestPatience shows that the server keeps an idle or unused connection longer than the API
// server's client.
func TestPatience(t *testing.T) {
	transport, err := rest.TransportFor(&rest.Config{Host: "https://127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	client, ok := transport.(*http.Transport)
	if !ok {
		t.Fatalf("the client's transport is a %T", transport)
	}
	s, err := serving.NewServer("127.0.0.1:0", echo, anyone())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Listener.Close()
	for wait, timeout := range map[string]time.Duration{"for another request": s.Server.IdleTimeout, "for the first": s.Server.ReadHeaderTimeout} {
		if client.IdleConnTimeout <= 0 || timeout < client.IdleConnTimeout+10*time.Second {
			t.Errorf("the server waits %s %s, the client %s", timeout, wait, client.IdleConnTimeout)
		}
	}
}

// post sends a request over a connection and reads the response.
func post(t *testing.T, s *server, conn net.Conn) {
	t.Helper()
	if _, err := io.WriteString(conn, "POST /mutate/pods HTTP/1.1\r\nHost: "+s.address+"\r\nContent-Length: 5\r\n\r\nquick"); err != nil {
		t.Fatal(err)
	}
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if err != nil || !bytes.Equal(body, []byte("quick")) {
		t.Fatalf("answered by %s, %q, %v", response.Status, body, err)
	}
}

// closed waits until the server has closed a connection without a response.
func closed(t *testing.T, conn net.Conn) {
	t.Helper()
	if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n > 0 || err == nil || isTimeout(err) {
		t.Errorf("the connection is not closed: %d bytes, %v", n, err)
	}
}

func isTimeout(err error) bool {
	var timeout net.Error
	return errors.As(err, &timeout) && timeout.Timeout()
}

func newRequest(t *testing.T) *http.Request {
	t.Helper()
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "/mutate/pods", strings.NewReader("body"))
	if err != nil {
		t.Fatal(err)
	}
	return request
}

// discard is a response that is dropped.
type discard struct{}

func (discard) Header() http.Header            { return http.Header{} }
func (discard) Write(text []byte) (int, error) { return len(text), nil }
func (discard) WriteHeader(int)                {}

func waitFor(t *testing.T, done func() error) {
	t.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		err := done()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}
