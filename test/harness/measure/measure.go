// Package measure has the functions that the benchmarks share: percentiles of latencies, the
// resources that a process uses, exact waiting, and the description of the machine.
//
//	before, err := measure.UsageOf(pid)
//	measure.SleepUntil(due)
//	// ... work ...
//	p99 := measure.NewLatencies(latencies).Percentile(0.99)
//
// It does not know what is measured.
package measure

import (
	"cmp"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Machine describes the machine, for the first line of the figures.
func Machine() string {
	model, load := "unknown processor", "?"
	if info, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		_, rest, _ := strings.Cut(string(info), "model name\t: ")
		line, _, _ := strings.Cut(rest, "\n")
		model = cmp.Or(line, model)
	}
	if average, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(average), " ")
	}
	return fmt.Sprintf("%d cores of %s, %s, %s/%s, load average %s at the start",
		runtime.NumCPU(), model, runtime.Version(), runtime.GOOS, runtime.GOARCH, load)
}

// Latencies are sorted latencies, the shortest first.
type Latencies []time.Duration

// NewLatencies returns latencies sorted.
func NewLatencies(latencies []time.Duration) Latencies {
	return slices.Sorted(slices.Values(latencies))
}

// Percentile returns the latency in milliseconds that the share p of the latencies does not exceed.
// p is between 0 and 1. Without latencies, it returns 0.
func (l Latencies) Percentile(p float64) float64 {
	if len(l) == 0 {
		return 0
	}
	return float64(l[int(p*float64(len(l)-1))]) / float64(time.Millisecond)
}
