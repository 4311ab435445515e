// Package inventory lists which workloads of a cluster use which Key Vault objects: as which
// identity, from which class, in which version, and as which files and env vars.
//
//	found, denied, err := inventory.Read(ctx, reader, "shop")
//	found = found.Of(object) // only what uses one object
//	err = found.Print(os.Stdout, inventory.Text)
//
// It follows the volumes of the Secrets Store CSI driver and the Secrets that the driver syncs,
// whether the injector wrote them or a user did. A workload without pods is listed with what its
// next pod gets. The package never reads a Secret, and judges nothing.
package inventory

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/akv-injector/akv-injector/cli/kube"
	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
	"github.com/akv-injector/akv-injector/core/pods"
)

// Inventory is the list of all workloads that use a class or an identity.
type Inventory struct {
	// Rotation is set if the inventory is about one object.
	Rotation Rotation `json:"rotation,omitzero"`
	// Flags are those of kubectl that select the cluster, for the commands that are suggested.
	Flags []string `json:"-"`
	// Workloads are sorted by namespace, kind and name.
	Workloads []*Workload `json:"workloads"`
}

// Workload is a workload, or a pod without one.
type Workload struct {
	Namespace string `json:"namespace"`
	Kind      string `json:"kind"`
	Name      string `json:"name"`
	// Pods are the names of its pods that have not ended.
	Pods []string `json:"pods"`
	// Identities are those of its pods. It has several while a rollout changes them.
	Identities []Identity `json:"identities,omitempty"`
	// OnRotation is restart if the pods request that their workload is restarted for a new version,
	// and the workload has a kind that rotation restarts; else empty.
	OnRotation api.RotationMode `json:"onRotation,omitzero"`
	Objects    []*Object        `json:"objects,omitempty"`
}

// Identity is what a pod is bound to.
type Identity struct {
	// Mode is pod-identity, workload-identity or identity-binding; node for a class that reads the
	// vault as the node.
	Mode string `json:"mode"`
	// Name is the selector of an AzureIdentityBinding, or the ServiceAccount.
	Name string `json:"name,omitzero"`
	// ClientID is that of the class, else that of the ServiceAccount; empty if it is not known.
	ClientID string `json:"clientID,omitzero"`
}

// Object is a Key Vault object that a workload uses through one class.
type Object struct {
	// Class is empty for the managed class of a workload that has no pod yet.
	Class   string `json:"class,omitzero"`
	Managed bool   `json:"managed,omitzero"`
	// Problem is why the objects of the class are not known; empty if they are.
	Problem string `json:"problem,omitzero"`
	Vault   string `json:"vault,omitzero"`
	Type    string `json:"type,omitzero"`
	Name    string `json:"name,omitzero"`
	// File is the path relative to the mount.
	File string `json:"file,omitzero"`
	// Versions are those that pods have mounted.
	Versions []Version `json:"versions,omitempty"`
	Files    []File    `json:"files,omitempty"`
	Env      []Env     `json:"env,omitempty"`
}

// Version is a version of an object, and the pods that have it mounted.
type Version struct {
	Version string   `json:"version"`
	Pods    []string `json:"pods"`
}

// File is where a container has the object as a file.
type File struct {
	Container string `json:"container"`
	Path      string `json:"path"`
	// Part is true for a mount by subPath, which never changes while the container runs.
	Part bool `json:"part,omitzero"`
	// Secret is the synced Secret that is mounted; empty for the driver's volume.
	Secret string `json:"secret,omitzero"`
}

// Env is an env var with the object as its value, from a synced Secret or an env file.
type Env struct {
	Container string `json:"container"`
	Name      string `json:"name"`
	// Secret is empty for an env file, and for the managed class of a workload that has no pod yet.
	Secret string `json:"secret,omitzero"`
}

// id identifies an object of a workload.
type id struct{ class, problem, vault, kind, name, file string }

// use is what one pod or pod template uses.
type use struct {
	identity Identity
	// requestsRestart is true if annotations request restarts of the workload.
	requestsRestart bool
	objects         map[id]*Object
}

// of returns the object, which it adds if it is new.
func (u *use) of(o Object) *Object {
	key := id{o.Class, o.Problem, o.Vault, o.Type, o.Name, o.File}
	if u.objects[key] == nil {
		u.objects[key] = &o
	}
	return u.objects[key]
}

// synced is an object behind a key of a Secret.
type synced struct {
	key    string
	object Object
}

// tables are the facts by which a pod is understood. Keys are NAMESPACE/NAME.
type tables struct {
	classes map[string]*class.SecretProviderClass
	read    map[*class.SecretProviderClass]*class.Class
	// secrets are the Secrets that classes sync.
	secrets map[string][]synced
	// clients are the client ids of ServiceAccounts.
	clients map[string]string
	// namespaces are the annotations of namespaces that opted in.
	namespaces map[string]map[string]string
	jobs       kube.JobOwners
	// versions are those of a pod and class, NAMESPACE/POD/CLASS, by the id of the object.
	versions map[string]map[string]string
}

// addClass adds a class and the Secrets that it syncs.
func (t *tables) addClass(namespace string, spc *class.SecretProviderClass) {
	t.classes[namespace+"/"+spc.Name] = spc
	c := t.class(spc)
	for _, s := range slices.Concat(c.Synced, c.Untyped) {
		for _, object := range c.Objects {
			if object.File == s.File {
				at := namespace + "/" + s.Secret
				t.secrets[at] = append(t.secrets[at], synced{s.Key, objectOf(c, object)})
			}
		}
	}
}

// class reads a class once.
func (t *tables) class(spc *class.SecretProviderClass) *class.Class {
	if t.read[spc] == nil {
		t.read[spc] = class.Read(spc)
	}
	return t.read[spc]
}

func objectOf(c *class.Class, o class.Object) Object {
	return Object{
		Class: c.Name, Managed: class.IsManagedName(c.Name), Vault: strings.ToLower(c.Vault),
		Type: cmp.Or(o.Type, api.TypeSecret), Name: o.Name, File: o.File,
	}
}

// mounted returns the class that a volume mounts. The driver merges the attributes of the volume
// over the parameters of the class (pkg/secrets-store/nodeserver.go).
func (t *tables) mounted(namespace string, attributes map[string]string) (c *class.Class, problem string) {
	name := attributes[class.Attribute]
	spc := t.classes[namespace+"/"+name]
	if spc == nil {
		return &class.Class{Name: name}, "does not exist"
	}
	if len(attributes) > 1 {
		merged := *spc
		merged.Spec.Parameters = maps.Clone(spc.Spec.Parameters)
		if merged.Spec.Parameters == nil {
			merged.Spec.Parameters = map[string]string{}
		}
		maps.Copy(merged.Spec.Parameters, attributes)
		return problemOf(class.Read(&merged))
	}
	return problemOf(t.class(spc))
}

func problemOf(c *class.Class) (*class.Class, string) {
	switch {
	case c.Provider != class.Provider:
		return c, "is for provider " + cmp.Or(c.Provider, `""`)
	case c.Invalid != "":
		return c, c.Invalid
	case len(c.Objects) == 0:
		return c, "has no objects"
	}
	return c, ""
}

// content is a file of a volume, and the objects in it. Secret is empty for the driver's volume.
type content struct {
	file, secret string
	objects      []*Object
}

// useOf returns what a pod uses; nil if it uses neither a class nor an identity.
func (t *tables) useOf(namespace string, meta *metav1.ObjectMeta, spec *corev1.PodSpec) *use {
	u := &use{objects: map[id]*Object{}}
	volumes := map[string][]content{}
	own := map[string][]*Object{} // those of the pod's own classes, by SECRET/KEY
	for i := range spec.Volumes {
		volume := &spec.Volumes[i]
		if volume.CSI == nil || volume.CSI.Driver != class.Driver {
			continue
		}
		c, problem := t.mounted(namespace, volume.CSI.VolumeAttributes)
		u.bind(c)
		if problem != "" {
			u.of(Object{Class: c.Name, Managed: class.IsManagedName(c.Name), Problem: problem})
			continue
		}
		for _, o := range c.Objects {
			object := u.of(objectOf(c, o))
			object.addVersion(meta.Name, t.versions[namespace+"/"+meta.Name+"/"+c.Name])
			volumes[volume.Name] = append(volumes[volume.Name], content{file: o.File, objects: []*Object{object}})
			for _, s := range c.Synced {
				if s.File == o.File {
					own[s.Secret+"/"+s.Key] = append(own[s.Secret+"/"+s.Key], object)
				}
			}
		}
	}
	// behind returns the objects behind a key of a Secret, which the class of another pod may sync.
	behind := func(secret, key string) []*Object {
		if objects := own[secret+"/"+key]; objects != nil {
			return objects
		}
		var objects []*Object
		for _, s := range t.secrets[namespace+"/"+secret] {
			if s.key == key {
				objects = append(objects, u.of(s.object))
			}
		}
		return objects
	}
	for i := range spec.Volumes {
		for secret, items := range secretsOf(&spec.Volumes[i]) {
			for _, s := range t.secrets[namespace+"/"+secret] {
				if file, ok := items(s.key); ok {
					of := content{file, secret, behind(secret, s.key)}
					volumes[spec.Volumes[i].Name] = append(volumes[spec.Volumes[i].Name], of)
				}
			}
		}
	}
	for _, containers := range [][]corev1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			addFiles(&containers[i], volumes)
			t.addEnv(namespace, &containers[i], behind)
		}
	}
	u.requestsRestart = t.requestsRestart(namespace, meta)
	for _, env := range inject.FileEnvs(spec) {
		for _, of := range volumes[env.Volume] {
			if of.secret == "" && of.file == env.File {
				for _, object := range of.objects {
					object.Env = append(object.Env, Env{Container: env.Container, Name: env.Name})
				}
			}
		}
	}
	account := cmp.Or(spec.ServiceAccountName, spec.DeprecatedServiceAccount, "default")
	u.identify(meta, account)
	if u.identity.Name == account && u.identity.ClientID == "" && u.identity.Mode != string(api.ModePodIdentity) {
		u.identity.ClientID = t.clients[namespace+"/"+account]
	}
	if len(u.objects) == 0 && u.identity.Mode == "" {
		return nil
	}
	return u
}

// requestsRestart reports whether annotations of an injected pod or its namespace request restarts.
func (t *tables) requestsRestart(namespace string, meta *metav1.ObjectMeta) bool {
	ofNamespace, optedIn := t.namespaces[namespace]
	subject := pods.SubjectOf(&pods.Pod{Meta: &pods.Meta{Annotations: meta.Annotations}})
	request, _, _ := api.ParseRequest(api.Annotations{Pod: subject.Annotations, Namespace: ofNamespace})
	return optedIn && meta.Labels[api.Injected] == "true" && !request.OptedOut &&
		request.OnRotation == api.RotationRestart
}

// addFiles adds the files that a container mounts.
func addFiles(container *corev1.Container, volumes map[string][]content) {
	for _, mount := range container.VolumeMounts {
		for _, of := range volumes[mount.Name] {
			if path, part, ok := pathOf(&mount, of.file); ok {
				for _, object := range of.objects {
					object.Files = append(object.Files, File{container.Name, path, part, of.secret})
				}
			}
		}
	}
}

// addEnv adds the env vars of a container.
func (t *tables) addEnv(namespace string, container *corev1.Container, behind func(secret, key string) []*Object) {
	add := func(name, secret, key string) {
		for _, object := range behind(secret, key) {
			object.Env = append(object.Env, Env{container.Name, name, secret})
		}
	}
	for _, env := range container.Env {
		if from := env.ValueFrom; from != nil && from.SecretKeyRef != nil {
			add(env.Name, from.SecretKeyRef.Name, from.SecretKeyRef.Key)
		}
	}
	for _, from := range container.EnvFrom {
		if from.SecretRef != nil {
			for _, key := range t.keys(namespace, from.SecretRef.Name) {
				add(from.Prefix+key, from.SecretRef.Name, key)
			}
		}
	}
}

// keys returns the synced keys of a Secret.
func (t *tables) keys(namespace, secret string) []string {
	var keys []string
	for _, s := range t.secrets[namespace+"/"+secret] {
		keys = append(keys, s.key)
	}
	return union(nil, keys)
}

// bind takes the identity of a class.
func (u *use) bind(c *class.Class) {
	switch {
	case c.UsesPodIdentity:
		u.identity.Mode = string(api.ModePodIdentity)
	case c.UsesNodeIdentity:
		u.identity.Mode = "node"
	case c.ClientID != "":
		u.identity = Identity{Mode: string(api.ModeWorkloadIdentity), ClientID: c.ClientID}
	}
}

// identify takes the identity that the pod's labels bind.
func (u *use) identify(meta *metav1.ObjectMeta, account string) {
	switch {
	case meta.Annotations[api.WorkloadIdentityBinding] == "true":
		u.identity.Mode = string(api.ModeIdentityBinding)
	case meta.Labels[api.WorkloadIdentityUse] == "true":
		u.identity.Mode = string(api.ModeWorkloadIdentity)
	case meta.Labels[api.PodIdentityBinding] != "":
		u.identity = Identity{Mode: string(api.ModePodIdentity), Name: meta.Labels[api.PodIdentityBinding]}
	}
	if u.identity.Mode == string(api.ModeWorkloadIdentity) || u.identity.Mode == string(api.ModeIdentityBinding) {
		u.identity.Name = account
	}
}

// secretsOf returns the Secrets of a volume, each with a function that returns the file of a key, if
// the volume has it.
func secretsOf(volume *corev1.Volume) map[string]func(key string) (file string, ok bool) {
	secrets := map[string]func(string) (string, bool){}
	add := func(name string, items []corev1.KeyToPath) {
		secrets[name] = func(key string) (string, bool) {
			if items == nil {
				return key, true
			}
			i := slices.IndexFunc(items, func(item corev1.KeyToPath) bool { return item.Key == key })
			if i < 0 {
				return "", false
			}
			return items[i].Path, true
		}
	}
	if volume.Secret != nil {
		add(volume.Secret.SecretName, volume.Secret.Items)
	}
	if volume.Projected != nil {
		for _, source := range volume.Projected.Sources {
			if source.Secret != nil {
				add(source.Secret.Name, source.Secret.Items)
			}
		}
	}
	return secrets
}

// pathOf returns the path in the container of a file of a volume, and whether it is mounted by
// subPath. It reports false if the mount does not have the file.
func pathOf(mount *corev1.VolumeMount, file string) (path string, part, ok bool) {
	sub := strings.Trim(cmp.Or(mount.SubPath, mount.SubPathExpr), "/")
	at := strings.TrimRight(mount.MountPath, "/")
	switch {
	case sub == "":
		return at + "/" + file, false, true
	case sub == file:
		return at, true, true
	case strings.HasPrefix(file, sub+"/"):
		return at + file[len(sub):], true, true
	}
	return "", true, false
}

// addVersion adds the version that a pod has mounted, by the ids of the Azure provider: TYPE/NAME, or
// TYPE/NAME/INDEX for an object with a history (its pkg/provider/types: GetObjectUID).
func (o *Object) addVersion(pod string, versions map[string]string) {
	version := cmp.Or(versions[o.Type+"/"+o.Name], versions[o.Type+"/"+o.Name+"/0"])
	if version != "" {
		o.Versions = []Version{{version, []string{pod}}}
	}
}

// builder collects what pods use by their workloads.
type builder struct {
	workloads map[workloadID]*building
}

type workloadID struct {
	namespace string
	owner     kube.Owner
}

type building struct {
	Workload

	objects map[id]*Object
}

// add adds what a pod uses; with an empty name, what the template of a workload uses.
func (b *builder) add(namespace string, owner kube.Owner, pod string, u *use) {
	at := workloadID{namespace, owner}
	w := b.workloads[at]
	if w == nil {
		w = &building{Workload{Namespace: namespace, Kind: owner.Kind, Name: owner.Name, Pods: []string{}}, map[id]*Object{}}
		b.workloads[at] = w
	}
	if pod != "" {
		w.Pods = append(w.Pods, pod)
	}
	if u.identity.Mode != "" && !slices.Contains(w.Identities, u.identity) {
		w.Identities = append(w.Identities, u.identity)
	}
	if u.requestsRestart && kube.IsRestartable(owner.Kind) {
		w.OnRotation = api.RotationRestart
	}
	for key, object := range u.objects {
		has := w.objects[key]
		if has == nil {
			w.objects[key] = object
			continue
		}
		has.Env = union(has.Env, object.Env)
		has.Files = union(has.Files, object.Files)
		for _, v := range object.Versions {
			if i := slices.IndexFunc(has.Versions, func(known Version) bool { return known.Version == v.Version }); i >= 0 {
				has.Versions[i].Pods = append(has.Versions[i].Pods, v.Pods...)
			} else {
				has.Versions = append(has.Versions, v)
			}
		}
	}
}

func union[T comparable](all, more []T) []T {
	for _, item := range more {
		if !slices.Contains(all, item) {
			all = append(all, item)
		}
	}
	return all
}

// inventory returns everything that was added, sorted.
func (b *builder) inventory() *Inventory {
	found := &Inventory{Workloads: []*Workload{}}
	for _, w := range b.workloads {
		for _, object := range w.objects {
			object.sort()
			w.Objects = append(w.Objects, object)
		}
		slices.SortFunc(w.Objects, func(a, b *Object) int {
			return slices.Compare(
				[]string{a.Class, a.Vault, a.Type, a.Name, a.File}, []string{b.Class, b.Vault, b.Type, b.Name, b.File},
			)
		})
		slices.Sort(w.Pods)
		found.Workloads = append(found.Workloads, &w.Workload)
	}
	slices.SortFunc(found.Workloads, func(a, b *Workload) int {
		return slices.Compare([]string{a.Namespace, a.Kind, a.Name}, []string{b.Namespace, b.Kind, b.Name})
	})
	return found
}

func (o *Object) sort() {
	slices.SortFunc(o.Versions, func(a, b Version) int {
		return cmp.Or(cmp.Compare(len(b.Pods), len(a.Pods)), cmp.Compare(a.Version, b.Version))
	})
	for i := range o.Versions {
		slices.Sort(o.Versions[i].Pods)
	}
	slices.SortFunc(o.Files, func(a, b File) int {
		return cmp.Or(cmp.Compare(a.Path, b.Path), cmp.Compare(a.Container, b.Container))
	})
	slices.SortFunc(o.Env, func(a, b Env) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Container, b.Container))
	})
}
