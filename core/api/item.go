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

	"github.com/akv-injector/akv-injector/core/envfile"
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

// Item is one object that a pod requests. In the structured form, the fields have the Azure
// provider's names, plus env, vault and containers.
type Item struct {
	// Name is the object's name in the Key Vault; never empty in a parsed item.
	Name string
	// Alias is the path of the file, relative to the mount; empty for the object's name.
	Alias string
	// Type is secret, key or cert; empty for the type in an existing class, or else a secret.
	Type string
	// Version is the object's version, 32 hex digits; empty for the latest.
	Version string
	// History is how many older versions are mounted in addition to the newest, 0 to 100. If it is
	// greater than 1, the files are PATH/0 (the newest) to PATH/History. If it is 0 or 1, only the
	// newest version is mounted, as PATH. With Version, no version newer than that is mounted. See
	// getLatestNKeyVaultObjects in the Azure provider.
	History int
	// Format is pem or pfx; empty for the provider's default.
	Format string
	// Encoding is utf-8, base64 or hex; empty for the provider's default.
	Encoding string
	// Permission is the file's mode in octal; empty for the provider's default.
	Permission string
	// Env is the name of the env var to set; empty for none.
	Env string
	// VaultOrClass is the vault or, with existing classes, the class of the object; empty for the
	// default.
	VaultOrClass string
	// Property is the path of a member of the object, a secret that is a JSON object; empty for the
	// whole object. See package envfile.
	Property string
	// SecretKey is the key in the synced Secret; empty for the file with / as dot.
	SecretKey string
	// Containers are those of the request's containers that get the env var.
	Containers Selector
}

// Path returns the file's path relative to the mount: the alias, or else the object's name.
func (i Item) Path() string {
	if i.Alias != "" {
		return i.Alias
	}
	return i.Name
}

// File returns the path of the file with the latest version: [Item.Path], or the first file in that
// folder if the item has a history. See getLatestNKeyVaultObjects in the Azure provider.
func (i Item) File() string {
	if i.History > 1 {
		return i.Path() + "/0"
	}
	return i.Path()
}

// EnvFor returns the name of the item's env var: [Item.Env], or with [EnvAuto] and for a secret the
// object's name in capitals. It is empty for none.
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

// What the Azure provider itself accepts is in its pkg/provider.
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

// MaxEnv is the length of the longest name of an env var, in bytes.
const MaxEnv = 253

// maxPath is the length of the longest path of a file, in bytes. The driver accepts 4,096,
// including the kubelet's directory.
const maxPath = 1 << 10

// maxHistory is the largest objectVersionHistory. Every version is a file, and a request to the
// vault.
const maxHistory = 100

// check returns the mistakes in an item, in the order of its fields. The path of the list is
// fldPath, and index is the item's.
func (i Item) check(fldPath *field.Path, index int, withClass bool) field.ErrorList {
	var errs field.ErrorList
	invalid := func(name, value, detail string) {
		errs = append(errs, Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(name), Echo(value), detail)))
	}
	unsupported := func(name, value string, supported ...string) {
		err := field.NotSupported(fldPath.Index(index).Child(name), Echo(value), supported)
		errs = append(errs, Because(InvalidItem, err))
	}
	if !objectPattern.MatchString(i.Name) {
		if plausibleName.MatchString(i.Name) {
			meant := ""
			if !withClass { // the files of a class may have other names
				meant = strings.ReplaceAll(i.Name, "_", "-")
			}
			invalid(fieldName, i.Name, mustBeObject+writeInstead(meant, objectPattern))
		} else { // the author may have pasted the secret's value in place of its name
			errs = append(errs, Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(fieldName), field.OmitValueType{},
				mustBeObject+firstNonASCII(i.Name)+mayBeSecret)))
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
		invalid(fieldFormat, i.Format, "must be pem: only an object of type secret can be mounted as pfx")
	default:
		unsupported(fieldFormat, i.Format, FormatPEM, FormatPFX)
	}
	switch {
	case i.Encoding == "":
	case i.Encoding != "utf-8" && i.Encoding != "base64" && i.Encoding != "hex":
		unsupported(fieldEncoding, i.Encoding, "utf-8", "base64", "hex")
	case !secret:
		invalid(fieldEncoding, i.Encoding, "must be omitted: only an object of type secret can have an encoding")
	}
	switch mode := decimalModes[i.Permission]; {
	case mode != "":
		invalid(fieldPermission, i.Permission,
			"is "+mode+" in decimal; write it in octal and in quotes, \""+mode+"\"; if it is octal already, add a leading 0")
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
	if i.Property != "" {
		if err := envfile.ParseProperty(i.Property); err != nil {
			invalid(fieldProperty, i.Property, err.Error())
		} else if !secret {
			invalid(fieldProperty, i.Property, "must be omitted: only an object of type secret can be a JSON object")
		}
	}
	if i.SecretKey != "" && len(validation.IsConfigMapKey(i.SecretKey)) > 0 {
		invalid(fieldSecretKey, i.SecretKey, "must be at most 253 letters, digits, -, _ and .")
	}
	if withClass {
		return append(errs, i.checkOwnedByClass(fldPath, index)...)
	}
	if i.VaultOrClass != "" && !vaultPattern.MatchString(i.VaultOrClass) {
		invalid(fieldVault, i.VaultOrClass, mustBeVault+writeInstead(vaultOf(i.VaultOrClass), vaultPattern)+setCloud(i.VaultOrClass))
	}
	return errs
}

// mayBeSecret is the end of a message without the value.
const mayBeSecret = "; the value is not shown, since it may be a secret: write the name of the object, not its value" //nolint:gosec // a text about secrets

// writeInstead returns the end of a message: what to write instead. It is empty if that would not
// be valid.
func writeInstead(meant string, valid *regexp.Regexp) string {
	if !valid.MatchString(meant) {
		return ""
	}
	return "; write " + meant
}

// checkKey checks the path of an item with an env var: the path becomes a key of a Secret. It
// returns nil if the path is valid.
func (i Item) checkKey(fldPath *field.Path, index int) *field.Error {
	detail := ""
	switch {
	case !keyPattern.MatchString(i.Path()):
		detail = "must consist of letters, digits, - . _ and /: for an env var, it becomes a key of a Secret"
	case len(i.File()) > validation.DNS1123SubdomainMaxLength:
		detail = "must be at most 253 characters: for an env var, it becomes a key of a Secret"
	default:
		return nil
	}
	return Because(InvalidItem, field.Invalid(fldPath.Index(index).Child(fieldAlias), Echo(i.Path()), detail))
}

// checkOwnedByClass returns an error for each field of an item that an existing class sets.
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
				"must be omitted: with "+Class+", the class sets it; change it in the class, or remove "+Class)))
		}
	}
	return errs
}

// checkFilePath returns what is wrong with a file's path, or "". The Azure provider rejects ".."
// anywhere in a name.
func checkFilePath(p string) string {
	unprintable := func(r rune) bool { return !unicode.IsPrint(r) || r == utf8.RuneError }
	switch {
	case strings.HasPrefix(p, "/"):
		return "must be relative to the mount path"
	case strings.Contains(p, ".."):
		return `must not contain ".."`
	case strings.ContainsAny(p, "\\:") || strings.ContainsFunc(p, unprintable):
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
