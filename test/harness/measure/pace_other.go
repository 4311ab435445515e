//go:build !linux

package measure

import "time"

// SleepUntil sleeps until a time. It may be a millisecond late.
func SleepUntil(at time.Time) { time.Sleep(time.Until(at)) }

// LowerPriority does nothing: only on Linux do threads have their own priority.
func LowerPriority() {}
