package api

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// FormatInherited is the value of the annotation [Inherited]: the request keys of annotations in the order of their names, each as a line
//
//	KEY="VALUE"
//
// with the escapes of the CEL function strings.quote, so that the match condition of the webhook configuration can build the same text. It is
// empty for no request key.
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

// escapes are the escape sequences of strings.quote (github.com/google/cel-go/ext).
const escapes = `\"abfnrtv`

// escaped are the characters that escapes stand for, in the same order.
const escaped = "\\\"\a\b\f\n\r\t\v"

var quoter = func() *strings.Replacer {
	var pairs []string
	for i := range escapes {
		pairs = append(pairs, escaped[i:i+1], `\`+escapes[i:i+1])
	}
	return strings.NewReplacer(pairs...)
}()

// ParseInherited reads the value of the annotation [Inherited]. Every key is under one of the prefixes of the contract, and none is one that
// the injector writes.
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

// unquote reads a text up to its closing quote.
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
