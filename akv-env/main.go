// Command akv-env is the init container of `keyvault.io/env-source: file`. It reads mounted Key Vault
// objects and writes the env files that the kubelet reads for valueFrom.fileKeyRef:
//
//	akv-env --in /in --out /out '[[{"env":"DB_PASSWORD","file":"0/db","object":"secret db of vault payments-kv"}]]'
//
// It ends after it has written the files. It does not connect to Key Vault or to the API server, does
// not start the application, and does not update the files when an object gets a new version. Package
// core/envfile has the format of the files and of the argument.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/akv-injector/akv-injector/core/envfile"
)

const (
	usage = `Usage: akv-env --in DIR --out DIR SPEC

Write the env files of a pod from mounted Key Vault objects. The injector runs this program as an init
container of pods with keyvault.io/env-source: file.

  SPEC        the env files, JSON: [[{"env": NAME, "file": PATH, "property": PATH, "object": TEXT}, ...], ...]
  --in DIR    the folder of the files that SPEC names
  --out DIR   the folder to write env, env-1, ... to
  --version   print the version

Exit status: 0 if all files are written, 1 if none is, because of the objects or the folders, 2 if the
arguments are wrong.
`
	// maxFile is the largest file that is read, in bytes. Key Vault's largest objects are about 25 KiB.
	maxFile = 1 << 20
	// mode lets only the kubelet read an env file, as root. No other container mounts the volume. The
	// next run of this program replaces the file and does not open it.
	mode = 0o400
	// maxMessage is how many bytes terminationMessagePolicy: FallbackToLogsOnError keeps. It also keeps
	// 80 lines at most; fewer fit, since a problem has more than 25 bytes. See
	// MaxContainerTerminationMessageLogLength in k8s.io/kubernetes/pkg/kubelet/container/runtime.go.
	maxMessage = 2048
)

// version is set by the linker.
var version = "unknown"

func main() {
	os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
}

// run returns the exit status.
func run(args []string, stdout, stderr io.Writer) int {
	flags := flag.NewFlagSet("akv-env", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	in, out := flags.String("in", "", ""), flags.String("out", "", "")
	printVersion := flags.Bool("version", false, "")
	err := flags.Parse(args)
	var spec envfile.Spec
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(stdout, usage)
		return 0
	case err != nil:
	case *printVersion:
		fmt.Fprintln(stdout, "akv-env", version)
		return 0
	case *in == "" || *out == "" || flags.NArg() != 1:
		err = errors.New("must have --in, --out and one SPEC")
	default:
		if spec, err = envfile.ParseSpec(flags.Arg(0)); err != nil {
			err = fmt.Errorf("SPEC: %w", err)
		}
	}
	if err != nil {
		fmt.Fprint(stderr, message([]string{"error: " + err.Error(), "run akv-env --help"}))
		return 2
	}
	if problems := convert(spec, *in, *out); len(problems) > 0 {
		fmt.Fprint(stderr, message(problems))
		return 1
	}
	return 0
}

// convert writes the env files, or none if it returns problems.
func convert(spec envfile.Spec, in, out string) (problems []string) {
	read := reader(os.DirFS(in))
	contents := make([][]byte, len(spec))
	for i, group := range spec {
		var found []string
		contents[i], found = envfile.Render(group, read)
		for _, problem := range found {
			if !slices.Contains(problems, problem) { // groups may share a variable
				problems = append(problems, problem)
			}
		}
	}
	if len(problems) == 0 {
		if err := write(out, contents); err != nil {
			problems = append(problems, "write the env files: "+err.Error())
		}
	}
	return problems
}

// reader returns a function that reads each file once, so that two properties of a secret are of the
// same version.
func reader(dir fs.FS) func(name string) ([]byte, error) {
	contents := map[string][]byte{}
	return func(name string) ([]byte, error) {
		if content, ok := contents[name]; ok {
			return content, nil
		}
		content, err := readFile(dir, name)
		if err == nil {
			contents[name] = content
		}
		return content, err
	}
}

func readFile(dir fs.FS, name string) ([]byte, error) {
	file, err := dir.Open(name)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("the file's permission is too strict for the user of the init container, %d; "+
			`set filePermission: "0444" for the object in keyvault.io/secrets, or in the class of keyvault.io/class`, os.Getuid())
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("the mounted volume has no file %s; if keyvault.io/class names the class, "+
			"its objectName or objectAlias may have changed", strconv.Quote(name))
	case err != nil:
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err == nil && len(content) > maxFile {
		err = errors.New("must be at most 1 MiB")
	}
	return content, err
}

// write replaces all env files in dir after it has written all of their contents.
func write(dir string, contents [][]byte) error {
	temporary := func(i int) string { return filepath.Join(dir, "."+envfile.FileName(i)+".tmp") }
	for i, content := range contents {
		_ = os.Remove(temporary(i)) // a killed run may have left it
		defer os.Remove(temporary(i))
		if err := os.WriteFile(temporary(i), content, mode); err != nil {
			return err
		}
	}
	for i := range contents {
		if err := os.Rename(temporary(i), filepath.Join(dir, envfile.FileName(i))); err != nil {
			return err
		}
	}
	return nil
}

// message returns the lines as a termination message. It counts those that do not fit.
func message(lines []string) string {
	const limit = maxMessage - len("and 123456789 more\n")
	var text strings.Builder
	for i, line := range lines {
		if i == 0 && len(line) >= limit {
			line = strings.ToValidUTF8(line[:limit-1], "")
		}
		if text.Len()+len(line) >= limit {
			fmt.Fprintf(&text, "and %d more\n", len(lines)-i)
			break
		}
		text.WriteString(line + "\n")
	}
	return text.String()
}
