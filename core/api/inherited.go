package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// FormatInherited returns the value of the annotation [Inherited]: the request keys among
// annotations, sorted by name, each as a line
//
//	KEY="VALUE"
//
// with the escapes of the CEL function strings.quote, so that the match condition of the webhook
// configuration can build the same text. It is empty if there is no request key.
func FormatInherited(annotations map[string]string) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(annotations)) {
		if !IsRequestKey(key) {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(key)
		b.WriteString(`="`)
		_, _ = quoter.WriteString(&b, annotations[key]) // a builder returns no error
		b.WriteByte('"')
	}
	return b.String()
}

// escapes has the letters of the escape sequences of strings.quote (github.com/google/cel-go/ext).
const escapes = `\"abfnrtv`

// escaped has the characters that the sequences stand for, in the same order.
const escaped = "\\\"\a\b\f\n\r\t\v"

var quoter = func() *strings.Replacer {
	var pairs []string
	for i := range escapes {
		pairs = append(pairs, escaped[i:i+1], `\`+escapes[i:i+1])
	}
	return strings.NewReplacer(pairs...)
}()

// ParseInherited parses the value of the annotation [Inherited]. Every key that it returns has one
// of our prefixes, and is not one that the injector writes.
func ParseInherited(text string) (map[string]string, error) {
	annotations := map[string]string{}
	last := ""
	for number := 1; text != ""; number++ {
		key, rest, _ := strings.Cut(text, `="`)
		if !IsOurs(key) || IsWritten(key) || key <= last {
			return nil, fmt.Errorf("line %d: must start with a key that a workload can have, in the order of the keys", number)
		}
		value, rest, ok := unquote(rest)
		if !ok || (rest != "" && (rest[0] != '\n' || len(rest) == 1)) {
			return nil, fmt.Errorf("line %d: must end with a value in quotes", number)
		}
		annotations[key], last = value, key
		text = strings.TrimPrefix(rest, "\n")
	}
	return annotations, nil
}

// unquote returns the value before the closing quote, and the rest after it.
func unquote(text string) (value, rest string, ok bool) {
	var b strings.Builder
	for {
		end := strings.IndexAny(text, `"\`)
		if end < 0 {
			return "", "", false
		}
		b.WriteString(text[:end])
		if text[end] == '"' {
			return b.String(), text[end+1:], true
		}
		if end+1 == len(text) {
			return "", "", false
		}
		which := strings.IndexByte(escapes, text[end+1])
		if which < 0 {
			return "", "", false
		}
		b.WriteByte(escaped[which])
		text = text[end+2:]
	}
}
