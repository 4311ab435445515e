package inject

import (
	"fmt"
	"maps"

	"github.com/go-json-experiment/json"

	"github.com/akv-injector/akv-injector/webhook/api"
)

// Status is the value of the annotation keyvault.io/status, as JSON: what the pod has by injection, and where what was asked
// for was written. It says how the pod is, not what this review changed, so that a second review of the pod gives the same.
type Status struct {
	Identity *StatusIdentity `json:"identity,omitzero"`
	Volumes  []StatusVolume  `json:"volumes,omitempty"`
	Env      []StatusEnv     `json:"env,omitempty"`
	// EnvChanges says, wherever there is an env var, when it follows its Secret: not as the files follow the vault, where the driver
	// rotates.
	EnvChanges string `json:"envChanges,omitempty"`
	// Containers are those that have the volumes mounted.
	Containers []string `json:"containers,omitempty"`
	// From says of each key of the request that anybody wrote: pod, serviceaccount, namespace or flag.
	From map[string]string `json:"from,omitempty"`
}

// Kubernetes sets env vars as a container starts; the driver's rotation reaches mounted files, and the Secret.
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
	// Path is where the containers mount it, but for those in Elsewhere, which mounted it by themselves.
	Path      string            `json:"path"`
	Elsewhere map[string]string `json:"elsewhere,omitempty"`
}

// StatusEnv is one env var and the Secret's key that it is read from; never a value.
type StatusEnv struct {
	Name   string `json:"name"`
	Secret string `json:"secret"`
	Key    string `json:"key"`
}

// finish adds the injector's own label and status, and settles the outcome.
func (d *decision) finish() {
	if len(d.Errors)+len(d.Unresolved) > 0 {
		d.Outcome = outcomeOf(d.AllErrors())
		d.Change = Change{}
		return
	}
	if d.givesNothing() {
		d.Outcome = NotRequested
		return
	}
	d.leaveServiceAccount()
	if value, ok := d.subject.Label(api.Injected); !ok || value != "true" {
		d.Change.Labels = append(d.Change.Labels, Entry{api.Injected, "true"})
	}
	if status := d.status(); d.subject.Annotations[api.Status] != status {
		d.Change.Annotations = append(d.Change.Annotations, Entry{api.Status, status})
	}
	d.Outcome = Injected
	if d.Change.IsEmpty() {
		d.Outcome = Unchanged
	}
}

// givesNothing reports whether what was asked for comes to neither a mount nor an identity.
func (d *decision) givesNothing() bool {
	return len(d.mounts) == 0 && (d.mode == api.ModeNone || !asksIdentity(&d.request))
}

func (d *decision) statusVolume(m *mount) StatusVolume {
	s := StatusVolume{Name: m.volume, Class: m.class, Managed: m.managed, Path: m.path, Elsewhere: maps.Clone(m.elsewhere)}
	if m.used || len(m.elsewhere) == 0 {
		return s
	}
	s.Path = m.elsewhere[d.selected[0].Name]
	maps.DeleteFunc(s.Elsewhere, func(_, at string) bool { return at == s.Path })
	return s
}

func (d *decision) status() string {
	var s Status
	if d.mode != api.ModeNone {
		s.Identity = &StatusIdentity{Mode: string(d.mode), Name: d.bound}
	}
	s.Volumes = make([]StatusVolume, len(d.mounts))
	for i := range d.mounts {
		s.Volumes[i] = d.statusVolume(&d.mounts[i])
	}
	for i := range d.env {
		if e := &d.env[i]; e.set {
			s.Env = append(s.Env, StatusEnv{Name: e.name, Secret: e.secret, Key: e.key})
			s.EnvChanges = envChanges
		}
	}
	if len(d.mounts) > 0 {
		s.Containers = make([]string, len(d.selected))
		for i := range d.selected {
			s.Containers[i] = d.selected[i].Name
		}
	}
	s.From = make(map[string]string, len(api.Keys))
	for i := range api.Keys {
		key := api.Keys[i].Name
		if origin := d.request.OriginOf(key); origin != api.Unset {
			s.From[key] = origin.String()
		}
	}
	for key, v := range map[string]value{api.IdentityTenantID: d.tenantID, api.IdentityClientID: d.clientID} {
		if v.text != "" {
			s.From[key] = v.from
		}
	}
	text, err := json.Marshal(&s, json.Deterministic(true))
	if err != nil {
		panic(fmt.Sprintf("print status: %v", err)) // what came in as JSON has a JSON form
	}
	return string(text)
}
