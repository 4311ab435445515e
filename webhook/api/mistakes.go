package api

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"
)

// maxWritten is how much of a corrected value a message has, in bytes.
const maxWritten = 256

// correct recognises what people write instead of an inline item. It returns what is wrong and the line to write, or "" if it does not know the text or
// can't correct it: whatever it returns, the parser accepts.
func correct(text string, withClass bool) string {
	var reasons []string
	because := func(before, after, reason string) string {
		if after != before {
			reasons = append(reasons, reason)
		}
		return after
	}
	ascii, lookalike := replaceLookalikes(text)
	ascii = because(text, ascii, lookalike)
	ascii = because(ascii, strings.TrimSpace(quotes.Replace(ascii)), "has quotes inside the value")
	parts := strings.FieldsFunc(ascii, func(r rune) bool { return r == ';' })
	if len(parts) > 1 || strings.HasSuffix(ascii, ";") {
		reasons = append(reasons, "has a semicolon, and items are separated by commas")
	}
	for i, part := range parts {
		part = strings.TrimSpace(part)
		part = because(part, turnArrow(part), "has an arrow")
		part = because(part, colonPattern.ReplaceAllString(part, "$1$2=$3"), "has a colon where = belongs")
		part = because(part, capitalAs.ReplaceAllString(part, " as "), "has AS in capitals")
		part = because(part, shortenAddress(part), "has the address of a vault instead of its name")
		part = because(part, replaceUnderscores(part), "names an object with _, which no object of a Key Vault has")
		item, detail := parseInlineItem(part)
		if detail != "" || slices.Contains(itemFields, item.Env) || len(item.check(itemsPath, 0, withClass)) > 0 {
			return ""
		}
		parts[i] = part
	}
	if len(reasons) == 0 || len(parts) == 0 {
		return ""
	}
	return strings.Join(reasons, " and ") + "; write " + Cut(strings.Join(parts, ", "), maxWritten)
}

var itemsPath = annotationsPath.Key(Secrets)

var (
	quotes       = strings.NewReplacer(`"`, "", `'`, "", "`", "")
	colonPattern = regexp.MustCompile(`^(?:([A-Za-z_][-.\w]*):\s+|([A-Z_][A-Z0-9_]*):)(\S+)$`)
	capitalAs    = regexp.MustCompile(`\s+(?:AS|As)\s+`)
	arrowPattern = regexp.MustCompile(`^(\S+)\s*(?:->|=>)\s*(\S+)$`)
	envLooks     = regexp.MustCompile(`^[A-Z_][A-Z0-9_]*$`)
	addressHost  = regexp.MustCompile(`(?i)\.vault\.(?:azure\.net|azure\.cn|usgovcloudapi\.net)(?::443)?/`)
	pathPattern  = regexp.MustCompile(`^/?(secrets|keys|certificates)/([^/]+)(?:/([0-9A-Fa-f]{32}))?/?$`)
)

// turnArrow turns "object -> ENV" and "ENV -> object" into an item.
func turnArrow(text string) string {
	m := arrowPattern.FindStringSubmatch(text)
	switch {
	case m == nil:
		return text
	case envLooks.MatchString(m[1]) && !envLooks.MatchString(m[2]):
		return m[1] + "=" + m[2]
	}
	return m[2] + "=" + m[1]
}

// shortenAddress replaces the address of a vault or an object by their names.
func shortenAddress(text string) string {
	env, ref := "", text
	if name, rest, found := strings.Cut(text, "="); found {
		env, ref = name+"=", rest
	}
	at := addressHost.FindStringIndex(ref)
	if at == nil {
		return text
	}
	vault, path := strings.TrimPrefix(ref[:at[0]], "https://"), ref[at[1]:]
	m := pathPattern.FindStringSubmatch(path)
	if m == nil {
		return env + vault + "/" + path
	}
	kind := map[string]string{"keys": "key:", "certificates": "cert:"}[m[1]]
	if m[3] != "" {
		m[3] = "@" + m[3]
	}
	return env + vault + "/" + kind + m[2] + m[3]
}

// replaceUnderscores replaces those in the name of an item's object.
func replaceUnderscores(text string) string {
	item, detail := parseInlineItem(text)
	if detail != "" || !strings.Contains(item.Name, "_") {
		return text
	}
	item.Name = strings.ReplaceAll(item.Name, "_", "-")
	corrected, ok := item.inline()
	if !ok {
		return text
	}
	return corrected
}

// lookalikes are characters that look like ASCII, by the one that they look like.
var lookalikes = map[rune]string{
	'\u2010': "-", '\u2011': "-", '\u2012': "-", '\u2013': "-", '\u2014': "-", '\u2015': "-", '\u2212': "-", '\ufe58': "-", '\ufe63': "-", '\uff0d': "-",
	'\u00a0': " ", '\u1680': " ", '\u2007': " ", '\u202f': " ", '\u3000': " ", '\u200b': "", '\u200c': "", '\u200d': "", '\u2060': "", '\ufeff': "", '\u00ad': "",
	'\u2018': `'`, '\u2019': `'`, '\u201c': `"`, '\u201d': `"`, '\u00ab': `"`, '\u00bb': `"`, '\uff1d': "=", '\uff0c': ",", '\uff1a': ":", '\u2192': "->",
}

// replaceLookalikes also names the first such character and its position, counted from 1.
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

// foreign names the first character of a text that is not ASCII, or is empty.
func foreign(text string) string {
	position := 0
	for _, r := range text {
		if position++; r > 127 {
			return fmt.Sprintf("; character %d is %U", position, r)
		}
	}
	return ""
}

// placeholder matches what a template has where its author wants a value.
var placeholder = regexp.MustCompile(`\{\{[^{}]*\}\}|\$\{[^{}]*\}|\$\([^()]*\)|<%[^%]*%>|<[A-Z][-_A-Z0-9]+>|__[A-Z][_A-Z0-9]*__`)

// unrendered says that a text is a template that was not rendered, or is empty. Of the text it repeats the placeholder alone.
func unrendered(text string) string {
	found := placeholder.FindString(text)
	if found == "" {
		return ""
	}
	return "has " + Echo(found) + ", which a template was to replace; render it before you apply it"
}

// correctProvider recognises the "objects" parameter of a SecretProviderClass, and returns the value to write, or "".
func correctProvider(value string) string {
	root, err := ParseYAML(value, maxMarks)
	if err != nil || root == nil || root.Kind != yaml.MappingNode || len(root.Content) != 2 || root.Content[0].Value != "array" || root.Content[1].Kind != yaml.SequenceNode {
		return ""
	}
	var items []Item
	for index, node := range root.Content[1].Content[:min(len(root.Content[1].Content), MaxItems)] {
		if node.Kind == yaml.ScalarNode {
			if node, err = ParseYAML(node.Value, maxMarks); err != nil || node == nil {
				return ""
			}
		}
		item, errs := parseStructuredItem(node, itemsPath.Index(index))
		if len(errs)+len(item.check(itemsPath, index, false)) > 0 {
			return ""
		}
		if item.Type == TypeSecret {
			item.Type = ""
		}
		items = append(items, item)
	}
	if len(items) == 0 {
		return ""
	}
	return Cut(printItems(items), maxWritten)
}

// otherFields are names that people give to fields of a structured item.
var otherFields = map[string]string{
	"name": fieldName, "object": fieldName, "secret": fieldName, "secretName": fieldName, "key": fieldName,
	"alias": fieldAlias, "path": fieldAlias, "file": fieldAlias, "fileName": fieldAlias,
	"type": fieldType, "version": fieldVersion, "format": fieldFormat, "encoding": fieldEncoding,
	"mode": fieldPermission, "permission": fieldPermission, "defaultMode": fieldPermission,
	"envVar": fieldEnv, "envName": fieldEnv, "keyvaultName": fieldVault, "vaultName": fieldVault, "keyVault": fieldVault, "container": fieldContainers,
}

// decimalModes are octal modes as a tool prints them that reads 0400 as a number: those that look like octal modes themselves.
var decimalModes = map[string]string{
	"256": "0400", "320": "0500", "360": "0550", "365": "0555", "416": "0640", "420": "0644", "432": "0660", "436": "0664", "504": "0770",
}

// vaultOf is what may be the name of a vault in its address or resource id, with - for _.
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
