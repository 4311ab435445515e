package cli

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/term"

	"github.com/akv-injector/akv-injector/cli/lines"
)

// contextLines is how many lines a diff shows around what changes.
const contextLines = 3

// unifiedDiff shows what changes, file by file, in the unified format. Behind each @@ stands the object that the change is about.
func unifiedDiff(files []*file, colored bool) string {
	var b strings.Builder
	for _, f := range files {
		before, after := lines.Split(f.text), lines.Split(f.after(!allJSON([]*file{f})))
		edits := lines.Diff(before, after)
		if len(edits) == 0 {
			continue
		}
		p := painter{&b, colored}
		p.line(bold, "--- "+f.name)
		p.line(bold, "+++ "+f.name)
		for len(edits) > 0 {
			n := 1
			for n < len(edits) && edits[n].Start-edits[n-1].End <= 2*contextLines {
				n++
			}
			p.hunk(before, after, edits[:n], f.titleAt(edits[0].Start))
			edits = edits[n:]
		}
	}
	return b.String()
}

// titleAt names the object of the document that an insertion before a line, from 0, belongs to.
func (f *file) titleAt(line int) string {
	end := 0
	for _, d := range f.documents {
		end += strings.Count(d.Text(), "\n")
		if line <= end && d.title != "" {
			return " " + d.title
		}
	}
	return ""
}

// The colours of a diff, as terminals know them (ECMA-48, SGR).
const (
	bold  = "\x1b[1m"
	red   = "\x1b[31m"
	green = "\x1b[32m"
	cyan  = "\x1b[36m"
	reset = "\x1b[m"
)

type painter struct {
	*strings.Builder
	colored bool
}

// line writes a line in a colour; empty for none.
func (p painter) line(color, text string) {
	if p.colored && color != "" {
		text = color + text + reset
	}
	fmt.Fprintln(p, text)
}

// body writes a line of a text behind the sign that says what became of it.
func (p painter) body(color, sign, line string) {
	bare, ended := strings.CutSuffix(line, "\n")
	p.line(color, sign+bare)
	if !ended {
		p.line("", `\ No newline at end of file`)
	}
}

func (p painter) hunk(before, after []string, edits []lines.Edit, title string) {
	first, last := edits[0], edits[len(edits)-1]
	start, end := max(first.Start-contextLines, 0), min(last.End+contextLines, len(before))
	otherStart, otherEnd := first.OtherStart-(first.Start-start), last.OtherEnd+(end-last.End)
	p.line(cyan, fmt.Sprintf("@@ -%s +%s @@%s", span(start, end), span(otherStart, otherEnd), title))
	next := start
	keep := func(until int) {
		for ; next < until; next++ {
			p.body("", " ", before[next])
		}
	}
	for _, e := range edits {
		keep(e.Start)
		for ; next < e.End; next++ {
			p.body(red, "-", before[next])
		}
		for _, line := range after[e.OtherStart:e.OtherEnd] {
			p.body(green, "+", line)
		}
	}
	keep(end)
}

// span is a range of lines as the unified format counts them.
func span(start, end int) string {
	switch end - start {
	case 0:
		return fmt.Sprintf("%d,0", start)
	case 1:
		return strconv.Itoa(start + 1)
	}
	return fmt.Sprintf("%d,%d", start+1, end-start)
}

// isColored reports whether w is a terminal that wants colours (https://no-color.org).
func isColored(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}
