package api

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxCorrected is the length of the longest item that is corrected, in bytes. It also limits the
// message.
const maxCorrected = 256

// correct recognises common mistakes in an inline item. It returns what is wrong and the corrected
// item, which the parser accepts. It returns "" if it does not recognise the mistake, or if the
// item looks like a secret.
func correct(text string, withClass bool) string {
	if len(text) > maxCorrected {
		return ""
	}
	var reasons []string
	because := func(before, after, reason string) string {
		if after != before && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
		return after
	}
	ascii, lookalike := replaceLookalikes(text)
	ascii = because(text, ascii, lookalike)
	ascii = because(ascii, unquoted(ascii), "has quotes inside the value")
	parts := strings.FieldsFunc(ascii, func(r rune) bool { return r == ';' })
	semicolons := len(parts) > 1 || strings.HasSuffix(ascii, ";")
	if semicolons {
		reasons = append(reasons, "has a semicolon, and items are separated by commas")
	}
	for i, part := range parts {
		part = strings.TrimSpace(part)
		part = because(part, turnArrow(part), "has an arrow")
		part = because(part, turnColon(part), "has a colon in the wrong place")
		part = because(part, capitalAs.ReplaceAllString(part, " as "), "has AS in capitals")
		part = because(part, shortenAddress(part, withClass), "has the URL of a vault instead of its name"+setCloud(part))
		if !withClass { // the files of a class may have any name
			part = because(part, replaceUnderscores(part), "names an object with _, which Key Vault does not allow")
		}
		item, detail := parseInlineItem(part)
		switch {
		case detail != "", otherFields[item.Env] != "", slices.Contains(itemFields, item.Env),
			strings.Contains(item.Alias, ">"):
			return ""
		case semicolons && item.Env != "" && !envLooks.MatchString(item.Env): // such as a connection string
			return ""
		case len(item.check(itemsPath, 0, withClass)) > 0:
			return ""
		}
		parts[i] = part
	}
	if len(reasons) == 0 || len(parts) == 0 {
		return ""
	}
	return strings.Join(reasons, " and ") + "; write " + strings.Join(parts, ", ")
}

var itemsPath = annotationsPath.Key(Secrets)

var (
	quotePattern = regexp.MustCompile("^([\"'`])([^\"'`]*)([\"'`])$")
	nameInQuotes = regexp.MustCompile("^(.*=)[\"'`]([a-z0-9]+(?:-[a-z0-9]+)+)[\"'`]$")
	colonPattern = regexp.MustCompile(`^(?:([A-Za-z_][-.\w]*):\s+|([A-Z_][A-Z0-9_]*):)(\S+)$`)
	capitalAs    = regexp.MustCompile(`\s+(?:AS|As)\s+`)
	arrowPattern = regexp.MustCompile(`^([-\w]+)\s*(?:->|=>)\s*([-\w]+)$`)
	envLooks     = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)
	addressHost  = regexp.MustCompile(`(?i)\.vault\.(azure\.net|azure\.cn|usgovcloudapi\.net)(?::443)?(?:/|$)`)
	pathPattern  = regexp.MustCompile(`^(secrets|keys|certificates)/([^/]+)(?:/([0-9A-Fa-f]{32}))?/?$`)
)

// unquoted removes the quotes around an item, or around the name of an object. Other texts in
// quotes may be secrets.
func unquoted(text string) string {
	if m := quotePattern.FindStringSubmatch(text); m != nil && m[1] == m[3] {
		return m[2]
	}
	if nameInQuotes.MatchString(text) {
		return nameInQuotes.ReplaceAllString(text, "$1$2")
	}
	if strings.Count(text, `"`) > 1 {
		return text
	}
	return strings.Trim(text, `"`) // the first or last item of a list in quotes
}

// turnArrow turns "object -> ENV" and "ENV -> object" into an item.
func turnArrow(text string) string {
	m := arrowPattern.FindStringSubmatch(text)
	switch {
	case m == nil:
		return text
	case envLooks.MatchString(m[1]) && !envLooks.MatchString(m[2]):
		return m[1] + "=" + m[2]
	case envLooks.MatchString(m[2]):
		return m[2] + "=" + m[1]
	}
	return text
}

// turnColon turns "ENV: object" into an item, and removes the space between a type and its object.
func turnColon(text string) string {
	m := colonPattern.FindStringSubmatch(text)
	if m == nil {
		return text
	}
	switch name := m[1] + m[2]; name {
	case TypeSecret, TypeKey, TypeCert:
		return name + ":" + m[3]
	case "class", "vault", "secrets":
		return text
	default:
		return name + "=" + m[3]
	}
}

// shortenAddress replaces the URL of a vault or an object by the names of the vault and the object;
// with existing classes, by the name of the object.
func shortenAddress(text string, withClass bool) string {
	env, ref := "", text
	if name, rest, found := strings.Cut(text, "="); found && !strings.Contains(name, "/") {
		env, ref = name+"=", rest
	}
	ref, alias, found := strings.Cut(ref, " as ")
	if found {
		alias = " as " + alias
	}
	at := addressHost.FindStringIndex(ref)
	if at == nil {
		return text
	}
	vault, path := strings.TrimPrefix(ref[:at[0]], "https://")+"/", ref[at[1]:]
	if withClass {
		vault = ""
	}
	path, _, _ = strings.Cut(path, "?")
	m := pathPattern.FindStringSubmatch(path)
	switch {
	case m == nil && slices.Contains([]string{"secrets", "keys", "certificates"}, strings.TrimSuffix(path, "/")):
		return text
	case m == nil:
		return env + vault + path + alias
	}
	kind := map[string]string{"keys": "key:", "certificates": "cert:"}[m[1]]
	if m[3] != "" && !withClass {
		m[3] = "@" + m[3]
	} else {
		m[3] = ""
	}
	return env + vault + kind + m[2] + m[3] + alias
}

// setCloud returns the end of a message about the host of a vault that is not in the public cloud.
func setCloud(text string) string {
	cloud := ""
	if m := addressHost.FindStringSubmatch(text); m != nil {
		cloud = map[string]string{"azure.cn": "AzureChinaCloud", "usgovcloudapi.net": "AzureUSGovernmentCloud"}[strings.ToLower(m[1])]
	}
	if cloud == "" {
		return ""
	}
	return ", which needs " + Cloud + ": " + cloud
}

// replaceUnderscores replaces each _ in the name of an item's object by -, unless the text does not
// look like a name.
func replaceUnderscores(text string) string {
	item, detail := parseInlineItem(text)
	if detail != "" || !strings.Contains(item.Name, "_") || item.Name != strings.ToLower(item.Name) {
		return text
	}
	item.Name = strings.ReplaceAll(item.Name, "_", "-")
	corrected, ok := item.inline()
	if !ok {
		return text
	}
	return corrected
}

// lookalikes maps characters that look like ASCII to the ASCII characters that they look like.
var lookalikes = map[rune]string{
	'\u2010': "-", '\u2011': "-", '\u2012': "-", '\u2013': "-", '\u2014': "-",
	'\u2015': "-", '\u2212': "-", '\ufe58': "-", '\ufe63': "-", '\uff0d': "-",
	'\u00a0': " ", '\u1680': " ", '\u2007': " ", '\u202f': " ", '\u3000': " ",
	'\u200b': "", '\u200c': "", '\u200d': "", '\u2060': "", '\ufeff': "", '\u00ad': "",
	'\u2018': `'`, '\u2019': `'`, '\u201c': `"`, '\u201d': `"`, '\u00ab': `"`, '\u00bb': `"`,
	'\uff1d': "=", '\uff0c': ",", '\uff1a': ":", '\u2192': "->",
}

// replaceLookalikes returns the text with ASCII characters. The reason names the first replaced
// character and its position, counted from 1; it is empty if there is none.
func replaceLookalikes(text string) (ascii, reason string) {
	var b strings.Builder
	position := 0
	for _, r := range text {
		position++
		like, ok := lookalikes[r]
		if !ok {
			b.WriteRune(r)
			continue
		}
		b.WriteString(like)
		if reason == "" {
			reason = fmt.Sprintf("has %U at character %d, which only looks like ASCII", r, position)
		}
	}
	return b.String(), reason
}

// firstNonASCII returns the end of a message that names the first character that is not ASCII, or
// "".
func firstNonASCII(text string) string {
	position := 0
	for _, r := range text {
		if position++; r > 127 {
			return fmt.Sprintf("; character %d is %U", position, r)
		}
	}
	return ""
}

// placeholder matches a placeholder of a template. A message repeats only those that plain matches:
// they hold a name and no value.
var (
	placeholder = regexp.MustCompile(`\{\{[^{}]*\}\}|\$\{[^{}]*\}|\$\([^()]*\)|<%[^%]*%>|<[A-Z][-_A-Z0-9]+>|__[A-Z][_A-Z0-9]*__`)
	plain       = regexp.MustCompile(`^(?:\{\{-?\s*[.$][.\w]+\s*-?\}\}|\$[{(][A-Za-z_]\w*[})]|<[A-Z][-_A-Z0-9]+>|__[A-Z][_A-Z0-9]*__)$`)
)

// unrendered returns a message if a text has a placeholder of a template, else "". Of the text it
// repeats only the placeholder.
func unrendered(text string) string {
	found := placeholder.FindString(text)
	switch {
	case found == "":
		return ""
	case !plain.MatchString(found) || len(found) > maxEcho:
		found = "a placeholder"
	}
	return "has " + found + ", which was not replaced; render the template before you apply it"
}

// correctProvider recognises the parameter "objects" of a SecretProviderClass. It returns the value
// to write instead, or "".
func correctProvider(value string, withClass bool) string {
	root, err := ParseYAML(value, maxMarks)
	if err != nil || root == nil || root.Kind != yaml.MappingNode || len(root.Content) != 2 {
		return ""
	}
	list := root.Content[1]
	switch name := root.Content[0].Value; {
	case name == "objects" && list.Kind == yaml.ScalarNode:
		return correctProvider(list.Value, withClass)
	case name != "array" || list.Kind != yaml.SequenceNode || len(list.Content) == 0 || len(list.Content) > MaxItems:
		return ""
	}
	items := make([]Item, len(list.Content))
	for index, node := range list.Content {
		if node.Kind == yaml.ScalarNode {
			if node, err = ParseYAML(node.Value, maxMarks); err != nil || node == nil {
				return ""
			}
		}
		item, errs := parseStructuredItem(withoutEmpty(node), itemsPath.Index(index))
		if len(errs) > 0 {
			return ""
		}
		if withClass {
			item = Item{Name: item.Path()}
		}
		if item.Type == TypeSecret {
			item.Type = ""
		}
		if len(item.check(itemsPath, index, withClass)) > 0 {
			return ""
		}
		items[index] = item
	}
	if text := printItems(items); len(text) <= maxCorrected {
		return text
	}
	return "its objects as items, the first as " + Cut(printItems(items[:1]), maxCorrected)
}

// withoutEmpty returns a mapping without its empty fields. To the provider, an empty field is the
// same as no field.
func withoutEmpty(mapping *yaml.Node) *yaml.Node {
	if mapping.Kind != yaml.MappingNode {
		return mapping
	}
	kept := *mapping
	kept.Content = nil
	for i := 0; i+1 < len(mapping.Content); i += 2 {
		if value := mapping.Content[i+1]; value.Kind != yaml.ScalarNode || value.Value != "" {
			kept.Content = append(kept.Content, mapping.Content[i], value)
		}
	}
	return &kept
}

// otherFields maps common mistakes in the names of fields to the fields of a structured item.
var otherFields = map[string]string{
	"name": fieldName, "object": fieldName, "secret": fieldName, "secretName": fieldName, "key": fieldName,
	"alias": fieldAlias, "path": fieldAlias, "file": fieldAlias, "fileName": fieldAlias,
	"type": fieldType, "version": fieldVersion, "format": fieldFormat, "encoding": fieldEncoding,
	"mode": fieldPermission, "permission": fieldPermission, "defaultMode": fieldPermission,
	"envVar": fieldEnv, "envName": fieldEnv,
	"keyvaultName": fieldVault, "vaultName": fieldVault, "keyVault": fieldVault,
	"container": fieldContainers,
}

// decimalModes maps decimal numbers to file modes: a YAML tool may read 0400 as an octal number and
// print it in decimal. It has only those that look like octal modes.
var decimalModes = map[string]string{
	"256": "0400", "320": "0500", "360": "0550", "365": "0555", "416": "0640",
	"420": "0644", "432": "0660", "436": "0664", "504": "0770", "511": "0777",
}

// vaultOf returns what may be the name of the vault in a URL or resource id, with each _ replaced
// by -.
func vaultOf(text string) string {
	name := text
	if _, host, found := strings.Cut(text, "://"); found {
		name, _, _ = strings.Cut(host, "/")
	} else if at := strings.LastIndex(text, "/vaults/"); at >= 0 {
		name, _, _ = strings.Cut(text[at+len("/vaults/"):], "/")
	}
	name, _, _ = strings.Cut(name, ".")
	return strings.ReplaceAll(name, "_", "-")
}
