package jsonstream_test

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/core/jsonstream"
)

// limit is the limit of strings in these tests.
const limit = 16

// node is a JSON value with everything that a Reader can keep.
type node struct {
	Text    string           `json:"text"`
	Flag    bool             `json:"flag"`
	Number  int64            `json:"number"`
	Members map[string]*node `json:"members"`
	List    []node           `json:"list"`
}

func (n *node) read(r *jsonstream.Reader) {
	for name := range r.Members {
		switch string(name) {
		case "text":
			n.Text = r.Text(limit)
		case "flag":
			n.Flag = r.Bool()
		case "number":
			n.Number = r.Int()
		case "members":
			n.Members = nil
			for name := range r.Members {
				if n.Members == nil {
					n.Members = map[string]*node{}
				}
				child := new(node)
				n.Members[string(name)] = child
				child.read(r)
			}
		case "list":
			n.List = jsonstream.List(r, (*node).read)
		default:
			r.Skip()
		}
	}
}

func read(text io.Reader) (node, error) {
	var r jsonstream.Reader
	var n node
	r.Reset(text, 1<<20)
	n.read(&r)
	return n, r.Close()
}

func TestReader(t *testing.T) {
	for behaviour, test := range map[string]struct{ text, want string }{
		"space anywhere":              {" {\t\"text\" :\n\"a\" , \"number\":\r-12 } \n", `{"text":"a","number":-12}`},
		"an empty object":             {`{}`, `{}`},
		"empty members and elements":  {`{"members":{},"list":[]}`, `{}`},
		"nulls":                       {`{"text":null,"flag":null,"number":null,"members":null,"list":null,"other":null}`, `{}`},
		"a null instead of an object": {`null`, `{}`},
		"members and elements":        {`{"members":{"a":{"flag":true},"b":{}},"list":[{"text":"x"},{},{"flag":false}]}`, `{"members":{"a":{"flag":true},"b":{}},"list":[{"text":"x"},{},{}]}`},
		"skipped members":             {`{"a":[{"text":"no"},"}]\"",-1e5,true,[[]]],"b":{"text":{"c":"\\"}},"text":"yes","d":"\\\"","e":1}`, `{"text":"yes"}`},
		"escapes":                     {`{"\u0074ext":"a\n\u00e9\ud83d\ude00\/"}`, `{"text":"a\né😀/"}`},
		"the longest text":            {`{"text":"0123456789abcdef"}`, `{"text":"0123456789abcdef"}`},
		"a text that is too long":     {`{"text":"0123456789abcdefg"}`, `{"text":"0123456789abc…"}`},
		"no character is cut in two":  {`{"text":"0123456789abéfgh"}`, `{"text":"0123456789ab…"}`},
		"escapes that are cut":        {`{"text":"` + strings.Repeat(`\ud83d\ude00`, 50) + `"}`, `{"text":"😀😀😀…"}`},
		"the last of duplicate names": {`{"text":"a","list":[{"flag":true}],"text":"b","list":[]}`, `{"text":"b"}`},
	} {
		t.Run(behaviour, func(t *testing.T) {
			var want node
			if err := json.Unmarshal([]byte(test.want), &want); err != nil {
				t.Fatal(err)
			}
			for how, source := range map[string]io.Reader{
				"whole": strings.NewReader(test.text), "byte by byte": iotest.OneByteReader(strings.NewReader(test.text)),
			} {
				got, err := read(source)
				if err != nil {
					t.Fatalf("%s: %v", how, err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s (-want +got):\n%s", how, diff)
				}
			}
		})
	}
}

func TestReaderErrors(t *testing.T) {
	for text, want := range map[string]string{
		``:                                   "unexpected EOF",
		`{`:                                  "unexpected EOF",
		`{"text":"a"`:                        "text: unexpected EOF",
		`{"text":"a`:                         "text: unexpected EOF",
		`{"other":[{"a":"b"}`:                "other: unexpected EOF",
		"{}\x00":                             "must be JSON",
		`[]`:                                 "must be an object",
		`{"text":1}`:                         "text: must be a string",
		`{"list":{}}`:                        "list: must be an array",
		`{"list":[{},{"members":{"a":[]}}]}`: "list[1].members.a: must be an object",
		`{"flag":"true"}`:                    "flag: must be a boolean",
		`{"flag":tru}`:                       "flag: must be JSON",
		`{"number":1.5}`:                     "number: must be JSON",
		`{"number":"1"}`:                     "number: must be a whole number",
		`{"number":99999999999999999999}`:    "number: must be a whole number",
		`{"text":"\x"}`:                      "text: must be JSON",
		"{\"text\":\"\xff\"}":                "text: must be UTF-8",
		`{"text" "a"}`:                       "must be JSON",
		`{"text":"a" "flag":true}`:           "text: must be JSON",
		`{"text":"a",}`:                      "must be JSON",
		`{"list":[{},]}`:                     "list[1]: must be an object",
		`{"other":}`:                         "other: must be JSON",
		`{"other":a:b}`:                      "other: must be JSON",
		`{} {}`:                              "must be JSON",
	} {
		if _, err := read(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%s: error %v, want %s", text, err, want)
		}
	}
	broken := errors.New("broken")
	if _, err := read(io.MultiReader(strings.NewReader(`{"text":`), iotest.ErrReader(broken))); !errors.Is(err, broken) {
		t.Errorf("error %v, want that of the source", err)
	}
}

// TestReaderMemory shows that skipped values take no memory, and that kept values have a limit.
func TestReaderMemory(t *testing.T) {
	long := strings.Repeat(`\u003c`, 1<<20)
	for behaviour, text := range map[string]string{
		"a string":          `{"other":"` + long + `"}`,
		"a text":            `{"text":"` + long + `"}`,
		"a name":            `{"` + long + `":1}`,
		"elements":          `{"other":[` + strings.Repeat(`{},`, 1<<20) + `{}]}`,
		"nested arrays":     `{"other":` + strings.Repeat(`[`, 1<<20) + strings.Repeat(`]`, 1<<20) + `}`,
		"a number":          `{"other":` + strings.Repeat(`1`, 1<<20) + `}`,
		"escaped backslash": `{"other":"` + strings.Repeat(`\\`, 1<<20) + `"}`,
	} {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if _, err := read(strings.NewReader(text)); err != nil {
			t.Fatalf("%s: %v", behaviour, err)
		}
		runtime.ReadMemStats(&after)
		if size := after.TotalAlloc - before.TotalAlloc; size > 64<<10 {
			t.Errorf("%s of %d bytes: %d bytes were allocated", behaviour, len(text), size)
		}
	}
	for behaviour, text := range map[string]string{
		"more than the factor": `{"list":[` + strings.Repeat(`{},`, 10_000) + `{}]}`,
		"more than the limit":  `{"list":[` + strings.Repeat(`{`+strings.Repeat(" ", 100)+`},`, 20_000) + `{}]}`,
	} {
		if _, err := read(strings.NewReader(text)); !errors.Is(err, jsonstream.ErrTooLarge) {
			t.Errorf("%s: error %v, want ErrTooLarge", behaviour, err)
		}
	}
}

// FuzzReader compares a Reader with the decoder of github.com/go-json-experiment/json, on every
// text that the decoder accepts.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{
		`{"text":"a","flag":true,"number":-5,"members":{"a":{"text":"\u00e9"}},"list":[{},{"x":[1,2,{"y":null}]}]}`,
		`{"text":"0123456789abcdef0123456789","list":null}`, `{"text":"\\\"","other":"\\"}`, `[`, `{"number":1.0}`, `{"members":{"a":null}}`,
	} {
		f.Add([]byte(seed), uint8(3))
	}
	f.Fuzz(func(t *testing.T, text []byte, chunk uint8) {
		got, err := read(&chunks{text: text, size: int(chunk) + 1})
		var want node
		decoder := jsontext.NewDecoder(bytes.NewReader(text), jsontext.AllowDuplicateNames(false))
		if json.UnmarshalDecode(decoder, &want) != nil || !errors.Is(decoder.SkipValue(), io.EOF) {
			return
		}
		if err != nil {
			t.Fatalf("a valid text has error %v", err)
		}
		want.cut()
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("(-library +reader):\n%s", diff)
		}
	})
}

// cut changes n to the result of a Reader: it cuts long strings.
func (n *node) cut() {
	if len(n.Text) > limit {
		end := limit - len("…")
		for !utf8.RuneStart(n.Text[end]) {
			end--
		}
		n.Text = n.Text[:end] + "…"
	}
	if len(n.List) == 0 {
		n.List = nil
	}
	if len(n.Members) == 0 {
		n.Members = nil
	}
	for name, child := range n.Members {
		if child == nil {
			n.Members[name] = &node{}
		} else {
			child.cut()
		}
	}
	for i := range n.List {
		n.List[i].cut()
	}
}

// chunks is a source that returns size bytes at a time.
type chunks struct {
	text []byte
	size int
}

func (c *chunks) Read(p []byte) (int, error) {
	if len(c.text) == 0 {
		return 0, io.EOF
	}
	n := copy(p, c.text[:min(c.size, len(c.text))])
	c.text = c.text[n:]
	return n, nil
}
