package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/term"
)

const (
	bold, green, dim, plain = "\x1b[1m", "\x1b[32m", "\x1b[2m", "\x1b[0m"

	gutter = 3 // between the columns
)

// page is where the demo prints: a terminal, whose width and colours it uses, or a file.
type page struct {
	to       *os.File
	width    int
	coloured bool
}

func newPage(to *os.File) *page {
	p := &page{to: to, width: 110}
	if term.IsTerminal(int(to.Fd())) {
		p.coloured = os.Getenv("NO_COLOR") == ""
		if width, _, err := term.GetSize(int(to.Fd())); err == nil {
			p.width = width
		}
	}
	if width, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil {
		p.width = width
	}
	p.width = min(max(p.width, 72), 120)
	return p
}

func (p *page) say(text string) { fmt.Fprintln(p.to, text) }

func (p *page) colour(colour, text string) string {
	if !p.coloured || colour == "" {
		return text
	}
	return colour + text + plain
}

func (p *page) title(text string) { p.say("\n" + p.colour(bold, text)) }

// step prints what is done, does it, and prints how long it took.
func (p *page) step(what string, do func() error) error {
	begin := time.Now()
	fmt.Fprintf(p.to, "%-70s", what+" ...")
	if err := do(); err != nil {
		p.say("")
		return err
	}
	p.say(fmt.Sprintf("%5.1f s", time.Since(begin).Seconds()))
	return nil
}

// command prints a command as it is typed.
func (p *page) command(text string) {
	lines := wrap(text, p.width-len("  $  \\"))
	p.say("\n  " + p.colour(bold, "$ "+strings.Join(lines, " \\\n    ")))
}

// output prints what a command printed.
func (p *page) output(text string) {
	for text := range strings.Lines(text) {
		for _, part := range wrap(strings.TrimRight(text, "\n"), p.width-4) {
			p.say("  " + part)
		}
	}
}

// columns prints two manifests side by side. YAML that is too wide goes on below, where it still means the same.
func (p *page) columns(leftTitle string, left []line, rightTitle string, right []line) {
	const mark = 2
	room := p.width - 2 - gutter
	leftWidth := min(widest(left), room/2)
	rightWidth := min(widest(right)+mark, room-leftWidth)
	leftWidth = min(widest(left), room-rightWidth)

	var leftCells, rightCells []string
	for _, l := range left {
		leftCells = append(leftCells, wrap(l.text, leftWidth)...)
	}
	var added []bool
	for _, r := range right {
		sign := "  "
		if r.added {
			sign = "+ "
		}
		for _, part := range wrap(r.text, rightWidth-mark) {
			rightCells = append(rightCells, sign+part)
			added = append(added, r.added)
		}
	}
	row := func(left, leftColour, right, rightColour string) {
		pad := strings.Repeat(" ", max(0, leftWidth-utf8.RuneCountInString(left))+gutter)
		p.say(strings.TrimRight("  "+p.colour(leftColour, left)+pad+p.colour(rightColour, right), " "))
	}
	row(leftTitle, bold, rightTitle, bold)
	row(strings.Repeat("─", leftWidth), dim, strings.Repeat("─", rightWidth), dim)
	for i := range max(len(leftCells), len(rightCells)) {
		var l, r, colour string
		if i < len(leftCells) {
			l = leftCells[i]
		}
		if i < len(rightCells) {
			r = rightCells[i]
			if added[i] {
				colour = green
			}
		}
		row(l, "", r, colour)
	}
}

func widest(lines []line) int {
	width := 0
	for _, l := range lines {
		if !isJSON(l.text) {
			width = max(width, utf8.RuneCountInString(l.text))
		}
	}
	return width
}

// isJSON tells whether a line of YAML has JSON for its value, which is for machines.
func isJSON(text string) bool { return strings.Contains(text, ": '{") }

// wrap breaks a text between words into lines of at most width, the others indented two deeper than the first. A word that
// is too long stays whole. JSON is cut off.
func wrap(text string, width int) []string {
	if utf8.RuneCountInString(text) > width && isJSON(text) {
		return []string{string([]rune(text)[:width-1]) + "…"}
	}
	indent := strings.Repeat(" ", len(text)-len(strings.TrimLeft(text, " -"))+2)
	var lines []string
	for utf8.RuneCountInString(text) > width {
		start := len(text) - len(strings.TrimLeft(text, " -"))
		cut := strings.LastIndex(string([]rune(text)[:width+1]), " ")
		if cut <= start {
			if cut = strings.Index(text[start:], " ") + start; cut < start {
				break
			}
		}
		lines = append(lines, text[:cut])
		text = indent + strings.TrimLeft(text[cut:], " ")
	}
	return append(lines, text)
}
