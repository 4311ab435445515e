package main

import (
	"context"
	"embed"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/akv-injector/akv-injector/test/harness/process"
)

// pages are the wanted pages of `akv-injector explain`, without the texts that each run has anew.
//
//go:embed pages
var pages embed.FS

var writePages = flag.String("pages", "", "write the pages of akv-injector explain to this `folder`, and do not check them")

// varying are the texts that each run has anew, and what the pages have instead.
var varying = []struct {
	pattern *regexp.Regexp
	instead string
}{
	{regexp.MustCompile(`\b(\d+[smhd])+ ago`), "AGE ago"},
	// Hashes of pod templates, and what the API server adds to generateName, have these characters
	// (k8s.io/apimachinery/pkg/util/rand).
	{regexp.MustCompile(`-[bcdfghjklmnpqrstvwxz2456789]{6,10}(-[bcdfghjklmnpqrstvwxz2456789]{5})?\b`), "-HASH"},
	{regexp.MustCompile(`\b(tonight|renewal)-[bcdfghjklmnpqrstvwxz2456789]{5}\b`), "$1-HASH"},
	{regexp.MustCompile(`https://127\.0\.0\.1:\d+`), "https://ISSUER"},
	// The kubelet may mount a volume before the injector has created the class.
	{regexp.MustCompile(`(?m)^  · earlier: FailedMount: class kv-.*\n(?:      .*\n)+`), ""},
	{regexp.MustCompile(`\nEvents\n(\n|\z)`), "$1"},
	// Unused classes may not be collected yet.
	{regexp.MustCompile(`(used: count/[a-z0-9.-]+)=\d+`), "$1=N"},
}

// explains waits until `akv-injector explain` prints the page of that name and exits with a status.
// It shows the first broken link, and the rest of its section.
func (s *show) explains(ctx context.Context, page string, status int, namespace, object string) error {
	command := "akv-injector explain " + object + " -n " + namespace
	want, err := pages.ReadFile("pages/" + page + ".txt")
	if err != nil && *writePages == "" {
		return fmt.Errorf("find a page: %w", err)
	}
	var got string
	var differs error // a later attempt may be interrupted
	err = process.Within(ctx, patience, "the page "+page, func(ctx context.Context) error {
		out, err := s.quietly(ctx, command)
		exit := 0
		if failed, ok := errors.AsType[*exec.ExitError](err); ok {
			exit = failed.ExitCode()
		} else if err != nil {
			return err
		}
		if exit != status {
			differs = fmt.Errorf("must exit with status %d, exits with %d\n%s", status, exit, out)
			return differs
		}
		got = out
		for _, v := range varying {
			got = v.pattern.ReplaceAllString(got, v.instead)
		}
		if diff := cmp.Diff(string(want), got); *writePages == "" && diff != "" {
			differs = fmt.Errorf("page (-want +got)\n%s", diff)
			return differs
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, differs)
	}
	if *writePages != "" {
		if err := os.WriteFile(filepath.Join(*writePages, page+".txt"), []byte(got), 0o644); err != nil {
			return fmt.Errorf("write a page: %w", err)
		}
	}
	if !strings.Contains(got, firstBroken) {
		return nil
	}
	_, err = s.shell(ctx, command+" | sed -n '/"+firstBroken+"/,/^$/p'")
	return err
}

// firstBroken marks the first broken link of a page.
const firstBroken = "first broken link"

// isHealthy waits until `akv-injector explain` finds no broken link.
func (s *show) isHealthy(ctx context.Context, namespace, object string) error {
	return process.Within(ctx, patience, "every link", func(ctx context.Context) error {
		out, err := s.quietly(ctx, "akv-injector explain "+object+" -n "+namespace)
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, out)
		}
		return err
	})
}
