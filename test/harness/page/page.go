// Package page prints the demonstrations: titles, commands with their output, and manifests side by
// side, to a terminal or a file. [Main] is their main function.
//
//	page.Main("demo", func(ctx context.Context, out *page.Page) (int, error) {
//		out.Title("1. A namespace opts in.")
//		out.Command("kubectl label namespace default keyvault.io/injection=enabled")
//		...
//	})
//
// The package does not know what is shown.
package page

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

// Page is a terminal or a file. On a terminal it uses the terminal's width and colours.
type Page struct {
	to       *os.File
	width    int
	coloured bool
	lost     func()
}

// New returns a page on a terminal or a file. The environment variables COLUMNS and NO_COLOR
// override the width and the colours. If writing fails, for example because the reader has closed
// the pipe, the page calls lost. This requires that the process ignores SIGPIPE.
func New(to *os.File, lost func()) *Page {
	p := &Page{to: to, width: 110, lost: lost}
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

// Say prints a text unchanged.
func (p *Page) Say(text string) { p.print(text + "\n") }

func (p *Page) print(text string) {
	if _, err := p.to.WriteString(text); err != nil {
		p.lost()
	}
}

func (p *Page) colour(colour, text string) string {
	if !p.coloured || colour == "" {
		return text
	}
	return colour + text + plain
}

// Title prints a title.
func (p *Page) Title(text string) { p.Say("\n" + p.colour(bold, text)) }

// Step prints what do does, calls do, and prints how long it took.
func (p *Page) Step(what string, do func() error) error {
	begin := time.Now()
	p.print(fmt.Sprintf("%-70s", what+" ..."))
	if err := do(); err != nil {
		p.Say("")
		return err
	}
	p.Say(fmt.Sprintf("%5.1f s", time.Since(begin).Seconds()))
	return nil
}

// Command prints a command line with a prompt.
func (p *Page) Command(text string) {
	lines := wrap(text, p.width-len("  $  \\"))
	p.Say("\n  " + p.colour(bold, "$ "+strings.Join(lines, " \\\n    ")))
}

// Output prints the output of a command without trailing blank lines.
func (p *Page) Output(text string) {
	for text := range strings.Lines(strings.TrimRight(text, "\n ")) {
		for _, part := range wrap(strings.TrimRight(text, "\n"), p.width-4) {
			p.Say("  " + part)
		}
	}
}

// Contains returns an error unless text contains all of wanted.
func Contains(text string, wanted ...string) error {
	for _, want := range wanted {
		if !strings.Contains(text, want) {
			return fmt.Errorf("must contain %q: %s", want, text)
		}
	}
	return nil
}

// Line is a line of a manifest.
type Line struct {
	Text string
	// Added marks a line that the injector added.
	Added bool
}

// Columns prints two manifests side by side. It breaks long lines where the YAML keeps its meaning.
func (p *Page) Columns(leftTitle string, left []Line, rightTitle string, right []Line) {
	const mark = 2
	room := p.width - 2 - gutter
	leftWidth := min(widest(left), room/2)
	rightWidth := min(widest(right)+mark, room-leftWidth)
	leftWidth = min(widest(left), room-rightWidth)

	var leftCells, rightCells []string
	for _, l := range left {
		leftCells = append(leftCells, wrap(l.Text, leftWidth)...)
	}
	var added []bool
	for _, r := range right {
		sign := "  "
		if r.Added {
			sign = "+ "
		}
		for _, part := range wrap(r.Text, rightWidth-mark) {
			rightCells = append(rightCells, sign+part)
			added = append(added, r.Added)
		}
	}
	row := func(left, leftColour, right, rightColour string) {
		pad := strings.Repeat(" ", max(0, leftWidth-utf8.RuneCountInString(left))+gutter)
		p.Say(strings.TrimRight("  "+p.colour(leftColour, left)+pad+p.colour(rightColour, right), " "))
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

func widest(lines []Line) int {
	width := 0
	for _, l := range lines {
		if !isJSON(l.Text) {
			width = max(width, utf8.RuneCountInString(l.Text))
		}
	}
	return width
}

// isJSON reports whether the value in a line of YAML is JSON, which is not meant for people.
func isJSON(text string) bool { return strings.Contains(text, ": '{") }

// wrap breaks a text between words into lines of at most width. The second line and those after it
// are indented by two more columns. A word that is too long stays whole. JSON is cut off.
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
