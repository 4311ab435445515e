package main

import (
	"testing"
	"time"
)

func TestInterval(t *testing.T) {
	for behaviour, test := range map[string]struct {
		sample, median, low, high time.Duration // of 1, 2, ... sample
	}{
		"of one it is that":                                {1, 1, 1, 1},
		"of six all are needed":                            {6, 3, 1, 6},
		"of ten one is left out at either end":             {10, 5, 2, 9},
		"of twenty-five seven, as tables of this test say": {25, 13, 8, 18},
		"of fifty seventeen":                               {50, 25, 18, 33},
		"of a hundred thirty-nine":                         {100, 50, 40, 61},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var sample []time.Duration
			for i := test.sample; i > 0; i-- {
				sample = append(sample, i)
			}
			median, low, high := interval(sample)
			if median != test.median || low != test.low || high != test.high {
				t.Errorf("got %d (%d to %d), want %d (%d to %d)", median, low, high, test.median, test.low, test.high)
			}
		})
	}
}
