package measure_test

import (
	"testing"
	"time"

	"github.com/akv-injector/akv-injector/test/harness/measure"
)

func TestPercentile(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[len(hundred)-1-i] = time.Duration(i+1) * time.Millisecond
	}
	for name, test := range map[string]struct {
		of      []time.Duration
		p, want float64
	}{
		"no latency":          {nil, 0.5, 0},
		"one latency":         {hundred[:1], 0.99, 100},
		"the median":          {hundred, 0.5, 50},
		"the 99th percentile": {hundred, 0.99, 99},
		"the longest":         {hundred, 1, 100},
		"the shortest":        {hundred, 0, 1},
	} {
		t.Run(name, func(t *testing.T) {
			if got := measure.NewLatencies(test.of).Percentile(test.p); got != test.want {
				t.Errorf("got %v ms, want %v", got, test.want)
			}
		})
	}
}

func TestSleepUntil(t *testing.T) {
	at := time.Now().Add(5 * time.Millisecond)
	measure.SleepUntil(at)
	if left := time.Until(at); left > 0 {
		t.Errorf("SleepUntil returned %s too early", left)
	}
}
