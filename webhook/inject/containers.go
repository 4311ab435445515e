package inject

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
	"github.com/akv-injector/akv-injector/webhook/pods"
)

// container is a container of the pod and where it stands.
type container struct {
	*pods.Container
	init  bool
	index int
}

// path is the container's own.
func (c *container) path(root Root) *field.Path {
	if c.init {
		return root.path("spec").Child("initContainers").Index(c.index)
	}
	return root.path("spec").Child("containers").Index(c.index)
}

// all are the pod's containers, init containers first. Ephemeral ones can't have volumes added.
func (d *decision) all() []container {
	spec := d.subject.Spec
	all := make([]container, 0, len(spec.InitContainers)+len(spec.Containers))
	for i := range spec.InitContainers {
		all = append(all, container{&spec.InitContainers[i], true, i})
	}
	for i := range spec.Containers {
		all = append(all, container{&spec.Containers[i], false, i})
	}
	return all
}

// selectContainers picks the containers that get mounts and env vars, and refuses names of none. Another webhook may add a container later,
// so this isn't for the author of a template alone to mend.
func (d *decision) selectContainers() {
	d.selected = d.all()
	if !d.request.AsksKeyVault() || d.request.Containers.All() && !slices.ContainsFunc(d.request.Items, func(i api.Item) bool { return !i.Containers.All() }) {
		return
	}
	names := make([]string, len(d.selected))
	for i := range d.selected {
		names[i] = d.selected[i].Name
	}
	selector := d.request.Containers
	if d.tooManyPatterns(len(names)) {
		return
	}
	missing := d.unmatched(api.Containers, selector, names, d.path(api.Containers), "a container or init container of the pod")
	if len(names) > 0 && !slices.ContainsFunc(names, selector.Matches) {
		d.selectNone(missing, field.Invalid(d.path(api.Containers), api.Echo(selector.String()), "must select at least one of: "+few(names, asIs)))
		return
	}
	d.selected = slices.DeleteFunc(d.selected, func(c container) bool { return !selector.Matches(c.Name) })
	selected := slices.DeleteFunc(names, func(name string) bool { return !selector.Matches(name) })
	for index, item := range d.request.Items {
		if item.Containers.All() {
			continue
		}
		path := d.itemPath(index).Child("containers")
		missing := d.unmatched(api.Secrets, item.Containers, selected, path, "a container that "+api.Containers+" selects")
		if !missing && !slices.ContainsFunc(selected, item.Containers.Matches) {
			d.tell(api.Secrets)(api.ContainerNotFound, field.Invalid(path, api.Echo(item.Containers.String()), "must select at least one of: "+few(selected, asIs)))
		}
	}
}

// tell is how to tell that the value of a key doesn't fit the pod. A default of the namespace is written without the pod in mind: it must
// not keep the pod out.
func (d *decision) tell(key string) func(api.Reason, *field.Error) {
	if d.request.OriginOf(key) == api.FromNamespace {
		return d.warn
	}
	return d.unresolved
}

// unmatched tells of the names in a selector of key that are not there, and reports whether it missed one. One that is to be left out is
// only warned about: a sidecar that another webhook adds is not there yet.
func (d *decision) unmatched(key string, selector api.Selector, names []string, path *field.Path, what string) (missing bool) {
	for _, pattern := range selector.Unmatched(names) {
		name, leftOut := strings.CutPrefix(pattern, "!")
		err := field.NotFound(path, pattern)
		if leftOut {
			err.Detail = "must match " + what + ", unless another webhook adds it later" + d.available(name, "container", names)
			d.warn(api.ContainerNotFound, err)
			continue
		}
		missing = true
		err.Detail = "must match " + what + d.available(name, "container", names)
		d.tell(key)(api.ContainerNotFound, err)
	}
	return missing
}

// selectNone handles a selection that matches no container. If only the namespace requests Key Vault, nothing is mounted. Told is true if an error
// names the missing container already.
func (d *decision) selectNone(told bool, err *field.Error) {
	d.selected = nil
	switch {
	case d.request.OriginOf(api.Containers) != api.FromNamespace:
		if !told {
			d.unresolved(api.ContainerNotFound, err)
		}
	case d.request.OriginOf(api.Secrets) == api.FromPod || d.request.OriginOf(api.Class) == api.FromPod:
		d.unresolved(api.ContainerNotFound, err) // so that the default is skipped
	default:
		if !told {
			d.warn(api.ContainerNotFound, err)
		}
		without := *d.Plan
		without.request.Items, without.request.Classes = nil, nil
		d.Plan = &without
	}
}

// maxMatches bounds how often a name or glob is compared with the name of a container.
const maxMatches = 200_000

// tooManyPatterns rejects a request whose names and globs are too many for a pod of that many containers.
func (d *decision) tooManyPatterns(containers int) bool {
	key, patterns := api.Containers, d.request.Containers.Len()
	for _, item := range d.request.Items {
		if n := item.Containers.Len(); n > 0 {
			key, patterns = api.Secrets, patterns+n
		}
	}
	if patterns*containers <= maxMatches {
		return false
	}
	d.selected = nil
	err := field.TooMany(d.path(key), patterns, maxMatches/containers)
	err.Detail = fmt.Sprintf("must have at most %d container names and globs in all for a pod with %d containers", maxMatches/containers, containers)
	d.fail(api.InvalidItem, err)
	return true
}

// maxAdditions bounds how many env vars and mounts a pod gets in all: containers times items can be far more than either.
const maxAdditions = 2_000

// containers works out what each selected container lacks.
func (d *decision) containers() {
	if len(d.mounts) == 0 {
		return
	}
	if additions := len(d.selected) * (len(d.env) + len(d.mounts)); additions > maxAdditions {
		key := api.Secrets
		if len(d.request.Items) == 0 {
			key = api.Class
		}
		err := field.TooMany(d.path(key), additions, maxAdditions)
		err.Detail = fmt.Sprintf("must come to at most %d env vars and mounts in all containers together; select fewer in %s", maxAdditions, api.Containers)
		d.fail(api.InvalidItem, err)
		return
	}
	d.Change.Containers = make([]ContainerChange, 0, len(d.selected))
	d.applied = make([]*envVar, 0, len(d.env))
	for i := range d.selected {
		c := &d.selected[i]
		change := ContainerChange{Init: c.init, Index: c.index, Mounts: make([]Mount, 0, len(d.mounts)), Env: make([]EnvVar, 0, len(d.env))}
		for j := range d.mounts {
			m := &d.mounts[j]
			if at := mountedAt(c.Container, m.volume); at != "" {
				d.mountedElsewhere(c, m, at)
				continue
			}
			m.used = true
			d.checkMountPath(c, m)
			change.Mounts = append(change.Mounts, Mount{Volume: m.volume, Path: m.path})
		}
		d.containerEnv(c, &change)
		if len(change.Mounts)+len(change.Env)+len(change.Replace) > 0 {
			d.Change.Containers = append(d.Change.Containers, change)
		}
	}
}

// mountedAt is where a container mounts the whole of a volume; empty where it does not.
func mountedAt(c *pods.Container, volume string) string {
	for i := range c.Mounts {
		if m := &c.Mounts[i]; m.Volume == volume && !m.Part {
			return m.Path
		}
	}
	return ""
}

// mountedElsewhere notes where a container mounts a class itself, and warns once for each class if the pod asks for another path.
func (d *decision) mountedElsewhere(c *container, m *mount, at string) {
	if d.normalise(at) == d.normalise(m.path) {
		m.used = true
		return
	}
	if m.elsewhere == nil {
		m.elsewhere = map[string]string{}
		if d.request.OriginOf(api.MountPath) == api.FromPod {
			d.warn(api.NoEffect, field.Forbidden(d.path(api.MountPath), fmt.Sprintf(
				"has no effect for class %s in container %s, which mounts it at %s already; remove that mount, or the annotation", m.class, c.Name, api.Echo(at))))
		}
	}
	m.elsewhere[c.Name] = at
}

// containerEnv works out the env vars of one container.
func (d *decision) containerEnv(c *container, change *ContainerChange) {
	first := len(d.applied)
	for i := range d.env {
		e := &d.env[i]
		if !e.containers.Matches(c.Name) || d.repeats(e, d.applied[first:], c.Name) {
			continue
		}
		d.applied = append(d.applied, e)
		wanted := EnvVar{Name: e.name, Secret: e.secret, Key: e.key}
		set := false
		for at := range c.Env {
			if c.Env[at].Name != e.name {
				continue
			}
			set = true
			if key := c.Env[at].SecretKey; key != nil && key.Secret == e.secret && key.Key == e.key {
				e.set = true
				continue
			}
			d.envConflict(c, at, wanted, change)
			e.set = e.set || d.request.OnConflict == api.ConflictOverride
		}
		if !set && !d.keepsFromEnvFrom(c, &wanted) {
			change.Env = append(change.Env, wanted)
			e.set = true
		}
	}
	d.applied = d.applied[:first]
}

// keepsFromEnvFrom reports whether a container keeps an env var that its envFrom sets. The keys of Secrets that the pod's classes sync are known;
// the injector reads no others.
func (d *decision) keepsFromEnvFrom(c *container, wanted *EnvVar) (kept bool) {
	for i := range c.EnvFrom {
		from := &c.EnvFrom[i]
		key, matches := strings.CutPrefix(wanted.Name, from.Prefix)
		if !matches || d.request.OnConflict == api.ConflictOverride || from.Secret == wanted.Secret && key == wanted.Key {
			continue
		}
		keys, known := d.keysOf(from.Secret)
		if known && !slices.Contains(keys, key) || !known && d.request.OnConflict == api.ConflictKeep {
			continue
		}
		path := c.path(d.subject.Root).Child("envFrom").Index(i)
		switch {
		case !known:
			d.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"may set %s in container %s, and %s overrides it: the injector does not know what it holds", wanted.Name, c.Name, api.Secrets)))
		case d.request.OnConflict == api.ConflictFail:
			d.fail(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"must not set %s in container %s, which %s sets; remove it in one of the two", wanted.Name, c.Name, api.Secrets)))
		default:
			d.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"container %s sets %s by Secret %s, which was kept; remove it there, or set %s to override", c.Name, wanted.Name, from.Secret, api.OnConflict)))
			kept = true
		}
	}
	return kept
}

// keysOf are the keys of a Secret that one of the pod's classes syncs; unknown for any other.
func (d *decision) keysOf(secret string) (keys []string, known bool) {
	if secret == "" {
		return nil, false
	}
	for _, name := range d.request.Classes {
		if c := d.facts.class(name); c != nil {
			for _, s := range c.Synced {
				if s.Secret == secret {
					keys = append(keys, s.Key)
				}
			}
		}
	}
	return keys, len(keys) > 0
}

// repeats rejects an item that sets an env var which another item, one of those applied to the container, sets too. It is reported once, for
// the first container.
func (d *decision) repeats(e *envVar, applied []*envVar, containerName string) bool {
	at := slices.IndexFunc(applied, func(other *envVar) bool { return other.name == e.name })
	if at < 0 {
		return false
	}
	if e.repeated {
		return true
	}
	e.repeated = true
	err := field.Duplicate(d.itemPath(e.item).Child("env"), e.name)
	err.Detail = fmt.Sprintf("item %d sets it too in container %s; give one of them another name", applied[at].item, containerName)
	d.fail(api.InvalidItem, err)
	return true
}

// envConflict does with an env var that the container sets by itself what the request says. Its value is nobody's business.
func (d *decision) envConflict(c *container, at int, wanted EnvVar, change *ContainerChange) {
	path := c.path(d.subject.Root).Child("env").Index(at)
	switch d.request.OnConflict {
	case api.ConflictKeep:
		d.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
			"container %s sets %s by itself, which was kept; remove it there, or set %s to override", c.Name, wanted.Name, api.OnConflict)))
	case api.ConflictFail:
		d.fail(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
			"must not set %s in container %s, which %s sets; remove it in one of the two", wanted.Name, c.Name, api.Secrets)))
	case api.ConflictOverride:
		change.Replace = append(change.Replace, EnvReplacement{Index: at, Var: wanted})
	}
}
