package envfile_test

import (
	"bufio"
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/envfile"
)

const (
	quote   = "must not have a single quote: an env file has no escape for it; use keyvault.io/env-source: secret, or read the mounted file"
	cr      = "must not have a carriage return at the end of a line: the kubelet removes it; store it without"
	empty   = "must not be empty: fileKeyRef cannot set an empty variable; store a value, or remove the variable"
	binary  = "must be text, is not UTF-8 or has a NUL byte; read the mounted file instead"
	long    = "must be shorter than 128 KiB, and each line than 64 KiB, with the variable's name; read the mounted file instead"
	notJSON = "must be one JSON object, is not valid JSON"
)

func TestValues(t *testing.T) {
	many := strings.Repeat(strings.Repeat("x", 1023)+"\n", 127)
	for name, test := range map[string]struct {
		value string
		// problem is the end of the message; empty for a value that arrives byte for byte.
		problem string
	}{
		"a word":                      {"value", ""},
		"what a shell would expand":   {`$A $(A) $$ \n \ "b" # c`, ""},
		"space around":                {" \t value \t ", ""},
		"a trailing line feed":        {"value\n", ""},
		"a certificate":               {"-----BEGIN CERTIFICATE-----\nMIIB\n\n-----END CERTIFICATE-----\n", ""},
		"lines that look like others": {"\n#\nA=\n B=\n", ""},
		"a carriage return within a line and at end": {"a\rb\n\rc\r", ""},
		"text that is not ASCII":                     {"\uFEFFpässwörd\uFFFD\u2028🔑", ""},
		"a control character":                        {"\x01\x1b[0m\x7f", ""},
		"the longest line":                           {strings.Repeat("x", 64<<10-len("A=''\n")), ""},
		"a line that is too long":                    {strings.Repeat("x", 64<<10-len("A=''\n")+1), long},
		"a longest line after the first":             {"a\n" + strings.Repeat("x", 64<<10-1) + "\nb", ""},
		"a longer line after the first":              {"a\n" + strings.Repeat("x", 64<<10) + "\nb", long},
		"the longest value":                          {many + strings.Repeat("x", 1021), ""},
		"a value that is too long":                   {many + strings.Repeat("x", 1022), long},
		"an empty value":                             {"", empty},
		"a single quote":                             {"hunter'2", quote},
		"a carriage return before a line feed":       {"hunter\r\n2", cr},
		"two mistakes":                               {"hunter'\r\n2", quote + "; " + cr},
		"a NUL byte":                                 {"hunter\x002", binary},
		"Latin-1":                                    {"hunt\xe4r", binary},
		"half a character, in UTF-8":                 {"\xed\xa0\xbd", binary},
	} {
		t.Run(name, func(t *testing.T) { check(t, test.value, "", test.value, test.problem) })
	}
}

func TestProperties(t *testing.T) {
	const nested = `{"db": {"user": "sa", "password": "p\u00e4ss \ud83d\udd11\n"}, "db.user": "literal", "db.x": {"y": 1}}`
	for name, test := range map[string]struct {
		secret, property string
		// value is what the variable gets, and problem the end of the message; one is empty.
		value, problem string
	}{
		"a string":                             {`{"a":"b"}`, "a", "b", ""},
		"a nested string with escapes":         {nested, "db.password", "päss 🔑\n", ""},
		"a member with a dot comes first":      {nested, "db.user", "literal", ""},
		"a shorter name after it":              {`{"a.b":"c","a":{"b":"d"}}`, "a.b", "c", ""},
		"a shorter name twice":                 {`{"a":1,"a":2,"a.b":"c"}`, "a.b", "c", ""},
		"a name without a dot after it":        {`{"a":"b"}`, "ab", "", `must have the member ab, has "a"`},
		"a member below one with a dot":        {nested, "db.x.y", "1", ""},
		"a registry in a Docker configuration": {`{"auths":{"https://a.azurecr.io/v1/":{"auth":"x"}}}`, "auths.https://a.azurecr.io/v1/.auth", "x", ""},
		"a number keeps its digits":            {`{"a": 1e400}`, "a", "1e400", ""},
		"a large integer keeps its digits":     {`{"a":123456789012345678901234567890.10}`, "a", "123456789012345678901234567890.10", ""},
		"a boolean":                            {`{"a" : false }`, "a", "false", ""},
		"an object becomes compact":            {"{\"a\": {\"z\": [1.0, \"<\\u00e4 >\"],\n \"b\": null}}", "a", `{"z":[1.0,"<\u00e4 >"],"b":null}`, ""},
		"space and a byte order mark around":   {"\uFEFF\n{\"a\":\"b\"}\r\n", "a", "b", ""},
		"another member is there twice":        {`{"b":1,"b":2,"a":"b"}`, "a", "b", ""},
		"the member is there twice":            {`{"a":"hunter","a":"2"}`, "a", "", "must have the member a once, has it twice"},
		"null":                                 {`{"a":null}`, "a", "", "must not be null; store a value, or remove the variable"},
		"an empty string":                      {`{"a":""}`, "a", "", empty},
		"a NUL escape":                         {`{"a":"hunter\u00002"}`, "a", "", binary},
		"half a surrogate pair":                {`{"a":"\ud83d"}`, "a", "", `must be text, has a \u escape of half a character or of U+FFFD`},
		"a literal U+FFFD":                     {`{"a":"` + "\uFFFD" + `"}`, "a", "\uFFFD", ""},
		"a single quote in JSON":               {`{"a":{"b":"it's"}}`, "a", "", quote},
		"text":                                 {"hunter2", "a", "", notJSON},
		"an empty secret":                      {"", "a", "", notJSON},
		"data after the object":                {`{"a":"b"}hunter2`, "a", "", notJSON},
		"two objects":                          {`{"a":"b"}{}`, "a", "", notJSON},
		"JSON that is not UTF-8":               {"{\"a\":\"hunt\xe4r\"}", "a", "", notJSON},
		"JSON that is nested too deep":         {strings.Repeat(`{"a":`, 10001) + "1" + strings.Repeat("}", 10001), "a", "", notJSON},
		"an array":                             {`["hunter2"]`, "a", "", "must be a JSON object, is an array"},
		"a number beyond any float":            {"1e400", "a", "", "must be a JSON object, is a single value"},
		"a path into a string":                 {nested, "db.password.x", "", "member db.password: must be a JSON object, is a single value"},
		"a path into an array":                 {`{"a":[1]}`, "a.0", "", "member a: must be a JSON object, is an array"},
		"a missing member":                     {nested, "pasword.x", "", `must have the member pasword, has "db", "db.user", "db.x"`},
		"a missing nested member":              {nested, "db.pasword", "", `member db: must have the member pasword, has "user", "password"`},
		"an empty object":                      {`{}`, "a", "", "must have the member a, has no members"},
		"names of members are quoted and bounded": {
			`{"\n\u202e":1,"2":2,"` + strings.Repeat("x", 40) + `":3,"4":4,"5":5,"6":6,"7":7,"8":8,"9":9,"10":10}`, "a", "",
			`must have the member a, has "\n\u202e", "2", "` + strings.Repeat("x", 32) + `", "4", "5", "6", "7", "8", and 2 more`,
		},
		"a property that is none": {`{}`, "a..b", "", "must be a property without empty names, such as db.password"},
	} {
		t.Run(name, func(t *testing.T) { check(t, test.secret, test.property, test.value, test.problem) })
	}
}

// check renders one variable, and compares its value or the end of the message.
func check(t *testing.T, file, property, value, problem string) {
	t.Helper()
	group := envfile.Group{{Env: "A", Object: "secret a", Property: property}}
	content, problems := envfile.Render(group, func(string) ([]byte, error) { return []byte(file), nil })
	want := []string{"A='" + value + "'\n"}
	switch {
	case problem != "" && property != "":
		want = []string{"", "A: secret a, property " + property + ": " + problem}
	case problem != "":
		want = []string{"", "A: secret a: " + problem}
	}
	if diff := cmp.Diff(want, append([]string{string(content)}, problems...)); diff != "" {
		t.Errorf("content and problems (-want +got):\n%s", diff)
	}
}

func TestGroups(t *testing.T) {
	files := map[string]string{"0/a": "first", "0/b": "second\n", "0/c": `{"d":"third"}`, "0/e": ""}
	read := func(file string) ([]byte, error) {
		if content, ok := files[file]; ok {
			return []byte(content), nil
		}
		return nil, errors.New("no file")
	}
	tests := map[string]struct {
		group    envfile.Group
		content  string
		problems []string
	}{
		"variables in the order of the group": {
			group:   envfile.Group{{Env: "B-1", File: "0/b"}, {Env: "a.b", File: "0/a"}, {Env: "_C", File: "0/c", Property: "d"}},
			content: "B-1='second\n'\na.b='first'\n_C='third'\n",
		},
		"all problems and no content": {
			group: envfile.Group{
				{Env: "A", File: "0/a"},
				{Env: "X", File: "0/x", Object: "secret x"},
				{Env: "E", File: "0/e", Object: "key\ne"},
				{Env: "A", File: "0/a", Object: "secret a"},
				{Env: "#B", File: "0/b", Object: "secret b"},
				{File: "0/b", Object: "secret b"},
			},
			problems: []string{
				"X: secret x: no file",
				"E: key?e: " + empty,
				"A: secret a: must be set once, is set twice",
				`#B: secret b: must have a name of letters, digits, "_", "." and "-"`,
				`: secret b: must have a name of letters, digits, "_", "." and "-"`,
			},
		},
		"an empty group": {},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			content, problems := envfile.Render(test.group, read)
			if diff := cmp.Diff(test.content, string(content)); diff != "" {
				t.Errorf("content (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(test.problems, problems); diff != "" {
				t.Errorf("problems (-want +got):\n%s", diff)
			}
		})
	}
}

func TestParseProperty(t *testing.T) {
	for text, ok := range map[string]bool{
		"a": true, "db.password": true, "a-b_c/d:e@f+g.0": true, strings.Repeat("x", envfile.MaxProperty): true,
		strings.Repeat("x", envfile.MaxProperty+1): false, "": false, ".": false, ".a": false, "a.": false, "a..b": false,
		"a b": false, "a,b": false, "a\nb": false, "a#b": false, "$.a": false, `a\.b`: false, "a[0]": false, `"a"`: false,
		"ä": false, "a\x00": false, "a\xff": false, "a'b": false, "*": false,
	} {
		err := envfile.ParseProperty(text)
		if (err == nil) != ok {
			t.Errorf("%q: got %v", text, err)
		}
	}
}

func TestSpec(t *testing.T) {
	spec := envfile.Spec{
		{{Env: "A", File: "0/$(B)/$$", Object: "secret a"}, {Env: "B", File: `0/"b"`, Property: "c.d", Object: "<b>"}},
		{{Env: "A", File: "1/ä", Object: "key a"}},
	}
	text := spec.String()
	if strings.Contains(text, "$") {
		t.Errorf("the kubelet expands %s", text)
	}
	parsed, err := envfile.ParseSpec(text)
	if diff := cmp.Diff(spec, parsed); err != nil || diff != "" {
		t.Errorf("%v (-want +got):\n%s", err, diff)
	}
	for _, text := range []string{"", "x", "{}", "null", "[]", "[{}]", "[[]] []", `[[{"enw":"A"}]]`, `[[{"env":1}]]`} {
		if spec, err := envfile.ParseSpec(text); err == nil {
			t.Errorf("%q: got %v", text, spec)
		}
	}
	if names := envfile.FileName(0) + " " + envfile.FileName(1) + " " + envfile.FileName(10); names != "env env-1 env-10" {
		t.Errorf("got %s", names)
	}
}

// FuzzRender checks the rules of the kubelet's parser on every accepted value. It reads lines with a
// bufio.Scanner of the default size, which drops a carriage return at the end of a line. A value in
// single quotes ends at the next one.
func FuzzRender(f *testing.F) {
	f.Add("A", "value\n", "")
	f.Add("A", "a\r\nb", "")
	f.Add("A", "it's", "")
	f.Add("A.b-C", `{"a":{"b":"c"},"a.b":1e400}`, "a.b")
	f.Add("A", `{"a":"\ud83d\udd11"}`, "a")
	f.Fuzz(func(t *testing.T, env, value, property string) {
		read := func(string) ([]byte, error) { return []byte(value), nil }
		content, problems := envfile.Render(envfile.Group{{Env: env, Property: property, Object: "secret x"}}, read)
		if (content == nil) != (len(problems) == 1) {
			t.Fatalf("content %q, problems %q", content, problems)
		}
		if content == nil {
			if strings.ContainsAny(problems[0], "\r\n") || len(problems[0]) > len(env)+3*len(property)+1000 {
				t.Errorf("not a short line: %q", problems[0])
			}
			return
		}
		var lines []byte
		scanner := bufio.NewScanner(bytes.NewReader(content))
		for scanner.Scan() {
			lines = append(append(lines, scanner.Bytes()...), '\n')
		}
		if scanner.Err() != nil || !bytes.Equal(lines, content) {
			t.Errorf("the kubelet reads %q as %q: %v", content, lines, scanner.Err())
		}
		got, ok := strings.CutPrefix(string(content), env+"='")
		got, end := strings.CutSuffix(got, "'\n")
		if !ok || !end || got == "" || strings.ContainsAny(got, "'\x00") || !utf8.ValidString(got) || strings.ContainsAny(env, "= \t\r\n#") {
			t.Errorf("%q breaks a rule", content)
		}
		if property == "" && got != value {
			t.Errorf("%q became %q", value, got)
		}
	})
}
