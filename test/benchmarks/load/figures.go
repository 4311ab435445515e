package main

import (
	"slices"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

// figures are the results of one run: times in milliseconds, CPU in seconds per 1000 reviews,
// memory in MiB.
type figures struct {
	throughput, p50, p99, p999, cpu, peak float64
}

// figuresOf returns figures with the percentiles of latencies only.
func figuresOf(latencies []time.Duration) figures {
	l := measure.NewLatencies(latencies)
	return figures{p50: l.Percentile(0.50), p99: l.Percentile(0.99), p999: l.Percentile(0.999)}
}

// medians returns the median of each figure over several runs.
func medians(runs []figures) figures {
	median := func(of func(figures) float64) float64 {
		values := make([]float64, len(runs))
		for i, run := range runs {
			values[i] = of(run)
		}
		slices.Sort(values)
		return values[len(values)/2]
	}
	return figures{
		throughput: median(func(f figures) float64 { return f.throughput }),
		p50:        median(func(f figures) float64 { return f.p50 }),
		p99:        median(func(f figures) float64 { return f.p99 }),
		p999:       median(func(f figures) float64 { return f.p999 }),
		cpu:        median(func(f figures) float64 { return f.cpu }),
		peak:       median(func(f figures) float64 { return f.peak }),
	}
}
