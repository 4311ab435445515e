package main

import (
	"testing"
	"time"
)

func TestInterval(t *testing.T) {
	for behaviour, test := range map[string]struct {
		sample, median, low, high time.Duration // of 1, 2, ... sample
	}{
		"1 value":                                         {1, 1, 1, 1},
		"6 values: all are inside":                        {6, 3, 1, 6},
		"10 values: one is outside at each end":           {10, 5, 2, 9},
		"25 values: seven, as in tables of the sign test": {25, 13, 8, 18},
		"50 values: seventeen":                            {50, 25, 18, 33},
		"100 values: thirty-nine":                         {100, 50, 40, 61},
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
