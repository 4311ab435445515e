// Package envfile renders the env files of `keyvault.io/env-source: file`. The kubelet reads them for
// valueFrom.fileKeyRef (KEP-3721). A [Spec] lists the variables of each file and the mounted objects
// that hold their values. The injector writes it into the arguments of an init container, whose
// program renders the files:
//
//	spec, err := envfile.ParseSpec(`[[{"env":"DB_PASSWORD","file":"0/db","object":"secret db of vault payments-kv"}]]`)
//	...
//	for i, group := range spec {
//		content, problems := envfile.Render(group, read) // DB_PASSWORD='...'
//		...
//		os.WriteFile(envfile.FileName(i), content, 0o400)
//	}
//
// The package neither reads nor writes files. It does not change a value to make it fit: the container
// gets each value byte for byte, or the value is rejected. The format has no escapes, and the rules
// follow ParseEnv in k8s.io/kubernetes/pkg/kubelet/util/env, which is the same in 1.35 to 1.37. The
// kubelet of 1.34, where the feature is off by default, reads another format.
package envfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

const (
	// maxLine is the longest line that the kubelet reads, including the line feed. See
	// bufio.MaxScanTokenSize. After a longer line, the kubelet finds no other variable.
	maxLine = 64 << 10
	// maxVariable is the longest NAME=value that Linux passes to a program. See MAX_ARG_STRLEN in
	// execve(2), which includes the terminating NUL.
	maxVariable = 128<<10 - 1
)

// Var is an env var and the mounted object that has its value.
type Var struct {
	// Env is the name of the variable: letters, digits, "_", "." and "-".
	Env string `json:"env"`
	// File is the path of the object's file, relative to the input folder, such as 0/tls/ca.pem.
	File string `json:"file"`
	// Property is the path of a member of the object, a secret that is a JSON object; empty for the
	// whole object. See [ParseProperty].
	Property string `json:"property,omitempty"`
	// Object describes the object in messages, such as "secret db-password of vault payments-kv".
	Object string `json:"object"`
}

// Group are the variables of one env file. Their names are unique.
type Group []Var

// Spec are the env files to write. [FileName] returns their names.
type Spec []Group

// FileName returns the name of the env file of group i, counted from 0: env, env-1, env-2 and so on.
func FileName(i int) string {
	if i == 0 {
		return "env"
	}
	return "env-" + strconv.Itoa(i)
}

// String returns the spec as JSON without "$". The kubelet expands $(NAME) and $$ in the arguments of a
// container, and a file's path may have them. [ParseSpec] reads the JSON.
func (s Spec) String() string {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // strings and slices can always be encoded
	}
	return strings.ReplaceAll(string(text), "$", `\u0024`)
}

// ParseSpec reads a spec from JSON. It does not check the variables; [Render] does. The error may
// quote the text.
func ParseSpec(text string) (Spec, error) {
	var spec Spec
	decoder := json.NewDecoder(strings.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(&spec); err != nil {
		return nil, err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("must have nothing after the list of groups")
	}
	if len(spec) == 0 {
		return nil, errors.New("must have a group")
	}
	return spec, nil
}

// Render returns the env file of a group. The function read returns the content of a file, or an error
// whose text completes "secret x: ". If the value of any variable is rejected, Render returns no
// content but a message for each such variable, in the order of the group. A message is one line. It
// names the variable, the object and the rule, and has no part of a value. It may have the names of
// members of a JSON object.
func Render(group Group, read func(file string) ([]byte, error)) (content []byte, problems []string) {
	seen := make(map[string]bool, len(group))
	for _, v := range group {
		line, err := v.line(read)
		if seen[v.Env] {
			err = errors.New("must be set once, is set twice")
		}
		seen[v.Env] = true
		if err == nil {
			content = append(content, line...)
			continue
		}
		object := v.Object
		if v.Property != "" {
			object += ", property " + v.Property
		}
		problems = append(problems, strings.Map(oneLine, v.Env+": "+object+": "+err.Error()))
	}
	if len(problems) > 0 {
		return nil, problems
	}
	return content, nil
}

func oneLine(r rune) rune {
	if unicode.IsPrint(r) {
		return r
	}
	return '?'
}

// line returns the text that sets the variable, with its line feed. The text has several lines if the
// value has.
func (v Var) line(read func(file string) ([]byte, error)) ([]byte, error) {
	if strings.Trim(v.Env, nameCharacters+".") != "" || v.Env == "" {
		return nil, errors.New(`must have a name of letters, digits, "_", "." and "-"`)
	}
	if v.Property != "" {
		if err := ParseProperty(v.Property); err != nil {
			return nil, err
		}
	}
	value, err := read(v.File)
	if err == nil && v.Property != "" {
		value, err = property(value, v.Property)
	}
	if err != nil {
		return nil, err
	}
	line := []byte(v.Env + "='")
	line = append(append(line, value...), "'\n"...)
	return line, check(value, line)
}

// check returns the rules of the format that a value breaks.
func check(value, line []byte) error {
	var broken []string
	switch {
	case len(value) == 0:
		// The kubelet takes it for a missing variable: an error, or no variable if it is optional.
		return errors.New("must not be empty: fileKeyRef cannot set an empty variable; store a value, or remove the variable")
	case !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0:
		// A program cannot receive NUL. The runtime's config.json replaces what is not UTF-8.
		return errors.New("must be text, is not UTF-8 or has a NUL byte; read the mounted file instead")
	case bytes.IndexByte(value, '\'') >= 0:
		broken = append(broken, "must not have a single quote: an env file has no escape for it; use keyvault.io/env-source: secret, "+
			"or read the mounted file")
	}
	if bytes.Contains(value, []byte("\r\n")) {
		broken = append(broken, "must not have a carriage return at the end of a line: the kubelet removes it; store it without")
	}
	tooLong := len(line)-len("''\n") > maxVariable
	for l := range bytes.Lines(line) {
		tooLong = tooLong || len(l) > maxLine
	}
	if tooLong {
		broken = append(broken, "must be shorter than 128 KiB, and each line than 64 KiB, with the variable's name; read the mounted file instead")
	}
	if len(broken) > 0 {
		return errors.New(strings.Join(broken, "; "))
	}
	return nil
}
