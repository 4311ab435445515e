package cli

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"znkr.io/diff"
	"znkr.io/diff/textdiff"
)

// unifiedDiff returns the changes of each file in the unified format. The line of each hunk ends
// with the object that changes.
func unifiedDiff(files []*file, colored bool) string {
	var b strings.Builder
	p := painter{&b, colored}
	for _, f := range files {
		hunks := textdiff.Hunks(f.text, f.after(!allJSON([]*file{f})))
		if len(hunks) == 0 {
			continue
		}
		p.line(bold, "--- "+f.name)
		p.line(bold, "+++ "+f.name)
		for _, h := range hunks {
			first := slices.IndexFunc(h.Edits, func(e textdiff.Edit[string]) bool { return e.Op != diff.Match })
			before, after := span(h.LineNoX, h.EndLineNoX), span(h.LineNoY, h.EndLineNoY)
			p.line(cyan, fmt.Sprintf("@@ -%s +%s @@%s", before, after, f.titleAt(h.LineNoX+first)))
			for _, e := range h.Edits {
				switch e.Op {
				case diff.Match:
					p.edit("", " ", e.Line)
				case diff.Delete:
					p.edit(red, "-", e.Line)
				case diff.Insert:
					p.edit(green, "+", e.Line)
				}
			}
		}
	}
	return b.String()
}

// titleAt returns the object of the document with that line, counted from 0.
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

// Colours of terminals (ECMA-48, SGR).
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

// edit writes a line of a file after a sign.
func (p painter) edit(color, sign, line string) {
	bare, ended := strings.CutSuffix(line, "\n")
	p.line(color, sign+bare)
	if !ended {
		p.line("", `\ No newline at end of file`)
	}
}

// span returns a range of lines in the unified format.
func span(start, end int) string {
	switch end - start {
	case 0:
		return fmt.Sprintf("%d,0", start)
	case 1:
		return strconv.Itoa(start + 1)
	}
	return fmt.Sprintf("%d,%d", start+1, end-start)
}
