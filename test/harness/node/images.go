package node

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
)

const pauseImage = "localhost/pause:1"

// applets are the busybox applets in the images of pods.
var applets = []string{"sh", "cat", "date", "echo", "env", "grep", "head", "id", "kill", "ls", "sleep", "stat", "tail", "test", "wget"}

// asLongAsItTakes is the command of an idle container, including the pause container of every pod.
var asLongAsItTakes = []string{"/bin/sleep", "2147483647"}

// image is a container image with one program, and maybe more in its root folder.
type image struct {
	names               []string
	program             string   // path of the program
	more                []string // paths of further programs on this machine
	links               []string // other names of the program, in its folder bin
	entrypoint, command []string
}

// write writes an archive in the format of `docker save`, with the content of file as the program.
func (i image) write(file, target string) error {
	program, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	files := []entry{{name: i.program, content: program}}
	for _, path := range i.more {
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files = append(files, entry{name: filepath.Base(path), content: content})
	}
	for _, link := range i.links {
		files = append(files, entry{name: "bin/" + link, link: "/" + i.program})
	}
	layer, err := archive(files)
	if err != nil {
		return err
	}
	config, err := json.Marshal(map[string]any{
		"architecture": runtime.GOARCH,
		"os":           "linux",
		"config":       map[string]any{"Env": []string{"PATH=/bin"}, "Entrypoint": i.entrypoint, "Cmd": i.command},
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		return err
	}
	manifest, err := json.Marshal([]map[string]any{{"Config": "config.json", "Layers": []string{"layer.tar"}, "RepoTags": i.names}})
	if err != nil {
		return err
	}
	saved, err := archive([]entry{
		{name: "layer.tar", content: layer}, {name: "config.json", content: config}, {name: "manifest.json", content: manifest},
	})
	if err != nil {
		return err
	}
	return os.WriteFile(target, saved, 0o600)
}

// entry is a file or a symbolic link in an archive.
type entry struct {
	name    string
	content []byte
	link    string
}

func archive(entries []entry) ([]byte, error) {
	var out bytes.Buffer
	writer := tar.NewWriter(&out)
	var errs []error
	for _, e := range entries {
		header := &tar.Header{Name: e.name, Mode: 0o755, Size: int64(len(e.content)), Typeflag: tar.TypeReg}
		if e.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, e.link
		}
		errs = append(errs, writer.WriteHeader(header))
		_, err := writer.Write(e.content)
		errs = append(errs, err)
	}
	err := errors.Join(append(errs, writer.Close())...)
	return out.Bytes(), err
}
