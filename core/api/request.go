package api

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"unicode"

	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// Mode is how an identity is bound to a pod.
type Mode string

// The modes of identity.
const (
	// ModeAuto lets the class, the bindings and the ServiceAccounts of the namespace decide.
	ModeAuto Mode = "auto"
	// ModePodIdentity is AAD pod identity: a label that an AzureIdentityBinding selects.
	ModePodIdentity Mode = "pod-identity"
	// ModeWorkloadIdentity is Microsoft Entra Workload ID: the pod's ServiceAccount is federated.
	ModeWorkloadIdentity Mode = "workload-identity"
	// ModeIdentityBinding is workload identity through AKS's token proxy.
	ModeIdentityBinding Mode = "identity-binding"
	// ModeNone binds none.
	ModeNone Mode = "none"
)

// Modes are all modes.
var Modes = []Mode{ModeAuto, ModePodIdentity, ModeWorkloadIdentity, ModeIdentityBinding, ModeNone}

// EnvMode says which items become env vars.
type EnvMode string

// The modes of env vars.
const (
	// EnvExplicit makes env vars of the items that name one.
	EnvExplicit EnvMode = "explicit"
	// EnvAuto makes one of every secret besides.
	EnvAuto EnvMode = "auto"
)

// ConflictMode says what happens to an env var that a container sets by itself.
type ConflictMode string

// The modes of conflict.
const (
	// ConflictKeep keeps the container's own and warns.
	ConflictKeep ConflictMode = "keep"
	// ConflictFail rejects the pod.
	ConflictFail ConflictMode = "fail"
	// ConflictOverride replaces the container's own.
	ConflictOverride ConflictMode = "override"
)

// Request is what the annotations of one pod ask for, after namespace defaults and built-in defaults.
type Request struct {
	// Identity is the name to bind; empty for none by name.
	Identity string
	// Mode is how; never empty.
	Mode Mode
	// ClientID and TenantID are GUIDs; empty where the ServiceAccount or the server's flags are to say.
	ClientID, TenantID string
	// Items are the objects to mount, in the order in which they were written.
	Items []Item
	// Classes are the names of the existing SecretProviderClasses to mount; empty for managed ones.
	Classes []string
	// Vault is the Key Vault of the items that name none; empty where each names its own.
	Vault string
	// MountPath is absolute; never empty.
	MountPath string
	// Containers are those that get mounts and env vars.
	Containers Selector
	// EnvMode is never empty.
	EnvMode EnvMode
	// OnConflict is never empty.
	OnConflict ConflictMode
	// OptedOut is true where keyvault.io/inject says "false".
	OptedOut bool

	origins [numKeys]Origin
	// illegible marks the keys whose value could not be read, or may stand under a key that nobody knows.
	illegible [numKeys]bool
}

// Illegible reports whether one of keys, each of [Keys], was written in a way that can't be read: by its value, or by its own
// spelling. Whatever follows from its absence would mislead.
func (r *Request) Illegible(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		i := position(key)
		return i >= 0 && r.illegible[i]
	})
}

// OriginOf says which object the value of key, one of [Keys], was read from.
func (r *Request) OriginOf(key string) Origin {
	if i := position(key); i >= 0 {
		return r.origins[i]
	}
	return Unset
}

// AsksKeyVault reports whether the pod wants objects of a Key Vault mounted.
func (r *Request) AsksKeyVault() bool {
	return len(r.Items) > 0 || len(r.Classes) > 0
}

// AsksIdentity reports whether the pod wants an identity.
func (r *Request) AsksIdentity() bool {
	return r.Identity != "" || (r.Mode != ModeAuto && r.Mode != ModeNone) || r.AsksKeyVault()
}

// ParseRequest reads the effective annotations: the pod's own, over the namespace's defaults.
//
// Errors are the pod's mistakes, all of them, in the order of [Keys] with unknown keys before; a request that comes with
// errors is not to be acted on. Warnings are the namespace's mistakes, whose values are passed over, and keys that have no
// effect. Every one of both carries a [Reason].
func ParseRequest(a Annotations) (request Request, errs, warnings field.ErrorList) {
	p := parser{annotations: a, request: Request{
		Mode: ModeAuto, MountPath: DefaultMountPath, EnvMode: EnvExplicit, OnConflict: ConflictKeep,
	}}
	if size := totalSize(a.Pod); size > apivalidation.TotalAnnotationSizeLimitB {
		p.errs = field.ErrorList{Because(InvalidValue, field.TooLong(annotationsPath, "", apivalidation.TotalAnnotationSizeLimitB))}
		return p.request, p.errs, nil
	}
	p.errs = unknownKeys(a.Pod, false, a.podPath)
	p.markMisspelt(len(p.errs))
	for _, err := range unknownKeys(a.Namespace, true, a.namespacePath) {
		p.warn(err)
	}
	p.parse()
	return p.request, p.errs, p.warnings
}

// totalSize is the size of annotations as the API server limits it. It does so after admission, which is too late for whoever reads them
// here.
func totalSize(annotations map[string]string) int {
	size := 0
	for key, value := range annotations {
		size += len(key) + len(value)
	}
	return size
}

// parser fills in a request, key by key.
type parser struct {
	annotations    Annotations
	request        Request
	errs, warnings field.ErrorList
}

// warn turns a mistake of the namespace into a warning: it is not the pod's author's to mend.
func (p *parser) warn(err *field.Error) {
	p.warnings = append(p.warnings, Because(NamespaceDefaultInvalid, err))
}

// markMisspelt marks the keys that the unknown ones of the pod may have been meant for; if there are many, all keys.
func (p *parser) markMisspelt(unknown int) {
	if unknown == 0 {
		return
	}
	if unknown > maxUnknown {
		for i := range p.request.illegible {
			p.request.illegible[i] = true
		}
		return
	}
	for key := range p.annotations.Pod {
		if !IsOurs(key) || position(key) >= 0 || namespaceKeyKind(key) != "" {
			continue
		}
		meant := nearestKeys(key, false)
		if len(meant) == 0 {
			meant = keyNames()
		}
		for _, name := range meant {
			p.request.illegible[position(name)] = true
		}
	}
}

// read parses the effective value of a key. A mistake in the pod's annotation is an error; a mistake in the namespace's default is a
// warning, and the default is ignored.
func (p *parser) read(i int, parseValue func(r *Request, value string, fldPath *field.Path) field.ErrorList) {
	key := Keys[i].Name
	parse := func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		errs := parseValue(r, value, fldPath)
		if detail := unrendered(value); len(errs) > 0 && detail != "" && i != secrets { // which says so item by item
			errs = field.ErrorList{Because(InvalidValue, field.Invalid(fldPath, Echo(value), detail))}
		}
		return errs
	}
	if value, ok := p.annotations.Pod[key]; ok {
		if value == "" {
			p.warnEmpty(i)
			return
		}
		p.request.origins[i] = FromPod
		path := p.annotations.podPath(key)
		if strings.TrimSpace(value) == "" {
			p.request.illegible[i] = true
			p.errs = append(p.errs, Because(InvalidValue, field.Invalid(path, Echo(value), "must not be blank; an empty value unsets the namespace's default")))
			return
		}
		if errs := parse(&p.request, value, path); len(errs) > 0 {
			p.request.illegible[i] = true
			p.errs = append(p.errs, errs...)
		}
		return
	}
	value := p.annotations.Namespace[key]
	if strings.TrimSpace(value) == "" {
		return
	}
	attempt := p.request
	attempt.origins[i] = FromNamespace
	if errs := parse(&attempt, value, p.annotations.namespacePath(key)); len(errs) > 0 {
		for _, err := range errs {
			p.warn(err)
		}
		return
	}
	p.request = attempt
}

// warnEmpty warns of an empty value, which unsets a default of the namespace, if there is none.
func (p *parser) warnEmpty(i int) {
	if key := Keys[i].Name; p.annotations.Namespace[key] == "" {
		p.warnings = append(p.warnings, Because(NoEffect, field.Forbidden(p.annotations.podPath(key),
			"is empty, which unsets the namespace's default, and there is none; write a value or remove the annotation")))
	}
}

func (p *parser) parse() {
	r := &p.request
	p.read(identityName, text(func(r *Request, v string) { r.Identity = v }, checkIdentityName))
	p.read(identityMode, oneOf(Modes, func(r *Request, m Mode) { r.Mode = m }))
	p.read(identityClientID, text(func(r *Request, v string) { r.ClientID = v }, CheckGUID))
	p.read(identityTenantID, text(func(r *Request, v string) { r.TenantID = v }, CheckGUID))
	// What an item may say depends on whether there are classes; mistakes are still reported in the order of Keys.
	errsBefore := len(p.errs)
	p.read(classes, parseClasses)
	classErrs := slices.Clone(p.errs[errsBefore:])
	p.errs = p.errs[:errsBefore]
	var items []Item
	p.read(secrets, func(r *Request, value string, fldPath *field.Path) (errs field.ErrorList) {
		if items, errs = parseItems(value, fldPath, len(r.Classes) > 0 || len(classErrs) > 0); len(errs) == 0 {
			r.Items = items
		}
		return errs
	})
	p.errs = append(p.errs, classErrs...)
	p.read(vault, text(func(r *Request, v string) { r.Vault = v }, checkVault))
	p.read(mountPath, text(func(r *Request, v string) { r.MountPath = strings.TrimRight(v, `/\`) }, checkMountPath))
	p.read(containers, func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		selector, err := ParseSelector(splitList(value))
		if err != nil {
			return field.ErrorList{Because(InvalidValue, field.Invalid(fldPath, Echo(value), err.Error()))}
		}
		r.Containers = selector
		return nil
	})
	p.read(envMode, func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		errs := oneOf([]EnvMode{EnvExplicit, EnvAuto}, func(r *Request, m EnvMode) { r.EnvMode = m })(r, value, fldPath)
		if len(errs) > 0 && envLooks.MatchString(value) && !strings.EqualFold(value, string(EnvAuto)) && !strings.EqualFold(value, string(EnvExplicit)) {
			errs[0].Detail += "; an env var is part of an item: write " + Secrets + ": " + Echo(value) + "=OBJECT"
		}
		return errs
	})
	p.read(onConflict, oneOf([]ConflictMode{ConflictKeep, ConflictFail, ConflictOverride}, func(r *Request, m ConflictMode) { r.OnConflict = m }))
	p.read(injectKey, oneOf([]string{"true", "false"}, func(r *Request, v string) { r.OptedOut = v == "false" }))
	p.read(inherited, func(_ *Request, value string, fldPath *field.Path) field.ErrorList {
		return field.ErrorList{Because(InvalidValue, field.Invalid(fldPath, Echo(value),
			`is written by the injector into pod templates, as a line KEY="VALUE" for each annotation of the workload; remove it`))}
	})

	if r.origins[secrets] != Unset && len(classErrs) == 0 {
		path := p.annotations.PathOf(Secrets, r.origins[secrets])
		p.judgeItems(r.checkItems(items, path, p.errs))
	}
	p.warnWithoutEffect()
}

// judgeItems hands what is wrong with the items together to whoever wrote them. A vault that nobody names is the pod's to mend, whoever
// wrote the items: it may be the one to name it.
func (p *parser) judgeItems(errs field.ErrorList) {
	r := &p.request
	ofNamespace := r.origins[secrets] == FromNamespace
	for _, err := range errs {
		if ofNamespace && ReasonOf(err) != VaultRequired {
			p.warn(err)
			r.Items, r.origins[secrets] = nil, Unset
			continue
		}
		r.illegible[secrets] = true
		p.errs = append(p.errs, err)
	}
}

// checkItems checks items against the rest of the request and against each other, but for those that are wrong by themselves, which
// known tells.
func (r *Request) checkItems(items []Item, fldPath *field.Path, known field.ErrorList) field.ErrorList {
	var errs field.ErrorList
	wrong := make([]bool, len(items))
	for index := range items {
		prefix := ""
		if len(known) > 0 {
			prefix = fldPath.Index(index).String()
		}
		wrong[index] = slices.ContainsFunc(known, func(err *field.Error) bool { return strings.HasPrefix(err.Field, prefix) })
	}
	if len(r.Classes) > 0 {
		for index, item := range items {
			if !wrong[index] && item.VaultOrClass != "" && !slices.Contains(r.Classes, item.VaultOrClass) {
				errs = append(errs, Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(fieldVault), Echo(item.VaultOrClass),
					"must be one of the classes that "+Class+" lists, since with existing classes an item can't name a vault"+didYouMean(Nearest(item.VaultOrClass, r.Classes), r.Classes))))
			}
		}
		return errs
	}
	if err := r.requireVault(items, fldPath); err != nil {
		errs = append(errs, err)
	}
	for index, item := range items {
		if wrong[index] {
			continue
		}
		if item.Env == "" && item.EnvFor(r.EnvMode) != "" {
			if err := item.checkKey(fldPath, index); err != nil {
				errs = append(errs, err)
			}
		}
		for earlier := range index {
			if wrong[earlier] || !r.clashes(item, items[earlier]) {
				continue
			}
			errs = append(errs, Because(InvalidItem, clash(item, items[earlier], earlier, fldPath.Index(index).Child(fieldAlias))))
			break
		}
	}
	return errs
}

// clashes reports whether the file of an item can't be mounted together with that of another item.
func (r *Request) clashes(item, other Item) bool {
	a, b := item.Path(), other.Path()
	return (a == b || isBelow(a, b) || isBelow(b, a)) && strings.EqualFold(r.VaultOf(item), r.VaultOf(other))
}

func isBelow(path, folder string) bool {
	return len(path) > len(folder) && path[len(folder)] == '/' && strings.HasPrefix(path, folder)
}

// clash says why an item clashes with an earlier one.
func clash(item, other Item, earlier int, fldPath *field.Path) *field.Error {
	if item.Path() == other.Path() {
		err := field.Duplicate(fldPath, Echo(item.Path()))
		err.Detail = fmt.Sprintf("item %d is written there too; give one of them another path, by \" as PATH\" or objectAlias", earlier)
		return err
	}
	return field.Invalid(fldPath, Echo(item.Path()), fmt.Sprintf("must not be a folder where item %d is a file, nor the other way round", earlier))
}

// requireVault refuses items whose vault nobody names. One annotation mends them all, so that they are told as one mistake.
func (r *Request) requireVault(items []Item, fldPath *field.Path) *field.Error {
	isMissing := func(item Item) bool { return item.VaultOrClass == "" }
	first := slices.IndexFunc(items, isMissing)
	if first < 0 || r.Vault != "" || r.illegible[vault] {
		return nil
	}
	more := ""
	if slices.ContainsFunc(items[first+1:], isMissing) {
		more = ", here and in items after it"
	}
	return Because(VaultRequired, field.Required(fldPath.Index(first).Child(fieldVault),
		"must be known for a managed class"+more+"; set annotation "+Vault+", write VAULT/ before the object, or name a class in "+Class))
}

// VaultOf is the Key Vault that holds the item, as it was written; empty where nobody says.
func (r *Request) VaultOf(item Item) string {
	if item.VaultOrClass != "" {
		return item.VaultOrClass
	}
	return r.Vault
}

// withoutKeyVault are the keys that do nothing unless objects are mounted.
var withoutKeyVault = []int{vault, mountPath, containers, envMode, onConflict}

// warnWithoutEffect tells of what the pod's author wrote and nothing comes of.
func (p *parser) warnWithoutEffect() {
	r := &p.request
	if len(p.errs) > 0 || r.OptedOut {
		return
	}
	noEffect := func(i int, detail string) {
		if r.origins[i] == FromPod {
			p.warnings = append(p.warnings, Because(NoEffect, field.Forbidden(p.annotations.podPath(Keys[i].Name), detail)))
		}
	}
	if r.Mode == ModeNone {
		noEffect(identityName, "has no effect with "+IdentityMode+" "+string(ModeNone))
	}
	switch {
	case !r.AsksKeyVault():
		for _, i := range withoutKeyVault {
			noEffect(i, "has no effect without "+Secrets+" or "+Class)
		}
	case len(r.Classes) > 0:
		noEffect(vault, "has no effect with "+Class+": the class names its vault")
		if len(r.Items) == 0 {
			noEffect(envMode, "has no effect without "+Secrets+": a class alone is mounted, and nothing else")
			noEffect(onConflict, "has no effect without "+Secrets)
		}
	}
}

// text reads a value whose surrounding space means nothing, and check says what is wrong with it, or "".
func text(set func(*Request, string), check func(string) string) func(*Request, string, *field.Path) field.ErrorList {
	return func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		value = strings.TrimSpace(value)
		if detail := check(value); detail != "" {
			return field.ErrorList{Because(InvalidValue, field.Invalid(fldPath, Echo(value), detail))}
		}
		set(r, value)
		return nil
	}
}

// oneOf reads a value of a closed set, in exactly its spelling.
func oneOf[T ~string](values []T, set func(*Request, T)) func(*Request, string, *field.Path) field.ErrorList {
	return func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		if !slices.Contains(values, T(value)) {
			return field.ErrorList{Because(InvalidValue, field.NotSupported(fldPath, Echo(value), values))}
		}
		set(r, T(value))
		return nil
	}
}

func parseClasses(r *Request, value string, fldPath *field.Path) field.ErrorList {
	var errs field.ErrorList
	if n := strings.Count(value, ",") + 1; n > MaxClasses {
		return field.ErrorList{Because(InvalidValue, field.TooMany(fldPath, n, MaxClasses))}
	}
	names := splitList(value)
	for index, name := range names {
		switch {
		case len(validation.IsDNS1123Subdomain(name)) > 0:
			errs = append(errs, Because(InvalidValue, field.Invalid(fldPath.Index(index), Echo(name), "must be the name of a SecretProviderClass: lower case letters, digits, - and .")))
		case slices.Contains(names[:index], name):
			errs = append(errs, Because(InvalidValue, field.Duplicate(fldPath.Index(index), name)))
		}
	}
	if len(errs) == 0 {
		r.Classes = names
	}
	return errs
}

var (
	identityPattern = regexp.MustCompile(`^[0-9A-Za-z]([-_.0-9A-Za-z]*[0-9A-Za-z])?$`)
	guidPattern     = regexp.MustCompile(`^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$`)
	drivePattern    = regexp.MustCompile(`^[A-Za-z]:[/\\]`)
)

func checkIdentityName(name string) string {
	if len(name) > validation.DNS1123SubdomainMaxLength || !identityPattern.MatchString(name) {
		return "must be at most 253 letters, digits, - _ or ., with a letter or digit at both ends"
	}
	return ""
}

// CheckGUID says what is wrong with a client or tenant id, or "".
func CheckGUID(id string) string {
	if !guidPattern.MatchString(id) {
		return "must be a GUID, such as 72f988bf-86f1-41af-91ab-2d7cd011db47"
	}
	return ""
}

// NoClientID ends a sentence that asks for the client id of a ServiceAccount, whose annotation has invalid, if anything.
func NoClientID(invalid string) string {
	if invalid == "" {
		return "; add it there"
	}
	return fmt.Sprintf(", which is %q there, no GUID; correct it there", invalid)
}

// SplitGUID returns a text as the first value if it is a GUID, and as the second one if it is something else, such as a template that was not
// rendered.
func SplitGUID(text string) (guid, invalid string) {
	if text == "" || CheckGUID(text) == "" {
		return text, ""
	}
	return "", text
}

func checkVault(name string) string {
	if vaultPattern.MatchString(name) {
		return ""
	}
	return mustBeVault + cmp.Or(write(vaultOf(name), vaultPattern), "; not the vault's address")
}

// IsWindowsPath reports whether a mount path can only be one of Windows: it has a drive.
func IsWindowsPath(p string) bool {
	return drivePattern.MatchString(p)
}

// maxMountPath is Linux's PATH_MAX.
const maxMountPath = 4096

// systemFolders are those without which no container works.
var systemFolders = []string{
	"/etc", "/usr", "/bin", "/sbin", "/lib", "/lib64", "/proc", "/sys", "/dev", "/var", "/var/run/secrets",
}

func checkMountPath(p string) string {
	rest := p
	if IsWindowsPath(p) {
		rest = strings.ReplaceAll(p[2:], `\`, "/")
	}
	switch {
	case !strings.HasPrefix(rest, "/"):
		return "must be an absolute path"
	case len(rest) > maxMountPath:
		return fmt.Sprintf("must be at most %d bytes", maxMountPath)
	case strings.ContainsAny(rest, ":\\") || strings.ContainsFunc(rest, unicode.IsControl):
		return "must not contain a colon or a control character, nor a backslash without a drive"
	case strings.Trim(rest, "/") == "":
		return "must be a folder below the root"
	case slices.Contains(systemFolders, strings.TrimRight(p, "/")):
		return "must not be a system folder, which the mount would hide; write a folder below it, or " + DefaultMountPath
	case path.Clean(rest) != strings.TrimRight(rest, "/"):
		return `must not have empty, "." or ".." segments`
	}
	for segment := range strings.SplitSeq(rest, "/") {
		if strings.TrimSpace(segment) != segment {
			return "must not have space around a segment"
		}
	}
	return ""
}
