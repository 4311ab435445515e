package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/akv-injector/akv-injector/test/injector"
)

// usage is what a process has used so far.
type usage struct {
	// started is exact to a hundredth of a second, like cpu.
	started time.Time
	cpu     time.Duration
	// rss is the resident set, peak the largest that it has been, in MiB.
	rss, peak float64
}

// usageOf reads what proc(5) says of a process.
func usageOf(pid int) (usage, error) {
	u, err := readUsage(pid)
	if err != nil {
		return usage{}, fmt.Errorf("read what process %d uses: %w", pid, err)
	}
	return u, nil
}

func readUsage(pid int) (u usage, err error) {
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
	// What follows the command's name, which may hold spaces, starts with the third field: utime is the 14th, stime the 15th,
	// starttime the 22nd.
	fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+1:]))
	if len(fields) < 20 {
		return u, errors.New("too few fields")
	}
	const ticks = 100 // a second, on every Linux that Go runs on
	var seconds [3]float64
	for i, field := range []string{fields[11], fields[12], fields[19]} {
		if seconds[i], err = strconv.ParseFloat(field, 64); err != nil {
			return u, err
		}
		seconds[i] /= ticks
	}
	u.cpu = inSeconds(seconds[0] + seconds[1])
	u.started = now.Add(-inSeconds(sinceBoot - seconds[2]))
	for name, value := range map[string]*float64{"VmRSS:": &u.rss, "VmHWM:": &u.peak} {
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

// awaitFollowing returns when the injector has read the pods and the classes, how many pods these are, and when that was.
func awaitFollowing(ctx context.Context, i *injector.Injector) (pods int, at time.Time, err error) {
	err = i.Await(ctx, func(context.Context) error {
		log, err := os.Open(filepath.Join(i.Dir, "akv-injector.log"))
		if err != nil {
			return err
		}
		defer log.Close()
		lines := bufio.NewScanner(log)
		for lines.Scan() {
			var line struct {
				Time    time.Time `json:"ts"`
				Message string    `json:"msg"`
				Pods    int       `json:"pods"`
			}
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Message == "Following injected pods" {
				pods, at = line.Pods, line.Time
				return nil
			}
		}
		return errors.Join(lines.Err(), errors.New("the injector doesn't follow the pods yet"))
	})
	return pods, at, err
}
