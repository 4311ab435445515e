// Package report prints what a command found out about a cluster: titled sections of lines, each
// with a state and, if something is wrong, the commands to run next.
//
//	var r report.Report
//	s := r.Section("Namespace shop")
//	s.OK("opted in by label keyvault.io/injection=enabled")
//	s.Broken("class key-vault-secret does not exist").Run("kubectl", "get", "secretproviderclasses", "-n", "shop")
//	err := r.Print(os.Stdout, report.Text)
//
// Texts may come from tenants: Print escapes control characters in all of them, and
// [Line.Run] quotes words for the shell. The package reads no cluster.
package report

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf16"

	"al.essio.dev/pkg/shellescape"
	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"golang.org/x/term"
	"sigs.k8s.io/yaml"
)

// State is the state of what a line is about.
type State string

// The states.
const (
	// OK means that it is as it must be.
	OK State = "ok"
	// Info means that there is nothing to judge.
	Info State = "info"
	// Warning means that it works, and that something about it should change.
	Warning State = "warning"
	// Unknown means that it could not be found out, most often because the user lacks a right.
	Unknown State = "unknown"
	// Broken means that it does not work.
	Broken State = "broken"
)

// Line is one finding of a command.
type Line struct {
	State State `json:"state"`
	// First is true for the first broken line of the report; Print sets it.
	First bool `json:"first,omitzero"`
	// Text is one sentence without a full stop.
	Text string `json:"text"`
	// Details explain the text, one line each.
	Details []string `json:"details,omitempty"`
	// Next are shell commands that repair or show what is wrong.
	Next []string `json:"next,omitempty"`
}

// Detail adds a line that explains the text.
func (l *Line) Detail(format string, args ...any) *Line {
	l.Details = append(l.Details, fmt.Sprintf(format, args...))
	return l
}

// Run adds a command to run next. It quotes the words for a POSIX shell.
func (l *Line) Run(words ...string) *Line {
	l.Next = append(l.Next, shellescape.QuoteCommand(words))
	return l
}

// Count returns a number with its noun, in the singular or the plural.
func Count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// Few joins the first of a list of names.
func Few(names []string, most int) string {
	if more := len(names) - most; more > 0 {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", more)
	}
	return strings.Join(names, ", ")
}

// Section is a titled group of lines.
type Section struct {
	Title string  `json:"title"`
	Lines []*Line `json:"lines"`
}

// Add adds a line.
func (s *Section) Add(state State, format string, args ...any) *Line {
	line := &Line{State: state, Text: fmt.Sprintf(format, args...)}
	s.Lines = append(s.Lines, line)
	return line
}

// OK adds a line with state [OK].
func (s *Section) OK(format string, args ...any) *Line { return s.Add(OK, format, args...) }

// Info adds a line with state [Info].
func (s *Section) Info(format string, args ...any) *Line { return s.Add(Info, format, args...) }

// Warning adds a line with state [Warning].
func (s *Section) Warning(format string, args ...any) *Line { return s.Add(Warning, format, args...) }

// Unknown adds a line with state [Unknown].
func (s *Section) Unknown(format string, args ...any) *Line { return s.Add(Unknown, format, args...) }

// Broken adds a line with state [Broken].
func (s *Section) Broken(format string, args ...any) *Line { return s.Add(Broken, format, args...) }

// Report is what a command prints. The zero value is empty.
type Report struct {
	Sections []*Section `json:"sections"`
	// Independent is true if the lines are not the links of a chain: then no line is marked as the
	// first broken one.
	Independent bool `json:"-"`
}

// Section adds a section. Print omits sections without lines.
func (r *Report) Section(format string, args ...any) *Section {
	s := &Section{Title: fmt.Sprintf(format, args...)}
	r.Sections = append(r.Sections, s)
	return s
}

// State returns [Broken] if a line is broken, else [Unknown] if a line is unknown, else [OK].
func (r *Report) State() State {
	state := OK
	for _, s := range r.Sections {
		for _, l := range s.Lines {
			if l.State == Broken || l.State == Unknown && state == OK {
				state = l.State
			}
			if state == Broken {
				return Broken
			}
		}
	}
	return state
}

// AddFlags adds flags at the end of the commands of some programs: for example the context for which
// the report holds.
func (r *Report) AddFlags(flags []string, programs ...string) {
	if len(flags) == 0 {
		return
	}
	for _, s := range r.Sections {
		for _, l := range s.Lines {
			for i, command := range l.Next {
				if program, _, _ := strings.Cut(command, " "); slices.Contains(programs, program) {
					l.Next[i] += " " + shellescape.QuoteCommand(flags)
				}
			}
		}
	}
}

// Format is the output format of a report.
type Format string

// The formats.
const (
	// Text is for people, with colours on a terminal.
	Text Format = "text"
	// JSON and YAML are one [Report].
	JSON Format = "json"
	YAML Format = "yaml"
)

// Formats are all formats.
var Formats = []Format{Text, JSON, YAML}

// marks and colours (ECMA-48, select graphic rendition) of the states in the format Text.
var (
	marks   = map[State]string{OK: "✓", Info: "·", Warning: "!", Unknown: "?", Broken: "✗"}
	colours = map[State]string{OK: "32", Warning: "33", Unknown: "33", Broken: "31"}
)

// Print writes the report.
func (r *Report) Print(w io.Writer, format Format) error {
	r.finish()
	var text []byte
	var err error
	switch format {
	case Text, "":
		text = []byte(r.text(IsColored(w)))
	case JSON:
		text, err = json.Marshal(r, jsontext.WithIndent("  "), json.Deterministic(true))
		text = append(text, '\n')
	case YAML:
		text, err = yaml.Marshal(r)
	default:
		err = fmt.Errorf("format %q must be %s, %s or %s", format, Text, JSON, YAML)
	}
	if err == nil {
		_, err = w.Write(text)
	}
	if err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	return nil
}

// finish marks the first broken line, omits empty sections, and escapes all texts.
func (r *Report) finish() {
	first := !r.Independent
	var sections []*Section
	for _, s := range r.Sections {
		if len(s.Lines) == 0 {
			continue
		}
		sections = append(sections, s)
		s.Title = Escape(s.Title)
		for _, l := range s.Lines {
			l.First = first && l.State == Broken
			first = first && !l.First
			l.Text = Escape(l.Text)
			for i := range l.Details {
				l.Details[i] = Escape(l.Details[i])
			}
			for i := range l.Next {
				l.Next[i] = Escape(l.Next[i])
			}
		}
	}
	r.Sections = sections
}

func (r *Report) text(colored bool) string {
	var b strings.Builder
	for i, s := range r.Sections {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(s.Title + "\n")
		for _, l := range s.Lines {
			mark := marks[l.State]
			if colour := colours[l.State]; colored && colour != "" {
				mark = "\x1b[" + colour + "m" + mark + "\x1b[0m"
			}
			b.WriteString("  " + mark + " " + l.Text)
			if l.First {
				b.WriteString("   <-- first broken link")
			}
			b.WriteByte('\n')
			for _, detail := range l.Details {
				b.WriteString("      " + detail + "\n")
			}
			for _, command := range l.Next {
				b.WriteString("    $ " + command + "\n")
			}
		}
	}
	return b.String()
}

// Escape replaces characters that a terminal could interpret, such as controls and changes of the
// writing direction, by the escapes of JSON (RFC 8259).
func Escape(text string) string {
	text = strings.ToValidUTF8(text, string(unicode.ReplacementChar))
	if strings.IndexFunc(text, unprintable) < 0 {
		return text
	}
	var b strings.Builder
	for _, r := range text {
		switch {
		case !unprintable(r):
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		default:
			for _, unit := range utf16.Encode([]rune{r}) {
				fmt.Fprintf(&b, `\u%04x`, unit)
			}
		}
	}
	return b.String()
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// IsColored reports whether w is a terminal, and colours are not turned off (https://no-color.org).
func IsColored(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb" && term.IsTerminal(int(f.Fd()))
}
