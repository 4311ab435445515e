package api

import (
	"fmt"
	"iter"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"go.yaml.in/yaml/v3"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// parseItems parses the value of [Secrets] in both forms. The path of an error is fldPath and the
// item's index. If there are errors, the items have the parts that could be parsed. If there are
// more than [MaxItems], no item is returned.
func parseItems(value string, fldPath *field.Path, withClass bool) ([]Item, field.ErrorList) {
	parse := parseInline
	if isStructured(value) {
		parse = parseStructured
	}
	if first := firstLine(value); strings.HasPrefix(first, "array:") || strings.HasPrefix(first, "objects:") {
		if line := correctProvider(value, withClass); line != "" {
			return nil, field.ErrorList{Because(InvalidItem, field.Invalid(fldPath, Echo(first),
				"is the Azure provider's format, which belongs in a SecretProviderClass; write "+line))}
		}
	}
	items, errs := parse(value, fldPath, withClass)
	if len(items) == 0 && len(errs) == 0 {
		err := field.Required(fldPath, "must list at least one item, such as DB_PASSWORD=db-password")
		errs = append(errs, Because(InvalidItem, err))
	}
	return items, errs
}

// InlineItems iterates over the items of a value of [Secrets] in the inline form. It yields the
// line of each item, counted from 0, and its text. It yields nothing for a value in the structured
// form.
func InlineItems(value string) iter.Seq2[int, string] {
	return func(yield func(int, string) bool) {
		if isStructured(value) {
			return
		}
		value := value
		number := 0
		for more := true; more; number++ { // strings.Cut allocates nothing
			var line string
			if line, value, more = strings.Cut(value, "\n"); strings.HasPrefix(strings.TrimSpace(line), "#") {
				continue
			}
			for line != "" {
				var text string
				text, line, _ = strings.Cut(line, ",")
				if text = strings.TrimSpace(text); text != "" && !yield(number, text) {
					return
				}
			}
		}
	}
}

// isStructured reports whether a value is in the structured form. Its first line that is not a
// comment starts with [, { or -.
func isStructured(value string) bool {
	line := firstLine(value)
	return line != "" && strings.ContainsRune("[{-", rune(line[0]))
}

// firstLine returns the first line that is neither blank nor a comment, without the space around
// it.
func firstLine(value string) string {
	for line := range strings.SplitSeq(value, "\n") {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			return line
		}
	}
	return ""
}

func tooManyItems(fldPath *field.Path, n int) field.ErrorList {
	return field.ErrorList{Because(InvalidItem, field.TooMany(fldPath, n, MaxItems))}
}

// parseInline parses items of the form "[ENV=]ref[ as path]", separated by commas or newlines.
func parseInline(value string, fldPath *field.Path, withClass bool) ([]Item, field.ErrorList) {
	var texts []string
	n := 0
	for _, text := range InlineItems(value) {
		if n++; n <= MaxItems {
			texts = append(texts, text)
		}
	}
	if n > MaxItems {
		return nil, tooManyItems(fldPath, n)
	}
	items := make([]Item, len(texts))
	var errs field.ErrorList
	for index, text := range texts {
		item, detail := parseInlineItem(text)
		var wrong field.ErrorList
		if detail != "" {
			wrong = field.ErrorList{Because(InvalidItem, field.Invalid(fldPath.Index(index), Echo(text), detail))}
		} else {
			wrong = item.check(fldPath, index, withClass)
		}
		if len(wrong) > 0 {
			wrong = simplify(text, wrong, fldPath.Index(index), withClass)
		}
		errs, items[index] = append(errs, wrong...), item
	}
	return items, errs
}

// simplify replaces the errors of an inline item by one with the corrected item, if the mistake is
// a known one. It also hides a value that may be a secret.
func simplify(text string, wrong field.ErrorList, fldPath *field.Path, withClass bool) field.ErrorList {
	if detail := unrendered(text); detail != "" {
		return field.ErrorList{Because(InvalidItem, field.Invalid(fldPath, field.OmitValueType{}, detail))}
	}
	if detail := correct(text, withClass); detail != "" {
		return field.ErrorList{Because(InvalidItem, field.Invalid(fldPath, Echo(text), detail))}
	}
	if strings.ContainsAny(text, "\"'`;") {
		return field.ErrorList{Because(InvalidItem, field.Invalid(fldPath, field.OmitValueType{},
			"must have no quotes and no semicolon"+mayBeSecret))}
	}
	return wrong
}

var asPattern = regexp.MustCompile(`\s+as\s+`)

// parseInlineItem splits one item into its parts. Detail describes a mistake in its form, or is
// empty. The values of the parts are checked later, by the same function as those of the structured
// form.
func parseInlineItem(text string) (item Item, detail string) {
	ref := text
	if strings.ContainsAny(text, " \t") {
		if at := asPattern.FindStringIndex(text); at != nil {
			ref, item.Alias = text[:at[0]], text[at[1]:]
		}
	}
	ref, property, hasProperty := strings.Cut(ref, "#")
	if item.Property = property; hasProperty && property == "" {
		return item, "must have a property after #, such as db.password, or no #"
	}
	if strings.ContainsAny(item.Alias, " \t") {
		return item, "must have no space in its path; put a comma or a newline between items, or use the structured form"
	}
	if strings.Contains(ref, "://") {
		return item, "must have the names of the vault and the object, VAULT/OBJECT, not a URL"
	}
	if env, rest, found := strings.Cut(ref, "="); found {
		item.Env, ref = strings.TrimSpace(env), strings.TrimSpace(rest)
		if item.Env == "" {
			return item, "must have the name of an env var before =, or no ="
		}
		if vault, name, found := strings.Cut(item.Env, "/"); found {
			return item, "must have the env var first: " + Echo(name+"="+vault+"/"+ref)
		}
	}
	if strings.ContainsAny(ref, " \t") {
		item.Name = ref
		return item, "must have the form [ENV=][vault/][type:]object[@version][#property][ as path], " +
			"with a comma or a newline between items"
	}
	if source, rest, found := strings.Cut(ref, "/"); found {
		item.VaultOrClass, ref = source, rest
		if source == "" {
			return item, "must have a name before /, or no /"
		}
	}
	if kind, rest, found := strings.Cut(ref, ":"); found {
		item.Type, ref = kind, rest
		if kind == "" {
			return item, "must have secret, key or cert before :, or no :"
		}
	}
	if name, version, found := strings.Cut(ref, "@"); found {
		ref, item.Version = name, version
		if version == "" {
			return item, "must have a version of 32 hex digits after @, or no @"
		}
	}
	item.Name = ref
	return item, ""
}

// The fields of a structured item, in the order in which they are printed.
const (
	fieldName       = "objectName"
	fieldAlias      = "objectAlias"
	fieldType       = "objectType"
	fieldVersion    = "objectVersion"
	fieldHistory    = "objectVersionHistory"
	fieldFormat     = "objectFormat"
	fieldEncoding   = "objectEncoding"
	fieldPermission = "filePermission"
	fieldEnv        = "env"
	fieldVault      = "vault"
	fieldProperty   = "property"
	fieldSecretKey  = "secretKey"
	fieldContainers = "containers"
)

var itemFields = []string{
	fieldName, fieldAlias, fieldType, fieldVersion, fieldHistory, fieldFormat, fieldEncoding, fieldPermission,
	fieldEnv, fieldVault, fieldProperty, fieldSecretKey, fieldContainers,
}

// maxMarks is the limit of [CountMarks] for the structured form. A hundred items with all fields,
// each on a line, have half of it.
const maxMarks = 5_000

// maxDetail is how many bytes of a parser's error a message has.
const maxDetail = 256

// parseStructured parses a YAML or JSON list of items. It reads YAML nodes and not a struct, so
// that an unquoted 0400 keeps its text, and that every mistake is found.
func parseStructured(value string, fldPath *field.Path, withClass bool) ([]Item, field.ErrorList) {
	root, err := ParseYAML(value, maxMarks)
	if err == nil && root != nil {
		err = checkPlain(root)
	}
	if err != nil {
		detail := "must be a YAML or JSON list of items: " + OneLine(err, maxDetail)
		return nil, field.ErrorList{Because(InvalidItem, field.Invalid(fldPath, Echo(value), detail))}
	}
	if root == nil {
		return nil, nil
	}
	nodes := []*yaml.Node{root}
	if root.Kind == yaml.SequenceNode {
		nodes = root.Content
	}
	if len(nodes) > MaxItems {
		return nil, tooManyItems(fldPath, len(nodes))
	}
	var errs field.ErrorList
	items := make([]Item, 0, len(nodes))
	for index, node := range nodes {
		item, itemErrs := parseStructuredItem(node, fldPath.Index(index))
		errs = append(errs, itemErrs...)
		if node.Kind == yaml.MappingNode {
			for _, err := range item.check(fldPath, index, withClass) {
				if !slices.ContainsFunc(itemErrs, func(known *field.Error) bool { return known.Field == err.Field }) {
					errs = append(errs, err)
				}
			}
		}
		items = append(items, item)
	}
	return items, errs
}

func parseStructuredItem(node *yaml.Node, fldPath *field.Path) (Item, field.ErrorList) {
	var item Item
	if node.Kind != yaml.MappingNode {
		err := field.Invalid(fldPath, Echo(node.Value),
			"must be a mapping with objectName; write plain names without a dash, separated by commas or newlines")
		return item, field.ErrorList{Because(InvalidItem, err)}
	}
	if fields := len(node.Content) / 2; fields > 2*len(itemFields) {
		return item, field.ErrorList{Because(InvalidItem, field.TooMany(fldPath, fields, len(itemFields)))}
	}
	var errs field.ErrorList
	seen, guessed := make(map[string]bool, len(itemFields)), map[string]*yaml.Node{}
	for i := 0; i+1 < len(node.Content); i += 2 {
		name, value := node.Content[i].Value, node.Content[i+1]
		path := fldPath.Child(Echo(name))
		if seen[name] {
			errs = append(errs, Because(InvalidItem, field.Duplicate(path, field.OmitValueType{})))
			continue
		}
		seen[name] = true
		if err := item.set(name, value, path); err != nil {
			errs = append(errs, Because(InvalidItem, err))
			if meant := otherFields[name]; meant != "" {
				guessed[meant] = value
			}
		}
	}
	for meant, value := range guessed {
		if !seen[meant] && item.set(meant, value, fldPath) == nil {
			seen[meant] = true // do not also report that the field is missing
		}
	}
	if !seen[fieldName] {
		err := field.Required(fldPath.Child(fieldName), "must be the name of the object in the Key Vault")
		errs = append(errs, Because(InvalidItem, err))
	}
	return item, errs
}

// set parses one field of a structured item.
func (i *Item) set(name string, value *yaml.Node, fldPath *field.Path) *field.Error {
	text := map[string]*string{
		fieldName: &i.Name, fieldAlias: &i.Alias, fieldType: &i.Type, fieldVersion: &i.Version, fieldFormat: &i.Format,
		fieldEncoding: &i.Encoding, fieldPermission: &i.Permission, fieldEnv: &i.Env, fieldVault: &i.VaultOrClass,
		fieldProperty: &i.Property, fieldSecretKey: &i.SecretKey,
	}[name]
	switch {
	case text != nil:
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" || value.Value == "" {
			return field.Invalid(fldPath, Echo(value.Value), "must be a non-empty string")
		}
		*text = value.Value
	case name == fieldHistory:
		n, err := strconv.Atoi(value.Value)
		if err != nil || value.Kind != yaml.ScalarNode {
			return field.Invalid(fldPath, Echo(value.Value), "must be a whole number")
		}
		i.History = n
	case name == fieldContainers:
		return i.setContainers(value, fldPath)
	default:
		meant := Nearest(name, itemFields)
		if other := otherFields[name]; other != "" {
			meant = []string{other}
		}
		return field.Forbidden(fldPath, "must be a field of an item"+didYouMean(meant, itemFields))
	}
	return nil
}

func (i *Item) setContainers(list *yaml.Node, fldPath *field.Path) *field.Error {
	patterns := make([]string, 0, min(len(list.Content), maxPatterns+1))
	for _, node := range list.Content[:cap(patterns)] {
		if list.Kind == yaml.SequenceNode && node.Kind == yaml.ScalarNode && node.Tag != "!!null" {
			patterns = append(patterns, node.Value)
		}
	}
	if list.Kind != yaml.SequenceNode || len(patterns) < cap(patterns) {
		return field.Invalid(fldPath, Echo(list.Value), "must be a list of container names")
	}
	selector, err := ParseSelector(patterns)
	if err != nil {
		return field.Invalid(fldPath, Echo(strings.Join(patterns[:min(len(patterns), maxEchoed)], ",")), err.Error())
	}
	i.Containers = selector
	return nil
}

// maxEchoed is how many names of a list an error repeats.
const maxEchoed = 5

// printItems prints items so that [parseItems] returns the same items: in the inline form if it can
// express all of them, else in the structured form.
func printItems(items []Item) string {
	inline := make([]string, len(items))
	for index, item := range items {
		text, ok := item.inline()
		if !ok {
			return printStructured(items)
		}
		inline[index] = text
	}
	return strings.Join(inline, ", ")
}

// inline returns the item in the inline form, and false if that form cannot express it.
func (i Item) inline() (string, bool) {
	onlyStructured := i.History != 0 || i.Format != "" || i.Encoding != "" || i.Permission != "" || i.SecretKey != "" ||
		!i.Containers.All()
	if onlyStructured || strings.ContainsAny(i.Alias, ", \t\n") {
		return "", false
	}
	var b strings.Builder
	if i.Env != "" {
		b.WriteString(i.Env + "=")
	}
	if i.VaultOrClass != "" {
		b.WriteString(i.VaultOrClass + "/")
	}
	if i.Type != "" {
		b.WriteString(i.Type + ":")
	}
	b.WriteString(i.Name)
	if i.Version != "" {
		b.WriteString("@" + i.Version)
	}
	if i.Property != "" {
		b.WriteString("#" + i.Property)
	}
	if i.Alias != "" {
		b.WriteString(" as " + i.Alias)
	}
	text := b.String()
	return text, !strings.HasPrefix(text, "-")
}

// structuredItem is an Item in the structured form.
type structuredItem struct {
	Name         string   `json:"objectName"`
	Alias        string   `json:"objectAlias,omitzero"`
	Type         string   `json:"objectType,omitzero"`
	Version      string   `json:"objectVersion,omitzero"`
	History      int      `json:"objectVersionHistory,omitzero"`
	Format       string   `json:"objectFormat,omitzero"`
	Encoding     string   `json:"objectEncoding,omitzero"`
	Permission   string   `json:"filePermission,omitzero"`
	Env          string   `json:"env,omitzero"`
	VaultOrClass string   `json:"vault,omitzero"`
	Property     string   `json:"property,omitzero"`
	SecretKey    string   `json:"secretKey,omitzero"`
	Containers   []string `json:"containers,omitzero"`
}

func printStructured(items []Item) string {
	list := make([]structuredItem, len(items))
	for n, i := range items {
		list[n] = structuredItem{
			Name: i.Name, Alias: i.Alias, Type: i.Type, Version: i.Version, History: i.History, Format: i.Format,
			Encoding: i.Encoding, Permission: i.Permission, Env: i.Env, VaultOrClass: i.VaultOrClass, Property: i.Property, SecretKey: i.SecretKey,
			Containers: i.Containers.patterns,
		}
	}
	text, err := json.Marshal(list)
	if err != nil {
		panic(fmt.Sprintf("print items: %v", err)) // strings and numbers always have a JSON form
	}
	return string(text)
}
