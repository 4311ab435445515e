package adopt

import (
	"cmp"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
)

// normal brings a pod into a form that is the same for pods that run the same way. In this form,
// volumes, mounts and env vars have no order, the marks of the injector are left out, and volumes,
// classes and Secrets have ids instead of names.
type normal struct {
	*adoption

	pod map[string]any
	// managed are the managed classes that the injector adds.
	managed []*class.SecretProviderClass
	// without is the author's pod, if it has env vars of akv2k8s: they need no volume and no
	// identity of the pod, and those that the injector adds are left out. It is nil for other pods.
	without *normal
	// names are the names of volumes, classes and Secrets by kind and id.
	names map[string]map[string]string
	// skipFiles leaves out the init container that writes env files, and its volume.
	skipFiles bool
}

// form returns the pod in the normal form.
func (n *normal) form() map[string]any {
	n.names = map[string]map[string]string{"volume": {}, "class": {}, "Secret": {}}
	pod := runtime.DeepCopyJSON(n.pod)
	form := map[string]any{"labels": n.marks(pod, "labels"), "annotations": n.marks(pod, "annotations")}
	spec, _ := pod["spec"].(map[string]any)
	volumes, ids, readOnly := n.volumes(items(pod, "spec", "volumes"))
	for _, list := range []string{"initContainers", "containers"} {
		var all []any
		for _, c := range items(pod, "spec", list) {
			if c == nil || c["name"] == inject.EnvFilesName && n.skipFiles {
				continue
			}
			c["volumeMounts"] = n.mounts(items(c, "volumeMounts"), ids, readOnly)
			c["env"] = n.env(items(c, "env"))
			all = append(all, c)
		}
		delete(spec, list)
		if len(all) > 0 {
			spec[list] = all
		}
	}
	spec["volumes"] = volumes
	form["spec"] = spec
	return form
}

// marks returns the labels or annotations without those of the injector.
func (n *normal) marks(pod map[string]any, of string) map[string]any {
	marks, _ := nested(pod, []string{"metadata", of})
	marks = maps.Clone(marks)
	maps.DeleteFunc(marks, func(key string, _ any) bool {
		if n.without != nil && (key == api.PodIdentityBinding || key == api.WorkloadIdentityUse || key == api.WorkloadIdentityBinding) {
			_, has := n.without.marks(n.without.pod, of)[key]
			return !has
		}
		return api.IsOurs(key)
	})
	return marks
}

// volumes returns the volumes by id, the id of each name, and the volumes that are always mounted
// read-only: those of CSI drivers with readOnly (k8s.io/kubernetes/pkg/kubelet/kubelet_pods.go,
// makeMounts).
func (n *normal) volumes(list []map[string]any) (volumes, ids map[string]any, readOnly map[string]bool) {
	volumes, ids, readOnly = map[string]any{}, map[string]any{}, map[string]bool{}
	for _, volume := range list {
		name := text(volume, "name")
		if name == inject.EnvFilesName && n.skipFiles {
			continue
		}
		id := name
		csi, _ := nested(volume, []string{"csi"})
		attributes, _ := nested(csi, []string{"volumeAttributes"})
		className, _ := attributes[class.Attribute].(string)
		if csi["driver"] == class.Driver && className != "" {
			id = "the volume of class " + n.content(className)
			if _, taken := volumes[id]; taken {
				id += " " + className // another class with the same content
			}
			attributes[class.Attribute] = id
			n.names["volume"][id], n.names["class"][id] = name, className
			delete(volume, "name")
			if n.without != nil && n.without.names["volume"][id] == "" {
				ids[name] = ""
				continue
			}
		}
		readOnly[name] = csi["readOnly"] == true
		ids[name], volumes[id] = id, volume
	}
	return volumes, ids, readOnly
}

// mounts returns the mounts by path.
func (n *normal) mounts(list []map[string]any, ids map[string]any, readOnly map[string]bool) map[string]any {
	mounts := map[string]any{}
	for _, mount := range list {
		name := text(mount, "name")
		if mount == nil || ids[name] == "" {
			continue
		}
		if readOnly[name] {
			mount["readOnly"] = true
		}
		if id, has := ids[name]; has {
			mount["name"] = id
		}
		mounts[text(mount, "mountPath")] = mount
	}
	return mounts
}

// env returns the env vars by name. In values, $(NAME) is replaced by what NAME is, if an earlier
// one sets it.
func (n *normal) env(list []map[string]any) map[string]any {
	env := map[string]any{}
	for _, variable := range list {
		name := text(variable, "name")
		from, _ := nested(variable, []string{"valueFrom"})
		if from == nil {
			env[name] = cmp.Or(n.secretText(text(variable, "value")), expand(text(variable, "value"), env))
			continue
		}
		if ref, ok := nested(from, []string{"secretKeyRef"}); ok {
			if ref["optional"] == false {
				delete(ref, "optional")
			}
			if id := n.objectOfKey(text(ref, "name"), text(ref, "key")); id != "" && ref["optional"] == nil {
				env[name] = id
				continue
			}
		}
		if ref, ok := nested(from, []string{"fileKeyRef"}); ok && n.skipFiles && text(ref, "volumeName") == inject.EnvFilesName {
			if id := n.objectOfFile(text(ref, "key")); id != "" {
				env[name] = id
				continue
			}
		}
		env[name] = fmt.Sprint(from)
	}
	return env
}

// expand replaces $(NAME) in a value, as the kubelet does
// (k8s.io/kubernetes/third_party/forked/golang/expansion).
func expand(value string, env map[string]any) string {
	var b strings.Builder
	for {
		before, after, found := strings.Cut(value, "$")
		b.WriteString(before)
		if !found {
			return "value " + b.String()
		}
		if strings.HasPrefix(after, "$") {
			b.WriteString("$$")
			value = after[1:]
			continue
		}
		name, rest, closed := strings.Cut(after, ")")
		name, opened := strings.CutPrefix(name, "(")
		if set, has := env[name]; opened && closed && has {
			fmt.Fprintf(&b, "$(%s)", set)
			value = rest
			continue
		}
		b.WriteString("$")
		value = after
	}
}

// secretText returns the id of the object that akv2k8s sets a value to; empty for another value.
func (n *normal) secretText(value string) string {
	match := akv2k8s.FindStringSubmatch(value)
	if match == nil {
		return ""
	}
	o, why := n.objectOfSecret(match[1], match[2])
	if why != "" {
		return ""
	}
	if o.kind == multiKey {
		o.kind = api.TypeSecret
	}
	return idOf(&o, match[2])
}

func idOf(o *object, property string) string {
	if property != "" {
		property = ", property " + property
	}
	return "object " + o.id() + property
}

// objectOfKey returns the id of the object that the driver syncs into a key of a Secret; empty if
// no class of the pod syncs it.
func (n *normal) objectOfKey(secret, key string) string {
	for _, spc := range n.classes() {
		for _, synced := range class.Read(spc).Synced {
			if synced.Secret == secret && synced.Key == key {
				id := n.objectAt(spc, synced.File, "")
				if id != "" {
					n.names["Secret"][id] = secret + "/" + key
				}
				return id
			}
		}
	}
	return ""
}

// objectOfFile returns the id of the object in a variable of an env file.
func (n *normal) objectOfFile(name string) string {
	files := readEnvFiles(n.pod)
	className, file, property := files.find(name)
	spc := n.classOf(className)
	if spc == nil {
		return ""
	}
	return n.objectAt(spc, file, property)
}

func (n *normal) objectAt(spc *class.SecretProviderClass, file, property string) string {
	objects, _ := objectsOf(spc)
	for i := range objects {
		if objects[i].file() == file {
			return idOf(&objects[i], property)
		}
	}
	return ""
}

// classes returns the classes of the pod, in the order of its volumes.
func (n *normal) classes() (classes []*class.SecretProviderClass) {
	for _, volume := range items(n.pod, "spec", "volumes") {
		if text(volume, "csi", "driver") != class.Driver {
			continue
		}
		if spc := n.classOf(text(volume, "csi", "volumeAttributes", class.Attribute)); spc != nil {
			classes = append(classes, spc)
		}
	}
	return classes
}

// classOf returns a class of the pod; nil if it does not exist.
func (n *normal) classOf(name string) *class.SecretProviderClass {
	for _, spc := range n.managed {
		if spc.Name == name {
			return spc
		}
	}
	return n.Class(name)
}

// content returns a text that is the same for classes that read the same files in the same way; the
// name of a class that cannot be read.
func (n *normal) content(name string) string {
	spc := n.classOf(name)
	if spc == nil {
		return name
	}
	parameters := maps.Clone(spc.Spec.Parameters)
	if parameters == nil {
		return name
	}
	parameters["tenantID"] = cmp.Or(parameters["tenantID"], parameters["tenantId"])
	delete(parameters, "tenantId")
	parameters["keyvaultName"] = vaultOf(spc)
	maps.DeleteFunc(parameters, func(key, value string) bool {
		value = strings.TrimSpace(value)
		return value == "" || value == "false" || key == "cloudName" && value == "AzurePublicCloud"
	})
	objects, why := objectsOf(spc)
	if why != "" {
		return name
	}
	delete(parameters, "objects")
	var ids []string
	for i := range objects {
		ids = append(ids, objects[i].id()+" as "+objects[i].text(fieldAlias))
	}
	slices.Sort(ids)
	return fmt.Sprint(spc.Spec.Provider, parameters, ids)
}

// difference returns the first difference of two values in the normal form; empty for none.
func difference(before, after any, at *field.Path) string {
	switch before := before.(type) {
	case map[string]any:
		other, _ := after.(map[string]any)
		keys := map[string]bool{}
		for key := range before {
			keys[key] = true
		}
		for key := range other {
			keys[key] = true
		}
		for _, key := range sortedKeys(keys) {
			at := child(at, key)
			value, had := before[key]
			now, has := other[key]
			switch {
			case isEmpty(value) && isEmpty(now):
			case !had:
				return at.String() + " is added"
			case !has:
				return at.String() + " is removed"
			default:
				if why := difference(value, now, at); why != "" {
					return why
				}
			}
		}
		return ""
	case []any:
		other, _ := after.([]any)
		if len(other) != len(before) {
			return fmt.Sprintf("%s has %d elements, had %d", at, len(other), len(before))
		}
		for i := range before {
			if why := difference(before[i], other[i], at.Index(i)); why != "" {
				return why
			}
		}
		return ""
	}
	if !reflect.DeepEqual(before, after) {
		return at.String() + " changes"
	}
	return ""
}

// child returns the path of a member.
func child(of *field.Path, key string) *field.Path {
	switch {
	case of == nil:
		return field.NewPath(key)
	case strings.ContainsAny(key, "./"):
		return of.Key(key)
	}
	return of.Child(key)
}

func isEmpty(value any) bool {
	switch value := value.(type) {
	case nil:
		return true
	case map[string]any:
		return len(value) == 0
	case []any:
		return len(value) == 0
	}
	return false
}
