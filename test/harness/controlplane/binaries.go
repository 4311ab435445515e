package controlplane

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/fileutil"

	"github.com/akv-injector/akv-injector/test/harness/build"
)

const (
	kubernetesModule = "k8s.io/kubernetes"
	etcdModule       = "go.etcd.io/etcd/server/v3"
)

// binary is a program of the control plane. go.mod pins its version as that of a tool.
type binary struct {
	name    string
	module  string
	command string // import path of the main package
	takes   string // duration of a first build, for the progress line
}

var binaries = []binary{
	{"etcd", etcdModule, etcdModule, "a minute"},
	{"kube-apiserver", kubernetesModule, kubernetesModule + "/cmd/kube-apiserver", "3 to 4 minutes"},
	{"kube-controller-manager", kubernetesModule, kubernetesModule + "/cmd/kube-controller-manager", "a minute or two"},
	{"kubectl", kubernetesModule, kubernetesModule + "/cmd/kubectl", "half a minute"},
}

// nodeBinaries are the additional programs of a node.
var nodeBinaries = []binary{
	{"kube-scheduler", kubernetesModule, kubernetesModule + "/cmd/kube-scheduler", "half a minute"},
	{"kubelet", kubernetesModule, kubernetesModule + "/cmd/kubelet", "a minute"},
}

// Binaries returns a folder with etcd, kube-apiserver, kube-controller-manager and kubectl. It
// looks in $KUBEBUILDER_ASSETS, then in the installation of setup-envtest. It builds the missing
// programs into the user's cache folder, and prints a line to progress before and after each build.
// Processes that need the same build wait for each other. The current folder must be inside this
// package's module.
func Binaries(ctx context.Context, progress io.Writer) (string, error) {
	return folder(ctx, binaries, progress)
}

// NodeBinaries returns a folder with kubelet and kube-scheduler, in the same way as [Binaries].
func NodeBinaries(ctx context.Context, progress io.Writer) (string, error) {
	return folder(ctx, nodeBinaries, progress)
}

// folder returns a folder with all of wanted.
func folder(ctx context.Context, wanted []binary, progress io.Writer) (string, error) {
	kubernetes, err := moduleVersion(ctx, kubernetesModule)
	if err != nil {
		return "", err
	}
	etcd, err := moduleVersion(ctx, etcdModule)
	if err != nil {
		return "", err
	}
	versions := map[string]string{kubernetesModule: kubernetes, etcdModule: etcd}

	prebuilt := prebuiltFolder(ctx, kubernetes)
	var missing []binary
	for _, b := range wanted {
		if prebuilt == "" || !isFile(filepath.Join(prebuilt, b.name)) {
			missing = append(missing, b)
		}
	}
	if len(missing) == 0 {
		return prebuilt, nil
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	flags := buildFlags(kubernetes)
	key := digest(append([]string{kubernetes, etcd, runtime.Version(), runtime.GOOS, runtime.GOARCH}, flags...)...)
	dir := filepath.Join(cache, "akv-injector", "controlplane-"+kubernetes+"-"+key)
	if err := buildMissing(ctx, dir, missing, versions, flags, progress); err != nil {
		return "", err
	}
	if len(missing) == len(wanted) {
		return dir, nil
	}
	return combine(dir, prebuilt, wanted, missing)
}

// prebuiltFolder returns the folder of prebuilt binaries, or "" if there is none.
func prebuiltFolder(ctx context.Context, kubernetes string) string {
	if dir := os.Getenv("KUBEBUILDER_ASSETS"); dir != "" {
		return dir
	}
	setup, err := exec.LookPath("setup-envtest")
	if err != nil {
		return ""
	}
	minor := strings.TrimPrefix(kubernetes[:strings.LastIndex(kubernetes, ".")], "v")
	out, err := exec.CommandContext(ctx, setup, "use", "--installed-only", "--print", "path", minor+".x").Output()
	if err != nil {
		return "" // this version is not installed
	}
	return strings.TrimSpace(string(out))
}

// buildFlags returns flags of the go command that set the version that the binaries report.
func buildFlags(version string) []string {
	const variable = "k8s.io/component-base/version."
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return []string{"-trimpath", "-ldflags=-s -w" +
		" -X " + variable + "gitVersion=" + version +
		" -X " + variable + "gitMajor=" + major +
		" -X " + variable + "gitMinor=" + minor}
}

// buildMissing builds those of missing that dir does not have yet. Every binary in dir is complete.
func buildMissing(
	ctx context.Context, dir string, missing []binary, versions map[string]string, flags []string, progress io.Writer,
) error {
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("create the cache folder: %w", err)
	}
	lock, err := acquire(ctx, filepath.Join(dir, "lock"), progress)
	if err != nil {
		return err
	}
	defer lock.Close()
	for _, b := range missing {
		target := filepath.Join(dir, b.name)
		if isFile(target) {
			continue
		}
		fmt.Fprintf(progress, "building %s %s (%s on 2 cores) ...\n", b.name, versions[b.module], b.takes)
		start := time.Now()
		built := target + ".part"
		if err := build.Program(ctx, "", built, append(flags, b.command)...); err != nil {
			return err
		}
		if err := os.Rename(built, target); err != nil {
			return fmt.Errorf("keep %s: %w", b.name, err)
		}
		fmt.Fprintf(progress, "done in %s\n", time.Since(start).Round(time.Second))
	}
	return nil
}

// acquire locks the file. The lock ends with the process at the latest.
func acquire(ctx context.Context, file string, progress io.Writer) (io.Closer, error) {
	for waited := false; ; waited = true {
		lock, err := fileutil.TryLockFile(file, os.O_CREATE|os.O_WRONLY, 0o600)
		if err == nil {
			return lock, nil
		}
		if !errors.Is(err, fileutil.ErrLocked) {
			return nil, fmt.Errorf("lock the cache folder: %w", err)
		}
		if !waited {
			fmt.Fprintln(progress, "waiting for another process that builds the control plane ...")
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("lock the cache folder: %w", context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// combine returns a folder of links to wanted: the binaries in prebuilt, and those that were built
// into dir because prebuilt lacks them.
func combine(dir, prebuilt string, wanted, built []binary) (string, error) {
	prebuilt, err := filepath.Abs(prebuilt)
	if err != nil {
		return "", fmt.Errorf("combine binaries: %w", err)
	}
	source := map[string]string{}
	for _, b := range wanted {
		source[b.name] = prebuilt
	}
	parts := []string{prebuilt}
	for _, b := range built {
		source[b.name] = dir
		parts = append(parts, b.name)
	}
	combined := filepath.Join(dir, "with-"+digest(parts...))
	if err := os.MkdirAll(combined, 0o750); err != nil {
		return "", fmt.Errorf("combine binaries: %w", err)
	}
	for name, from := range source {
		if err := os.Symlink(filepath.Join(from, name), filepath.Join(combined, name)); err != nil && !os.IsExist(err) {
			return "", fmt.Errorf("combine binaries: %w", err)
		}
	}
	return combined, nil
}

// moduleVersion returns the version of a module that go.mod selects.
func moduleVersion(ctx context.Context, module string) (string, error) {
	out, err := output(exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module))
	if err != nil {
		return "", fmt.Errorf("find the version of %s: %w", module, err)
	}
	return strings.TrimSpace(string(out)), nil
}

// moduleFolder returns the folder of a module's source, at the version that go.mod selects. It
// downloads the module if necessary.
func moduleFolder(ctx context.Context, module string) (string, error) {
	out, err := output(exec.CommandContext(ctx, "go", "mod", "download", "-json", module))
	if err != nil {
		return "", fmt.Errorf("download %s: %w", module, err)
	}
	var downloaded struct{ Dir string }
	if err := json.Unmarshal(out, &downloaded); err != nil {
		return "", fmt.Errorf("download %s: %w", module, err)
	}
	return downloaded.Dir, nil
}

// output returns the standard output of cmd. Errors contain its standard error.
func output(cmd *exec.Cmd) ([]byte, error) {
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, bytes.TrimSpace(stderr.Bytes()))
	}
	return out, nil
}

func digest(parts ...string) string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(strings.Join(parts, "\n"))))[:10]
}

func isFile(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular()
}
