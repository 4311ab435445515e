package envfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

const (
	// MaxProperty is the length of the longest property, in bytes.
	MaxProperty = 256

	nameCharacters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"

	// maxListed and maxName bound the list of members in a message: the number of members, and the
	// bytes of each name.
	maxListed = 8
	maxName   = 32
)

// ParseProperty returns an error if text is no property. A property is a path into a secret that is a
// JSON object: names of members, separated by dots, such as db.password. A name has letters, digits
// and -_/:@+ only. So a property fits into an item of keyvault.io/secrets, and the characters of
// JSONPath and of escapes are free for a later meaning. The text of the error has no part of text.
//
// A name may itself have dots: in each object, the member with the longest name that begins the rest
// of the path is taken. So tls.crt is the member "tls.crt", or else the member "crt" of "tls", and
// auths.example.azurecr.io.auth needs no quotes. A property cannot enter an array.
//
// The value of a string is its text. The value of any other member is its JSON as written, digits
// included, without the space between tokens. A null is rejected: an env var cannot express it, and
// neither an empty value nor the word null is what a program expects.
func ParseProperty(text string) error {
	switch {
	case len(text) > MaxProperty:
		return fmt.Errorf("must be a property of at most %d bytes", MaxProperty)
	case text == "" || strings.HasPrefix(text, ".") || strings.HasSuffix(text, ".") || strings.Contains(text, ".."):
		return errors.New("must be a property without empty names, such as db.password")
	case strings.ContainsFunc(text, func(r rune) bool { return !strings.ContainsRune(nameCharacters+"./:@+", r) }):
		return errors.New("must be a property of names separated by dots, such as db.password; names have letters, digits and -_/:@+")
	}
	return nil
}

var errNotJSON = errors.New("must be one JSON object, is not valid JSON")

// property returns the value of a property. The errors of encoding/json quote their input, so they are
// not used.
func property(secret []byte, path string) ([]byte, error) {
	secret = bytes.TrimPrefix(secret, []byte("\uFEFF")) // RFC 8259, section 8.1
	if !utf8.Valid(secret) || !json.Valid(secret) {
		return nil, errNotJSON
	}
	value, at := secret, ""
	for rest := path; rest != ""; {
		name, inner, err := member(value, rest)
		if err != nil && at != "" {
			err = fmt.Errorf("member %s: %w", at, err)
		}
		if err != nil {
			return nil, err
		}
		value = inner
		rest = strings.TrimPrefix(rest[len(name):], ".")
		at = strings.TrimSuffix(path[:len(path)-len(rest)], ".")
	}
	switch value[0] {
	case 'n':
		return nil, errors.New("must not be null; store a value, or remove the variable")
	case '"':
		var text string
		if json.Unmarshal(value, &text) != nil || strings.Count(text, "\uFFFD") > bytes.Count(value, []byte("\uFFFD")) {
			// encoding/json replaces half of a surrogate pair by U+FFFD.
			return nil, errors.New(`must be text, has a \u escape of half a character or of U+FFFD`)
		}
		return []byte(text), nil
	}
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return nil, errNotJSON
	}
	return compact.Bytes(), nil
}

// member returns the member with the longest name that begins path, and its value as written.
func member(object []byte, path string) (name string, value json.RawMessage, err error) {
	decoder := json.NewDecoder(bytes.NewReader(object))
	switch start, _ := decoder.Token(); start {
	case json.Delim('{'):
	case json.Delim('['):
		return "", nil, errors.New("must be a JSON object, is an array")
	default:
		return "", nil, errors.New("must be a JSON object, is a single value")
	}
	var listed []string
	members, twice := 0, false
	for ; decoder.More(); members++ {
		token, _ := decoder.Token()
		var raw json.RawMessage
		if decoder.Decode(&raw) != nil {
			return "", nil, errNotJSON
		}
		key, _ := token.(string)
		if len(listed) < maxListed {
			listed = append(listed, strconv.Quote(key[:min(len(key), maxName)]))
		}
		if strings.HasPrefix(path+".", key+".") && len(key) >= len(name) {
			twice = key == name
			name, value = key, raw
		}
	}
	first, _, _ := strings.Cut(path, ".")
	switch {
	case twice:
		return "", nil, fmt.Errorf("must have the member %s once, has it twice", name)
	case name != "":
		return name, value, nil
	case members == 0:
		return "", nil, fmt.Errorf("must have the member %s, has no members", first)
	case members > len(listed):
		listed = append(listed, fmt.Sprintf("and %d more", members-len(listed)))
	}
	return "", nil, fmt.Errorf("must have the member %s, has %s", first, strings.Join(listed, ", "))
}
