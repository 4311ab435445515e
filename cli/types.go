package cli

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"github.com/akv-injector/akv-injector/core/api"
	"github.com/akv-injector/akv-injector/core/class"
)

// checkTypes returns an error if a field of a pod or workload does not have its type in the
// Kubernetes API. It also covers fields that the injector does not read: an env var with a number
// as its value is a common mistake. Of a pod template of another kind it checks only the metadata,
// since the kind may have other fields.
func checkTypes(o *object, text []byte) error {
	type template struct {
		Spec corev1.PodSpec `json:"spec"`
	}
	var w struct {
		metav1.ObjectMeta `json:"metadata"`

		Spec struct {
			Template    template `json:"template"`
			JobTemplate struct {
				Spec struct {
					Template template `json:"template"`
				} `json:"spec"`
			} `json:"jobTemplate"`
		} `json:"spec"`
	}
	switch {
	case o.kind() == podKind:
		return json.Unmarshal(text, &corev1.Pod{})
	case o.isReviewed():
		return json.Unmarshal(text, &w)
	}
	var t struct {
		Metadata struct {
			Labels      map[string]string `json:"labels"`
			Annotations map[string]string `json:"annotations"`
		} `json:"metadata"`
	}
	return json.Unmarshal(text, &t)
}

// reportClass reports the field of a class that has the wrong type.
func (r *run) reportClass(o *object, err error) {
	text, printErr := json.Marshal(o.Object)
	if printErr != nil {
		r.unreadable(o, "", err.Error())
		return
	}
	if decodeErr := json.Unmarshal(text, &class.SecretProviderClass{}); decodeErr != nil { // this error has the field
		err = decodeErr
	}
	r.undecodable(o, err)
}

// undecodable reports a field with the wrong type.
func (r *run) undecodable(o *object, err error) {
	semantic, ok := errors.AsType[*json.SemanticError](err)
	if !ok {
		r.unreadable(o, "", err.Error())
		return
	}
	path := fieldPath(slices.Collect(semantic.JSONPointer.Tokens()))
	detail := err.Error()
	if semantic.GoType != nil && semantic.JSONKind != 0 {
		if semantic.Err != nil {
			detail = semantic.Err.Error()
		} else {
			detail = fmt.Sprintf("must be %s, not %s", wantedType(semantic.GoType), writtenType(semantic.JSONKind))
		}
		switch {
		case semantic.GoType.Kind() != reflect.String:
		case semantic.JSONKind == '{' && strings.HasSuffix(path, "["+api.Secrets+"]"):
			detail += "; write | after the colon, and a line ENV=OBJECT for each item"
		case semantic.JSONKind == '{', semantic.JSONKind == '[':
			detail += inBlock
		default:
			detail += "; write it in quotes"
		}
	}
	r.unreadable(o, path, detail)
}

const inBlock = "; write | after the colon to make it a string"

// unreadable adds a finding about an object that cannot be read or patched.
func (r *run) unreadable(o *object, path, detail string) {
	if path != "" {
		path = o.path + path
		detail = path + ": " + detail
	}
	r.find(o, Finding{Severity: Error, Field: path, Message: detail, unreadable: true})
}

// fieldPath returns the tokens of a JSON Pointer as a field path; empty for none.
func fieldPath(tokens []string) string {
	if len(tokens) == 0 {
		return ""
	}
	var path *field.Path
	for _, token := range tokens {
		index, err := strconv.Atoi(token)
		switch {
		case err == nil:
			path = path.Index(index)
		case path == nil:
			path = field.NewPath(token)
		case strings.ContainsAny(token, "./"):
			path = path.Key(token)
		default:
			path = path.Child(token)
		}
	}
	return path.String()
}

func wantedType(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() {
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "a boolean"
	default:
		return "a number"
	}
}

func writtenType(kind jsontext.Kind) string {
	switch kind {
	case '{':
		return "a mapping"
	case '[':
		return "a list"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}
