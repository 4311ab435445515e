package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/akv-injector/akv-injector/cluster"
)

// TestSharedReads shows that many concurrent callers cause at most two requests, and that no answer
// is older than its call.
func TestSharedReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := cluster.NewReads()
		var requests, version atomic.Int64
		read := func(context.Context) (string, error) {
			requests.Add(1)
			time.Sleep(10 * time.Millisecond)
			return strconv.FormatInt(version.Load(), 10), nil
		}
		var calls sync.WaitGroup
		call := func(atLeast int64) {
			calls.Go(func() {
				text, err := reads.Share(t.Context(), "shop", "a", read)
				if got, _ := strconv.ParseInt(text, 10, 64); err != nil || got < atLeast {
					t.Errorf("got %q, %v; want at least version %d", text, err, atLeast)
				}
			})
		}
		call(0)
		synctest.Wait() // the first request is under way
		version.Store(1)
		for range 1000 {
			call(1)
		}
		calls.Wait()
		if got := requests.Load(); got != 2 {
			t.Errorf("there were %d requests, want 2", got)
		}
		version.Store(2)
		call(2)
		calls.Wait()
	})
}

// TestReadsOutliveTheirCaller shows that a caller that ends does not cancel the request of other
// callers.
func TestReadsOutliveTheirCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads := cluster.NewReads()
		read := func(ctx context.Context) (string, error) {
			time.Sleep(time.Second)
			return "answer", ctx.Err()
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			if _, err := reads.Share(ctx, "shop", "a", read); !errors.Is(err, context.Canceled) {
				t.Errorf("the first got %v", err)
			}
		}()
		go func() {
			if text, err := reads.Share(t.Context(), "shop", "a", read); err != nil || text != "answer" {
				t.Errorf("the second got %q, %v", text, err)
			}
		}()
		synctest.Wait()
		cancel()
		time.Sleep(time.Minute)
	})
}

// TestCallersShareRequests shows that callers which send as many requests as they can do not delay
// another caller, and that the total number of requests is bounded.
func TestCallersShareRequests(t *testing.T) {
	for _, callers := range []int{1, 64} {
		t.Run(fmt.Sprint(callers, " callers"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reads := cluster.NewReads()
				flooding, end := context.WithTimeout(t.Context(), 5*time.Second)
				defer end()
				var underWay, requests atomic.Int64
				read := func(context.Context) (string, error) {
					requests.Add(1)
					if n := underWay.Add(1); n > 8 {
						t.Errorf("%d requests are under way", n)
					}
					time.Sleep(time.Millisecond)
					underWay.Add(-1)
					return "", nil
				}
				for range callers {
					caller := cluster.WithCaller(flooding, cluster.NewLimit(100, 200))
					for i := range 20 {
						go func() {
							for j := 0; flooding.Err() == nil; j++ {
								_, _ = reads.Share(caller, fmt.Sprint("n", i), fmt.Sprint("a", j), read)
								time.Sleep(10 * time.Millisecond)
							}
						}()
					}
				}
				for i := range 40 {
					time.Sleep(100 * time.Millisecond)
					start := time.Now()
					_, err := reads.Share(t.Context(), "n0", fmt.Sprint("a", i), read)
					if took := time.Since(start); err != nil || took > 100*time.Millisecond {
						t.Errorf("another caller gets %v after %s", err, took)
					}
				}
				<-flooding.Done()
				time.Sleep(time.Minute) // until the last request has ended
				if got, most := requests.Load(), int64(callers*(200+6*100)); got > min(most, 7*800) {
					t.Errorf("there were %d requests", got)
				}
			})
		})
	}
}

// TestReadsSurvivePanics shows that a panic in read becomes an error.
func TestReadsSurvivePanics(t *testing.T) {
	_, err := cluster.NewReads().Share(t.Context(), "shop", "a", func(context.Context) (string, error) { panic("in read") })
	if err == nil || !strings.Contains(err.Error(), "panic: in read") {
		t.Errorf("got %v", err)
	}
}

// TestReadsAreLimited counts the requests that many different reads cause in 10 seconds.
func TestReadsAreLimited(t *testing.T) {
	for behaviour, test := range map[string]struct {
		caller     bool
		namespaces int
		most       int64
	}{
		"of one namespace":                     {namespaces: 1, most: 200 + 10*100 + 100},
		"of many namespaces, by one caller":    {caller: true, namespaces: 1000, most: 20 + 10*10 + 10},
		"of many namespaces, without a caller": {namespaces: 1000, most: 100_000},
	} {
		t.Run(behaviour, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				reads := cluster.NewReads()
				ctx, end := context.WithTimeout(t.Context(), 10*time.Second)
				defer end()
				if test.caller {
					ctx = cluster.WithCaller(ctx, cluster.NewLimit(10, 20))
				}
				var requests, failed, n atomic.Int64
				var calls sync.WaitGroup
				for range 100 {
					calls.Go(func() {
						for ctx.Err() == nil {
							i := n.Add(1)
							start := time.Now()
							_, err := reads.Share(ctx, fmt.Sprint("n", i%int64(test.namespaces)), fmt.Sprint("a", i), func(context.Context) (string, error) {
								requests.Add(1)
								return "", nil
							})
							if took := time.Since(start); took > time.Second {
								t.Errorf("a read waited for %s", took)
							}
							if err != nil {
								failed.Add(1)
								time.Sleep(10 * time.Millisecond)
							} else {
								time.Sleep(100 * time.Millisecond)
							}
						}
					})
				}
				calls.Wait()
				time.Sleep(time.Minute) // until the last request has ended
				if got := requests.Load(); got > test.most || got == 0 {
					t.Errorf("there were %d requests, want at most %d; %d reads failed", got, test.most, failed.Load())
				}
			})
		})
	}
}
