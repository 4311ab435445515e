package inject

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/facts"
)

// setEnv adds the env vars that one container lacks to its change. File is the env file of those that
// come from files; it is empty if the container gets none.
func (p *Plan) setEnv(c *container, file string, content *content, answer *facts.Answer, change *ContainerChange, r *report) {
	if p.usesEnvFiles() && (file == "" || p.standsBeforeEnvFiles(c, r)) {
		return
	}
	for i := range content.env {
		e := &content.env[i]
		if !e.containers.Matches(c.Name) || p.rejectRepeated(content.env[:i], e, c.Name, r) {
			continue
		}
		wanted := EnvVar{Name: e.name, Secret: e.secret, Key: e.key, File: file}
		set := false
		for at := range c.Env {
			if c.Env[at].Name != e.name {
				continue
			}
			set = true
			if key := c.Env[at].SecretKey; file == "" && key != nil && key.Secret == e.secret && key.Key == e.key {
				e.set = true
				continue
			}
			if key := c.Env[at].FileKey; file != "" && key != nil && key.Volume == EnvFilesName && key.Key == e.name {
				if key.Path != file { // another webhook added a container with other env vars
					change.Replace = append(change.Replace, EnvReplacement{Index: at, Var: wanted})
				}
				e.set = true
				continue
			}
			p.resolveConflict(c, at, wanted, change, r)
			e.set = e.set || p.request.OnConflict == api.ConflictOverride
		}
		if !set && !p.keepsFromEnvFrom(c, &wanted, answer, r) {
			change.Env = append(change.Env, wanted)
			e.set = true
		}
	}
}

// standsBeforeEnvFiles reports whether a container starts before the env files exist: another webhook
// may put init containers before the one that writes them.
func (p *Plan) standsBeforeEnvFiles(c *container, r *report) bool {
	at := p.envContainer()
	if !c.init || c.index >= at {
		return false
	}
	r.warn(api.EnvNotSet, field.Forbidden(c.path(p.subject.Root), fmt.Sprintf(
		"container %s gets no env vars: it stands before init container %s, which writes them; "+
			"name the configuration of the webhook that adds it to sort before akv-injector's", c.Name, EnvFilesName)))
	return true
}

// rejectRepeated rejects an item that sets the same env var in the container as one of the items
// before it. It reports the item once, for the first container.
func (p *Plan) rejectRepeated(before []envVar, e *envVar, containerName string, r *report) bool {
	at := slices.IndexFunc(before, func(other envVar) bool {
		return other.name == e.name && other.containers.Matches(containerName)
	})
	if at < 0 {
		return false
	}
	if e.repeated {
		return true
	}
	e.repeated = true
	err := field.Duplicate(p.itemPath(e.item).Child("env"), e.name)
	err.Detail = fmt.Sprintf("item %d sets it too in container %s; give one of them another name",
		before[at].item, containerName)
	r.fail(api.InvalidItem, err)
	return true
}

// keepsFromEnvFrom reports whether a container keeps an env var that its envFrom sets. The injector
// knows the keys of the Secrets that the pod's classes sync, and reads no other Secret or
// ConfigMap.
func (p *Plan) keepsFromEnvFrom(c *container, wanted *EnvVar, answer *facts.Answer, r *report) (kept bool) {
	for i := range c.EnvFrom {
		from := &c.EnvFrom[i]
		key, matches := strings.CutPrefix(wanted.Name, from.Prefix)
		if !matches || p.request.OnConflict == api.ConflictOverride || from.Secret == wanted.Secret && key == wanted.Key {
			continue
		}
		keys, known := p.keysOf(from.Secret, answer)
		if known && !slices.Contains(keys, key) || !known && p.request.OnConflict == api.ConflictKeep {
			continue
		}
		path := c.path(p.subject.Root).Child("envFrom").Index(i)
		switch {
		case !known:
			r.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"may set %s in container %s, and %s overrides it: the injector cannot read its keys",
				wanted.Name, c.Name, api.Secrets)))
		case p.request.OnConflict == api.ConflictFail:
			r.fail(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"must not set %s in container %s, which %s sets; remove it in one of the two", wanted.Name, c.Name, api.Secrets)))
		default:
			r.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
				"container %s sets %s by Secret %s, which was kept; remove it there, or set %s to override",
				c.Name, wanted.Name, from.Secret, api.OnConflict)))
			kept = true
		}
	}
	return kept
}

// keysOf returns the keys of a Secret that one of the pod's classes syncs; known is false for any
// other Secret.
func (p *Plan) keysOf(secret string, answer *facts.Answer) (keys []string, known bool) {
	if secret == "" {
		return nil, false
	}
	for _, name := range p.request.Classes {
		if c := answer.Class(name); c != nil {
			for _, s := range c.Synced {
				if s.Secret == secret {
					keys = append(keys, s.Key)
				}
			}
		}
	}
	return keys, len(keys) > 0
}

// resolveConflict applies keyvault.io/on-conflict to an env var that the container already sets.
// The message never repeats the value of the variable.
func (p *Plan) resolveConflict(c *container, at int, wanted EnvVar, change *ContainerChange, r *report) {
	path := c.path(p.subject.Root).Child("env").Index(at)
	switch p.request.OnConflict {
	case api.ConflictKeep:
		r.warn(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
			"container %s already sets %s, which was kept; remove it there, or set %s to override",
			c.Name, wanted.Name, api.OnConflict)))
	case api.ConflictFail:
		r.fail(api.EnvConflict, field.Forbidden(path, fmt.Sprintf(
			"must not set %s in container %s, which %s sets; remove it in one of the two", wanted.Name, c.Name, api.Secrets)))
	case api.ConflictOverride:
		change.Replace = append(change.Replace, EnvReplacement{Index: at, Var: wanted})
	}
}
