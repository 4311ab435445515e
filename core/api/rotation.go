package api

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Versions has the version of each Key Vault object that the pods of a workload use, by the object:
// VAULT/TYPE/NAME, such as payments/secret/db-password. It is the value of [RestartedFor].
type Versions map[string]string

// IsVersioned reports whether an object and its version can be part of [Versions]. Names and versions of
// Key Vault always can; a class or a status that a user wrote may have any text.
func IsVersioned(object, version string) bool {
	return versionedPattern.MatchString(object) && versionedPattern.MatchString(version)
}

var versionedPattern = regexp.MustCompile(`^[-./0-9A-Za-z]+$`)

// ParseVersions parses what [Versions.String] returns. It ignores elements that have another form.
func ParseVersions(text string) Versions {
	versions := Versions{}
	for element := range strings.SplitSeq(text, ",") {
		if object, version, ok := strings.Cut(element, "@"); ok && object != "" && version != "" {
			versions[object] = version
		}
	}
	return versions
}

// String returns the versions as OBJECT@VERSION,..., sorted by object.
func (v Versions) String() string {
	elements := make([]string, 0, len(v))
	for _, object := range slices.Sorted(maps.Keys(v)) {
		elements = append(elements, object+"@"+v[object])
	}
	return strings.Join(elements, ",")
}

// Window is a time of the week, the value of [RestartWindow].
type Window struct {
	days [7]bool // from Sunday
	// start and end are minutes since midnight; an end before the start is on the next day.
	start, end int
	offset     int // of the zone, in minutes
}

const minutesOfDay, minutesOfWeek = 24 * 60, 7 * 24 * 60

var errWindow = errors.New("must have the form DAYS HH:MM-HH:MM ZONE, such as Mon-Fri 02:00-04:00 UTC; " +
	"ZONE is UTC or an offset such as +01:00")

// ParseWindow parses a window: days such as Mon-Fri or Sat,Sun, a time of day and a zone, which is
// UTC or an offset. Days and zone may be omitted: every day, and UTC. The time may span midnight.
func ParseWindow(text string) (Window, error) {
	w := Window{days: [7]bool{true, true, true, true, true, true, true}}
	fields := strings.Fields(text)
	ok := true
	if len(fields) > 0 && !strings.Contains(fields[0], ":") {
		w.days, ok = parseDays(fields[0])
		fields = fields[1:]
	}
	if len(fields) == 2 {
		zone, sign := fields[1], 1
		switch {
		case zone == "UTC":
			zone = "+00:00"
		case strings.HasPrefix(zone, "-"):
			sign = -1
		case !strings.HasPrefix(zone, "+"):
			ok = false
		}
		minutes, valid := timeOfDay(zone[1:])
		w.offset, ok = sign*minutes, ok && valid
		fields = fields[:1]
	}
	if !ok || len(fields) != 1 {
		return Window{}, errWindow
	}
	start, end, _ := strings.Cut(fields[0], "-")
	var valid [2]bool
	w.start, valid[0] = timeOfDay(start)
	w.end, valid[1] = timeOfDay(end)
	switch {
	case !valid[0] || !valid[1] || w.start == minutesOfDay:
		return Window{}, errWindow
	case w.start == w.end:
		return Window{}, fmt.Errorf("must not be empty, as %s is", fields[0])
	}
	return w, nil
}

var weekdays = [7]string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

func parseDays(text string) (days [7]bool, ok bool) {
	for part := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(part, "-")
		if !isRange {
			last = first
		}
		day, to := slices.Index(weekdays[:], first), slices.Index(weekdays[:], last)
		if day < 0 || to < 0 {
			return days, false
		}
		for ; day != to; day = (day + 1) % 7 {
			days[day] = true
		}
		days[to] = true
	}
	return days, true
}

// timeOfDay parses HH:MM, up to 24:00, as minutes.
func timeOfDay(text string) (minutes int, ok bool) {
	hour, minute, _ := strings.Cut(text, ":")
	h, hourErr := strconv.ParseUint(hour, 10, 8)
	m, minuteErr := strconv.ParseUint(minute, 10, 8)
	ok = len(hour) == 2 && len(minute) == 2 && hourErr == nil && minuteErr == nil && (h < 24 && m < 60 || h == 24 && m == 0)
	return int(h)*60 + int(m), ok
}

// Contains reports whether a time of the week, in minutes since Sunday 00:00 UTC, is in the window.
func (w Window) Contains(minute int) bool {
	minute = (minute + w.offset + minutesOfWeek) % minutesOfWeek
	day, since := minute/minutesOfDay, minute%minutesOfDay
	if w.start < w.end {
		return w.days[day] && w.start <= since && since < w.end
	}
	return w.days[day] && w.start <= since || w.days[(day+6)%7] && since < w.end
}
