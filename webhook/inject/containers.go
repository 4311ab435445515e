package inject

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// container is a container of the pod and where it stands.
type container struct {
	*corev1.Container
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
	if !d.request.AsksKeyVault() {
		return
	}
	names := make([]string, len(d.selected))
	for i := range d.selected {
		names[i] = d.selected[i].Name
	}
	selector, path := d.request.Containers, d.path(api.Containers)
	missing := d.unmatched(api.Containers, selector, names, path, "a container or init container of the pod")
	if len(names) > 0 && !slices.ContainsFunc(names, selector.Matches) {
		d.selectNone(missing, field.Invalid(path, api.Echo(selector.String()), "must select at least one of: "+few(names, asIs)))
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

// selectNone is what comes of a selection of no container at all. Whoever asked for Key Vault in the pod itself must not be left without it
// by a mere warning; what the namespace alone asked for, such a pod goes without. Told is true where it was told already which name is missing.
func (d *decision) selectNone(told bool, err *field.Error) {
	d.selected = nil
	switch {
	case d.request.OriginOf(api.Containers) != api.FromNamespace:
		if !told {
			d.unresolved(api.ContainerNotFound, err)
		}
	case d.request.OriginOf(api.Secrets) == api.FromPod || d.request.OriginOf(api.Class) == api.FromPod:
		err.Detail += "; set " + api.Containers + " on the pod"
		d.unresolved(api.ContainerNotFound, err)
	default:
		if !told {
			d.warn(api.ContainerNotFound, err)
		}
		without := *d.Plan
		without.request.Items, without.request.Classes = nil, nil
		d.Plan = &without
	}
}

// maxAdditions is how many env vars and mounts a pod may get in all: the size of what is added is a product, of things that are each small,
// and a pod with so much could not be stored.
const maxAdditions = 10_000

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
	for i := range d.selected {
		c := &d.selected[i]
		change := ContainerChange{Init: c.init, Index: c.index}
		for j := range d.mounts {
			m := &d.mounts[j]
			if mountsVolume(c.Container, m.volume) {
				continue
			}
			d.checkMountPath(c, m)
			change.Mounts = append(change.Mounts, corev1.VolumeMount{Name: m.volume, MountPath: m.path, ReadOnly: true})
		}
		d.containerEnv(c, &change)
		if len(change.Mounts)+len(change.Env)+len(change.Replace) > 0 {
			d.Change.Containers = append(d.Change.Containers, change)
		}
	}
}

func mountsVolume(c *corev1.Container, volume string) bool {
	for i := range c.VolumeMounts {
		if c.VolumeMounts[i].Name == volume {
			return true
		}
	}
	return false
}

// containerEnv works out the env vars of one container.
func (d *decision) containerEnv(c *container, change *ContainerChange) {
	for i := range d.env {
		e := &d.env[i]
		if !e.containers.Matches(c.Name) {
			continue
		}
		if d.repeats(e, i, c.Name) {
			continue
		}
		wanted := corev1.EnvVar{Name: e.name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: e.secret}, Key: e.key,
		}}}
		if !slices.ContainsFunc(c.Env, func(v corev1.EnvVar) bool { return v.Name == e.name }) {
			change.Env = append(change.Env, wanted)
			e.set = true
			continue
		}
		for at := range c.Env {
			switch {
			case c.Env[at].Name != e.name:
			case sameSecretKey(&c.Env[at], e):
				e.set = true
			default:
				d.envConflict(c, at, wanted, change)
				e.set = e.set || d.request.OnConflict == api.ConflictOverride
			}
		}
	}
}

// repeats refuses a second item that sets the same env var in one container. It is told once, at the first container.
func (d *decision) repeats(e *envVar, i int, containerName string) bool {
	for j := range i {
		other := &d.env[j]
		if other.name != e.name || !other.containers.Matches(containerName) {
			continue
		}
		err := field.Duplicate(d.itemPath(e.item).Child("env"), e.name)
		err.Detail = fmt.Sprintf("item %d sets it too in container %s; give one of them another name", other.item, containerName)
		if !slices.ContainsFunc(d.Errors, func(known *field.Error) bool { return known.Field == err.Field }) {
			d.fail(api.InvalidItem, err)
		}
		return true
	}
	return false
}

func sameSecretKey(v *corev1.EnvVar, e *envVar) bool {
	return v.ValueFrom != nil && v.ValueFrom.SecretKeyRef != nil && v.ValueFrom.SecretKeyRef.Name == e.secret && v.ValueFrom.SecretKeyRef.Key == e.key
}

// envConflict does with an env var that the container sets by itself what the request says. Its value is nobody's business.
func (d *decision) envConflict(c *container, at int, wanted corev1.EnvVar, change *ContainerChange) {
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
