package api

import (
	"path"
	"regexp"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// The types of object that Key Vault holds, as the Azure provider spells them.
const (
	TypeSecret = "secret"
	TypeKey    = "key"
	TypeCert   = "cert"
)

// The formats in which the Azure provider writes a certificate's secret.
const (
	FormatPEM = "pem"
	FormatPFX = "pfx"
)

// Item is one object that a pod asks for. The JSON names are the Azure provider's own, plus env, vault (in the inline form: what stands
// before the slash, with existing classes the class) and containers.
type Item struct {
	// Name is the object's name in the Key Vault. Never empty in a parsed item.
	Name string
	// Alias is the path of the file, relative to the mount; empty for the object's name.
	Alias string
	// Type is secret, key or cert; empty where it was not said: a secret, or whatever an existing class says.
	Type string
	// Version is the object's version, 32 hex digits; empty for the newest.
	Version string
	// History is how many versions are wanted beside the newest, each a file PATH/1, PATH/2, …, the newest PATH/0; 0 and 1 stand for the newest
	// alone, without suffix (upstream: getLatestNKeyVaultObjects in the Azure provider).
	History int
	// Format is pem or pfx; empty for the provider's default.
	Format string
	// Encoding is utf-8, base64 or hex; empty for the provider's default.
	Encoding string
	// Permission is the file's mode in octal; empty for the provider's default.
	Permission string
	// Env is the name of the env var to set; empty for none.
	Env string
	// VaultOrClass is the vault or, with existing classes, the class that holds the object; empty for the default one.
	VaultOrClass string
	// Containers picks among the request's containers those that get the env var.
	Containers Selector
}

// Path is the file's path relative to the mount: the alias, or else the object's name.
func (i Item) Path() string {
	if i.Alias != "" {
		return i.Alias
	}
	return i.Name
}

// File is the path of the file that holds the newest of the versions asked for: [Item.Path], or its first entry where a
// history makes it a folder (upstream: getLatestNKeyVaultObjects in the Azure provider).
func (i Item) File() string {
	if i.History > 1 {
		return i.Path() + "/0"
	}
	return i.Path()
}

// EnvFor is the env var that the item is to become under mode: its own, or with [EnvAuto] a secret's name in capitals.
func (i Item) EnvFor(mode EnvMode) string {
	if i.Env != "" || mode != EnvAuto || (i.Type != "" && i.Type != TypeSecret) {
		return i.Env
	}
	name := strings.ToUpper(strings.ReplaceAll(i.Name, "-", "_"))
	if name[0] >= '0' && name[0] <= '9' {
		return "_" + name
	}
	return name
}

// These are the forms of contract section 3; what the Azure provider itself would accept is in its pkg/provider.
var (
	vaultPattern   = regexp.MustCompile(`^[A-Za-z][0-9A-Za-z-]{2,23}$`)
	objectPattern  = regexp.MustCompile(`^[0-9A-Za-z-]{1,127}$`)
	versionPattern = regexp.MustCompile(`^[0-9A-Fa-f]{32}$`)
	modePattern    = regexp.MustCompile(`^0?[0-7]{3}$`)
	plausibleName  = regexp.MustCompile(`^[-_. 0-9A-Za-z]*$`)
	keyPattern     = regexp.MustCompile(`^[-._0-9A-Za-z/]+$`)
)

const (
	mustBeVault   = "must be 3 to 24 letters, digits or -, starting with a letter"
	mustBeObject  = "must be 1 to 127 letters, digits or -"
	mustBeVersion = "must be 32 hex digits"
	mustBeEnv     = "must be letters, digits, _, - or ., not starting with a digit or two dots"
)

// MaxEnv bounds the name of an env var, in bytes.
const MaxEnv = 253

// maxPath bounds the path of a file, in bytes: the driver takes 4,096, of which kubelet's directory is a part.
const maxPath = 1 << 10

// maxHistory bounds objectVersionHistory; every version is a request to the vault and a file.
const maxHistory = 100

// check says what is wrong with the index-th item by itself, in the order of its fields; fldPath is the whole list's.
func (i Item) check(fldPath *field.Path, index int, withClass bool) field.ErrorList {
	var errs field.ErrorList
	invalid := func(name, value, detail string) {
		errs = append(errs, Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(name), Echo(value), detail)))
	}
	unsupported := func(name, value string, supported ...string) {
		errs = append(errs, Because(InvalidItem, field.NotSupported(fldPath.Index(index).Child(name), Echo(value), supported)))
	}
	if !objectPattern.MatchString(i.Name) {
		if plausibleName.MatchString(i.Name) {
			meant := ""
			if !withClass { // whose files may have other names
				meant = strings.ReplaceAll(i.Name, "_", "-")
			}
			invalid(fieldName, i.Name, mustBeObject+write(meant, objectPattern))
		} else { // by the look of it a secret's value may have been pasted in place of its name
			errs = append(errs, Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(fieldName), field.OmitValueType{},
				mustBeObject+foreign(i.Name)+mayBeSecret)))
		}
	}
	if i.Alias != "" {
		if detail := checkFilePath(i.Alias); detail != "" {
			invalid(fieldAlias, i.Alias, detail)
		}
	}
	switch i.Type {
	case "", TypeSecret, TypeKey, TypeCert:
	default:
		unsupported(fieldType, i.Type, TypeSecret, TypeKey, TypeCert)
	}
	if i.Version != "" && !versionPattern.MatchString(i.Version) {
		invalid(fieldVersion, i.Version, mustBeVersion)
	}
	if i.History < 0 || i.History > maxHistory {
		invalid(fieldHistory, strconv.Itoa(i.History), "must be between 0 and "+strconv.Itoa(maxHistory))
	}
	secret := i.Type == "" || i.Type == TypeSecret
	switch {
	case i.Format == "", i.Format == FormatPEM, i.Format == FormatPFX && secret:
	case i.Format == FormatPFX:
		invalid(fieldFormat, i.Format, "must be pem, since only an object of type secret can be had as pfx")
	default:
		unsupported(fieldFormat, i.Format, FormatPEM, FormatPFX)
	}
	switch {
	case i.Encoding == "":
	case i.Encoding != "utf-8" && i.Encoding != "base64" && i.Encoding != "hex":
		unsupported(fieldEncoding, i.Encoding, "utf-8", "base64", "hex")
	case !secret:
		invalid(fieldEncoding, i.Encoding, "must be left out, since only an object of type secret is encoded")
	}
	switch mode := decimalModes[i.Permission]; {
	case mode != "":
		invalid(fieldPermission, i.Permission, "is "+mode+" in decimal; write it in octal and in quotes, \""+mode+"\", or with a leading 0 if it is octal")
	case i.Permission != "" && !modePattern.MatchString(i.Permission):
		invalid(fieldPermission, i.Permission, `must be an octal mode of three digits, such as "0400"`)
	}
	switch {
	case i.Env == "":
	case len(i.Env) > MaxEnv:
		invalid(fieldEnv, i.Env, "must be at most "+strconv.Itoa(MaxEnv)+" characters")
	case len(validation.IsEnvVarName(i.Env)) > 0:
		invalid(fieldEnv, i.Env, mustBeEnv)
	}
	if i.Env != "" && !withClass && (i.Alias != "" || objectPattern.MatchString(i.Name)) {
		if err := i.checkKey(fldPath, index); err != nil {
			errs = append(errs, err)
		}
	}
	if withClass {
		return append(errs, i.checkOwnedByClass(fldPath, index)...)
	}
	if i.VaultOrClass != "" && !vaultPattern.MatchString(i.VaultOrClass) {
		invalid(fieldVault, i.VaultOrClass, mustBeVault+write(vaultOf(i.VaultOrClass), vaultPattern))
	}
	return errs
}

// mayBeSecret ends a sentence about a value that a message leaves out.
const mayBeSecret = "; the value may be a secret itself and is left out here: write the name of the object, not its value" //nolint:gosec // a text about secrets

// write ends a sentence with what to write instead, if that is valid.
func write(meant string, valid *regexp.Regexp) string {
	if !valid.MatchString(meant) {
		return ""
	}
	return "; write " + meant
}

// checkKey says what is wrong with the path of an item that becomes an env var, and so a key of a Secret.
func (i Item) checkKey(fldPath *field.Path, index int) *field.Error {
	detail := ""
	switch {
	case !keyPattern.MatchString(i.Path()):
		detail = "must consist of letters, digits, - . _ and /, since an env var makes it a key of a Secret"
	case len(i.File()) > validation.DNS1123SubdomainMaxLength:
		detail = "must be shorter, since an env var makes it a key of a Secret, of at most 253 characters"
	default:
		return nil
	}
	return Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(fieldAlias), Echo(i.Path()), detail))
}

// checkOwnedByClass rejects fields of the index-th item that an existing class decides; fldPath is the whole list's.
func (i Item) checkOwnedByClass(fldPath *field.Path, index int) field.ErrorList {
	var errs field.ErrorList
	for _, f := range []struct {
		name string
		set  bool
	}{
		{fieldVersion, i.Version != ""},
		{fieldHistory, i.History != 0},
		{fieldFormat, i.Format != ""},
		{fieldEncoding, i.Encoding != ""},
		{fieldPermission, i.Permission != ""},
	} {
		if f.set {
			errs = append(errs, Because(InvalidItem, field.Forbidden(fldPath.Index(index).Child(f.name),
				"must be left out, since with "+Class+" the class decides it; change it in the class, or remove "+Class)))
		}
	}
	return errs
}

// checkFilePath says what is wrong with a file's path, or "". The Azure provider refuses ".." anywhere in a name.
func checkFilePath(p string) string {
	switch {
	case strings.HasPrefix(p, "/"):
		return "must be relative to the mount path"
	case strings.Contains(p, ".."):
		return `must not contain ".."`
	case strings.ContainsAny(p, "\\:") || strings.ContainsFunc(p, func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }):
		return `must not contain a backslash, a colon or a character that can't be printed`
	case len(p) > maxPath:
		return "must be at most " + strconv.Itoa(maxPath) + " bytes"
	case path.Clean(p) != p || p == ".":
		return `must not have an empty or "." segment`
	}
	for segment := range strings.SplitSeq(p, "/") {
		if len(segment) > 255 {
			return "must have segments of at most 255 bytes"
		}
		if strings.TrimSpace(segment) != segment {
			return "must not have space around a segment"
		}
	}
	return ""
}
