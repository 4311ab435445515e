package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

// scene is a part of the show that has a title.
type scene struct {
	title string
	play  func(*show, context.Context) error
}

// play plays scenes, up to the first that isn't as it should be.
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

// kubectl shows and runs a kubectl command among the manifests, and returns what it prints, whether it fails or not.
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

// prints is an error unless a kubectl command, which it shows, prints all of wanted.
func (s *show) prints(ctx context.Context, wanted []string, args ...string) error {
	out, err := s.kubectl(ctx, args...)
	if err != nil {
		return err
	}
	return has(out, wanted)
}

// refuses is an error unless a kubectl command, which it shows, fails and says why.
func (s *show) refuses(ctx context.Context, want string, args ...string) error {
	out, err := s.kubectl(ctx, args...)
	switch {
	case ctx.Err() != nil:
		return err
	case err == nil:
		return errors.New("it must be refused")
	}
	return has(out, []string{want})
}

// shell shows and runs a command line, and returns what it prints, whether it fails or not.
func (s *show) shell(ctx context.Context, line string) (string, error) {
	s.out.Command(line)
	out, err := s.quietly(ctx, line)
	if ctx.Err() == nil {
		s.out.Output(out)
	}
	return out, err
}

// quietly does as shell does, and shows nothing.
func (s *show) quietly(ctx context.Context, line string) (string, error) {
	cmd := s.plane.Kubectl(ctx)
	cmd.Path, cmd.Args, cmd.Dir = "/bin/sh", []string{"sh", "-c", line}, s.dir
	cmd.Env = append(cmd.Env, "PATH="+s.plane.Binaries+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", line, err)
	}
	return string(out), nil
}

// comesToPrint waits until a kubectl command prints all of wanted, and shows it then.
func (s *show) comesToPrint(ctx context.Context, wanted []string, args ...string) error {
	if err := s.await(ctx, strings.Join(args, " "), func(ctx context.Context) error {
		out, err := s.plane.Kubectl(ctx, args...).Output()
		if err != nil {
			return err
		}
		return has(string(out), wanted)
	}); err != nil {
		return err
	}
	return s.prints(ctx, wanted, args...)
}

// happens shows the events of a namespace that a field selector finds, once they have all of wanted.
func (s *show) happens(ctx context.Context, namespace, selector string, wanted ...string) error {
	return s.comesToPrint(ctx, wanted, "get", "events", "-n", namespace, "--field-selector="+selector, "-o", "custom-columns=REASON:.reason,MESSAGE:.message")
}

// has is an error unless a text has all of wanted.
func has(text string, wanted []string) error {
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			return fmt.Errorf("it must have %q: %s", want, text)
		}
	}
	return nil
}

// await waits for what ready looks for.
func (s *show) await(ctx context.Context, what string, ready func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, fmt.Errorf("not there after %s", patience))
	defer cancel()
	if err := process.Until(ctx, ready); err != nil {
		return fmt.Errorf("wait for %s: %w", what, err)
	}
	return nil
}

// isRolledOut waits until a Deployment's pods are ready.
func (s *show) isRolledOut(ctx context.Context, namespace, deployment string) error {
	_, err := s.kubectl(ctx, "rollout", "status", "-n", namespace, "deployment/"+deployment, "--timeout="+patience.String())
	return err
}
