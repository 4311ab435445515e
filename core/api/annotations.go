package api

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Origin says which object a value of a Request was read from.
type Origin uint8

// The origins, weakest first.
const (
	// Unset is the origin of a value that nobody wrote: the server's flag or the built-in default holds.
	Unset Origin = iota
	// FromNamespace is the origin of a default that the namespace's annotations give.
	FromNamespace
	// FromPod is the origin of what the pod's, the template's or the workload's annotations say.
	FromPod
)

// String is the word that the status annotation uses.
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

// Annotations is what people wrote for one pod: its own annotations, and the defaults that its namespace gives.
type Annotations struct {
	// Pod holds the pod's own annotations; foreign keys are passed over.
	Pod map[string]string
	// Namespace holds the namespace's annotations; nil where no default applies.
	Namespace map[string]string
	// NamespaceName is named by warnings about Namespace.
	NamespaceName string
	// Path says where the author of a pod's key wrote it. Nil stands for metadata.annotations.
	Path func(key string) *field.Path
}

// Asked reports whether annotations hold a key of the request, or one that looks like it: any key under the prefixes of the contract but
// [Status].
func Asked(annotations map[string]string) bool {
	for key := range annotations {
		if IsOurs(key) && key != Status {
			return true
		}
	}
	return false
}

// IsOurs reports whether a label or annotation key is under one of our prefixes.
func IsOurs(key string) bool {
	return strings.HasPrefix(key, KeyVaultPrefix) || strings.HasPrefix(key, IdentityPrefix)
}

// Position is a key's position in [Keys], or -1.
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

// IsWritten reports whether the injector writes the annotation of that key.
func IsWritten(key string) bool {
	return key == Status || key == Inherited
}

var annotationsPath = field.NewPath("metadata", "annotations")

// keyPaths are the paths of [Keys] in the metadata of a pod, which reviews of pods share.
var keyPaths = func() (paths [numKeys]*field.Path) {
	for i := range Keys {
		paths[i] = annotationsPath.Key(Keys[i].Name)
	}
	return paths
}()

// podPath is where the pod's value of key was written.
func (a *Annotations) podPath(key string) *field.Path {
	if a.Path != nil {
		return a.Path(key)
	}
	if i := position(key); i >= 0 {
		return keyPaths[i]
	}
	return annotationsPath.Key(key)
}

// namespacePath is where the namespace's default for key was written.
func (a *Annotations) namespacePath(key string) *field.Path {
	return field.NewPath("namespaces").Key(a.NamespaceName).Child("metadata", "annotations").Key(key)
}

// PathOf is where the value of key that came from origin was written.
func (a *Annotations) PathOf(key string, origin Origin) *field.Path {
	if origin == FromNamespace {
		return a.namespacePath(key)
	}
	return a.podPath(key)
}

// maxUnknown is how many unknown keys of one object are told one by one.
const maxUnknown = 20

// unknownKeys checks the keys of one object. Order is alphabetical, since a map has none.
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
		case kind != "":
			detail = "must be written on the Namespace, as its " + kind
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

// keysLike are the names of the keys that share the prefix of key.
func keysLike(key string) []string {
	prefix, _, _ := strings.Cut(key, "/")
	return slices.DeleteFunc(keyNames(), func(name string) bool { return !strings.HasPrefix(name, prefix+"/") })
}

func keyNames() []string {
	names := make([]string, 0, numKeys)
	for i := range Keys {
		if name := Keys[i].Name; !IsWritten(name) {
			names = append(names, name)
		}
	}
	return names
}
