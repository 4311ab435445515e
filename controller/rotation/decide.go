package rotation

import (
	"iter"
	"maps"
	"slices"
	"time"

	"github.com/akv-injector/akv-injector/core/api"
)

// status is what the driver reports about the class of a pod: a SecretProviderClassPodStatus.
type status struct {
	class text
	// created and changed are when the class was mounted, and when a version last changed, in seconds
	// since the Unix epoch.
	created, changed int64
	versions         []objectVersion
}

type objectVersion struct{ id, version text }

// version returns the version of an object; empty if the status does not have it. The newest one of an
// object with a history has the suffix /0 (GetObjectUID in the Azure provider).
func (s *status) version(id string) string {
	for _, v := range s.versions {
		if found := v.id.Value(); found == id || found == id+"/0" {
			return v.version.Value()
		}
	}
	return ""
}

// remountDelay, in seconds, is less than the time until the kubelet mounts a volume again, which may change the
// versions. A status that changed earlier than this after its creation has those of the first mount.
const remountDelay = 5

// verdict is what to do about a workload.
type verdict struct {
	// current has the versions of what the workload uses.
	current api.Versions
	// changed has the objects whose version changed since the pods started, sorted. If there are any,
	// the workload is to be restarted; else current is to be recorded if it differs.
	changed []string
	// since is when the latest of the versions was reported.
	since time.Time
	// lagging is true if a pod of the namespace still has an old version of a synced object: its node
	// may write that version into the Secret of the env vars again.
	lagging bool
}

// decide compares the versions that the pods of a workload are known to have with those that the
// driver reports. Own has the statuses of the pods that have the present template's annotation: the
// others are about to be replaced, and may be on a node that lags. All has every status in the
// namespace.
//
// The latest status has the newest version, since a mount reads every object of the class.
func decide(uses []use, held api.Versions, own, all []status) verdict {
	v := verdict{current: api.Versions{}}
	latest := map[string]int64{}
	for _, u := range uses {
		if version, found := held[u.object]; found && v.current[u.object] == "" {
			v.current[u.object] = version // unless a pod mounts it
		}
		for version, s := range u.mounted(own) {
			if at, found := latest[u.object]; !found || s.changed > at {
				latest[u.object], v.current[u.object] = s.changed, version
				v.since = later(v.since, time.Unix(s.changed, 0))
			}
		}
	}
	for _, object := range slices.Sorted(maps.Keys(v.current)) {
		if old := held[object]; old != "" && old != v.current[object] {
			v.changed = append(v.changed, object)
		}
	}
	isStarted := true // whether all pods were started with the current versions
	for _, u := range uses {
		for version, s := range u.mounted(own) {
			isStarted = isStarted && version == v.current[u.object] && s.changed < s.created+remountDelay
		}
		for version := range u.mounted(all) {
			v.lagging = v.lagging || u.synced && version != v.current[u.object] && slices.Contains(v.changed, u.object)
		}
	}
	if isStarted {
		v.changed = nil
	}
	return v
}

// mounted returns the versions of the object in the statuses of its class.
func (u *use) mounted(statuses []status) iter.Seq2[string, *status] {
	return func(yield func(string, *status) bool) {
		for i := range statuses {
			s := &statuses[i]
			if s.class.Value() != u.class {
				continue
			}
			if version := s.version(u.id); api.IsVersioned(u.object, version) && !yield(version, s) {
				return
			}
		}
	}
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}
