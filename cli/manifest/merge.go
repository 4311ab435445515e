package manifest

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/cli/lines"
)

// replacement is an edit of a base with what comes in its place.
type replacement struct {
	start, end int
	lines      []string
}

// merge brings what changed between base and changed into the author's text, which differs from base by its looks alone: new lines are
// indented as the author indents those around them. It reports false where both touch the same lines.
func merge(author, base, changed string) (string, bool) {
	ending := lineEnding(author)
	authorLines, baseLines, changedLines := lines.Split(author), lines.Split(base), lines.Split(changed)
	kept, replacements := align(baseLines, authorLines)
	var patches []replacement
	for _, e := range lines.Diff(baseLines, changedLines) {
		inserted := reindent(baseLines, kept, e.Start, changedLines[e.OtherStart:e.OtherEnd])
		patches = append(patches, replacement{e.Start, e.End, inserted})
	}
	// An insertion goes before what replaces the lines at its place, and the patch's before the author's own: blank lines that
	// follow a block still follow it.
	replacements = append(patches, replacements...)
	slices.SortStableFunc(replacements, func(a, b replacement) int {
		return cmp.Or(a.start-b.start, min(a.end-a.start, 1)-min(b.end-b.start, 1))
	})
	var merged []string
	next := 0
	for _, r := range replacements {
		if r.start < next {
			return "", false
		}
		merged = append(append(merged, kept[next:r.start]...), r.lines...)
		next = r.end
	}
	merged = append(merged, kept[next:]...)
	for i := range merged {
		if bare, ended := strings.CutSuffix(merged[i], "\n"); i < len(merged)-1 && !ended || ended && !strings.HasSuffix(bare, "\r") {
			merged[i] = bare + ending
		}
	}
	return strings.Join(merged, ""), true
}

// align finds each line of base in the author's text, which may indent it otherwise: kept has the author's line for it, or "". What
// has no match is replaced by what the author has in its place.
func align(base, author []string) (kept []string, replacements []replacement) {
	kept = make([]string, len(base))
	next, other := 0, 0
	keepUntil := func(end int) {
		for ; next < end; next, other = next+1, other+1 {
			kept[next] = author[other]
		}
	}
	for _, e := range lines.Diff(words(base), words(author)) {
		keepUntil(e.Start)
		replacements = append(replacements, replacement{e.Start, e.End, author[e.OtherStart:e.OtherEnd]})
		next, other = e.End, e.OtherEnd
	}
	keepUntil(len(base))
	return kept, replacements
}

// words are lines without what space can be between their words.
func words(lines []string) []string {
	bare := make([]string, len(lines))
	for i, line := range lines {
		bare[i] = strings.Join(strings.Fields(line), " ")
	}
	return bare
}

// reindent moves lines that are to be inserted before base[at] to where the author indents what is beside or around them.
func reindent(base, kept []string, at int, inserted []string) []string {
	for len(inserted) > 0 && strings.TrimSpace(inserted[0]) == "" {
		inserted = inserted[1:] // the library sets a comment apart from what follows
	}
	moved := make([]string, len(inserted))
	for i, line := range inserted {
		if strings.TrimSpace(line) == "" {
			moved[i] = line
			continue
		}
		was := indentation(line)
		now := was
		if j := around(inserted[:i], was); j >= 0 {
			now = indentation(moved[j]) + was - indentation(inserted[j])
		} else if at < len(base) && kept[at] != "" && indentation(base[at]) == was {
			now = indentation(kept[at])
		} else {
			for j := around(base[:at], was); j >= 0; j = around(base[:j], was) {
				if kept[j] != "" {
					now = indentation(kept[j]) + was - indentation(base[j])
					break
				}
			}
		}
		moved[i] = strings.Repeat(" ", max(now, 0)) + line[was:]
	}
	return moved
}

// around is the last line that is indented by at most so much, or -1.
func around(lines []string, indent int) int {
	for i, line := range slices.Backward(lines) {
		if strings.TrimSpace(line) != "" && indentation(line) <= indent {
			return i
		}
	}
	return -1
}

func indentation(line string) int {
	return len(line) - len(strings.TrimLeft(line, " "))
}

var jsonToken = regexp.MustCompile(`"(?:[^"\\]|\\.)*"|[][{}:,]|[^][{}:,"\s]+`)

// mergeJSON brings what changed between base and changed into the author's text, which has the tokens of base with other space between
// them, and other escapes.
func mergeJSON(author, base, changed string) (string, bool) {
	authorSpaces, authorTokens, tail := tokens(author)
	baseSpaces, baseTokens, _ := tokens(base)
	changedSpaces, changedTokens, _ := tokens(changed)
	if len(authorTokens) != len(baseTokens) {
		return "", false
	}
	var b strings.Builder
	next, other := 0, 0
	keepUntil := func(end int) {
		for ; next < end; next, other = next+1, other+1 {
			space := authorSpaces[next]
			if baseSpaces[next] != changedSpaces[other] {
				space = changedSpaces[other] // a bracket that moved to a line of its own
			}
			b.WriteString(space + authorTokens[next])
		}
	}
	for _, e := range lines.Diff(baseTokens, changedTokens) {
		keepUntil(e.Start)
		for ; other < e.OtherEnd; other++ {
			b.WriteString(changedSpaces[other] + changedTokens[other])
		}
		next = e.End
	}
	keepUntil(len(baseTokens))
	return b.String() + tail, true
}

// tokens takes a JSON text apart: the tokens, the space before each, and the space after the last.
func tokens(text string) (spaces, tokens []string, tail string) {
	end := 0
	for _, at := range jsonToken.FindAllStringIndex(text, -1) {
		spaces, tokens = append(spaces, text[end:at[0]]), append(tokens, text[at[0]:at[1]])
		end = at[1]
	}
	return spaces, tokens, text[end:]
}

// lineEnding is how the text's first line ends.
func lineEnding(text string) string {
	if at := strings.IndexByte(text, '\n'); at > 0 && text[at-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// withEndings gives text the line endings of another.
func withEndings(text, like string) string {
	if ending := lineEnding(like); ending != "\n" {
		return strings.ReplaceAll(text, "\n", ending)
	}
	return text
}
