package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"k8s.io/client-go/util/cert"

	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/test/harness/build"
	"github.com/akv-injector/akv-injector/test/harness/measure"
	"github.com/akv-injector/akv-injector/test/harness/process"
	"github.com/akv-injector/akv-injector/webhook"
)

// load is a way to send reviews.
type load struct {
	connections int
	// rate is the number of reviews sent per second, independently of the answers. Zero means that
	// each connection sends the next review after each answer.
	rate int
}

func (l load) String() string {
	if l.rate == 0 {
		return fmt.Sprintf("closed loop, %d connections", l.connections)
	}
	return fmt.Sprintf("%d reviews a second, %d connections", l.rate, l.connections)
}

var loads = []load{{connections: 1}, {connections: 8}, {connections: 32}, {connections: 32, rate: 500}}

// warmUp is the number of reviews that each server answers before it is measured.
const warmUp = 2000

// overTLS sends the review of 11 KB to our server, to the echo server and to Azure's workload
// identity webhook, in turns, and prints the figures.
func overTLS(ctx context.Context, duration time.Duration, rounds int) error {
	dir, err := os.MkdirTemp("", "load-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	certificate, key, err := cert.GenerateSelfSignedCertKey("127.0.0.1", nil, nil)
	if err != nil {
		return fmt.Errorf("create a serving certificate: %w", err)
	}
	if err := errors.Join(
		os.WriteFile(filepath.Join(dir, "tls.crt"), certificate, 0o600),
		os.WriteFile(filepath.Join(dir, "tls.key"), key, 0o600),
	); err != nil {
		return fmt.Errorf("write the serving certificate: %w", err)
	}
	trusted := x509.NewCertPool()
	trusted.AppendCertsFromPEM(certificate)

	module, err := filepath.Abs("parts/azurewi")
	if err != nil {
		return err
	}
	program := filepath.Join(module, "../../../bin/test/azurewi")
	err = build.Announced(os.Stderr, "Azure's workload identity webhook", "two minutes", func() error {
		return build.Program(ctx, module, program, "-trimpath", "-ldflags=-s -w", ".")
	})
	if err != nil {
		return err
	}

	fmt.Printf("\nReviews of %s over TLS 1.3 and HTTP/1.1, %d runs of %s each in turns, medians:\n\n", reviews.Medium.Size, rounds, duration)
	fmt.Println("| load | server | reviews/s | p50 ms | p99 ms | p99.9 ms | CPU s per 1000 | peak RSS MiB |")
	fmt.Println("|---|---|--:|--:|--:|--:|--:|--:|")
	for _, l := range loads {
		figures := map[string][]figures{}
		for range rounds {
			for _, kind := range []string{ours, echo, azure} {
				f, err := runOnce(ctx, dir, kind, program, trusted, l, duration)
				if err != nil {
					return fmt.Errorf("measure %s: %w", kind, err)
				}
				figures[kind] = append(figures[kind], f)
			}
		}
		for _, kind := range []string{ours, echo, azure} {
			m := medians(figures[kind])
			fmt.Printf("| %s | %s | %.0f | %.2f | %.2f | %.2f | %.3f | %.0f |\n", l, kind, m.throughput, m.p50, m.p99, m.p999, m.cpu, m.peak)
		}
		cpu := medians(figures[ours]).cpu
		fmt.Printf("| | ours / echo | | | | | %.2f | |\n", cpu/medians(figures[echo]).cpu)
		fmt.Printf("| | azure / ours | | | | | %.1f | |\n", medians(figures[azure]).cpu/cpu)
	}
	return nil
}

// runOnce starts a server, warms it up, and measures one run.
func runOnce(ctx context.Context, dir, kind, azureProgram string, trusted *x509.CertPool, l load, duration time.Duration) (f figures, err error) {
	addresses, err := process.FreeAddresses(1)
	if err != nil {
		return f, err
	}
	program, err := os.Executable()
	if err != nil {
		return f, err
	}
	path, args := webhook.MutatePods, []string{serveCommand, kind, addresses[0], dir}
	if kind == azure {
		path, program = "/mutate-v1-pod", azureProgram
		args = []string{"--address=" + addresses[0], "--cert-dir=" + dir, "--client-id=72f988bf-86f1-41af-91ab-2d7cd011db47"}
	}
	server, err := process.Start(dir, program, args...)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, server.Stop()) }()
	c := &client{url: "https://" + addresses[0] + path + "?timeout=5s", body: reviews.Medium.Body}
	var protocols http.Protocols
	protocols.SetHTTP1(true) // as for a Service; for a URL on loopback, the API server uses HTTP/2
	c.Transport = &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: trusted, MinVersion: tls.VersionTLS13},
		Protocols:       &protocols,
		MaxConnsPerHost: l.connections, MaxIdleConnsPerHost: l.connections,
	}
	c.Timeout = 10 * time.Second
	defer c.CloseIdleConnections()
	if err := server.Await(ctx, c.review); err != nil {
		return f, err
	}
	if _, err := c.closedLoop(ctx, l.connections, func(n int, _ time.Duration) bool { return n < warmUp }); err != nil {
		return f, err
	}
	before, err := measure.UsageOf(server.PID())
	if err != nil {
		return f, err
	}
	begin := time.Now()
	var latencies []time.Duration
	if l.rate > 0 {
		latencies, err = c.constantRate(ctx, l, duration)
	} else {
		latencies, err = c.closedLoop(ctx, l.connections, func(_ int, took time.Duration) bool { return took < duration })
	}
	if err != nil {
		return f, err
	}
	took := time.Since(begin)
	after, err := measure.UsageOf(server.PID())
	if err != nil {
		return f, err
	}
	f = figuresOf(latencies)
	f.throughput = float64(len(latencies)) / took.Seconds()
	f.cpu = (after.CPU - before.CPU).Seconds() / float64(len(latencies)) * 1000
	f.peak = after.Peak
	return f, nil
}

// client sends one review repeatedly.
type client struct {
	http.Client

	url  string
	body []byte
}

// review sends the review and reads the answer.
func (c *client) review(ctx context.Context) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(c.body))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	answer, err := io.ReadAll(response.Body)
	if err != nil {
		return err
	}
	if response.StatusCode != http.StatusOK || !bytes.Contains(answer, []byte(`"allowed":true`)) {
		return fmt.Errorf("%s: %s", response.Status, answer)
	}
	return nil
}

// closedLoop sends reviews on every connection, each after the answer to the last one, while more
// returns true. The arguments of more are the number of reviews sent and the time passed.
// closedLoop returns the latencies.
func (c *client) closedLoop(ctx context.Context, connections int, more func(int, time.Duration) bool) ([]time.Duration, error) {
	begin := time.Now()
	return each(connections, func(work func(time.Time) error) error {
		for n := 0; more(n*connections, time.Since(begin)); n++ {
			if err := work(time.Now()); err != nil {
				return err
			}
		}
		return nil
	}, func() error { return c.review(ctx) })
}

// constantRate sends reviews at the times set by the rate, and returns the latencies. A latency
// starts at the set time even if the review had to wait for a connection: otherwise a server that
// stalls would get fewer reviews while it stalls, and look better than it is.
func (c *client) constantRate(ctx context.Context, l load, duration time.Duration) ([]time.Duration, error) {
	due := make(chan time.Time, l.rate*int(duration/time.Second+1))
	go func() {
		defer close(due)
		begin, interval := time.Now(), time.Second/time.Duration(l.rate)
		for at := begin; at.Sub(begin) < duration && ctx.Err() == nil; at = at.Add(interval) {
			measure.SleepUntil(at)
			due <- at
		}
	}()
	return each(l.connections, func(work func(time.Time) error) error {
		for at := range due {
			if err := work(at); err != nil {
				return err
			}
		}
		return nil
	}, func() error { return c.review(ctx) })
}

// each runs loop on n goroutines. loop calls its argument with a start time for each piece of work.
// each returns the times from the start until the work was done.
func each(n int, loop func(work func(since time.Time) error) error, work func() error) ([]time.Duration, error) {
	latencies, errs := make([][]time.Duration, n), make([]error, n)
	var running sync.WaitGroup
	for i := range n {
		running.Go(func() {
			errs[i] = loop(func(since time.Time) error {
				if err := work(); err != nil {
					return err
				}
				latencies[i] = append(latencies[i], time.Since(since))
				return nil
			})
		})
	}
	running.Wait()
	var all []time.Duration
	for _, l := range latencies {
		all = append(all, l...)
	}
	return all, errors.Join(errs...)
}
