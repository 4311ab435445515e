package ha

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"github.com/akv-injector/akv-injector/internal/corpus/reviews"
	"github.com/akv-injector/akv-injector/test/harness/controlplane"
	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// MemoryLimit is the memory limit of the chart, in bytes.
const MemoryLimit = 512 << 20

// Attacked is the result of one attack.
type Attacked struct {
	*Phase

	// Senders is the number of connections that attack at the same time. It is zero in the first
	// result, which has no attack.
	Senders int
	// Sent is the number of requests that were sent. Answers has the number of answers by HTTP
	// status; "none" counts connections that were closed without an answer.
	Sent    int
	Answers map[string]int
	// Calls is the number of requests that the replicas sent to the API server.
	Calls int
	// Peak is the largest resident set of a replica during the attack, in MiB.
	Peak float64

	duration time.Duration
}

// Attacks creates pods as [Run] does: first without an attack, then during each attack with one
// sender and with several senders, and last during all attacks at the same time. Each of these
// phases lasts for duration. The first attacks are controls, which do not involve the injector:
// they show how much the load on the machine slows the creations down. If a phase fails, Attacks
// returns the results so far and the error.
func Attacks(ctx context.Context, plane *controlplane.ControlPlane, o Options, senders int, duration time.Duration) (_ []*Attacked, err error) {
	c, err := start(ctx, plane, o)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, c.stop()) }()
	echo := httptest.NewUnstartedServer(http.HandlerFunc(reviews.Echo))
	echo.Config.ErrorLog = zap.NewStdLog(zap.NewNop()) // senders hang up
	echo.StartTLS()
	defer echo.Close()
	attacks, err := c.attacks(ctx, echo.Listener.Addr().String())
	if err != nil {
		return nil, err
	}
	var results []*Attacked
	add := func(name string, attacks []attack, senders int) error {
		c.progress("%s, %d at a time ...", name, senders)
		result, err := c.attack(ctx, name, attacks, senders, duration)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		results = append(results, result)
		return nil
	}
	if err := add("none", nil, 0); err != nil {
		return results, err
	}
	for _, a := range attacks {
		for _, senders := range []int{1, senders} {
			if err := add(a.name, []attack{a}, senders); err != nil {
				return results, err
			}
		}
	}
	return results, add("all of them", attacks[controls:], senders)
}

// attack creates pods for duration while the senders attack. Each of attacks gets the same number
// of senders.
func (c *cluster) attack(ctx context.Context, name string, attacks []attack, senders int, duration time.Duration) (*Attacked, error) {
	for _, r := range c.replicas {
		if err := measure.ResetPeak(r.PID()); err != nil {
			return nil, err
		}
	}
	before, err := c.calls(ctx)
	if err != nil {
		return nil, err
	}
	result := &Attacked{Senders: senders, Answers: map[string]int{}}
	begin := time.Now()
	result.Phase, err = c.creations(fmt.Sprintf("attacked-%d", begin.UnixMilli()), asking, injected).during(ctx, name, func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, duration)
		defer cancel()
		for answer := range send(ctx, attacks, senders) {
			result.Answers[answer]++
			result.Sent++
		}
		<-ctx.Done()
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil
		}
		return context.Cause(ctx)
	})
	if err != nil {
		return nil, err
	}
	result.duration = time.Since(begin)
	after, err := c.calls(ctx)
	if err != nil {
		return nil, err
	}
	result.Calls = int(after - before)
	for _, r := range c.replicas {
		usage, err := measure.UsageOf(r.PID())
		if err != nil {
			return nil, err
		}
		result.Peak = max(result.Peak, usage.Peak)
	}
	return result, nil
}

// calls returns the number of requests that the replicas have sent to the API server.
func (c *cluster) calls(ctx context.Context) (sum float64, err error) {
	for _, r := range c.replicas {
		sample, err := readMetrics(ctx, r)
		if err != nil {
			return 0, err
		}
		for metric, value := range sample {
			if strings.HasPrefix(metric, "rest_client_requests_total{") {
				sum += value
			}
		}
	}
	return sum, nil
}

// AttackTable prints results as a Markdown table, as in docs/performance.md.
func AttackTable(w io.Writer, results []*Attacked) {
	fmt.Fprintln(w, "| attack | at a time | sent a second | answers | calls of the API server a second | pods | failed | p50 ms | p99 ms | times p99 of no attack | peak RSS MiB |")
	fmt.Fprintln(w, "|---|--:|--:|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, r := range results {
		seconds := r.duration.Seconds()
		var answers []string
		for _, answer := range slices.Sorted(maps.Keys(r.Answers)) {
			answers = append(answers, fmt.Sprintf("%s: %d", answer, r.Answers[answer]))
		}
		p99 := r.latencies.Percentile(0.99)
		fmt.Fprintf(w, "| %s | %d | %.0f | %s | %.1f | %d | %d | %.1f | %.1f | %.1f | %.0f |\n", r.Name, r.Senders, float64(r.Sent)/seconds,
			strings.Join(answers, ", "), float64(r.Calls)/seconds, r.Pods, r.Failed, r.latencies.Percentile(0.5), p99,
			p99/results[0].latencies.Percentile(0.99), r.Peak)
	}
}
