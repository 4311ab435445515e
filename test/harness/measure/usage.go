package measure

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Usage has the resources that a process has used.
type Usage struct {
	// Started is the start time of the process. It is exact to a hundredth of a second, like CPU.
	Started time.Time
	CPU     time.Duration
	// RSS is the resident set in MiB. Peak is its largest size so far.
	RSS, Peak float64
}

// UsageOf reads the usage of a process from proc(5), so it needs Linux.
func UsageOf(pid int) (Usage, error) {
	u, err := readUsage(pid)
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of process %d: %w", pid, err)
	}
	return u, nil
}

func readUsage(pid int) (u Usage, err error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return u, err
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return u, err
	}
	uptime, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return u, err
	}
	now := time.Now()
	text, _, _ := strings.Cut(string(uptime), " ")
	sinceBoot, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return u, err
	}
	// The command's name may contain spaces. The text after it starts with the third field: utime
	// is the 14th, stime the 15th, starttime the 22nd.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return u, errors.New("too few fields")
	}
	const ticks = 100 // per second, on every Linux that Go supports
	var seconds [3]float64
	for i, field := range []string{fields[11], fields[12], fields[19]} {
		if seconds[i], err = strconv.ParseFloat(field, 64); err != nil {
			return u, err
		}
		seconds[i] /= ticks
	}
	u.CPU = inSeconds(seconds[0] + seconds[1])
	u.Started = now.Add(-inSeconds(sinceBoot - seconds[2]))
	for name, value := range map[string]*float64{"VmRSS:": &u.RSS, "VmHWM:": &u.Peak} {
		_, rest, _ := strings.Cut(string(status), name)
		line, _, _ := strings.Cut(rest, "kB")
		if *value, err = strconv.ParseFloat(strings.TrimSpace(line), 64); err != nil {
			return u, err
		}
		*value /= 1024
	}
	return u, nil
}

func inSeconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

// ResetPeak sets the peak of a process to its current resident set.
func ResetPeak(pid int) error {
	if err := os.WriteFile(fmt.Sprintf("/proc/%d/clear_refs", pid), []byte("5"), 0o200); err != nil {
		return fmt.Errorf("reset the peak of process %d: %w", pid, err)
	}
	return nil
}
