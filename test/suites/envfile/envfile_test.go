// Package envfile_test checks core/envfile against the kubelet's parser of env files.
package envfile_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"k8s.io/kubernetes/pkg/kubelet/util/env"

	"github.com/akv-injector/akv-injector/core/envfile"
)

// The longest line is 64 KiB with its line feed; these values are in variable V.
const longest = 64<<10 - len("V=''\n")

// TestKubeletReads checks that the kubelet reads each accepted value byte for byte, and that it cannot
// read a value that is rejected because of the format. It also reads the variables before and after.
func TestKubeletReads(t *testing.T) {
	for name, test := range map[string]struct {
		value    string
		rejected bool
	}{
		"a word":                           {"value", false},
		"what a shell would expand":        {`$A $(A) $$ \n \ "b" # c`, false},
		"a backslash at the end of a line": {"a\\\nb\\", false},
		"space around":                     {" \t value \t ", false},
		"space around lines":               {"\n \t a \t \n\n", false},
		"lines that look like others":      {"\n#\nZ=\n Z=b\n", false},
		"a certificate":                    {"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n", false},
		"a carriage return in a line":      {"a\rb\n\rc\r", false},
		"text that is not ASCII":           {"\uFEFFpässwörd\u2028🔑", false},
		"a control character":              {"\x01\x1b[0m\x7f", false},
		"the longest line":                 {strings.Repeat("x", longest), false},
		"two longest lines":                {strings.Repeat("x", longest+1) + "\n" + strings.Repeat("y", longest+3), false},
		"a line that is too long":          {strings.Repeat("x", longest+1), true},
		"a second line that is too long":   {"x\n" + strings.Repeat("y", 64<<10) + "\n", true},
		"an empty value":                   {"", true}, // as if the variable were missing
		"a single quote":                   {"it's", true},
		"an escaped quote":                 {`it'\''s`, true},
		"a quote before a comment":         {"it' # s", true},
		"a quote before a variable":        {"it'\nZ='1", true},
		"Windows lines":                    {"a\r\nb", true},
	} {
		t.Run(name, func(t *testing.T) {
			want := map[string]string{"A": "before\n", "V": test.value, "Z": "after"}
			group := envfile.Group{{Env: "A", File: "A"}, {Env: "V", File: "V"}, {Env: "Z", File: "Z"}}
			content, problems := envfile.Render(group, func(file string) ([]byte, error) { return []byte(want[file]), nil })
			if (len(problems) > 0) != test.rejected {
				t.Fatalf("got %q", problems)
			}
			if test.rejected {
				content = []byte("A='before\n'\nV='" + test.value + "'\nZ='after'\n")
			}
			path := filepath.Join(t.TempDir(), envfile.FileName(0))
			if err := os.WriteFile(path, content, 0o400); err != nil {
				t.Fatal(err)
			}
			same := test.value != ""
			for key, value := range want {
				got, err := env.ParseEnv(path, key)
				if err != nil || got != value {
					same = false
					if !test.rejected {
						t.Errorf("%s: got %q, %v", key, got, err)
					}
				}
			}
			if same && test.rejected {
				t.Error("the kubelet reads the value that is rejected")
			}
		})
	}
}
