package policy

import (
	"path"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
)

// Level is how much a namespace demands of its pods. Each level includes those before it.
type Level string

// The levels.
const (
	// Off demands nothing. Ceilings hold at every level.
	Off Level = ""
	// Bound demands that every identity that a pod uses is bound: it exists, and a ServiceAccount
	// has a client id. It also demands that every class exists. [Rules] has the rest.
	Bound Level = "bound"
	// Required demands an identity, too.
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

// AtLeast reports whether the level includes the other.
func (l Level) AtLeast(other Level) bool {
	return l.rank() >= other.rank()
}

// Modes are the levels of a namespace: pods are rejected, their authors warned, or the audit log
// annotated.
type Modes struct {
	Enforce, Warn, Audit Level
}

// ModesOf reads the labels of a namespace for the pods of a ServiceAccount. If the namespace
// exempts the ServiceAccount, every level is [Off]. An unknown level counts as [Required].
func ModesOf(namespace facts.Namespace, serviceAccount string) Modes {
	if exempt(namespace, serviceAccount) {
		return Modes{}
	}
	level := func(key string) Level {
		value, set := namespace.Labels[key]
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

// atLeast reports whether any mode includes the level.
func (m Modes) atLeast(level Level) bool {
	return m.Enforce.AtLeast(level) || m.Warn.AtLeast(level) || m.Audit.AtLeast(level)
}

// Enforces reports whether policy rejects pods of the namespace. Every value of the label turns
// that on: an unknown level counts as [Required].
func Enforces(namespace facts.Namespace) bool {
	_, set := namespace.Labels[api.Enforce]
	return set
}

// hasLevels reports whether the namespace has a label of policy.
func hasLevels(namespace facts.Namespace) bool {
	for _, key := range [...]string{api.Enforce, api.Warn, api.Audit} {
		if _, set := namespace.Labels[key]; set {
			return true
		}
	}
	return false
}

// UnknownLevels warns of labels whose level does not exist.
func UnknownLevels(namespace facts.Namespace) field.ErrorList {
	var errs field.ErrorList
	for _, key := range []string{api.Enforce, api.Warn, api.Audit} {
		if value, set := namespace.Labels[key]; set && value != string(Bound) && value != string(Required) {
			fldPath := field.NewPath("namespaces").Key(namespace.Name).Child("metadata", "labels").Key(key)
			err := field.NotSupported(fldPath, api.Echo(value), []Level{Bound, Required})
			err.Detail += "; it counts as " + string(Required)
			errs = append(errs, api.Because(api.UnknownLevel, err))
		}
	}
	return errs
}

// exempt reports whether the levels of a namespace skip the pods of a ServiceAccount; empty for a
// Binding, which names none. Ceilings skip no pod.
func exempt(namespace facts.Namespace, serviceAccount string) bool {
	globs, set := namespace.Annotations[api.Exempt]
	return set && serviceAccount != "" && matchesAny(globs, serviceAccount)
}

// matchesAny reports whether one of the comma-separated globs matches name. A malformed glob
// matches nothing, so a ceiling that cannot be parsed allows less, not more.
func matchesAny(globs, name string) bool {
	for glob := range strings.SplitSeq(globs, ",") {
		if ok, err := path.Match(strings.TrimSpace(glob), name); err == nil && ok {
			return true
		}
	}
	return false
}
