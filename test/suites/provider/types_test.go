package provider_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"
	secretsstorev1 "sigs.k8s.io/secrets-store-csi-driver/apis/v1"

	"github.com/akv-injector/akv-injector/core/class"
)

// theirs returns a class decoded into the driver's type. All fields must be known.
func theirs(t *testing.T, spc *class.SecretProviderClass) *secretsstorev1.SecretProviderClass {
	t.Helper()
	var read secretsstorev1.SecretProviderClass
	decode(t, encode(t, spc), &read)
	return &read
}

// checkTypes checks that a class keeps all fields when it is converted to the driver's types and
// back.
func checkTypes(t *testing.T, spc *class.SecretProviderClass) {
	t.Helper()
	there := encode(t, theirs(t, spc))
	var fields map[string]any
	decode(t, there, &fields)
	if status, ok := fields["status"].(map[string]any); ok && len(status) == 0 {
		delete(fields, "status") // the driver's type prints an empty status
	}
	var back class.SecretProviderClass
	decode(t, encode(t, fields), &back)
	if diff := cmp.Diff(spc, &back); diff != "" {
		t.Errorf("class %s through the driver's types (-ours +back):\n%s", spc.Name, diff)
	}
	var ours map[string]any
	decode(t, encode(t, spc), &ours)
	if diff := cmp.Diff(ours, fields); diff != "" {
		t.Errorf("JSON of class %s (-ours +the driver's):\n%s", spc.Name, diff)
	}
}

func encode(t *testing.T, value any) []byte {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// decode decodes JSON and rejects unknown fields.
func decode(t *testing.T, text []byte, into any) {
	t.Helper()
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	if err := decoder.Decode(into); err != nil {
		t.Fatalf("decode %s: %v", text, err)
	}
}
