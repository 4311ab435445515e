package controlplane_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/akv-injector/akv-injector/test/harness/controlplane"
)

func TestBinaries(t *testing.T) {
	t.Run("uses KUBEBUILDER_ASSETS if it has all binaries", func(t *testing.T) {
		dir := fakeBinaries(t, "etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
		t.Setenv("KUBEBUILDER_ASSETS", dir)
		if got := find(t); got != dir {
			t.Errorf("got %s, want %s", got, dir)
		}
	})
	t.Run("builds what KUBEBUILDER_ASSETS lacks, and returns a folder with all binaries", func(t *testing.T) {
		dir := fakeBinaries(t, "etcd", "kube-apiserver", "kubectl")
		t.Setenv("KUBEBUILDER_ASSETS", dir)
		got := find(t)
		t.Cleanup(func() { _ = os.RemoveAll(got) })
		wantPrebuilt(t, got, "etcd", true)
		wantPrebuilt(t, got, "kube-apiserver", true)
		wantPrebuilt(t, got, "kube-controller-manager", false)
		wantPrebuilt(t, got, "kubectl", true)
	})
	t.Run("uses the installation of setup-envtest", func(t *testing.T) {
		dir := fakeBinaries(t, "etcd", "kube-apiserver", "kube-controller-manager", "kubectl")
		path := t.TempDir()
		script := fmt.Sprintf("#!/bin/sh\n[ \"$*\" = 'use --installed-only --print path 1.37.x' ] && printf %%s '%s'\n", dir)
		if err := os.WriteFile(filepath.Join(path, "setup-envtest"), []byte(script), 0o700); err != nil {
			t.Fatal(err)
		}
		t.Setenv("KUBEBUILDER_ASSETS", "")
		t.Setenv("PATH", path+string(os.PathListSeparator)+os.Getenv("PATH"))
		if got := find(t); got != dir {
			t.Errorf("got %s, want %s", got, dir)
		}
	})
}

func find(t *testing.T) string {
	t.Helper()
	dir, err := controlplane.Binaries(t.Context(), io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

const fake = "prebuilt"

// fakeBinaries returns a folder with files of these names.
func fakeBinaries(t *testing.T, names ...string) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(fake), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func wantPrebuilt(t *testing.T, dir, name string, want bool) {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
		return
	}
	if got := string(data) == fake; got != want {
		t.Errorf("%s: prebuilt is %t, want %t", name, got, want)
	}
}
