package manifest

import (
	"cmp"
	"regexp"
	"slices"
	"strings"

	"znkr.io/diff"
)

// edits returns the fewest changes that turn x into y.
func edits(x, y []string) []diff.Hunk[string] {
	return diff.Hunks(x, y, diff.Context(0), diff.Minimal())
}

// splitLines splits a text after each newline.
func splitLines(text string) []string {
	return slices.Collect(strings.Lines(text))
}

// replacement replaces lines of a base.
type replacement struct {
	start, end int
	lines      []string
}

// merge applies the difference between base and changed to the author's text. That text differs
// from base only in its style. New lines are indented as those around them in the author's text. It
// returns false if both differences touch the same lines.
func merge(author, base, changed string) (string, bool) {
	ending := lineEnding(author)
	authorLines, baseLines, changedLines := splitLines(author), splitLines(base), splitLines(changed)
	kept, replacements := align(baseLines, authorLines)
	var patches []replacement
	for _, h := range edits(baseLines, changedLines) {
		inserted := reindent(baseLines, kept, h.PosX, changedLines[h.PosY:h.EndY])
		patches = append(patches, replacement{h.PosX, h.EndX, inserted})
	}
	// At the same position, an insertion comes before a replacement, and the patch's insertion
	// before the author's: blank lines after a block stay after it.
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
		bare, ended := strings.CutSuffix(merged[i], "\n")
		if i < len(merged)-1 && !ended || ended && !strings.HasSuffix(bare, "\r") {
			merged[i] = bare + ending
		}
	}
	return strings.Join(merged, ""), true
}

// align finds each line of base in the author's text, which may have another indentation. kept has
// the author's line for each line of base, or "". The replacements replace lines of base without a
// match by the author's lines.
func align(base, author []string) (kept []string, replacements []replacement) {
	kept = make([]string, len(base))
	next, other := 0, 0
	keepUntil := func(end int) {
		for ; next < end; next, other = next+1, other+1 {
			kept[next] = author[other]
		}
	}
	for _, h := range edits(words(base), words(author)) {
		keepUntil(h.PosX)
		replacements = append(replacements, replacement{h.PosX, h.EndX, author[h.PosY:h.EndY]})
		next, other = h.EndX, h.EndY
	}
	keepUntil(len(base))
	return kept, replacements
}

// words returns lines with single spaces between their words, and without space around them.
func words(lines []string) []string {
	bare := make([]string, len(lines))
	for i, line := range lines {
		bare[i] = strings.Join(strings.Fields(line), " ")
	}
	return bare
}

// reindent indents the lines to insert before base[at] as the author indents their siblings or
// parents.
func reindent(base, kept []string, at int, inserted []string) []string {
	for len(inserted) > 0 && strings.TrimSpace(inserted[0]) == "" {
		inserted = inserted[1:] // the library adds a blank line after a comment
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

// around returns the index of the last line with at most that indentation, or -1.
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

// mergeJSON applies the difference between base and changed to the author's text. That text has the
// tokens of base, with other space and other escapes.
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
				space = changedSpaces[other] // a bracket that moved to a separate line
			}
			b.WriteString(space + authorTokens[next])
		}
	}
	for _, h := range edits(baseTokens, changedTokens) {
		h = startAtComma(h, changedTokens)
		keepUntil(h.PosX)
		for ; other < h.EndY; other++ {
			b.WriteString(changedSpaces[other] + changedTokens[other])
		}
		next = h.EndX
	}
	keepUntil(len(baseTokens))
	return b.String() + tail, true
}

// startAtComma moves an insertion of JSON tokens down so that it starts with a comma, if that gives
// the same text.
func startAtComma(h diff.Hunk[string], tokens []string) diff.Hunk[string] {
	for n := 0; h.PosX == h.EndX && n < h.EndY-h.PosY && h.EndY+n < len(tokens); n++ {
		if tokens[h.PosY+n] == "," {
			h.PosX, h.EndX, h.PosY, h.EndY = h.PosX+n, h.EndX+n, h.PosY+n, h.EndY+n
			break
		}
		if tokens[h.PosY+n] != tokens[h.EndY+n] {
			break
		}
	}
	return h
}

// tokens splits a JSON text into the tokens, the space before each of them, and the space after the
// last.
func tokens(text string) (spaces, tokens []string, tail string) {
	end := 0
	for _, at := range jsonToken.FindAllStringIndex(text, -1) {
		spaces, tokens = append(spaces, text[end:at[0]]), append(tokens, text[at[0]:at[1]])
		end = at[1]
	}
	return spaces, tokens, text[end:]
}

// lineEnding returns the line ending of the first line of a text.
func lineEnding(text string) string {
	if at := strings.IndexByte(text, '\n'); at > 0 && text[at-1] == '\r' {
		return "\r\n"
	}
	return "\n"
}

// withEndings returns a text with the line endings of another.
func withEndings(text, like string) string {
	if ending := lineEnding(like); ending != "\n" {
		return strings.ReplaceAll(text, "\n", ending)
	}
	return text
}
