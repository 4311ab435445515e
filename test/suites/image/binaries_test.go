package image_test

import (
	"bytes"
	"context"
	"debug/buildinfo"
	"debug/elf"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// limit is the maximum size of the injector, in bytes. kubectl has 62 MB.
const limit = 65_000_000

func TestABinaryNeedsNothingButAKernel(t *testing.T) {
	machines := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}
	for _, arch := range architectures {
		for _, program := range programs {
			f, err := elf.Open(named(program, arch))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { f.Close() })
			if f.Machine != machines[arch] {
				t.Errorf("machine: got %s, want %s", f.Machine, machines[arch])
			}
			for _, p := range f.Progs {
				if p.Type == elf.PT_INTERP || p.Type == elf.PT_DYNAMIC {
					t.Errorf("has a program header %s, so it is not static", p.Type)
				}
			}
			libraries, err := f.ImportedLibraries()
			if err != nil || len(libraries) > 0 {
				t.Errorf("libraries: got %q, %v, want none", libraries, err)
			}
			if f.Section(".debug_info") != nil || f.Section(".symtab") != nil {
				t.Error("has debug information or symbols")
			}
		}
	}
}

func TestABinaryIsSmall(t *testing.T) {
	for program, limit := range map[string]int64{"akv-injector": limit, "akv-env": 3_000_000} {
		for _, arch := range architectures {
			info, err := os.Stat(named(program, arch))
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("%s for %s: %.1f MB", program, arch, float64(info.Size())/1e6)
			if info.Size() > limit {
				t.Errorf("%s for %s: is %d bytes, more than %d", program, arch, info.Size(), limit)
			}
		}
	}
}

func TestABinaryTellsItsVersionAndNothingOfWhereItWasBuilt(t *testing.T) {
	places := map[string]string{"the repository": root, "the module cache": goEnv(t, "GOMODCACHE"), "the build cache": goEnv(t, "GOCACHE")}
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			content, err := os.ReadFile(binary(arch))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Contains(content, []byte(version)) {
				t.Error("does not contain its version")
			}
			for what, path := range places {
				if bytes.Contains(content, []byte(path)) {
					t.Errorf("contains the path of %s", what)
				}
			}
			info, err := buildinfo.Read(bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			settings := map[string]string{}
			for _, s := range info.Settings {
				settings[s.Key] = s.Value
			}
			want := map[string]string{"-trimpath": "true", "CGO_ENABLED": "0", "GOOS": "linux", "GOARCH": arch}
			for key, value := range want {
				if settings[key] != value {
					t.Errorf("%s: got %q, want %q", key, settings[key], value)
				}
			}
			for key := range settings {
				if strings.HasPrefix(key, "vcs") {
					t.Errorf("has %s, which differs between a checkout and the image's build", key)
				}
			}
		})
	}
}

func TestTheProgramSaysItsVersion(t *testing.T) {
	for _, arch := range architectures {
		if runtime.GOOS != "linux" || runtime.GOARCH != arch {
			continue // this machine cannot run it
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		out, err := exec.CommandContext(ctx, binary(arch), "version").CombinedOutput()
		want := fmt.Sprintf("akv-injector %s\n%s linux/%s\n", version, runtime.Version(), arch)
		if err != nil || string(out) != want {
			t.Errorf("got %q, %v, want %q", out, err, want)
		}
	}
}

func TestTheNoticesNameEveryModuleInABinary(t *testing.T) {
	notices, err := os.ReadFile(filepath.Join(root, "THIRD_PARTY_NOTICES"))
	if err != nil {
		t.Fatal(err)
	}
	for _, arch := range architectures {
		for _, module := range modules(t, arch) {
			path, v, _ := strings.Cut(module, "@")
			if !bytes.Contains(notices, []byte("\n  "+path+" "+v+": ")) {
				t.Errorf("%s: %s is not in THIRD_PARTY_NOTICES; run `make generate`", arch, module)
			}
		}
	}
}

func TestTheSBOMListsWhatIsInTheBinary(t *testing.T) {
	for _, arch := range architectures {
		t.Run(arch, func(t *testing.T) {
			type component struct{ Name, Version, PURL string }
			var sbom struct {
				BOMFormat    string
				SerialNumber string
				Metadata     struct {
					Timestamp string
					Component component
				}
				Components []component
			}
			content, err := os.ReadFile(binary(arch) + ".cdx.json")
			if err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(content, &sbom); err != nil {
				t.Fatal(err)
			}
			if sbom.BOMFormat != "CycloneDX" {
				t.Errorf("format: got %q", sbom.BOMFormat)
			}
			if got := sbom.Metadata.Component; got.Name != "github.com/akv-injector/akv-injector" || got.Version != version {
				t.Errorf("subject: got %+v", got)
			}
			if sbom.SerialNumber != "" || sbom.Metadata.Timestamp != "" {
				t.Error("has a serial number or a time, so it differs at each build")
			}
			var got []string
			for _, c := range sbom.Components {
				if c.PURL == "" {
					t.Errorf("%s: has no package URL", c.Name)
				}
				got = append(got, c.Name+"@"+c.Version)
			}
			slices.Sort(got)
			want := append(modules(t, arch), "std@"+toolchain(t, arch))
			slices.Sort(want)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("components (-want +got):\n%s", diff)
			}
		})
	}
}

// modules returns the modules in a binary's build information, as PATH@VERSION.
func modules(t *testing.T, arch string) []string {
	t.Helper()
	info, err := buildinfo.ReadFile(binary(arch))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range info.Deps {
		if m.Replace != nil {
			t.Errorf("%s: must not be replaced in a release", m.Path)
		}
		out = append(out, m.Path+"@"+m.Version)
	}
	return out
}

// toolchain returns the version of Go that built a binary, such as go1.26.8.
func toolchain(t *testing.T, arch string) string {
	t.Helper()
	info, err := buildinfo.ReadFile(binary(arch))
	if err != nil {
		t.Fatal(err)
	}
	return info.GoVersion
}
