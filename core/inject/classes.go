package inject

import (
	"cmp"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/facts"
)

// content is what the classes of a request provide for the pod.
type content struct {
	mounts []mount
	env    []envVar
	// classes are the managed ones, and tenantID and clientID their ids.
	classes            []*class.SecretProviderClass
	tenantID, clientID value
}

// value is a value and the word for where it was written.
type value struct {
	text, from string
}

// mount is one class to mount.
type mount struct {
	class        string
	vault, cloud string
	managed      bool
	path         string
	// key and index are where the class, or the first item of a managed class, was written: an
	// annotation and an index in its list.
	key   string
	index int
	// volume is the name of the volume; set by addVolumes.
	volume string
	// elsewhere has the mount path of each container that already mounts the class at another
	// path; used is true if a container mounts it at path. Both are set by changeContainers.
	elsewhere map[string]string
	used      bool
}

// writtenAt returns where a mount was requested.
func (p *Plan) writtenAt(m *mount) *field.Path {
	return p.path(m.key).Index(m.index)
}

// envVar is one env var to set: from a key of a synced Secret, or from an env file.
type envVar struct {
	name, secret, key string
	// mount is the index of the class that has the object, and file the path of its file. Property is
	// that of the item, and object describes the object.
	mount                  int
	file, property, object string
	containers             api.Selector
	// item is the index of the item that requests it.
	item int
	// set is true if a container gets it; changeContainers sets it. A container may keep its
	// own variable.
	set bool
	// repeated is true once another item was reported to set it in the same container.
	repeated bool
}

// existingClasses looks up the classes that the request names, and its items in these classes.
func (p *Plan) existingClasses(answer *facts.Answer, r *report) *content {
	if len(p.request.Classes) == 0 {
		return &content{}
	}
	found := make([]*class.Class, 0, len(p.request.Classes))
	out := &content{env: make([]envVar, 0, len(p.request.Items)), mounts: make([]mount, 0, len(p.request.Classes))}
	for index, name := range p.request.Classes {
		m := mount{class: name, path: p.request.MountPath, key: api.Class, index: index}
		if index > 0 {
			m.path += "-" + name
		}
		if c := answer.Class(name); c != nil {
			found = append(found, c)
			m.vault, m.cloud = c.Vault, c.Cloud
		} else {
			err := field.NotFound(p.writtenAt(&m), name)
			err.Detail = "must be a SecretProviderClass in namespace " + p.namespace.Name
			if r.offer() {
				err.Detail += class.Available(name, answer.Available.Classes, answer.Available.NoDriver)
			}
			r.unresolve(api.ClassNotFound, err)
		}
		out.mounts = append(out.mounts, m)
	}
	if len(found) < len(p.request.Classes) {
		return out // items can be looked up only if all classes exist
	}
	p.rejectSyncedTwice(found, r)
	unreadable := make(map[string]bool)
	if len(p.request.Items) == 0 && p.request.EnvMode == api.EnvAuto {
		out.env = p.allSynced(found, r)
	}
	for index, item := range p.request.Items {
		e, c := p.itemOfClass(index, item, found, r)
		if e != nil {
			out.env = append(out.env, *e)
		}
		if c != nil {
			unreadable[c.Name] = true
		}
	}
	for index, c := range found {
		path := p.path(api.Class).Index(index)
		switch {
		case unreadable[c.Name]:
			r.unresolve(api.ClassInvalid, field.Invalid(path, c.Name, whyUnreadable(c)))
		case c.Rejected != "" && !p.overrides(c.Name):
			r.warn(api.ClassInvalid, field.Invalid(path, c.Name,
				"must be a class that the Azure provider can mount: "+c.Rejected+"; correct the class"))
		}
	}
	return out
}

// allSynced returns an env var for each key that the classes sync, named after the key.
func (p *Plan) allSynced(classes []*class.Class, r *report) []envVar {
	var env []envVar
	for index, c := range classes {
		for _, s := range c.Synced {
			detail := ""
			switch {
			case len(validation.IsEnvVarName(s.Key)) > 0 || unusable(s) != "":
				detail = "which is no name of an env var"
			case slices.ContainsFunc(env, func(e envVar) bool { return e.name == s.Key }):
				detail = "as another Secret has"
			}
			if detail != "" {
				r.warn(api.EnvNotSet, field.Invalid(p.path(api.Class).Index(index), c.Name, fmt.Sprintf(
					"syncs key %q of Secret %s, %s, so no env var was set from it; name one in %s",
					api.Echo(s.Key), api.Echo(s.Secret), detail, api.Secrets)))
				continue
			}
			env = append(env, envVar{
				name: s.Key, secret: s.Secret, key: s.Key, mount: index, file: s.File, object: "file " + s.File + " of class " + c.Name,
				item: -1,
			})
		}
	}
	return env
}

// overrides reports whether attributes of the pod's own volume override a class.
func (p *Plan) overrides(name string) bool {
	at := p.volumeOf(name)
	return at >= 0 && len(p.subject.Spec.Volumes[at].CSI.Attributes) > 1
}

// rejectSyncedTwice rejects classes that sync a Secret of the same name: the driver replaces the
// whole Secret for each.
func (p *Plan) rejectSyncedTwice(classes []*class.Class, r *report) {
	by := make(map[string]string)
	for index, c := range classes {
		for _, s := range c.Synced {
			switch other := by[s.Secret]; other {
			case "":
				by[s.Secret] = c.Name
			case c.Name:
			default:
				r.unresolve(api.ClassInvalid, field.Invalid(p.path(api.Class).Index(index), c.Name, fmt.Sprintf(
					"must not sync Secret %s, as class %s does: "+
						"the driver lets each overwrite the other; give one of them another secretName", s.Secret, other)))
				return
			}
		}
	}
}

// candidate is an object of an existing class that an item may mean.
type candidate struct {
	class  *class.Class
	object *class.Object
}

func (c candidate) String() string {
	return c.class.Name + "/" + c.object.Name + " as " + c.object.File
}

// candidates returns the objects that an item means, those that it would mean with another alias,
// and a class that cannot be read and may have the object.
func candidates(item *api.Item, classes []*class.Class) (hits, otherFiles []candidate, unreadable *class.Class) {
	for _, c := range classes {
		switch {
		case item.VaultOrClass != "" && item.VaultOrClass != c.Name:
			continue
		case c.Provider != class.Provider || c.Invalid != "":
			unreadable = c
			continue
		}
		for i := range c.Objects {
			switch o := &c.Objects[i]; {
			case o.Name != item.Name && o.File != item.Name:
			case item.Alias == "" || item.Alias == o.File:
				hits = append(hits, candidate{c, o})
			default:
				otherFiles = append(otherFiles, candidate{c, o})
			}
		}
	}
	return hits, otherFiles, unreadable
}

// itemOfClass looks up an item in the classes. It returns the env var of the item, if any, and a
// class that must be readable to look up the item, if that class is not.
func (p *Plan) itemOfClass(index int, item api.Item, classes []*class.Class, r *report) (*envVar, *class.Class) {
	if item.VaultOrClass != "" && !slices.Contains(p.request.Classes, item.VaultOrClass) {
		return nil, nil // the parser reported it
	}
	hits, otherFiles, unreadable := candidates(&item, classes)
	switch {
	case len(hits) == 1:
		return p.envOfObject(index, item, hits[0], r), nil
	case len(hits) > 1:
		r.unresolve(api.ObjectAmbiguous, field.Invalid(p.itemPath(index), item.Name,
			"must name one of these, by CLASS/ before it or \" as FILE\" after it: "+few(hits, candidate.String)))
	case len(otherFiles) > 0:
		other := otherFiles[0]
		r.unresolve(api.ObjectNotInClass, field.Invalid(p.itemPath(index).Child("objectAlias"), item.Alias,
			fmt.Sprintf("must be %q, as class %s has it, or be left out", other.object.File, other.class.Name)))
	case unreadable != nil:
		return nil, unreadable
	default:
		err := field.NotFound(p.itemPath(index), item.Name)
		err.Detail = "must be an object of class " + joinOr(classNames(classes, item.VaultOrClass)) +
			r.available(item.Name, "object", objectNames(classes, item.VaultOrClass))
		r.unresolve(api.ObjectNotInClass, err)
	}
	return nil, nil
}

// envOfObject checks an item against the object that it means, and returns its env var, or nil.
func (p *Plan) envOfObject(index int, item api.Item, is candidate, r *report) *envVar {
	if item.Type != "" && item.Type != is.object.Type {
		detail := fmt.Sprintf("must be %q, as class %s has it, or be left out", is.object.Type, is.class.Name)
		if is.object.Type == "" {
			detail = fmt.Sprintf("must be the type in class %s, which gives object %s no objectType; add it there",
				is.class.Name, is.object.Name)
		}
		r.unresolve(api.ObjectNotInClass, field.Invalid(p.itemPath(index).Child("objectType"), item.Type, detail))
		return nil
	}
	item.Type = is.object.Type
	name := item.EnvFor(p.request.EnvMode)
	if name == "" {
		return nil
	}
	e := &envVar{
		name: name, mount: slices.Index(p.request.Classes, is.class.Name), file: is.object.File, property: item.Property,
		object: describe(is.object.Type, is.object.Name, is.class.Vault), containers: item.Containers, item: index,
	}
	if p.usesEnvFiles() {
		return e
	}
	key := p.syncedKey(index, is, name, r)
	if key == nil {
		return nil
	}
	e.secret, e.key = key.Secret, key.Key
	return e
}

// describe describes an object in messages.
func describe(of, name, vault string) string {
	return cmp.Or(of, api.TypeSecret) + " " + name + " of vault " + vault
}

// syncedKey returns the one Secret key into which the class syncs the file of an object, or reports
// why there is none.
func (p *Plan) syncedKey(index int, of candidate, env string, r *report) *class.Synced {
	invalid := func(reason api.Reason, detail string) {
		r.unresolve(reason, field.Invalid(p.itemPath(index).Child("env"), env, detail))
	}
	hits := make([]class.Synced, 0, 1)
	for _, s := range of.class.Synced {
		if s.File == of.object.File {
			hits = append(hits, s)
		}
	}
	switch len(hits) {
	case 1:
		if detail := unusable(hits[0]); detail != "" {
			invalid(api.ClassInvalid,
				"must come from a Secret key that an env var can refer to; correct class "+of.class.Name+": "+detail)
			return nil
		}
		return &hits[0]
	case 0:
		for _, s := range of.class.Untyped {
			if s.File == of.object.File {
				invalid(api.EnvNotSynced, fmt.Sprintf("must be synced, and the driver syncs no Secret without a type; "+
					"add type: Opaque to Secret %s in spec.secretObjects of class %s", s.Secret, of.class.Name))
				return nil
			}
		}
		invalid(api.EnvNotSynced, "must be synced; add to class "+of.class.Name+missingSync(of.class, of.object.File))
	default:
		invalid(api.EnvAmbiguous, fmt.Sprintf(
			"must come from one Secret key, and class %s syncs file %s into several: %s; leave one of them in the class",
			of.class.Name, of.object.File, few(hits, func(s class.Synced) string { return s.Secret + "/" + s.Key })))
	}
	return nil
}

// unusable returns which field of a class keeps an env var from referring to a synced key, or "".
func unusable(s class.Synced) string {
	if len(validation.IsDNS1123Subdomain(s.Secret)) > 0 {
		return fmt.Sprintf("its spec.secretObjects[].secretName %q must be lower case letters, digits, - and .",
			api.Echo(s.Secret))
	}
	if len(validation.IsConfigMapKey(s.Key)) > 0 {
		return fmt.Sprintf("its spec.secretObjects[].data[].key %q must be letters, digits, -, _ and .", api.Echo(s.Key))
	}
	return ""
}

// missingSync returns the YAML that makes a class sync the file, and where to add it. A class has
// one list of Secrets, and two entries with the same name would overwrite each other.
func missingSync(c *class.Class, file string) string {
	data := fmt.Sprintf("{objectName: %s, key: %s}", file, class.SecretKey(file))
	if len(c.Synced) > 0 {
		return ", data of Secret " + c.Synced[0].Secret + ": " + data
	}
	return fmt.Sprintf(", spec: secretObjects: [{secretName: %s, type: Opaque, data: [%s]}]", c.Name, data)
}

func whyUnreadable(c *class.Class) string {
	if c.Provider != class.Provider {
		return fmt.Sprintf("must be of provider %s where %s picks from it, and is of %q; "+
			"name its Secret in the container's env by hand", class.Provider, api.Secrets, c.Provider)
	}
	return "must be readable; correct it: " + c.Invalid
}

func classNames(classes []*class.Class, only string) []string {
	var names []string
	for _, c := range classes {
		if only == "" || c.Name == only {
			names = append(names, c.Name)
		}
	}
	return names
}

func objectNames(classes []*class.Class, only string) []string {
	var names []string
	for _, c := range classes {
		for _, o := range c.Objects {
			if only == "" || c.Name == only {
				names = append(names, o.Name)
			}
		}
	}
	return names
}
