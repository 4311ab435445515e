package adopt

import (
	"cmp"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/envfile"
	"github.com/akv-injector/akv-injector/core/inject"
)

// pieceKind is a kind of hand-written part.
type pieceKind uint8

const (
	// volumePiece is a volume of the driver, with the mounts of the whole volume.
	volumePiece pieceKind = iota
	// identityPiece is a label that binds the pod to an identity.
	identityPiece
	// envPiece is an env var with the value of a Key Vault object.
	envPiece
	// filesPiece is the init container that writes env files, in what eject printed, and its volume.
	filesPiece
)

// piece is a hand-written part of a pod.
type piece struct {
	kind pieceKind
	// path is the path of the part in the pod.
	path []string
	// why is why the part stays as it is, or a note about it; empty for neither.
	why string
	// class is the class of a volume or an env var; empty for the others.
	class string
	// mountPath is where the volume is mounted, containers are the containers with such a mount,
	// and mounts are the paths of the mounts. If keep, the volume stays, since another mount needs
	// it.
	mountPath  string
	containers []string
	mounts     [][]string
	keep       bool
	// name is the name of an env var, container its container, and file the file of the object.
	name, container, file string
	// secret is the AzureKeyVaultSecret of an env var of akv2k8s, and property the member of its
	// JSON object.
	secret, property string
	// fromFile is true if the env var comes from an env file.
	fromFile bool
	// also are other paths to remove, and annotations what a label becomes.
	also        [][]string
	annotations map[string]string
}

// container is a container of the pod.
type container struct {
	fields map[string]any
	name   string
	path   []string
}

// containers returns the init containers and the containers.
func containers(pod map[string]any) (all []container) {
	for _, list := range []string{"initContainers", "containers"} {
		for i, fields := range items(pod, "spec", list) {
			name, _ := fields["name"].(string)
			all = append(all, container{fields, name, []string{"spec", list, strconv.Itoa(i)}})
		}
	}
	return all
}

// items returns the mappings in a list.
func items(object map[string]any, path ...string) []map[string]any {
	parent, ok := nested(object, path[:len(path)-1])
	if !ok {
		return nil
	}
	list, _ := parent[path[len(path)-1]].([]any)
	all := make([]map[string]any, len(list))
	for i, item := range list {
		all[i], _ = item.(map[string]any)
	}
	return all
}

// text returns the string at a path; empty for none.
func text(object map[string]any, path ...string) string {
	parent, _ := nested(object, path[:len(path)-1])
	value, _ := parent[path[len(path)-1]].(string)
	return value
}

// find finds the hand-written parts: volumes first, since env vars depend on them.
func (a *adoption) find() {
	for i, volume := range items(a.pod, "spec", "volumes") {
		if text(volume, "csi", "driver") == class.Driver {
			a.findVolume(volume, []string{"spec", "volumes", strconv.Itoa(i)})
		}
	}
	a.orderVolumes()
	a.findIdentity()
	a.findEnvFiles()
	for _, c := range containers(a.pod) {
		for i, variable := range items(c.fields, "env") {
			a.findEnv(c, variable, append(slices.Clone(c.path), "env", strconv.Itoa(i)))
		}
	}
	a.findOthers()
}

func (a *adoption) findVolume(volume map[string]any, path []string) {
	p := &piece{kind: volumePiece, path: path, class: text(volume, "csi", "volumeAttributes", class.Attribute)}
	csi, _ := nested(volume, []string{"csi"})
	attributes, _ := nested(csi, []string{"volumeAttributes"})
	first := slices.IndexFunc(a.pieces, func(other *piece) bool { return other.class == p.class })
	a.pieces = append(a.pieces, p)
	switch {
	case p.class == "":
		p.why = "the volume names no class in volumeAttributes.secretProviderClass"
	case first >= 0:
		p.why = "two volumes mount class " + p.class + ", and the driver syncs only one of them: mount the first"
	case len(attributes) > 1:
		p.why = "the volume has other volumeAttributes than secretProviderClass, which override the class"
	case csi["nodePublishSecretRef"] != nil:
		p.why = "the volume signs in with a Secret (nodePublishSecretRef); annotations sign in with an identity of the pod"
	case csi["readOnly"] != true:
		p.why = "the volume has no csi.readOnly: true, which the driver requires"
	case a.Class(p.class) == nil:
		p.why = "class " + p.class + " was not found: add its file with -f or --facts, or use --cluster"
	}
	name := text(volume, "name")
	for _, c := range containers(a.pod) {
		for i, mount := range items(c.fields, "volumeMounts") {
			if text(mount, "name") != name || c.name == inject.EnvFilesName {
				continue
			}
			at := append(slices.Clone(c.path), "volumeMounts", strconv.Itoa(i))
			other := ""
			switch {
			case text(mount, "subPath")+text(mount, "subPathExpr") != "":
				other = "it mounts only a part of the volume (subPath), and annotations mount the whole volume"
			case p.mountPath != "" && text(mount, "mountPath") != p.mountPath:
				other = "it mounts the volume at another path than " + p.mountPath
			case slices.Contains(p.containers, c.name):
				other = "the container mounts the volume twice"
			}
			if other != "" {
				p.keep = true
				a.pieces = append(a.pieces, &piece{kind: volumePiece, path: at, why: other})
				continue
			}
			p.mountPath = text(mount, "mountPath")
			p.containers, p.mounts = append(p.containers, c.name), append(p.mounts, at)
		}
	}
	if p.why == "" && len(p.containers) == 0 {
		p.why = "no container mounts the whole volume"
	}
}

// orderVolumes puts the volume first to whose mount path the others are related most.
func (a *adoption) orderVolumes() {
	related := func(first *piece) (n int) {
		for _, p := range a.pieces {
			suffix, isBelow := strings.CutPrefix(p.mountPath, first.mountPath+"-")
			if spc := a.Class(p.class); isBelow && (suffix == p.class || spc != nil && suffix == vaultOf(spc)) {
				n++
			}
		}
		return n
	}
	slices.SortStableFunc(a.pieces, func(x, y *piece) int { return related(y) - related(x) })
}

// findIdentity finds the label that binds the pod.
func (a *adoption) findIdentity() {
	label := func(key string) string { return text(a.pod, "metadata", "labels", key) }
	account := cmp.Or(text(a.pod, "spec", "serviceAccountName"), text(a.pod, "spec", "serviceAccount"))
	binding := label(api.PodIdentityBinding)
	if binding != "" {
		a.addLabel(api.PodIdentityBinding, map[string]string{
			api.IdentityName: binding, api.IdentityMode: string(api.ModePodIdentity),
		})
	}
	if label(api.WorkloadIdentityUse) != "true" {
		return
	}
	annotations := map[string]string{api.IdentityMode: string(api.ModeWorkloadIdentity)}
	if account != "" && account != "default" {
		annotations[api.IdentityName] = account
	}
	p := a.addLabel(api.WorkloadIdentityUse, annotations)
	if text(a.pod, "metadata", "annotations", api.WorkloadIdentityBinding) == "true" {
		annotations[api.IdentityMode] = string(api.ModeIdentityBinding)
		p.also = append(p.also, []string{"metadata", "annotations", api.WorkloadIdentityBinding})
	}
	if binding != "" {
		p.why = "the pod also has label " + api.PodIdentityBinding + ", and annotations bind a pod in one way"
	}
}

func (a *adoption) addLabel(key string, annotations map[string]string) *piece {
	p := &piece{kind: identityPiece, path: []string{"metadata", "labels", key}, annotations: annotations}
	selector, _ := nested(a.Object, []string{"spec", "selector", "matchLabels"})
	if _, selects := selector[key]; selects && len(a.Pod) > 0 {
		p.why = "spec.selector has the label, and it must match the labels of the template"
	}
	a.pieces = append(a.pieces, p)
	return p
}

// findEnvFiles finds the init container that writes env files.
func (a *adoption) findEnvFiles() {
	for i, volume := range items(a.pod, "spec", "volumes") {
		if text(volume, "name") != inject.EnvFilesName {
			continue
		}
		for _, c := range containers(a.pod) {
			if c.name == inject.EnvFilesName {
				a.pieces = append(a.pieces, &piece{
					kind: filesPiece, path: c.path, also: [][]string{{"spec", "volumes", strconv.Itoa(i)}},
				})
			}
		}
	}
}

// envFiles are the variables that an init container of the injector writes into env files.
type envFiles struct {
	spec envfile.Spec
	// classes are the classes by the folder of their mount in the init container.
	classes map[string]string
}

// readEnvFiles reads the init container of a pod that writes env files; the result is empty without
// one.
func readEnvFiles(pod map[string]any) envFiles {
	files := envFiles{classes: map[string]string{}}
	for _, c := range containers(pod) {
		if c.name != inject.EnvFilesName {
			continue
		}
		args, _ := c.fields["args"].([]any)
		for _, arg := range args {
			if text, ok := arg.(string); ok && strings.HasPrefix(text, "[[") {
				files.spec, _ = envfile.ParseSpec(text)
			}
		}
		for _, mount := range items(c.fields, "volumeMounts") {
			for _, volume := range items(pod, "spec", "volumes") {
				if name := text(volume, "name"); name == text(mount, "name") {
					files.classes[path.Base(text(mount, "mountPath"))] = text(volume, "csi", "volumeAttributes", class.Attribute)
				}
			}
		}
	}
	return files
}

// find returns the object of a variable; the class is empty if there is none.
func (f *envFiles) find(name string) (className, file, property string) {
	for _, group := range f.spec {
		for _, variable := range group {
			if variable.Env == name {
				folder, file, _ := strings.Cut(variable.File, "/")
				return f.classes[folder], file, variable.Property
			}
		}
	}
	return "", "", ""
}

// akv2k8s matches the value of an env var that akv2k8s replaces: NAME@azurekeyvault, or
// NAME@azurekeyvault?PROPERTY.
var akv2k8s = regexp.MustCompile(`^([a-z0-9][a-z0-9.-]*)@azurekeyvault(?:\?(.*))?$`)

// findEnv finds an env var with the value of a Key Vault object.
func (a *adoption) findEnv(c container, variable map[string]any, path []string) {
	p := &piece{kind: envPiece, path: path, name: text(variable, "name"), container: c.name}
	if match := akv2k8s.FindStringSubmatch(text(variable, "value")); match != nil {
		p.secret, p.property = match[1], match[2]
		if object, why := a.objectOfSecret(p.secret, p.property); why != "" {
			p.why = why
		} else if p.property != "" && object.kind != multiKey {
			p.why = "AzureKeyVaultSecret " + p.secret + " has no properties: its type is " + object.kind
		}
		a.pieces = append(a.pieces, p)
		return
	}
	if text(variable, "valueFrom", "fileKeyRef", "volumeName") == inject.EnvFilesName {
		files := readEnvFiles(a.pod)
		p.class, p.file, p.property = files.find(text(variable, "valueFrom", "fileKeyRef", "key"))
		p.fromFile = true
		if p.class != "" {
			a.pieces = append(a.pieces, p)
		}
		return
	}
	secret, key := text(variable, "valueFrom", "secretKeyRef", "name"), text(variable, "valueFrom", "secretKeyRef", "key")
	for _, volume := range a.pieces {
		if secret == "" || volume.kind != volumePiece || volume.class == "" || volume.why != "" {
			continue
		}
		for _, synced := range class.Read(a.Class(volume.class)).Synced {
			if synced.Secret != secret || synced.Key != key {
				continue
			}
			p.class, p.file = volume.class, synced.File
			same := 0
			for _, other := range items(c.fields, "env") {
				if text(other, "name") == p.name {
					same++
				}
			}
			switch {
			case !slices.Contains(volume.containers, c.name):
				p.why = "the container does not mount class " + volume.class + ", and annotations also mount it"
			case same > 1:
				p.why = "the container sets the variable twice"
			}
			a.pieces = append(a.pieces, p)
			return
		}
	}
}

// operations returns the JSON Patch that replaces the pieces of an attempt by its annotations.
func (a *adoption) operations(t *attempt) (operations []jsonpatch.Operation) {
	add := func(path []string, value any) {
		operations = append(operations, jsonpatch.Operation{Operation: "add", Path: pointer(path), Value: value})
	}
	meta, hasMeta := nested(a.Object, []string{"metadata"})
	if !hasMeta {
		add([]string{"metadata"}, map[string]any{})
	}
	if _, has := meta["annotations"].(map[string]any); has {
		for _, key := range sortedKeys(t.annotations) {
			add([]string{"metadata", "annotations", key}, t.annotations[key])
		}
	} else if len(t.annotations) > 0 {
		value := map[string]any{}
		for key, text := range t.annotations {
			value[key] = text
		}
		add([]string{"metadata", "annotations"}, value)
	}
	var paths [][]string
	for _, p := range t.pieces {
		if p.kind == volumePiece {
			paths = append(paths, p.mounts...)
		}
		if !p.keep {
			paths = append(paths, p.path)
		}
		paths = append(paths, p.also...)
	}
	return append(operations, a.removals(paths)...)
}

// removals returns operations that remove values of the pod, and what they leave empty. The last
// element of a list comes first, so that the indices of the others stay.
func (a *adoption) removals(paths [][]string) (operations []jsonpatch.Operation) {
	slices.SortFunc(paths, func(x, y []string) int {
		return slices.CompareFunc(y, x, func(s, t string) int {
			i, err := strconv.Atoi(s)
			j, otherErr := strconv.Atoi(t)
			if err == nil && otherErr == nil {
				return i - j
			}
			return strings.Compare(s, t)
		})
	})
	below := map[string]int{}
	for _, path := range paths {
		below[pointer(path[:len(path)-1])]++
	}
	done := map[string]bool{}
	for _, path := range paths {
		parent := path[:len(path)-1]
		// The pod's own annotations may be those that get the new ones.
		isTarget := len(a.Pod) == 0 && slices.Equal(parent, []string{"metadata", "annotations"})
		if n := below[pointer(parent)]; n == a.size(parent) && !isTarget {
			path = parent
		}
		if at := pointer(slices.Concat(a.Pod, path)); !done[at] {
			done[at] = true
			operations = append(operations, jsonpatch.Operation{Operation: "remove", Path: at})
		}
	}
	return operations
}

// size returns the number of members or elements of a value of the pod.
func (a *adoption) size(path []string) int {
	var value any = a.pod
	for _, token := range path {
		switch parent := value.(type) {
		case map[string]any:
			value = parent[token]
		case []any:
			i, _ := strconv.Atoi(token)
			value = parent[i]
		}
	}
	switch value := value.(type) {
	case map[string]any:
		return len(value)
	case []any:
		return len(value)
	}
	return 0
}

// pointer returns a path as a JSON Pointer (RFC 6901).
func pointer(path []string) string {
	var p jsontext.Pointer
	for _, token := range path {
		p = p.AppendToken(token)
	}
	return string(p)
}
