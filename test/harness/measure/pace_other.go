//go:build !linux

package measure

import "time"

// SleepUntil may be a millisecond late.
func SleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

// LowerPriority does nothing: only Linux has priorities of threads.
func LowerPriority() {}
