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
	// ModeAuto derives the mode from the class, the AzureIdentityBindings and the ServiceAccounts
	// of the namespace.
	ModeAuto Mode = "auto"
	// ModePodIdentity is AAD pod identity: the pod gets a label that an AzureIdentityBinding
	// selects.
	ModePodIdentity Mode = "pod-identity"
	// ModeWorkloadIdentity is Microsoft Entra Workload ID: the pod runs as a federated
	// ServiceAccount.
	ModeWorkloadIdentity Mode = "workload-identity"
	// ModeIdentityBinding is an AKS identity binding: workload identity through AKS's token proxy.
	ModeIdentityBinding Mode = "identity-binding"
	// ModeNone binds no identity.
	ModeNone Mode = "none"
)

// Modes are all modes.
var Modes = []Mode{ModeAuto, ModePodIdentity, ModeWorkloadIdentity, ModeIdentityBinding, ModeNone}

// EnvMode is which items become env vars.
type EnvMode string

// The modes of env vars.
const (
	// EnvExplicit sets env vars only for the items that name one.
	EnvExplicit EnvMode = "explicit"
	// EnvAuto also sets one for every other secret; see [Item.EnvFor].
	EnvAuto EnvMode = "auto"
)

// EnvSourceMode is where env vars come from.
type EnvSourceMode string

// The sources of env vars.
const (
	// EnvFromSecret is a Kubernetes Secret that the driver syncs.
	EnvFromSecret EnvSourceMode = "secret"
	// EnvFromFile is an env file in a volume of the pod, which an init container writes (KEP-3721).
	EnvFromFile EnvSourceMode = "file"
)

// Clouds are the values of [Cloud] (the Azure provider's pkg/provider/types: cloudName).
var Clouds = []string{"AzurePublicCloud", "AzureUSGovernmentCloud", "AzureChinaCloud"}

// SecretTypes are the values of [SecretType]; the first is the default.
var SecretTypes = []string{
	"Opaque", "kubernetes.io/tls", "kubernetes.io/dockerconfigjson", "kubernetes.io/basic-auth", "kubernetes.io/ssh-auth",
}

// ConflictMode is what happens if a container already sets an env var.
type ConflictMode string

// The modes of conflict.
const (
	// ConflictKeep keeps the container's own env var and warns.
	ConflictKeep ConflictMode = "keep"
	// ConflictFail rejects the pod.
	ConflictFail ConflictMode = "fail"
	// ConflictOverride replaces the container's own env var.
	ConflictOverride ConflictMode = "override"
)

// RotationMode is what happens to a workload when a mounted object gets a new version.
type RotationMode string

// The modes of rotation.
const (
	// RotationIgnore does nothing: env vars keep the value that they had when the container started.
	RotationIgnore RotationMode = "ignore"
	// RotationRestart restarts the workload if env vars or mounts by subPath use the object.
	RotationRestart RotationMode = "restart"
)

// Request is what one pod requests by annotations, after the defaults of the namespace and the
// built-in ones.
type Request struct {
	// Identity is the name of the identity to bind; empty for none.
	Identity string
	// Mode is how the identity is bound; never empty.
	Mode Mode
	// ClientID and TenantID are GUIDs; empty to use those of the ServiceAccount or the server's
	// flags.
	ClientID, TenantID string
	// Items are the objects to mount, in the order in which they were written.
	Items []Item
	// Classes are the names of the existing SecretProviderClasses to mount; empty for managed
	// classes.
	Classes []string
	// Vault is the Key Vault of the items that name none; empty for no default.
	Vault string
	// Cloud is one of [Clouds]; empty for the server's default.
	Cloud string
	// MountPath is absolute; never empty.
	MountPath string
	// Containers are those that get mounts and env vars.
	Containers Selector
	// EnvMode is never empty.
	EnvMode EnvMode
	// EnvSource is never empty.
	EnvSource EnvSourceMode
	// SecretName and SecretType are those of the Secret that a managed class syncs; SecretName is
	// empty for the name of the class, and SecretType is never empty.
	SecretName string
	SecretType string
	// OnConflict is never empty.
	OnConflict ConflictMode
	// OnRotation is never empty.
	OnRotation RotationMode
	// OptedOut is true if keyvault.io/inject is "false".
	OptedOut bool

	origins [numKeys]Origin
	// illegible is true for the keys whose value cannot be parsed, or that an unknown key may be a
	// misspelling of.
	illegible [numKeys]bool
}

// Illegible reports whether the value of one of keys is unknown, because it cannot be parsed or
// because the key may be misspelt. An error about a missing value would then be misleading.
func (r *Request) Illegible(keys ...string) bool {
	return slices.ContainsFunc(keys, func(key string) bool {
		i := position(key)
		return i >= 0 && r.illegible[i]
	})
}

// OriginOf returns the object that the value of key, one of [Keys], was read from.
func (r *Request) OriginOf(key string) Origin {
	if i := position(key); i >= 0 {
		return r.origins[i]
	}
	return Unset
}

// AsksKeyVault reports whether the pod requests a mount of Key Vault objects.
func (r *Request) AsksKeyVault() bool {
	return len(r.Items) > 0 || len(r.Classes) > 0
}

// AsksIdentity reports whether the pod requests or needs an identity.
func (r *Request) AsksIdentity() bool {
	return r.Identity != "" || (r.Mode != ModeAuto && r.Mode != ModeNone) || r.AsksKeyVault()
}

// ParseRequest parses the effective annotations: the pod's own, which override the namespace's
// defaults.
//
// Errors are all mistakes in the pod's annotations: first unknown keys, then the others in the
// order of [Keys]. If there are errors, the request must not be used to change a pod. Warnings are
// mistakes in the namespace's annotations, whose values are skipped, and keys without effect. Each
// error and warning carries its [Reason].
func ParseRequest(a Annotations) (request Request, errs, warnings field.ErrorList) {
	p := parser{annotations: a, request: Request{
		Mode: ModeAuto, MountPath: DefaultMountPath, EnvMode: EnvExplicit, EnvSource: EnvFromSecret,
		SecretType: SecretTypes[0], OnConflict: ConflictKeep, OnRotation: RotationIgnore,
	}}
	if size := totalSize(a.Pod); size > apivalidation.TotalAnnotationSizeLimitB {
		err := field.TooLong(annotationsPath, "", apivalidation.TotalAnnotationSizeLimitB)
		p.errs = field.ErrorList{Because(InvalidValue, err)}
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

// totalSize returns the size of annotations as the API server counts it. The API server checks its
// limit only after admission.
func totalSize(annotations map[string]string) int {
	size := 0
	for key, value := range annotations {
		size += len(key) + len(value)
	}
	return size
}

// parser parses a request, key by key.
type parser struct {
	annotations    Annotations
	request        Request
	errs, warnings field.ErrorList
}

// warn adds a mistake of the namespace as a warning: the author of the pod cannot correct it.
func (p *parser) warn(err *field.Error) {
	p.warnings = append(p.warnings, Because(NamespaceDefaultInvalid, err))
}

// markMisspelt marks the keys that the unknown keys of the pod may be misspellings of as illegible.
// If there are many unknown keys, it marks all keys.
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

// read parses the effective value of a key. A mistake in the pod's annotation is an error; a
// mistake in the namespace's default is a warning, and the default is ignored.
func (p *parser) read(i int, parseValue func(r *Request, value string, fldPath *field.Path) field.ErrorList) {
	key := Keys[i].Name
	parse := func(r *Request, value string, fldPath *field.Path) field.ErrorList {
		errs := parseValue(r, value, fldPath)
		if detail := unrendered(value); len(errs) > 0 && detail != "" && i != secrets { // parseItems reports it for each item
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
			p.errs = append(p.errs, Because(InvalidValue, field.Invalid(path, Echo(value),
				"must not be blank; write \"\" to unset the namespace's default")))
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
			"is empty, which unsets the namespace's default, but the namespace has none; "+
				"write a value or remove the annotation")))
	}
}

func (p *parser) parse() {
	r := &p.request
	p.read(identityName, text(func(r *Request, v string) { r.Identity = v }, checkIdentityName))
	p.read(identityMode, oneOf(Modes, func(r *Request, m Mode) { r.Mode = m }))
	p.read(identityClientID, text(func(r *Request, v string) { r.ClientID = v }, CheckGUID))
	p.read(identityTenantID, text(func(r *Request, v string) { r.TenantID = v }, CheckGUID))
	// Which fields an item may have depends on the classes; the mistakes are still reported in the
	// order of Keys.
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
	p.read(cloud, oneOf(Clouds, func(r *Request, c string) { r.Cloud = c }))
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
		isMode := strings.EqualFold(value, string(EnvAuto)) || strings.EqualFold(value, string(EnvExplicit))
		if len(errs) > 0 && envLooks.MatchString(value) && !isMode {
			errs[0].Detail += "; to set an env var, write " + Secrets + ": " + Echo(value) + "=OBJECT"
		}
		return errs
	})
	p.read(envSource, oneOf([]EnvSourceMode{EnvFromSecret, EnvFromFile}, func(r *Request, m EnvSourceMode) { r.EnvSource = m }))
	p.read(secretName, text(func(r *Request, v string) { r.SecretName = v }, checkSecretName))
	p.read(secretType, oneOf(SecretTypes, func(r *Request, t string) { r.SecretType = t }))
	conflictModes := []ConflictMode{ConflictKeep, ConflictFail, ConflictOverride}
	p.read(onConflict, oneOf(conflictModes, func(r *Request, m ConflictMode) { r.OnConflict = m }))
	rotationModes := []RotationMode{RotationIgnore, RotationRestart}
	p.read(onRotation, oneOf(rotationModes, func(r *Request, m RotationMode) { r.OnRotation = m }))
	p.read(injectKey, oneOf([]string{"true", "false"}, func(r *Request, v string) { r.OptedOut = v == "false" }))
	p.read(inherited, func(_ *Request, value string, fldPath *field.Path) field.ErrorList {
		return field.ErrorList{Because(InvalidValue, field.Invalid(fldPath, Echo(value),
			"is written by the injector into pod templates, "+
				`as a line KEY="VALUE" for each annotation of the workload; remove it`))}
	})

	if r.origins[secrets] != Unset && len(classErrs) == 0 {
		path := p.annotations.PathOf(Secrets, r.origins[secrets])
		p.addItemErrors(r.checkItems(items, path, p.errs))
	}
	p.warnWithoutEffect()
	p.warnNames()
	if window, set := p.annotations.Namespace[RestartWindow]; set {
		if _, err := ParseWindow(window); err != nil {
			p.warn(field.Invalid(p.annotations.namespacePath(RestartWindow), Echo(window), err.Error()+"; nothing is restarted"))
		}
	}
}

var (
	// shellLike matches the name of an env var that a shell could read without its dashes.
	shellLike = regexp.MustCompile(`^[A-Z][A-Z0-9_]*-[-A-Z0-9_]*$`)
	// envLike matches the path of a file that looks like the name of an env var.
	envLike = regexp.MustCompile(`^[A-Z][A-Z0-9_]{2,}$`)
)

// warnNames warns of env vars with dashes in names that otherwise look like those of a shell, and of
// paths that look like env vars, in items without an env var.
func (p *parser) warnNames() {
	r := &p.request
	if r.origins[secrets] != FromPod {
		return
	}
	for index, item := range r.Items {
		child, value, detail := "", "", ""
		switch {
		case shellLike.MatchString(item.Env):
			child, value = fieldEnv, item.Env
			detail = "has a dash, so no shell can read the variable; write " + Echo(strings.ReplaceAll(item.Env, "-", "_"))
		case envLike.MatchString(item.Alias) && item.EnvFor(r.EnvMode) == "":
			child, value = fieldAlias, item.Alias
			detail = "is the path of a file, and the item sets no env var; for an env var, write " + Echo(item.Alias+"="+item.Name)
		default:
			continue
		}
		path := p.annotations.podPath(Secrets).Index(index).Child(child)
		p.warnings = append(p.warnings, Because(InvalidItem, field.Invalid(path, Echo(value), detail)))
	}
}

// addItemErrors adds errors about the items: as warnings if the namespace's annotation has the
// items. A missing vault is always an error: the author of the pod can set it.
func (p *parser) addItemErrors(errs field.ErrorList) {
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

// checkItems checks items against the rest of the request and against each other. It skips items
// with an error in known.
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
	for index, item := range items {
		if err := r.checkSource(item, fldPath.Index(index)); err != nil && !wrong[index] {
			errs, wrong[index] = append(errs, err), true
		}
	}
	if len(r.Classes) > 0 {
		for index, item := range items {
			if !wrong[index] && item.VaultOrClass != "" && !slices.Contains(r.Classes, item.VaultOrClass) {
				detail := "must be one of the classes in " + Class + ": with existing classes, an item cannot name a vault" +
					didYouMean(Nearest(item.VaultOrClass, r.Classes), r.Classes)
				err := field.Invalid(fldPath.Index(index).Child(fieldVault), Echo(item.VaultOrClass), detail)
				errs = append(errs, Because(InvalidItem, err))
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
		if r.Syncs(item) && item.SecretKey == "" {
			if err := item.checkKey(fldPath, index); err != nil {
				errs = append(errs, err)
			}
		}
		for earlier := range index {
			if wrong[earlier] || !r.clashes(item, items[earlier]) {
				continue
			}
			err := clash(item, items[earlier], earlier, fldPath.Index(index).Child(fieldAlias))
			errs = append(errs, Because(InvalidItem, err))
			break
		}
	}
	return errs
}

// Syncs reports whether an item becomes a key of a Secret, if its class is a managed one.
func (r *Request) Syncs(item Item) bool {
	return r.SecretName != "" || r.EnvSource == EnvFromSecret && item.EnvFor(r.EnvMode) != ""
}

// checkSource checks the fields of an item that depend on where env vars come from.
func (r *Request) checkSource(item Item, fldPath *field.Path) *field.Error {
	detail, child := "", fieldProperty
	switch {
	case item.Property != "" && item.Env == "":
		detail = "must have an env var: a property is the value of one; write NAME= before the object"
	case item.Property != "" && r.EnvSource != EnvFromFile:
		detail = "must be omitted, or " + EnvSource + " must be " + string(EnvFromFile) + ": a synced Secret has whole objects"
	case item.SecretKey != "" && len(r.Classes) > 0:
		detail, child = "must be omitted: with "+Class+", the class names the key", fieldSecretKey
	case item.SecretKey != "" && !r.Syncs(item):
		detail, child = "must be omitted, or the item must become a key: set "+SecretName+", or env with "+
			EnvSource+" "+string(EnvFromSecret), fieldSecretKey
	default:
		return nil
	}
	return Because(InvalidItem, field.Forbidden(fldPath.Child(child), detail))
}

// clashes reports whether the files of two items cannot be mounted together: their paths are equal,
// or one is below the other.
func (r *Request) clashes(item, other Item) bool {
	a, b := item.Path(), other.Path()
	return (a == b || isBelow(a, b) || isBelow(b, a)) && strings.EqualFold(r.VaultOf(item), r.VaultOf(other))
}

func isBelow(path, folder string) bool {
	return len(path) > len(folder) && path[len(folder)] == '/' && strings.HasPrefix(path, folder)
}

// clash returns the error about an item that clashes with an earlier one.
func clash(item, other Item, earlier int, fldPath *field.Path) *field.Error {
	if item.Path() == other.Path() {
		err := field.Duplicate(fldPath, Echo(item.Path()))
		err.Detail = fmt.Sprintf("item %d has the same path; change one of them with \" as PATH\" or objectAlias", earlier)
		return err
	}
	detail := fmt.Sprintf("must not be above or below the path of item %d, which is a file", earlier)
	return field.Invalid(fldPath, Echo(item.Path()), detail)
}

// requireVault returns an error if any item has no vault. It is one error for all items, since one
// annotation corrects them all.
func (r *Request) requireVault(items []Item, fldPath *field.Path) *field.Error {
	isMissing := func(item Item) bool { return item.VaultOrClass == "" }
	first := slices.IndexFunc(items, isMissing)
	if first < 0 || r.Vault != "" || r.illegible[vault] {
		return nil
	}
	more := ""
	if slices.ContainsFunc(items[first+1:], isMissing) {
		more = ", here and in later items"
	}
	return Because(VaultRequired, field.Required(fldPath.Index(first).Child(fieldVault),
		"must be set for a managed class"+more+
			"; set annotation "+Vault+", write VAULT/ before the object, or name a class in "+Class))
}

// VaultOf returns the Key Vault of an item, as it was written; empty if neither the item nor the
// request names one.
func (r *Request) VaultOf(item Item) string {
	if item.VaultOrClass != "" {
		return item.VaultOrClass
	}
	return r.Vault
}

// onlyWithKeyVault are the keys that have no effect unless objects are mounted.
var onlyWithKeyVault = []int{
	vault, cloud, mountPath, containers, envMode, envSource, secretName, secretType, onConflict, onRotation,
}

// warnWithoutEffect warns of the pod's annotations that have no effect.
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
		for _, i := range onlyWithKeyVault {
			noEffect(i, "has no effect without "+Secrets+" or "+Class)
		}
	case len(r.Classes) > 0:
		noEffect(vault, "has no effect with "+Class+": the class names its vault")
		noEffect(cloud, "has no effect with "+Class+": the class has a cloudName")
		for _, i := range []int{secretName, secretType} {
			noEffect(i, "has no effect with "+Class+": the class names its Secrets")
		}
		if len(r.Items) == 0 && r.EnvMode == EnvExplicit {
			noEffect(envMode, "has no effect without "+Secrets+": the class is only mounted")
			noEffect(envSource, "has no effect without "+Secrets+" or "+Env+" "+string(EnvAuto))
			noEffect(onConflict, "has no effect without "+Secrets)
		}
	case r.SecretName == "" && r.EnvSource == EnvFromFile:
		noEffect(secretType, "has no effect without "+SecretName+": env vars come from files, so no Secret is synced")
	}
}

// text returns a parser of a value. It removes the space around the value; check returns what is
// wrong with it, or "".
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

// oneOf returns a parser of a value that must be exactly one of values.
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
		case !isObjectName(name):
			errs = append(errs, Because(InvalidValue, field.Invalid(fldPath.Index(index), Echo(name),
				"must be the name of a SecretProviderClass: lower case letters, digits, - and ."+classInstead(name))))
		case slices.Contains(names[:index], name):
			errs = append(errs, Because(InvalidValue, field.Duplicate(fldPath.Index(index), name)))
		}
	}
	if len(errs) == 0 {
		r.Classes = names
	}
	return errs
}

func checkSecretName(name string) string {
	if !isObjectName(name) {
		return "must be the name of a Secret: lower case letters, digits, - and ."
	}
	return ""
}

func isObjectName(name string) bool {
	return len(validation.IsDNS1123Subdomain(name)) == 0
}

// classInstead returns the end of a message about the name of a class, with the right form, or "".
func classInstead(name string) string {
	if names := strings.FieldsFunc(name, func(r rune) bool { return r == ';' || unicode.IsSpace(r) }); len(names) > 1 {
		for i := range names {
			if !isObjectName(names[i]) {
				return "; separate names by commas"
			}
		}
		return "; separate names by commas: write " + Echo(strings.Join(names, ","))
	}
	if namespace, class, found := strings.Cut(name, "/"); found && isObjectName(namespace) && isObjectName(class) {
		return "; a pod mounts only classes of its own namespace: write " + Echo(class)
	}
	if lower := strings.ReplaceAll(strings.ToLower(name), "_", "-"); isObjectName(lower) {
		return "; write " + Echo(lower)
	}
	return ""
}

var (
	identityPattern = regexp.MustCompile(`^[0-9A-Za-z]([-_.0-9A-Za-z]*[0-9A-Za-z])?$`)
	guidPattern     = regexp.MustCompile(`^[0-9A-Fa-f]{8}-([0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}$`)
	drivePattern    = regexp.MustCompile(`^[A-Za-z]:[/\\]`)
)

func checkIdentityName(name string) string {
	if len(name) > validation.DNS1123SubdomainMaxLength || !identityPattern.MatchString(name) {
		detail := "must be at most 253 letters, digits, - _ or ., with a letter or digit at both ends"
		if strings.Contains(name, "/") {
			detail += "; write the name of a ServiceAccount, or the spec.selector of an AzureIdentityBinding"
		}
		return detail
	}
	return ""
}

// CheckGUID returns what is wrong with a client or tenant id, or "".
func CheckGUID(id string) string {
	if !guidPattern.MatchString(id) {
		return "must be a GUID, such as 72f988bf-86f1-41af-91ab-2d7cd011db47"
	}
	return ""
}

// NoClientID returns the end of a message about a ServiceAccount without a valid client id. Its
// annotation has the value invalid, or is empty or absent.
func NoClientID(invalid string) string {
	if invalid == "" {
		return "; add the annotation"
	}
	return fmt.Sprintf("; correct its value %q, which is not a GUID", invalid)
}

// SplitGUID returns a text as guid if it is a GUID or empty, else as invalid: for example a
// template that was not rendered.
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
	return mustBeVault + cmp.Or(writeInstead(vaultOf(name), vaultPattern), ", not a URL") + setCloud(name)
}

// IsWindowsPath reports whether a mount path has a drive, and so is only valid on Windows.
func IsWindowsPath(p string) bool {
	return drivePattern.MatchString(p)
}

// maxMountPath is Linux's PATH_MAX.
const maxMountPath = 4096

// systemFolders are folders that a mount must not hide, since containers need them.
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
		return "must be an absolute path, such as " + DefaultMountPath
	case len(rest) > maxMountPath:
		return fmt.Sprintf("must be at most %d bytes", maxMountPath)
	case strings.ContainsAny(rest, ":\\") || strings.ContainsFunc(rest, unicode.IsControl):
		return "must not contain a colon, a control character, or a backslash unless the path has a drive"
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
