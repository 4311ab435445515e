package api

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Origin is the object that a value of a Request was read from.
type Origin uint8

// The origins, weakest first.
const (
	// Unset is the origin of a value that no annotation sets: the server's flag or the built-in
	// default applies.
	Unset Origin = iota
	// FromNamespace is the origin of a default that the namespace's annotations set.
	FromNamespace
	// FromPod is the origin of a value in the annotations of the pod, its template or its workload.
	FromPod
)

// String returns "pod", "namespace" or "default".
func (o Origin) String() string {
	switch o {
	case FromPod:
		return "pod"
	case FromNamespace:
		return "namespace"
	case Unset:
		return "default"
	}
	return "unknown"
}

// Annotations is the input of [ParseRequest] for one pod: the pod's own annotations, and the
// defaults of its namespace.
type Annotations struct {
	// Pod holds the pod's own annotations. Keys without one of our prefixes are ignored.
	Pod map[string]string
	// Namespace holds the namespace's annotations; nil if no default applies.
	Namespace map[string]string
	// NamespaceName is the name in warnings about Namespace.
	NamespaceName string
	// Path returns where a key of the pod was written. If it is nil, that is metadata.annotations.
	Path func(key string) *field.Path
}

// Asked reports whether annotations request anything: whether they have any key under our prefixes
// except [Status] and [RestartedFor]. Misspelt keys count, so that they are reported.
func Asked(annotations map[string]string) bool {
	for key := range annotations {
		if IsOurs(key) && key != Status && key != RestartedFor {
			return true
		}
	}
	return false
}

// IsOurs reports whether a label or annotation key is under one of our prefixes.
func IsOurs(key string) bool {
	return strings.HasPrefix(key, KeyVaultPrefix) || strings.HasPrefix(key, IdentityPrefix)
}

// position returns the index of a key in [Keys], or -1.
func position(key string) int {
	for i := range Keys {
		if Keys[i].Name == key {
			return i
		}
	}
	return -1
}

// IsRequestKey reports whether key is an annotation that a user writes to request something.
func IsRequestKey(key string) bool {
	return position(key) >= 0 && !IsWritten(key)
}

// IsWritten reports whether the injector writes the annotation of that key, and not a user.
func IsWritten(key string) bool {
	return key == Status || key == Inherited || key == RestartedFor
}

var annotationsPath = field.NewPath("metadata", "annotations")

// keyPaths are the paths of [Keys] in the metadata of a pod. All reviews of pods share them, to
// save allocations.
var keyPaths = func() (paths [numKeys]*field.Path) {
	for i := range Keys {
		paths[i] = annotationsPath.Key(Keys[i].Name)
	}
	return paths
}()

// podPath returns where the pod's value of key was written.
func (a *Annotations) podPath(key string) *field.Path {
	if a.Path != nil {
		return a.Path(key)
	}
	if i := position(key); i >= 0 {
		return keyPaths[i]
	}
	return annotationsPath.Key(key)
}

// namespacePath returns where the namespace's default for key was written.
func (a *Annotations) namespacePath(key string) *field.Path {
	return field.NewPath("namespaces").Key(a.NamespaceName).Child("metadata", "annotations").Key(key)
}

// PathOf returns where the value of key with that origin was written.
func (a *Annotations) PathOf(key string, origin Origin) *field.Path {
	if origin == FromNamespace {
		return a.namespacePath(key)
	}
	return a.podPath(key)
}

// maxUnknown is how many unknown keys of one object get an error each. More keys get one error
// together.
const maxUnknown = 20

// unknownKeys returns an error for each key of one object that is under our prefixes and does not
// exist, sorted by key.
func unknownKeys(annotations map[string]string, onNamespace bool, path func(string) *field.Path) field.ErrorList {
	var unknown []string
	for key := range annotations {
		if IsOurs(key) && position(key) < 0 && (!onNamespace || namespaceKeyKind(key) != "annotation") {
			unknown = append(unknown, key)
		}
	}
	slices.Sort(unknown)
	var errs field.ErrorList
	for _, key := range unknown[:min(len(unknown), maxUnknown)] {
		detail := ""
		kind := namespaceKeyKind(key)
		switch {
		case kind != "" && onNamespace:
			detail = "must be a label of the namespace, not an annotation"
		case kind == "label":
			detail = "must be a label of the Namespace"
		case kind == "annotation":
			detail = "must be an annotation of the Namespace"
		default:
			detail = "must be a key of akv-injector" + didYouMean(nearestKeys(key, onNamespace), keysLike(key))
		}
		errs = append(errs, Because(UnknownKey, field.Forbidden(path(Echo(key)), detail)))
	}
	if len(unknown) > maxUnknown {
		errs = append(errs, Because(UnknownKey, field.TooMany(annotationsPath, len(unknown), 0)))
	}
	return errs
}

// keysLike returns the names of the keys with the prefix of key.
func keysLike(key string) []string {
	prefix, _, _ := strings.Cut(key, "/")
	return slices.DeleteFunc(keyNames(), func(name string) bool { return !strings.HasPrefix(name, prefix+"/") })
}

// keyNames returns the names of the keys that users write.
func keyNames() []string {
	names := make([]string, 0, numKeys)
	for i := range Keys {
		if name := Keys[i].Name; !IsWritten(name) {
			names = append(names, name)
		}
	}
	return names
}
