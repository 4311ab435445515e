package jsonstream

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// ErrTooLarge is the error if the kept values take more memory than the limits of the reader allow.
var ErrTooLarge = errors.New("too large")

// Kept values may take keptFactor bytes of memory for each byte read, and keptFree bytes more. A
// text that an API server writes needs much less: the densest lists of a pod take 2.5 bytes for
// each byte of JSON.
const (
	keptFactor = 4
	keptFree   = 64 << 10
)

// windowSize is how many bytes are read at a time.
const windowSize = 16 << 10

// Reader reads one JSON text. Call [Reader.Reset] before the first use. A Reader that is reset
// reuses its buffers.
type Reader struct {
	// Spare is memory for the caller, which [Reader.Reset] keeps.
	Spare []byte

	source io.Reader
	// window[pos:end] was read from source and is not consumed yet. The number of bytes before the
	// window is before.
	window           []byte
	pos, end, before int

	kept, maxKept int
	texts         strings.Builder // the kept strings, one after the other
	name          []byte          // of the latest member
	quoted        []byte          // the source of a string that has escapes or crosses the window
	unquoted      []byte

	err  error
	path string // where err occurred
}

// Reset makes r read from source. The kept values may take at most maxKept bytes of memory.
func (r *Reader) Reset(source io.Reader, maxKept int) {
	const reusable = 4 * windowSize
	fresh := Reader{Spare: r.Spare, source: source, window: r.window, maxKept: maxKept, name: r.name}
	if fresh.window == nil {
		fresh.window = make([]byte, windowSize)
	}
	if cap(r.quoted) <= reusable && cap(r.unquoted) <= reusable {
		fresh.quoted, fresh.unquoted = r.quoted[:0], r.unquoted[:0]
	}
	*r = fresh
}

// Err returns the first error, with the path of the member where it occurred; nil if there was
// none. It wraps [ErrTooLarge], [io.ErrUnexpectedEOF] and errors of the source.
func (r *Reader) Err() error {
	if r.err == nil || r.path == "" {
		return r.err
	}
	return fmt.Errorf("%s: %w", r.path, r.err)
}

// Close checks that only space follows the values read so far, and returns [Reader.Err].
func (r *Reader) Close() error {
	if r.err == nil {
		switch r.next(); {
		case r.err == nil:
			r.fail(errSyntax)
		case errors.Is(r.err, io.ErrUnexpectedEOF):
			r.err = nil
		}
	}
	return r.Err()
}

var errSyntax = errors.New("must be JSON")

func (r *Reader) fail(err error) {
	if r.err == nil {
		r.err = err
	}
	r.pos, r.end = 0, 0
}

// fill reads the next window; the current one must be consumed.
func (r *Reader) fill() bool {
	if r.err != nil {
		return false
	}
	r.before += r.end
	r.pos, r.end = 0, 0
	for range 100 {
		n, err := r.source.Read(r.window)
		if n > 0 {
			r.end = n
			return true
		}
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			r.fail(err)
			return false
		}
	}
	r.fail(io.ErrNoProgress)
	return false
}

// next returns the first byte of the next token and does not consume it. It returns 0 after an
// error, or if the text has that byte, which begins no token.
func (r *Reader) next() byte {
	for {
		for r.pos < r.end {
			switch c := r.window[r.pos]; c {
			case ' ', '\t', '\n', '\r':
				r.pos++
			default:
				return c
			}
		}
		if !r.fill() {
			return 0
		}
	}
}

// Members calls yield for each member of an object, in order. Before yield returns, it must consume
// the value by one call of a method of r; name is valid until then. A null is an object without
// members. A name is cut to 512 bytes.
func (r *Reader) Members(yield func(name []byte) bool) {
	if !r.begin('{', "an object") {
		return
	}
	for first := true; ; first = false {
		switch c := r.next(); {
		case c == '}' && first:
			r.pos++
			return
		case c != '"':
			r.fail(errSyntax)
			return
		}
		r.name = append(r.name[:0], r.text(maxName)...) // the next window may overwrite it
		if r.next() != ':' {
			r.fail(errSyntax)
			return
		}
		r.pos++
		var start [24]byte // of the name: names within the value overwrite r.name
		n := copy(start[:], r.name)
		if !yield(r.name) {
			return
		}
		if !r.more('}') {
			if r.err != nil {
				r.within(string(start[:n]))
			}
			return
		}
	}
}

// Member calls read for the member with that name, and skips the others. read must consume the
// value by one call of a method of r.
func (r *Reader) Member(wanted string, read func()) {
	for name := range r.Members {
		if string(name) == wanted {
			read()
		} else {
			r.Skip()
		}
	}
}

const maxName = 512

// Elements calls yield for each element of an array, in order. Before yield returns, it must
// consume the element by one call of a method of r. A null is an array without elements.
func (r *Reader) Elements(yield func(index int) bool) {
	if !r.begin('[', "an array") {
		return
	}
	if r.next() == ']' {
		r.pos++
		return
	}
	for i := 0; yield(i); i++ {
		if !r.more(']') {
			if r.err != nil {
				r.within("[" + strconv.Itoa(i) + "]")
			}
			return
		}
	}
}

// begin consumes the start of an object or an array, or a null, for which it returns false.
func (r *Reader) begin(start byte, what string) bool {
	switch r.next() {
	case start:
		r.pos++
		return r.err == nil
	case 'n':
		r.literal("null")
	default:
		r.fail(errors.New("must be " + what))
	}
	return false
}

// more consumes the byte after a member or an element. It returns true for a comma, and false for
// the end.
func (r *Reader) more(end byte) bool {
	switch r.next() {
	case ',':
		r.pos++
		return true
	case end:
		r.pos++
	default:
		r.fail(errSyntax)
	}
	return false
}

// within adds the name of a member or an element to the path of the error.
func (r *Reader) within(name string) {
	if r.path != "" && r.path[0] != '[' {
		name += "."
	}
	r.path = name + r.path
}

// List reads an array. It calls read with a zero element, and read must consume one value by a
// method of r. The list of an empty array is nil.
func List[T any](r *Reader, read func(*T, *Reader)) []T {
	var list []T
	size := int(reflect.TypeFor[T]().Size())
	for range r.Elements {
		if !r.Keep(size) {
			break
		}
		if list == nil {
			list = make([]T, 0, 4)
		}
		list = append(list, *new(T))
		read(&list[len(list)-1], r)
	}
	return list
}

// Keep adds n bytes to the memory of the kept values, and reports whether the limits allow it. If
// not, the reader's error is [ErrTooLarge]. [List] and the methods that return strings call it
// themselves.
func (r *Reader) Keep(n int) bool {
	if r.err != nil {
		return false
	}
	r.kept += n
	if r.kept > min(r.maxKept, keptFactor*(r.before+r.pos)+keptFree) {
		r.fail(ErrTooLarge)
		return false
	}
	return true
}

// Text reads a string of at most limit bytes. It cuts a longer string to limit bytes that end with
// an ellipsis, so that the result differs from every string without an ellipsis. A null is an empty
// string.
func (r *Reader) Text(limit int) string {
	return r.Copy(r.View(limit))
}

// Copy returns a copy of a text that is kept. Short texts share an allocation.
func (r *Reader) Copy(text []byte) string {
	if !r.Keep(len(text)) {
		return ""
	}
	const shared = 2 << 10 // short strings share an allocation of this size
	if len(text) > shared/4 {
		return string(text)
	}
	if r.texts.Cap()-r.texts.Len() < len(text) {
		r.texts = strings.Builder{}
		r.texts.Grow(shared)
	}
	r.texts.Write(text)
	return r.texts.String()[r.texts.Len()-len(text):]
}

// View is [Reader.Text] for a string that is not kept: it is valid until the next read.
func (r *Reader) View(limit int) []byte {
	switch r.next() {
	case '"':
	case 'n':
		r.literal("null")
		return nil
	default:
		r.fail(errors.New("must be a string"))
		return nil
	}
	text := r.text(limit)
	if !utf8.Valid(text) {
		r.fail(errors.New("must be UTF-8"))
		return nil
	}
	return text
}

// text reads the string that starts at the next byte. It returns at most limit bytes, which are
// valid until the next read.
func (r *Reader) text(limit int) []byte {
	rest := r.window[r.pos+1 : r.end]
	if n := bytes.IndexByte(rest, '"'); n >= 0 && n <= limit && bytes.IndexByte(rest[:n], '\\') < 0 {
		r.pos += n + 2
		return rest[:n]
	}
	return r.longText(limit)
}

// longText is [Reader.text] for a string that has escapes, crosses the window or exceeds the limit.
func (r *Reader) longText(limit int) []byte {
	const escaped = len(`\u003c`) // the longest form of a byte
	r.pos++
	r.quoted = append(r.quoted[:0], '"')
	for ended, escape := false, false; !ended; {
		if r.pos == r.end && !r.fill() {
			return nil
		}
		start := r.pos
		for r.pos < r.end && !ended {
			c := r.window[r.pos]
			r.pos++
			ended = c == '"' && !escape
			escape = c == '\\' && !escape
		}
		if room := (limit+utf8.UTFMax)*escaped - len(r.quoted); room > 0 {
			r.quoted = append(r.quoted, r.window[start:min(r.pos, start+room)]...)
		}
	}
	var err error
	r.unquoted, err = jsontext.AppendUnquote(r.unquoted[:0], r.quoted)
	if len(r.unquoted) > limit { // err, if any, is about what is cut off
		const ellipsis = "…"
		n := max(limit-len(ellipsis), 0)
		for n > 0 && !utf8.RuneStart(r.unquoted[n]) {
			n--
		}
		return append(r.unquoted[:n], ellipsis...)
	}
	if err != nil {
		r.fail(errSyntax)
		return nil
	}
	return r.unquoted
}

// Bool reads a boolean. A null is false.
func (r *Reader) Bool() bool {
	switch r.next() {
	case 't':
		r.literal("true")
		return r.err == nil
	case 'f':
		r.literal("false")
	case 'n':
		r.literal("null")
	default:
		r.fail(errors.New("must be a boolean"))
	}
	return false
}

// Int reads a whole number of 64 bits. A null is 0.
func (r *Reader) Int() int64 {
	if r.Null() {
		return 0
	}
	var text [20]byte
	n := 0
	for ; n < len(text); n++ {
		if r.pos == r.end && !r.fill() {
			return 0
		}
		if c := r.window[r.pos]; c != '-' && (c < '0' || c > '9') {
			break
		}
		text[n] = r.window[r.pos]
		r.pos++
	}
	number, err := strconv.ParseInt(string(text[:n]), 10, 64)
	if err != nil {
		r.fail(errors.New("must be a whole number"))
	}
	return number
}

// Null reports whether the next value is a null. It consumes only a null.
func (r *Reader) Null() bool {
	if r.next() != 'n' {
		return false
	}
	r.literal("null")
	return true
}

func (r *Reader) literal(text string) {
	for i := range len(text) {
		if r.pos == r.end && !r.fill() {
			return
		}
		if r.window[r.pos] != text[i] {
			r.fail(errSyntax)
			return
		}
		r.pos++
	}
}

// Skip consumes the next value of any type.
func (r *Reader) Skip() {
	depth := 0
	switch r.next() {
	case '{', '[':
	case '"':
		r.pos++
		r.skipString()
		return
	default:
		r.skipLiteral()
		return
	}
	for {
		for r.pos < r.end {
			c := r.window[r.pos]
			r.pos++
			switch structure[c] {
			case quote:
				r.skipString()
			case opening:
				depth++
			case closing:
				if depth--; depth == 0 {
					return
				}
			}
		}
		if !r.fill() {
			return
		}
	}
}

// Classes of bytes in a skipped value; 0 for any other byte.
const (
	quote = 1 + iota
	opening
	closing
)

var structure = [256]uint8{'"': quote, '{': opening, '[': opening, '}': closing, ']': closing}

// skipString consumes the rest of a string after its opening quote.
func (r *Reader) skipString() {
	if n := bytes.IndexByte(r.window[r.pos:r.end], '"'); n >= 0 && bytes.IndexByte(r.window[r.pos:r.pos+n], '\\') < 0 {
		r.pos += n + 1
		return
	}
	for escape := false; ; {
		for r.pos < r.end {
			c := r.window[r.pos]
			r.pos++
			if c == '"' && !escape {
				return
			}
			escape = c == '\\' && !escape
		}
		if !r.fill() {
			return
		}
	}
}

// skipLiteral consumes a number, a boolean or a null.
func (r *Reader) skipLiteral() {
	for consumed := false; ; consumed = true {
		if r.pos == r.end && !r.fill() {
			return
		}
		switch c := r.window[r.pos]; c {
		case ',', '}', ']', ' ', '\t', '\n', '\r':
			if !consumed {
				r.fail(errSyntax)
			}
			return
		case ':', '"', '{', '[':
			r.fail(errSyntax)
			return
		}
		r.pos++
	}
}
