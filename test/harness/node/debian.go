package node

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

// packages are the Debian or Ubuntu packages of a node. They are unpacked, not installed. Their
// versions are those of the machine's release, because they need its libraries. The versions cannot
// be pinned: archives remove a version when a security fix replaces it. The packages are downloaded
// once; remove the folder to download newer ones.
var packages = []string{
	"containerd", "runc", "containernetworking-plugins", "busybox-static",
	// The programs that kube-router runs, and their libraries.
	"iptables", "ipset", "libip4tc2", "libip6tc2", "libipset13", "libmnl0", "libnetfilter-conntrack3", "libnfnetlink0", "libnftnl11", "libxtables12",
}

// unpacked returns a folder with the files of the packages. It is in the user's cache folder, and
// is created if it is missing. A folder there is always complete.
func unpacked(ctx context.Context, progress *os.File) (string, error) {
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find the user's cache folder: %w", err)
	}
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "", fmt.Errorf("find the release: %w", err)
	}
	key := sha256.Sum256(fmt.Appendf(release, "%s %s", runtime.GOARCH, packages))
	target := filepath.Join(cache, "akv-injector", fmt.Sprintf("debian-%x", key[:6]))
	if _, err := os.Stat(target); err == nil {
		return target, nil
	}
	fmt.Fprintf(progress, "downloading %s (takes half a minute) ...\n", strings.Join(packages, ", "))
	begin := time.Now()
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", fmt.Errorf("unpack Debian's packages: %w", err)
	}
	work, err := os.MkdirTemp(filepath.Dir(target), ".debian-")
	if err != nil {
		return "", fmt.Errorf("unpack Debian's packages: %w", err)
	}
	defer os.RemoveAll(work)
	if err := download(ctx, work); err != nil {
		return "", err
	}
	files, err := filepath.Glob(filepath.Join(work, "*.deb"))
	if err != nil {
		return "", fmt.Errorf("unpack Debian's packages: %w", err)
	}
	root := filepath.Join(work, "root")
	for _, file := range files {
		if err := command(ctx, work, "dpkg-deb", "--extract", file, root); err != nil {
			return "", err
		}
	}
	// Another process may have created the folder meanwhile.
	if err := os.Rename(root, target); err != nil && !errors.Is(err, os.ErrExist) {
		return "", fmt.Errorf("keep Debian's packages: %w", err)
	}
	fmt.Fprintf(progress, "done in %s\n", time.Since(begin).Round(time.Second))
	return target, nil
}

// download downloads the packages into a folder. The package lists also go there: those of the
// machine may be missing or outdated, and stay unchanged.
func download(ctx context.Context, dir string) error {
	lists := filepath.Join(dir, "lists")
	if err := os.MkdirAll(filepath.Join(lists, "partial"), 0o750); err != nil {
		return fmt.Errorf("download Debian's packages: %w", err)
	}
	// The user _apt cannot write into this user's folder.
	apt := []string{"apt-get", "-q", "-o", "Dir::State::Lists=" + lists, "-o", "Dir::Cache=" + dir, "-o", "APT::Sandbox::User=root"}
	if err := command(ctx, dir, append(apt, "update", "--error-on=any")...); err != nil {
		return err
	}
	return command(ctx, dir, append(append(apt, "download"), packages...)...)
}
