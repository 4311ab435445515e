package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
	"github.com/spf13/pflag"

	"github.com/akv-injector/akv-injector/cli"
)

var update = flag.Bool("update", false, "write docs/commands.md and docs/man")

// manDate is the date in the man pages.
var manDate = time.Date(2026, time.November, 30, 0, 0, 0, 0, time.UTC)

// published returns the root command as the documentation shows it, and its subcommands.
func published() (*cobra.Command, []*cobra.Command) {
	var status cli.Status
	root := rootCommand(&status, name)
	root.InitDefaultCompletionCmd()
	root.DisableAutoGenTag = true
	var all []*cobra.Command
	for _, cmd := range root.Commands() {
		if cmd.IsAvailableCommand() {
			cmd.InitDefaultHelpFlag()
			all = append(all, cmd)
		}
	}
	return root, all
}

// TestReference checks docs/commands.md and docs/man, and writes them with -update.
func TestReference(t *testing.T) {
	root, all := published()
	want := map[string]string{"docs/commands.md": commandsPage(t, all)}
	for _, cmd := range append(all, root) {
		var page bytes.Buffer
		header := doc.GenManHeader{Section: "1", Date: &manDate, Source: name, Manual: name}
		if err := doc.GenMan(cmd, &header, &page); err != nil {
			t.Fatal(err)
		}
		want["docs/man/"+strings.ReplaceAll(cmd.CommandPath(), " ", "-")+".1"] = page.String()
	}
	if *update {
		if err := os.RemoveAll("docs/man"); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir("docs/man", 0o755); err != nil {
			t.Fatal(err)
		}
		for file, text := range want {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	for file, text := range want {
		got, err := os.ReadFile(file)
		if diff := cmp.Diff(string(got), text); err != nil || diff != "" {
			t.Errorf("%s is out of date; run make generate (-file +commands): %v\n%s", file, err, diff)
		}
	}
	pages, err := filepath.Glob("docs/man/*")
	if err != nil || len(pages) != len(want)-1 {
		t.Errorf("docs/man has %d pages, want %d; run make generate: %v", len(pages), len(want)-1, err)
	}
}

// seeAlso are links between pages, and all commands are on one page.
var seeAlso = regexp.MustCompile(`(?s)\n### SEE ALSO.*$`)

const (
	begin = "<!-- generated: commands -->\n"
	end   = "<!-- end -->\n"
)

// commandsPage returns docs/commands.md with its generated part.
func commandsPage(t *testing.T, all []*cobra.Command) string {
	t.Helper()
	written, err := os.ReadFile("docs/commands.md")
	before, _, found := strings.Cut(string(written), begin)
	if err != nil || !found {
		t.Fatalf("docs/commands.md must have %q: %v", begin, err)
	}
	var page strings.Builder
	page.WriteString(before + begin)
	for _, cmd := range all {
		var text bytes.Buffer
		if err := doc.GenMarkdown(cmd, &text); err != nil {
			t.Fatal(err)
		}
		page.WriteString(seeAlso.ReplaceAllString(text.String(), "") + "\n")
	}
	page.WriteString(end)
	return page.String()
}

// TestCompletion checks that the shell can complete the value of each flag.
func TestCompletion(t *testing.T) {
	_, all := published()
	for _, cmd := range all {
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			_, completed := cmd.GetFlagCompletionFunc(f.Name)
			isFile := strings.Contains(f.Usage, "file") || strings.Contains(f.Usage, "path") || strings.Contains(f.Usage, "directory")
			if !completed && f.Value.Type() != "bool" && !isFile {
				t.Errorf("%s --%s has no completion: add it to completions, or to the files", cmd.Name(), f.Name)
			}
		})
	}
}

// TestPlugin checks that texts name the command as kubectl's users write it.
func TestPlugin(t *testing.T) {
	var status cli.Status
	root := rootCommand(&status, pluginName+".exe")
	for _, cmd := range root.Commands() {
		if strings.Contains(cmd.UsageString(), "  "+name+" ") {
			t.Errorf("the usage of %s as a plugin names %s\n%s", cmd.Name(), name, cmd.UsageString())
		}
	}
}
