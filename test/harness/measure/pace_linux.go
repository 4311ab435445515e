package measure

import (
	"runtime"
	"syscall"
	"time"
)

// SleepUntil sleeps until a time. It is exact to about 0.1 ms; [time.Sleep] in an idle process may
// be a millisecond late.
func SleepUntil(at time.Time) {
	for left := time.Until(at); left > 0; left = time.Until(at) {
		wait := syscall.NsecToTimespec(left.Nanoseconds())
		_ = syscall.Nanosleep(&wait, nil) // the loop continues an interrupted sleep
	}
}

// LowerPriority locks the calling goroutine to a thread of the lowest priority, which ends with the
// goroutine.
func LowerPriority() {
	runtime.LockOSThread()
	_ = syscall.Setpriority(syscall.PRIO_PROCESS, syscall.Gettid(), 19) // every process may lower its priority
}
