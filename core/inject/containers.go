package inject

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
)

// container is a container of the pod and its position.
type container struct {
	*pods.Container
	init  bool
	index int
}

// path returns the path of the container.
func (c *container) path(root pods.Root) *field.Path {
	if c.init {
		return root.Child("spec", "initContainers").Index(c.index)
	}
	return root.Child("spec", "containers").Index(c.index)
}

// containersOf returns the pod's containers, init containers first. Ephemeral containers cannot get
// volumes.
func containersOf(spec *pods.Spec) []container {
	all := make([]container, 0, len(spec.InitContainers)+len(spec.Containers))
	for i := range spec.InitContainers {
		all = append(all, container{&spec.InitContainers[i], true, i})
	}
	for i := range spec.Containers {
		all = append(all, container{&spec.Containers[i], false, i})
	}
	return all
}

// selectContainers returns the containers that get mounts and env vars, and reports names that do
// not exist. Another webhook may add a container later, so these errors are unresolved ones. If the
// defaults of the namespace select no container and only they request Key Vault, the plan that it
// returns requests no Key Vault.
func (p *Plan) selectContainers(r *report) (*Plan, []container) {
	all := containersOf(&p.subject.Spec)
	if at := p.envContainer(); at >= 0 && p.usesEnvFiles() {
		all = slices.Delete(all, at, at+1)
	}
	selector := p.request.Containers
	selects := func(i api.Item) bool { return !i.Containers.All() }
	if !p.request.AsksKeyVault() || selector.All() && !slices.ContainsFunc(p.request.Items, selects) {
		return p, all
	}
	if p.tooManyPatterns(len(all), r) {
		return p, nil
	}
	names := make([]string, len(all))
	for i := range all {
		names[i] = all[i].Name
	}
	missing := p.reportUnmatched(api.Containers, selector, names, p.path(api.Containers),
		"a container or init container of the pod", r)
	if len(names) > 0 && !slices.ContainsFunc(names, selector.Matches) {
		err := field.Invalid(p.path(api.Containers), api.Echo(selector.String()),
			"must select at least one of: "+few(names, asIs))
		return p.selectNone(missing, err, r), nil
	}
	selected := slices.DeleteFunc(all, func(c container) bool { return !selector.Matches(c.Name) })
	names = slices.DeleteFunc(names, func(name string) bool { return !selector.Matches(name) })
	for index, item := range p.request.Items {
		if item.Containers.All() {
			continue
		}
		path := p.itemPath(index).Child("containers")
		missing := p.reportUnmatched(api.Secrets, item.Containers, names, path,
			"a container that "+api.Containers+" selects", r)
		if !missing && !slices.ContainsFunc(names, item.Containers.Matches) {
			err := field.Invalid(path, api.Echo(item.Containers.String()),
				"must select at least one of: "+few(names, asIs))
			p.misfit(api.Secrets, r)(api.ContainerNotFound, err)
		}
	}
	return p, selected
}

// misfit returns how to report that the value of a key does not fit the pod: as a warning if the
// namespace sets it, since its author does not know the pod.
func (p *Plan) misfit(key string, r *report) func(api.Reason, *field.Error) {
	if p.request.OriginOf(key) == api.FromNamespace {
		return r.warn
	}
	return r.unresolve
}

// reportUnmatched reports the patterns of a selector that match no container, and whether there is
// one that selects. One that excludes a container is only a warning: another webhook may add the
// sidecar later.
func (p *Plan) reportUnmatched(
	key string, selector api.Selector, names []string, path *field.Path, what string, r *report,
) (missing bool) {
	for _, pattern := range selector.Unmatched(names) {
		name, excluded := strings.CutPrefix(pattern, "!")
		err := field.NotFound(path, pattern)
		if excluded {
			err.Detail = "must match " + what + ", unless another webhook adds it later" + r.available(name, "container", names)
			r.warn(api.ContainerNotFound, err)
			continue
		}
		missing = true
		err.Detail = "must match " + what + r.available(name, "container", names)
		p.misfit(key, r)(api.ContainerNotFound, err)
	}
	return missing
}

// selectNone reports a selection that matches no container, unless an error names the missing
// container already. If only the namespace requests Key Vault, it returns a plan without that
// request.
func (p *Plan) selectNone(reported bool, err *field.Error, r *report) *Plan {
	switch {
	case p.request.OriginOf(api.Containers) != api.FromNamespace:
		if !reported {
			r.unresolve(api.ContainerNotFound, err)
		}
	case p.request.OriginOf(api.Secrets) == api.FromPod || p.request.OriginOf(api.Class) == api.FromPod:
		r.unresolve(api.ContainerNotFound, err) // so that the default is skipped
	default:
		if !reported {
			r.warn(api.ContainerNotFound, err)
		}
		without := *p
		without.request.Items, without.request.Classes = nil, nil
		return &without
	}
	return p
}

// maxMatches bounds how often a pattern is compared with the name of a container.
const maxMatches = 200_000

// tooManyPatterns rejects a request with too many names and globs for a pod with that many containers.
func (p *Plan) tooManyPatterns(containers int, r *report) bool {
	key, patterns := api.Containers, p.request.Containers.Len()
	for _, item := range p.request.Items {
		if n := item.Containers.Len(); n > 0 {
			key, patterns = api.Secrets, patterns+n
		}
	}
	if patterns*containers <= maxMatches {
		return false
	}
	err := field.TooMany(p.path(key), patterns, maxMatches/containers)
	err.Detail = fmt.Sprintf("must have at most %d container names and globs in all for a pod with %d containers",
		maxMatches/containers, containers)
	r.fail(api.InvalidItem, err)
	return true
}

// warnReferences warns of containers that refer to an env var which the request sets, but only in
// other containers. They get the text of the reference instead of the value.
func (p *Plan) warnReferences(selected []container, content *content, r *report) {
	if len(content.env) == 0 {
		return
	}
	spec := &p.subject.Spec
	for i := range len(spec.InitContainers) + len(spec.Containers) {
		c := container{init: i < len(spec.InitContainers), index: i}
		if c.init {
			c.Container = &spec.InitContainers[i]
		} else {
			c.index -= len(spec.InitContainers)
			c.Container = &spec.Containers[c.index]
		}
		isSelected := slices.ContainsFunc(selected, func(s container) bool { return s.Container == c.Container })
		for ref := range c.References.All {
			item, gets := -1, false
			for _, e := range content.env {
				if e.name == ref.Name {
					item, gets = e.item, gets || isSelected && e.containers.Matches(c.Name)
				}
			}
			if item < 0 || gets || c.sets(ref.Name) {
				continue
			}
			selection := api.Containers
			if isSelected {
				selection = p.itemPath(item).Child("containers").String()
			}
			path := c.path(p.subject.Root).Child(ref.Field).Index(ref.Index)
			if ref.Field == "env" {
				path = path.Child("value")
			}
			r.warn(api.EnvNotSet, field.Invalid(path, "$("+ref.Name+")", fmt.Sprintf(
				"refers to an env var that container %s does not get, and stays as it is; add the container to %s",
				c.Name, selection)))
		}
	}
}

// sets reports whether a container may set an env var itself.
func (c *container) sets(name string) bool {
	return slices.ContainsFunc(c.Env, func(e pods.EnvVar) bool { return e.Name == name }) ||
		slices.ContainsFunc(c.EnvFrom, func(e pods.EnvFrom) bool { return strings.HasPrefix(name, e.Prefix) })
}

// maxAdditions bounds the env vars and mounts of a pod: each item may add one to each container.
const maxAdditions = 2_000

// changeContainers returns what each selected container lacks, and the env files of the containers.
func (p *Plan) changeContainers(
	selected []container, content *content, answer *facts.Answer, r *report,
) ([]ContainerChange, envGroups) {
	if len(content.mounts) == 0 {
		return nil, nil
	}
	if additions := len(selected) * (len(content.env) + len(content.mounts)); additions > maxAdditions {
		key := api.Secrets
		if len(p.request.Items) == 0 {
			key = api.Class
		}
		err := field.TooMany(p.path(key), additions, maxAdditions)
		err.Detail = fmt.Sprintf("must add at most %d env vars and mounts to all containers together; select fewer in %s",
			maxAdditions, api.Containers)
		r.fail(api.InvalidItem, err)
		return nil, nil
	}
	changes := make([]ContainerChange, 0, len(selected))
	volumes := volumeIndex{list: p.subject.Spec.Volumes}
	var groups envGroups
	for i := range selected {
		c := &selected[i]
		change := ContainerChange{
			Init:   c.init,
			Index:  c.index,
			Mounts: make([]Mount, 0, len(content.mounts)),
			Env:    make([]EnvVar, 0, len(content.env)),
		}
		for j := range content.mounts {
			m := &content.mounts[j]
			if at := mountedAt(c.Container, m.volume); at != "" {
				p.mountedElsewhere(c, m, at, r)
				continue
			}
			m.used = true
			p.checkMountPath(c, m, &volumes, r)
			change.Mounts = append(change.Mounts, Mount{Volume: m.volume, Path: m.path})
		}
		file := ""
		if p.usesEnvFiles() {
			file = groups.fileOf(content, c.Name)
		}
		p.setEnv(c, file, content, answer, &change, r)
		if len(change.Mounts)+len(change.Env)+len(change.Replace) > 0 {
			changes = append(changes, change)
		}
	}
	p.warnReferences(selected, content, r)
	return changes, groups
}
