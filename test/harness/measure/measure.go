// Package measure has what the programs share that measure the injector: how long something took, what a process uses, when
// the next piece of work is due, and on which machine.
//
// It knows nothing of what is measured.
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

// Machine says where figures come from.
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
	return fmt.Sprintf("%d cores of %s, %s, %s/%s, load average %s at the start", runtime.NumCPU(), model, runtime.Version(), runtime.GOOS, runtime.GOARCH, load)
}

// Latencies are in order, from the shortest.
type Latencies []time.Duration

// NewLatencies puts latencies in order.
func NewLatencies(latencies []time.Duration) Latencies {
	return slices.Sorted(slices.Values(latencies))
}

// Percentile is in milliseconds, of none 0; p is from 0 to 1.
func (l Latencies) Percentile(p float64) float64 {
	if len(l) == 0 {
		return 0
	}
	return float64(l[int(p*float64(len(l)-1))]) / float64(time.Millisecond)
}
