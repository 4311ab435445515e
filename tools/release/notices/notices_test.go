package notices_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/tools/release/notices"
)

const mit = `MIT License

Copyright (c) 2026 Jane Doe

Permission is hereby granted, free of charge, to any person obtaining a copy of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM, OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
`

const zlib = `This software is provided 'as-is', without any express or implied warranty. In no event will the authors be held liable for any damages arising
from the use of this software.

Permission is granted to anyone to use this software for any purpose, including commercial applications, and to alter it and redistribute it freely,
subject to the following restrictions:

1. The origin of this software must not be misrepresented; you must not claim that you wrote the original software. If you use this software in a
   product, an acknowledgment in the product documentation would be appreciated but is not required.
2. Altered source versions must be plainly marked as such, and must not be misrepresented as being the original software.
3. This notice may not be removed or altered from any source distribution.
`

func module(path string, files ...notices.File) notices.Module {
	return notices.Module{Path: path, Version: "v1.0.0", Files: files}
}

func TestRenderRejectsLicences(t *testing.T) {
	for sentence, test := range map[string]struct {
		modules []notices.Module
		want    string
	}{
		"a module without a licence": {
			[]notices.Module{module("a.example/a")},
			"a.example/a v1.0.0: has no licence",
		},
		"a module with a NOTICE only": {
			[]notices.Module{module("a.example/a", notices.File{Path: "NOTICE", Text: mit})},
			"a.example/a v1.0.0: has no licence",
		},
		"an unknown licence": {
			[]notices.Module{module("a.example/a", notices.File{Path: "LICENSE", Text: "Do what you like.\n"})},
			"a.example/a v1.0.0: LICENSE: is not recognized as a licence; check it by hand",
		},
		"a licence that is not allowed next to one that is": {
			[]notices.Module{module("a.example/a", notices.File{Path: "LICENSE", Text: mit}, notices.File{Path: "b/COPYING", Text: zlib})},
			"a.example/a v1.0.0: b/COPYING: must be one of Apache-2.0, BSD-2-Clause, BSD-3-Clause, ISC, MIT, MPL-2.0, Unlicense, is Zlib",
		},
		"several rejected modules": {
			[]notices.Module{module("a.example/a"), module("a.example/b", notices.File{Path: "LICENSE", Text: mit}), module("a.example/c")},
			"a.example/a v1.0.0: has no licence\na.example/c v1.0.0: has no licence",
		},
	} {
		t.Run(sentence, func(t *testing.T) {
			text, err := notices.Render(test.modules)
			if err == nil {
				t.Fatalf("got\n%s\nwant an error", text)
			}
			if diff := cmp.Diff(test.want, err.Error()); diff != "" {
				t.Errorf("error (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRenderPrintsEachTextOnce(t *testing.T) {
	text, err := notices.Render([]notices.Module{
		module("a.example/a", notices.File{Path: "LICENSE", Text: mit}),
		module("a.example/b", notices.File{Path: "LICENSE.txt", Text: mit}, notices.File{Path: "NOTICE", Text: "b was made by Jane Doe.\n"}),
	})
	if err != nil {
		t.Fatal(err)
	}
	rule := strings.Repeat("=", 80)
	want := "akv-injector is linked with the modules below. Each line names a module and its licences. " +
		"The texts follow, each after the files that contain it.\n\n" +
		"  a.example/a v1.0.0: MIT\n  a.example/b v1.0.0: MIT\n" +
		"\n" + rule + "\na.example/a v1.0.0, LICENSE\na.example/b v1.0.0, LICENSE.txt\n\n" + mit +
		"\n" + rule + "\na.example/b v1.0.0, NOTICE\n\nb was made by Jane Doe.\n"
	if diff := cmp.Diff(want, string(text)); diff != "" {
		t.Errorf("notices (-want +got):\n%s", diff)
	}
}

func TestLinkedCoversAllPlatforms(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"go.mod": "module a.example/program\n\ngo 1.26.0\n\nrequire (\n\ta.example/everywhere v0.0.0\n\ta.example/arm v0.0.0\n\ta.example/unused v0.0.0\n)\n\n" +
			"replace (\n\ta.example/everywhere => ./everywhere\n\ta.example/arm => ./arm\n\ta.example/unused => ./unused\n)\n",
		"main.go":                   "package main\n\nimport _ \"a.example/everywhere/part/of\"\n\nfunc main() {}\n",
		"main_arm64.go":             "package main\n\nimport _ \"a.example/arm\"\n",
		"LICENSE":                   "the program's own",
		"everywhere/go.mod":         "module a.example/everywhere\n",
		"everywhere/LICENSE":        mit,
		"everywhere/licence.go":     "package everywhere\n",
		"everywhere/part/NOTICE":    "made by Jane Doe  \r\n",
		"everywhere/part/of/of.go":  "package of\n",
		"everywhere/other/LICENSE":  "not linked",
		"everywhere/other/other.go": "package other\n",
		"arm/go.mod":                "module a.example/arm\n",
		"arm/COPYING":               mit,
		"arm/arm.go":                "package arm\n",
		"unused/go.mod":             "module a.example/unused\n",
		"unused/LICENSE":            mit,
		"unused/unused.go":          "package unused\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := notices.Linked(t.Context(), dir, "linux/amd64", "linux/arm64")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) == 0 || got[0].Path != "Go standard library" || len(got[0].Files) == 0 {
		t.Fatalf("got %+v, want the standard library first, with its licence", got)
	}
	want := []notices.Module{
		{Path: "a.example/arm", Version: "v0.0.0", Files: []notices.File{{Path: "COPYING", Text: mit}}},
		{Path: "a.example/everywhere", Version: "v0.0.0", Files: []notices.File{{Path: "LICENSE", Text: mit}, {Path: "part/NOTICE", Text: "made by Jane Doe\n"}}},
	}
	if diff := cmp.Diff(want, got[1:]); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
}
