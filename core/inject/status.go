package inject

import (
	"fmt"
	"maps"

	"github.com/go-json-experiment/json"

	"github.com/akv-injector/akv-injector/core/api"
)

// Status is the value of the annotation keyvault.io/status, as JSON: what the injector gave the
// pod, and where each value of the request was written. It describes the pod, not the changes of
// one review, so a second review of the pod gives the same status.
type Status struct {
	Identity *StatusIdentity `json:"identity,omitzero"`
	Volumes  []StatusVolume  `json:"volumes,omitempty"`
	Env      []StatusEnv     `json:"env,omitempty"`
	// EnvChanges is when env vars get the new value of their Secret; empty without env vars.
	EnvChanges string `json:"envChanges,omitempty"`
	// Containers are those that mount the volumes.
	Containers []string `json:"containers,omitempty"`
	// From has the origin of each key of the request that is set: pod or namespace. For a
	// managed class, that of the client id may also be serviceaccount, and that of the tenant id
	// serviceaccount or flag.
	From map[string]string `json:"from,omitempty"`
}

// Kubernetes sets env vars when a container starts. The driver's rotation updates mounted files and
// the Secret only.
const envChanges = "on-container-restart"

// StatusIdentity is the identity of the pod: a selector or a ServiceAccount, and how it is bound.
type StatusIdentity struct {
	Mode string `json:"mode"`
	Name string `json:"name,omitempty"`
}

// StatusVolume is one mounted class.
type StatusVolume struct {
	Name    string `json:"name"`
	Class   string `json:"class"`
	Managed bool   `json:"managed,omitzero"`
	// Path is where the containers mount it. Elsewhere has the paths of the containers whose own
	// mounts were kept, by container.
	Path      string            `json:"path"`
	Elsewhere map[string]string `json:"elsewhere,omitempty"`
}

// StatusEnv is one env var, and the key of the Secret with its value, or the object whose value is in an
// env file. It never has the value.
type StatusEnv struct {
	Name   string `json:"name"`
	Secret string `json:"secret,omitzero"`
	Key    string `json:"key,omitzero"`
	Object string `json:"object,omitzero"`
}

// statusOf returns the status of a mount.
func statusOf(m *mount, selected []container) StatusVolume {
	s := StatusVolume{Name: m.volume, Class: m.class, Managed: m.managed, Path: m.path, Elsewhere: maps.Clone(m.elsewhere)}
	if m.used || len(m.elsewhere) == 0 {
		return s
	}
	s.Path = m.elsewhere[selected[0].Name]
	maps.DeleteFunc(s.Elsewhere, func(_, at string) bool { return at == s.Path })
	return s
}

// status returns the value of the status annotation.
func (p *Plan) status(selected []container, content *content, id *identity) string {
	var s Status
	if id.mode != api.ModeNone {
		s.Identity = &StatusIdentity{Mode: string(id.mode), Name: id.bound}
	}
	s.Volumes = make([]StatusVolume, len(content.mounts))
	for i := range content.mounts {
		s.Volumes[i] = statusOf(&content.mounts[i], selected)
	}
	for i := range content.env {
		if e := &content.env[i]; e.set {
			if p.usesEnvFiles() {
				s.Env = append(s.Env, StatusEnv{Name: e.name, Object: e.object})
			} else {
				s.Env = append(s.Env, StatusEnv{Name: e.name, Secret: e.secret, Key: e.key})
			}
			s.EnvChanges = envChanges
		}
	}
	if len(content.mounts) > 0 {
		s.Containers = make([]string, len(selected))
		for i := range selected {
			s.Containers[i] = selected[i].Name
		}
	}
	s.From = make(map[string]string, len(api.Keys))
	for i := range api.Keys {
		key := api.Keys[i].Name
		if origin := p.request.OriginOf(key); origin != api.Unset {
			s.From[key] = origin.String()
		}
	}
	for key, v := range map[string]value{api.IdentityTenantID: content.tenantID, api.IdentityClientID: content.clientID} {
		if v.text != "" {
			s.From[key] = v.from
		}
	}
	text, err := json.Marshal(&s, json.Deterministic(true))
	if err != nil {
		panic(fmt.Sprintf("print status: %v", err)) // a struct of strings always has a JSON form
	}
	return string(text)
}
