package policy

import (
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// Level is how much a namespace demands of its pods. Each level demands what those before it do.
type Level string

// The levels.
const (
	// Off demands nothing but that ceilings are kept.
	Off Level = ""
	// Bound demands that every identity and class that a pod uses resolves.
	Bound Level = "bound"
	// Required demands an identity besides.
	Required Level = "required"
)

// rank orders levels.
func (l Level) rank() int {
	switch l {
	case Off:
		return 0
	case Bound:
		return 1
	case Required:
		return 2
	}
	return 2
}

// AtLeast reports whether the level demands what the other does.
func (l Level) AtLeast(other Level) bool {
	return l.rank() >= other.rank()
}

// Modes are the levels that a namespace's labels set: what pods are refused for, what their authors are warned about, and what the API
// server's audit log is told.
type Modes struct {
	Enforce, Warn, Audit Level
}

// ModesOf reads a namespace's labels. A level that nobody knows is taken for the strictest.
func ModesOf(labels map[string]string) Modes {
	level := func(key string) Level {
		value, set := labels[key]
		switch {
		case !set:
			return Off
		case value == string(Bound):
			return Bound
		}
		return Required
	}
	return Modes{Enforce: level(api.Enforce), Warn: level(api.Warn), Audit: level(api.Audit)}
}

// atLeast reports whether any mode demands what the level does.
func (m Modes) atLeast(level Level) bool {
	return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)
}

// UnknownLevels says which of a namespace's labels have a level that nobody knows.
func UnknownLevels(namespace Namespace) field.ErrorList {
	var errs field.ErrorList
	for _, key := range []string{api.Enforce, api.Warn, api.Audit} {
		if value, set := namespace.Labels[key]; set && value != string(Bound) && value != string(Required) {
			err := field.NotSupported(field.NewPath("namespaces").Key(namespace.Name).Child("metadata", "labels").Key(key), api.Echo(value), []Level{Bound, Required})
			err.Detail += "; it is taken for " + string(Required)
			errs = append(errs, api.Because(api.UnknownLevel, err))
		}
	}
	return errs
}

// Exempt reports whether a namespace passes over pods of a ServiceAccount, whatever its levels. Ceilings hold for them too.
func Exempt(namespace Namespace, serviceAccount string) bool {
	globs, set := namespace.Annotations[api.Exempt]
	return set && matchesAny(globs, serviceAccount)
}

// matchesAny reports whether one of the comma-separated globs matches name. A malformed glob matches nothing: a ceiling that can't be
// understood allows less, not more.
func matchesAny(globs, name string) bool {
	for glob := range strings.SplitSeq(globs, ",") {
		if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {
			return true
		}
	}
	return false
}
