package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/page"
	"github.com/akv-injector/akv-injector/test/harness/process"
)

// scene is a part of the show with a title.
type scene struct {
	title string
	play  func(*show, context.Context) error
}

// play plays scenes until one fails.
func (s *show) play(ctx context.Context, scenes []scene) error {
	for _, scene := range scenes {
		s.scene++
		s.out.Title(fmt.Sprintf("%d. %s", s.scene, scene.title))
		if err := scene.play(s, ctx); err != nil {
			return fmt.Errorf("scene %d: %w", s.scene, err)
		}
	}
	return nil
}

// kubectl shows a kubectl command, runs it in the folder of the manifests, and returns its output,
// even if the command fails.
func (s *show) kubectl(ctx context.Context, args ...string) (string, error) {
	words := []string{"kubectl"}
	for _, arg := range args {
		if strings.ContainsAny(arg, " $*?[]{}()\\\"") {
			arg = "'" + arg + "'"
		}
		words = append(words, arg)
	}
	return s.shell(ctx, strings.Join(words, " "))
}

// prints shows and runs a kubectl command. It returns an error unless the output contains all of
// wanted.
func (s *show) prints(ctx context.Context, wanted []string, args ...string) error {
	out, err := s.kubectl(ctx, args...)
	if err != nil {
		return err
	}
	return page.Contains(out, wanted...)
}

// refuses shows and runs a kubectl command. It returns an error unless the command fails and the
// output contains want.
func (s *show) refuses(ctx context.Context, want string, args ...string) error {
	out, err := s.kubectl(ctx, args...)
	switch {
	case ctx.Err() != nil:
		return err
	case err == nil:
		return errors.New("the command must fail")
	}
	return page.Contains(out, want)
}

// shell shows and runs a command line and returns its output, even if the command fails.
func (s *show) shell(ctx context.Context, line string) (string, error) {
	s.out.Command(line)
	out, err := s.quietly(ctx, line)
	if ctx.Err() == nil {
		s.out.Output(out)
	}
	return out, err
}

// quietly runs a command line like shell, but does not show it.
func (s *show) quietly(ctx context.Context, line string) (string, error) {
	cmd := s.plane.Kubectl(ctx)
	cmd.Path, cmd.Args, cmd.Dir = "/bin/sh", []string{"sh", "-c", line}, s.dir
	cmd.Env = append(cmd.Env, "PATH="+s.plane.Binaries+":"+filepath.Dir(s.machine.Parts.More[injectorProgram])+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", line, err)
	}
	return string(out), nil
}

// comesToPrint waits until the output of a kubectl command contains all of wanted, and then shows
// the command.
func (s *show) comesToPrint(ctx context.Context, wanted []string, args ...string) error {
	if err := process.Within(ctx, patience, strings.Join(args, " "), func(ctx context.Context) error {
		out, err := s.plane.Kubectl(ctx, args...).Output()
		if err != nil {
			return err
		}
		return page.Contains(string(out), wanted...)
	}); err != nil {
		return err
	}
	return s.prints(ctx, wanted, args...)
}

// happens waits for events in a namespace that match a field selector and contain all of wanted,
// and shows them.
func (s *show) happens(ctx context.Context, namespace, selector string, wanted ...string) error {
	return s.comesToPrint(ctx, wanted, "get", "events", "-n", namespace, "--field-selector="+selector,
		"-o", "custom-columns=REASON:.reason,MESSAGE:.message")
}

// isRolledOut waits until the pods of a Deployment are ready.
func (s *show) isRolledOut(ctx context.Context, namespace, deployment string) error {
	_, err := s.kubectl(ctx, "rollout", "status", "-n", namespace, "deployment/"+deployment, "--timeout="+patience.String())
	return err
}
