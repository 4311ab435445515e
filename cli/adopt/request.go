package adopt

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/yaml"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
	"github.com/akv-injector/akv-injector/core/inject"
)

// object is an object of a Key Vault, and how it becomes a file.
type object struct {
	vault string
	// kind is secret, key or cert, or multiKey for a Secret of akv2k8s.
	kind string
	// fields are those of the Azure provider, without the ones that have their default.
	fields map[string]any
}

// multiKey is the type of akv2k8s for a secret that is a JSON object.
const multiKey = "multi-key-value-secret"

// Fields of an object in a class of the Azure provider.
const (
	fieldName  = "objectName"
	fieldAlias = "objectAlias"
	fieldType  = "objectType"
)

// objectsOf returns the objects of a class, or why they cannot be read.
func objectsOf(spc *class.SecretProviderClass) (objects []object, why string) {
	var list struct {
		Array []string `json:"array"`
	}
	if err := yaml.Unmarshal([]byte(spc.Spec.Parameters["objects"]), &list); err != nil {
		return nil, "the objects of class " + spc.Name + " cannot be read"
	}
	for _, element := range list.Array {
		fields := map[string]any{}
		if err := yaml.Unmarshal([]byte(element), &fields); err != nil {
			return nil, "the objects of class " + spc.Name + " cannot be read"
		}
		o := object{vault: vaultOf(spc), kind: api.TypeSecret, fields: fields}
		for name, value := range fields {
			text := strings.TrimSpace(fmt.Sprint(value))
			switch {
			case value == nil || text == "" || name == "objectVersionHistory" && text == "0":
				delete(fields, name)
			case name == "objectVersion":
				fields[name] = strings.ToLower(text)
			case name == fieldType:
				o.kind = text
				delete(fields, name)
			case name == fieldAlias && text == fmt.Sprint(fields[fieldName]):
				delete(fields, name)
			default:
				fields[name] = text
			}
		}
		objects = append(objects, o)
	}
	return objects, ""
}

// vaultOf returns the vault of a class.
func vaultOf(spc *class.SecretProviderClass) string {
	return strings.ToLower(strings.TrimSpace(spc.Spec.Parameters["keyvaultName"]))
}

// file returns the path of the object's file.
func (o *object) file() string {
	item := api.Item{Name: o.text(fieldName), Alias: o.text(fieldAlias)}
	item.History, _ = strconv.Atoi(o.text("objectVersionHistory"))
	return item.File()
}

func (o *object) text(field string) string {
	if value := o.fields[field]; value != nil {
		return fmt.Sprint(value)
	}
	return ""
}

// id returns a text that is the same for the same content.
func (o *object) id() string {
	fields := maps.Clone(o.fields)
	delete(fields, fieldAlias)
	return fmt.Sprintf("%s %s %v", o.vault, cmp.Or(o.kind, api.TypeSecret), fields)
}

// objectOfSecret returns the object of an AzureKeyVaultSecret of akv2k8s, or why there is none.
func (a *adoption) objectOfSecret(name, property string) (object, string) {
	secret := a.Secret(name)
	if secret == nil {
		return object{}, "AzureKeyVaultSecret " + name + " was not found: add its file with -f, or use --cluster"
	}
	field := func(path ...string) string {
		value, _, _ := unstructured.NestedString(secret.Object, append([]string{"spec", "vault"}, path...)...)
		return value
	}
	o := object{
		vault: strings.ToLower(field("name")), kind: field("object", "type"),
		fields: map[string]any{fieldName: field("object", "name")},
	}
	if version := field("object", "version"); version != "" {
		o.fields["objectVersion"] = strings.ToLower(version)
	}
	transforms, _, _ := unstructured.NestedSlice(secret.Object, "spec", "output", "transform")
	switch {
	case len(transforms) > 0:
		return o, "AzureKeyVaultSecret " + name + " transforms the value (spec.output.transform), which annotations cannot"
	case o.kind == multiKey && property == "":
		return o, "akv2k8s sets the variable to the whole secret of type " + multiKey + ": name a property, or read the file"
	case o.kind != api.TypeSecret && o.kind != multiKey:
		return o, "AzureKeyVaultSecret " + name + " is of type " + o.kind + ", for which akv2k8s and the Azure provider give different texts"
	}
	return o, ""
}

// item is an item of keyvault.io/secrets.
type item struct {
	object
	// source is the vault or the class of the item; empty if it is that of the request.
	source, env, property string
	containers            []string
}

// request returns the annotations for the pieces, or why there are none.
func (a *adoption) request(pieces []*piece) (annotations map[string]string, why string) {
	annotations = map[string]string{}
	var volumes []*piece
	for _, p := range pieces {
		maps.Copy(annotations, p.annotations)
		if p.kind == volumePiece {
			volumes = append(volumes, p)
		}
	}
	hasSecrets := slices.ContainsFunc(pieces, func(p *piece) bool { return p.secret != "" })
	if hasSecrets && len(volumes) > 0 && !a.managed {
		return nil, "the pod also mounts a class, and annotations name either classes or vaults; try --managed"
	}
	var list []item
	if len(volumes) > 0 {
		first := volumes[0]
		annotations[api.MountPath] = first.mountPath
		annotations[api.Containers] = strings.Join(first.containers, ",")
		if first.mountPath == api.DefaultMountPath {
			delete(annotations, api.MountPath)
		}
	}
	switch {
	case a.managed:
		list, why = a.managedItems(annotations, volumes)
	case len(volumes) > 0:
		names := make([]string, len(volumes))
		for i, p := range volumes {
			names[i] = p.class
		}
		annotations[api.Class] = strings.Join(names, ",")
		if annotations[api.IdentityMode] == "" && !a.isBound() {
			annotations[api.IdentityMode] = string(api.ModeNone) // the ServiceAccount may have an identity
		}
		list, why = a.classItems(volumes, pieces)
	}
	if why != "" {
		return nil, why
	}
	for _, p := range pieces {
		switch {
		case p.kind != envPiece:
		case p.secret == "":
			if p.fromFile {
				annotations[api.EnvSource] = "file"
			}
			list = addEnv(list, p, func(i *item) bool {
				return i.file() == p.file && (a.managed || i.source == p.class || i.source == "")
			})
		default:
			o, _ := a.objectOfSecret(p.secret, p.property)
			if o.kind == multiKey {
				o.kind = api.TypeSecret
				annotations[api.EnvSource] = "file"
			}
			if annotations[api.Vault] == "" {
				annotations[api.Vault] = o.vault
			}
			list = a.addSecret(list, o, p, annotations[api.Vault])
		}
	}
	if !a.managed && !hasSecrets {
		list = slices.DeleteFunc(list, func(i item) bool { return i.env == "" })
	}
	all := a.selected(volumes)
	for i := range list {
		slices.Sort(list[i].containers)
		if len(list[i].containers) == len(all) {
			list[i].containers = nil
		}
	}
	if len(list) > 0 {
		annotations[api.Secrets] = printItems(list)
	}
	return annotations, ""
}

// isBound reports whether the pod has a label that binds it.
func (a *adoption) isBound() bool {
	return slices.ContainsFunc(a.pieces, func(p *piece) bool { return p.kind == identityPiece && p.annotations != nil })
}

// selected returns the containers that get the volumes: all without volumes.
func (a *adoption) selected(volumes []*piece) []string {
	if len(volumes) > 0 {
		return volumes[0].containers
	}
	var names []string
	for _, c := range containers(a.pod) {
		if c.name != inject.EnvFilesName {
			names = append(names, c.name)
		}
	}
	return names
}

// classItems returns an item for each object of the classes, for the env vars.
func (a *adoption) classItems(volumes, pieces []*piece) (list []item, why string) {
	for _, p := range volumes {
		if !slices.ContainsFunc(pieces, func(e *piece) bool { return e.kind == envPiece && e.class == p.class }) {
			continue
		}
		objects, why := objectsOf(a.Class(p.class))
		if why != "" {
			return nil, why
		}
		for _, o := range objects {
			list = append(list, item{object: object{kind: o.kind, fields: o.fields}, source: p.class})
		}
	}
	for i := range list {
		twice := func(same func(other *item) bool) bool {
			n := 0
			for j := range list {
				if same(&list[j]) {
					n++
				}
			}
			return n > 1
		}
		it := &list[i]
		names := func(other *item) bool {
			return other.text(fieldName) == it.text(fieldName) || other.file() == it.text(fieldName)
		}
		file := it.file()
		short := map[string]any{fieldName: it.text(fieldName)}
		if twice(func(other *item) bool { return other.source == it.source && names(other) }) && file != it.text(fieldName) {
			short[fieldAlias] = file
		}
		if !twice(names) {
			it.source = ""
		}
		it.fields = short
		if file != it.file() { // the class knows the file by another name
			it.fields = map[string]any{fieldName: it.text(fieldName), fieldAlias: file}
		}
		it.kind = ""
	}
	return list, ""
}

// managedItems returns an item for each object of the classes, and sets the annotations of a managed
// class.
func (a *adoption) managedItems(annotations map[string]string, volumes []*piece) (list []item, why string) {
	for i, p := range volumes {
		spc := a.Class(p.class)
		objects, why := objectsOf(spc)
		if why != "" {
			return nil, why
		}
		parameters := spc.Spec.Parameters
		vault := vaultOf(spc)
		if i == 0 {
			annotations[api.Vault] = vault
			annotations[api.IdentityTenantID] = cmp.Or(parameters["tenantID"], parameters["tenantId"])
			for key, value := range map[string]string{api.IdentityClientID: parameters["clientID"], api.Cloud: parameters["cloudName"]} {
				if value != "" {
					annotations[key] = value
				}
			}
		}
		for _, o := range objects {
			it := item{object: o, source: vault}
			if vault == annotations[api.Vault] {
				it.source = ""
			}
			list = append(list, it)
		}
	}
	return list, ""
}

// addEnv sets the env var of a piece in the item of its object, or appends such an item.
func addEnv(list []item, p *piece, is func(*item) bool) []item {
	found := -1
	for i := range list {
		if !is(&list[i]) {
			continue
		}
		if list[i].env == p.name && list[i].property == p.property || list[i].env == "" {
			list[i].env, list[i].property = p.name, p.property
			list[i].containers = append(list[i].containers, p.container)
			return list
		}
		found = i
	}
	if found < 0 {
		return list
	}
	another := list[found]
	another.env, another.property, another.containers = p.name, p.property, []string{p.container}
	return append(list, another)
}

// addSecret adds the env var of an AzureKeyVaultSecret.
func (a *adoption) addSecret(list []item, o object, p *piece, vault string) []item {
	source := o.vault
	if source == vault {
		source = ""
	}
	is := func(i *item) bool { return i.id() == o.id() && i.source == source && i.property == p.property }
	if !slices.ContainsFunc(list, func(i item) bool { return is(&i) }) {
		list = append(list, item{object: o, source: source, property: p.property})
	}
	return addEnv(list, p, is)
}

// printItems returns the items: inline if that form can express them, else as a YAML list.
func printItems(list []item) string {
	lines := make([]string, len(list))
	for i := range list {
		line, ok := list[i].inline()
		if !ok {
			return printList(list)
		}
		lines[i] = line
	}
	return strings.Join(lines, ", ")
}

// inline returns the item in the inline form; ok is false if that form cannot express it.
func (i *item) inline() (line string, ok bool) {
	if len(i.containers) > 0 {
		return "", false
	}
	if i.env != "" {
		line = i.env + "="
	}
	if i.source != "" {
		line += i.source + "/"
	}
	if i.kind != "" && i.kind != api.TypeSecret {
		line += i.kind + ":"
	}
	line += i.text(fieldName)
	for name := range i.fields {
		switch name {
		case fieldName, fieldAlias, "objectVersion":
		default:
			return "", false
		}
	}
	if version := i.text("objectVersion"); version != "" {
		line += "@" + version
	}
	if i.property != "" {
		line += "#" + i.property
	}
	if alias := i.text(fieldAlias); alias != "" {
		if strings.ContainsAny(alias, ",\n# ") {
			return "", false
		}
		line += " as " + alias
	}
	return line, true
}

// printList returns the items in the structured form.
func printList(list []item) string {
	values := make([]map[string]any, len(list))
	for i, it := range list {
		fields := maps.Clone(it.fields)
		for name, value := range map[string]string{"vault": it.source, "env": it.env, "property": it.property} {
			if value != "" {
				fields[name] = value
			}
		}
		if it.kind != "" && it.kind != api.TypeSecret {
			fields[fieldType] = it.kind
		}
		if history := it.text("objectVersionHistory"); history != "" {
			fields["objectVersionHistory"], _ = strconv.Atoi(history)
		}
		if len(it.containers) > 0 {
			fields["containers"] = it.containers
		}
		values[i] = fields
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		panic(err) // strings, numbers and lists can always be printed
	}
	return string(text)
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
