package api

import (
	"regexp"
	"slices"
	"strings"
)

// NearPattern is a regular expression (RE2, which Go and CEL share) of the keys of labels and
// annotations that akv-injector does not read, but that a user most likely wrote for one of its
// keys: a prefix that is near [KeyVaultPrefix] or [IdentityPrefix], then a name that is near that of
// a key. It ignores case. It also matches keys with the right prefix; callers exclude those by
// [IsOurs]. The kinds of prefixes are:
//
//   - another domain, or none: keyvault.com/, keyvault.azure.com/, identity.k8s.io/, keyvault/
//   - another spelling of the words: keyvaults.io/, key-vault.io/, KeyVault.io/, identities.io/
//   - another word before or after: azure-keyvault.io/, shop.keyvault.io/, keyvault-injector.io/
//   - the name of the project: akv.io/, akv-injector.io/, akv-injector/
//   - one letter too many or too few, or wrong, or two letters swapped: keyvalt.io/, idenitty.io/
//   - another separator before the name: keyvault.io.secrets, identity.io_name
//
// The kinds of names are the same word in the singular or plural, words joined in another way
// (mountPath, mount_path), and the words of otherNames.
//
// It matches no annotation or label that the documentation of Azure's workload identity webhook, AAD
// pod identity, akv2k8s, Azure Service Operator, External Secrets, HashiCorp Vault, Bank-Vaults,
// Linkerd or the Secrets Store CSI driver names: the test has a list.
var NearPattern = `(?i)^` + nearPrefixes + `(?:` + strings.Join(patternsOf(NearNames), "|") + `)$`

var nearPrefixes = func() string {
	const (
		domain = `(?:\.(?:io|com|net|org|dev|azure(?:\.(?:com|net|io))?|microsoft\.com|windows\.net|` +
			`(?:csi\.)?k8s\.io|kubernetes\.io))`
		keyVault = `(?:[a-z0-9-]+\.)?(?:(?:azure|aks|az|akv|ms|my)[-_.]?)?key[-_.]?vaults?(?:[-_.]?(?:injector|secrets?|csi))?`
		identity = `(?:(?:azure|aks|aad|ms|my)[-_.]?)?identit(?:y|ies)(?:[-_.]?injector)?`
		project  = `akv(?:[-_.]?injector)?`
	)
	return `(?:(?:` + keyVault + `|` + identity + `|` + project + `)` + domain + `?/+` +
		`|(?:` + misspelt("keyvault") + `|` + misspelt("identity") + `)\.io/+` +
		`|(?:keyvault|identity)\.io[-_.:]+)`
}()

// misspelt returns a pattern of the word with one letter too many or too few, or wrong, or with two
// letters swapped.
func misspelt(word string) string {
	var patterns []string
	for i := range word {
		patterns = append(patterns, word[:i]+`[a-z0-9-]{0,2}`+word[i+1:])
		if i+1 < len(word) {
			patterns = append(patterns, word[:i]+word[i+1:i+2]+word[i:i+1]+word[i+2:])
		}
	}
	return strings.Join(patterns, "|")
}

// otherNames are names that users write for that of a key, and the key.
var otherNames = []NearName{
	{`vaults?[-_.]?names?`, Vault},
	{`secret[-_.]?provider[-_.]?class(?:es)?`, Class},
	{`objects?(?:[-_.]?names?)?`, Secrets},
	{`paths?`, MountPath},
	{`env[-_.]?(?:vars?|from)`, Env},
	{`service[-_.]?accounts?(?:[-_.]?names?)?`, IdentityName},
	{`injector|enabled?`, Injection},
}

// nearKeys are the keys that messages suggest.
func nearKeys() []string {
	return slices.Concat(keyNames(), NamespaceLabels[:], NamespaceAnnotations[:])
}

// NearName is a pattern of the names, without a prefix, that are near that of a key.
type NearName struct{ Pattern, Key string }

// NearNames are the names that [NearPattern] matches, in lower case. A name means the key of the
// first pattern that matches the whole of it.
var NearNames = func() []NearName {
	var names []NearName
	for _, key := range append(nearKeys(), Injected, Status, Inherited, RestartedFor) {
		_, name, _ := strings.Cut(key, "/")
		if !strings.HasSuffix(name, "ss") {
			name = strings.TrimSuffix(name, "s")
		}
		names = append(names, NearName{strings.ReplaceAll(name, "-", `[-_.]?`) + `(?:e?s)?`, key})
	}
	return append(names, otherNames...)
}()

func patternsOf(names []NearName) []string {
	var patterns []string
	for _, name := range names {
		patterns = append(patterns, name.Pattern)
	}
	return patterns
}

var (
	nearPattern = regexp.MustCompile(NearPattern)
	nearPrefix  = regexp.MustCompile(`(?i)^` + nearPrefixes)
	nearNames   = func() []*regexp.Regexp {
		var patterns []*regexp.Regexp
		for _, pattern := range patternsOf(NearNames) {
			patterns = append(patterns, regexp.MustCompile(`(?i)^(?:`+pattern+`)$`))
		}
		return patterns
	}()
)

// Near returns the keys that a user most likely meant by the key of a label or an annotation, the
// likeliest first; nil for a key that [IsOurs], or that has nothing to do with akv-injector. It
// finds what [NearPattern] matches, and names with a wrong letter, such as keyvaults.io/scerets.
func Near(key string) []string {
	if IsOurs(key) || !strings.ContainsAny(key, "/.") {
		return nil
	}
	name := key[len(nearPrefix.FindString(key)):]
	if name == key || len(name) <= shortName && !nearPattern.MatchString(key) {
		return nil
	}
	for i, pattern := range nearNames {
		if pattern.MatchString(name) && !IsWritten(NearNames[i].Key) && NearNames[i].Key != Injected {
			return []string{NearNames[i].Key}
		}
	}
	return NearestKeys(name)
}

// shortName is the length of the longest names that count as near only if [NearPattern] matches: too
// many other words are similar.
const shortName = 5

// NearestKeys returns the keys of users, those of the namespace included, that are similar to key,
// the most similar first. It compares only the parts after the prefix.
func NearestKeys(key string) []string {
	_, name, ok := strings.Cut(key, "/")
	if !ok {
		name = key
	}
	whole := map[string]string{}
	var names []string
	for _, known := range nearKeys() {
		_, short, _ := strings.Cut(known, "/")
		whole[short], names = known, append(names, short)
	}
	nearest := Nearest(name, names)
	for i := range nearest {
		nearest[i] = whole[nearest[i]]
	}
	return nearest
}
