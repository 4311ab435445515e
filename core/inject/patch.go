package inject

import (
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json/jsontext"
	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/core/class"
)

// Appender is a value of a patch with its own JSON encoding.
type Appender interface {
	// AppendJSON appends the value as JSON. It takes a third of the time of an encoder by
	// reflection.
	AppendJSON(to []byte) []byte
}

// AppendJSON implements [Appender].
func (v *Volume) AppendJSON(to []byte) []byte {
	to = append(to, `{"name":`...)
	to = appendString(to, v.Name)
	if v.Class == "" {
		to = append(to, `,"emptyDir":{"medium":"Memory","sizeLimit":`...)
		return append(appendString(to, v.SizeLimit), `}}`...)
	}
	to = append(to, `,"csi":{"driver":"`+class.Driver+`","readOnly":true,"volumeAttributes":{"`+class.Attribute+`":`...)
	to = appendString(to, v.Class)
	return append(to, `}}}`...)
}

// AppendJSON implements [Appender].
func (m *Mount) AppendJSON(to []byte) []byte {
	to = append(to, `{"name":`...)
	to = appendString(to, m.Volume)
	to = append(to, `,"readOnly":true,"mountPath":`...)
	to = appendString(to, m.Path)
	return append(to, '}')
}

// AppendJSON implements [Appender].
func (e *EnvVar) AppendJSON(to []byte) []byte {
	to = append(to, `{"name":`...)
	to = appendString(to, e.Name)
	if e.File != "" {
		to = append(to, `,"valueFrom":{"fileKeyRef":{"volumeName":"`+EnvFilesName+`","path":`...)
		to = appendString(to, e.File)
		to = append(to, `,"key":`...)
		return append(appendString(to, e.Name), `}}}`...)
	}
	to = append(to, `,"valueFrom":{"secretKeyRef":{"name":`...)
	to = appendString(to, e.Secret)
	to = append(to, `,"key":`...)
	to = appendString(to, e.Key)
	return append(to, `}}}`...)
}

// MarshalJSON implements json.Marshaler.
func (v *Volume) MarshalJSON() ([]byte, error) { return v.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (m *Mount) MarshalJSON() ([]byte, error) { return m.AppendJSON(nil), nil }

// MarshalJSON implements json.Marshaler.
func (e *EnvVar) MarshalJSON() ([]byte, error) { return e.AppendJSON(nil), nil }

// array is a list that is added as one value.
type array[T any, P interface {
	*T
	Appender
}] []T

// AppendJSON implements [Appender].
func (a array[T, P]) AppendJSON(to []byte) []byte {
	to = append(to, '[')
	for i := range a {
		if i > 0 {
			to = append(to, ',')
		}
		to = P(&a[i]).AppendJSON(to)
	}
	return append(to, ']')
}

// object is a mapping that is added as one value. Its entries must be sorted by key.
type object []Entry

// AppendJSON implements [Appender].
func (o object) AppendJSON(to []byte) []byte {
	to = append(to, '{')
	for i := range o {
		if i > 0 {
			to = append(to, ',')
		}
		to = appendString(to, o[i].Key)
		to = append(to, ':')
		to = appendString(to, o[i].Value)
	}
	return append(to, '}')
}

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) { return o.AppendJSON(nil), nil }

// appendString appends s as a JSON string.
func appendString(to []byte, s string) []byte {
	to, _ = jsontext.AppendQuote(to, s) // the only possible error is about invalid UTF-8, which it replaces
	return to
}

// AppendPatch appends operations as a JSON Patch.
func AppendPatch(to []byte, operations []jsonpatch.Operation) []byte {
	to = append(to, '[')
	for i := range operations {
		if i > 0 {
			to = append(to, ',')
		}
		o := &operations[i]
		to = append(to, `{"op":"`...)
		to = append(to, o.Operation...)
		to = append(to, `","path":`...)
		to = appendString(to, o.Path)
		switch value := o.Value.(type) {
		case string:
			to = append(to, `,"value":`...)
			to = appendString(to, value)
		case Appender:
			to = append(to, `,"value":`...)
			to = value.AppendJSON(to)
		}
		to = append(to, '}')
	}
	return append(to, ']')
}

var pointerEscaper = strings.NewReplacer("~", "~0", "/", "~1")

// escape returns a key as a token of a JSON Pointer (RFC 6901).
func escape(key string) string {
	return pointerEscaper.Replace(key)
}

// patchWriter collects the operations of a patch.
type patchWriter struct {
	ops      []jsonpatch.Operation
	pointers strings.Builder // the memory of all pointers
}

func newPatchWriter(size int) *patchWriter {
	w := &patchWriter{ops: make([]jsonpatch.Operation, 0, size)}
	const usual = len("/spec/containers/0/env/10")
	w.pointers.Grow(size * usual)
	return w
}

// pointer returns a pointer that ends in an index.
func (w *patchWriter) pointer(parent, list string, index int) string {
	start := w.pointers.Len()
	w.pointers.WriteString(parent)
	w.pointers.WriteString(list)
	w.pointers.WriteString(strconv.Itoa(index))
	return w.pointers.String()[start:]
}

func (w *patchWriter) op(op, pointer string, value any) {
	w.ops = append(w.ops, jsonpatch.Operation{Operation: op, Path: pointer, Value: value})
}

// set adds a member, or replaces it if it exists.
func (w *patchWriter) set(pointer string, exists bool, value any) {
	if exists {
		w.op("replace", pointer, value)
		return
	}
	w.op("add", pointer, value)
}

// entries sets entries of a mapping; existing has the current entries that the injector reads. If
// the mapping is absent, null or empty, it is added as a whole: JSON Patch cannot add a member to a
// mapping that does not exist.
func (w *patchWriter) entries(pointer string, exists bool, existing map[string]string, entries []Entry) {
	if len(entries) == 0 {
		return
	}
	if !exists {
		byKey := func(a, b Entry) int { return strings.Compare(a.Key, b.Key) }
		w.op("add", pointer, object(slices.SortedFunc(slices.Values(entries), byKey)))
		return
	}
	for _, e := range entries {
		_, exists := existing[e.Key]
		w.set(pointer+"/"+escape(e.Key), exists, e.Value)
	}
}

// appendTo adds values to the end of a list; if whole, it adds the list.
func appendTo[T any, P interface {
	*T
	Appender
}](w *patchWriter, pointer string, whole bool, values []T) {
	if len(values) == 0 {
		return
	}
	if whole {
		w.op("add", pointer, array[T, P](values))
		return
	}
	end := pointer + "/-"
	for i := range values {
		w.op("add", end, P(&values[i]))
	}
}
