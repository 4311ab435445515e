package measure

import (
	"runtime"
	"syscall"
	"time"
)

// SleepUntil is exact to some 0.1 ms, where [time.Sleep] in an idle process may be a millisecond late.
func SleepUntil(at time.Time) {
	for left := time.Until(at); left > 0; left = time.Until(at) {
		wait := syscall.NsecToTimespec(left.Nanoseconds())
		_ = syscall.Nanosleep(&wait, nil) // an interrupted sleep is begun again
	}
}

// LowerPriority gives the calling goroutine a thread of the lowest priority, which ends with the goroutine.
func LowerPriority() {
	runtime.LockOSThread()
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), 19) // anyone may lower a priority
}
