// Package lines tells texts apart, line by line.
//
// It knows nothing of what the lines mean.
package lines

import (
	"slices"
	"strings"
)

// Edit replaces a[Start:End] by b[OtherStart:OtherEnd].
type Edit struct {
	Start, End, OtherStart, OtherEnd int
}

// maxDistance bounds the work: texts that differ in more lines than that are told apart as a whole, between what they begin and end
// with alike.
const maxDistance = 2000

// Diff lists the fewest edits that make b of a, in their order (E. W. Myers, An O(ND) Difference Algorithm, 1986).
func Diff(a, b []string) []Edit {
	prefix := 0
	for prefix < len(a) && prefix < len(b) && a[prefix] == b[prefix] {
		prefix++
	}
	endA, endB := len(a), len(b)
	for endA > prefix && endB > prefix && a[endA-1] == b[endB-1] {
		endA, endB = endA-1, endB-1
	}
	if prefix == endA && prefix == endB {
		return nil
	}
	edits, ok := shortest(a[prefix:endA], b[prefix:endB])
	if !ok {
		return []Edit{{prefix, endA, prefix, endB}}
	}
	for i := range edits {
		edits[i].Start, edits[i].End = edits[i].Start+prefix, edits[i].End+prefix
		edits[i].OtherStart, edits[i].OtherEnd = edits[i].OtherStart+prefix, edits[i].OtherEnd+prefix
	}
	return edits
}

// shortest walks the diagonals k = x - y: furthest[k+offset] is the greatest x that d edits reach there.
func shortest(a, b []string) ([]Edit, bool) {
	limit := min(len(a)+len(b), maxDistance)
	offset := limit + 1
	furthest := make([]int, 2*limit+3)
	var rounds [][]int
	for d := 0; d <= limit; d++ {
		rounds = append(rounds, slices.Clone(furthest[offset-d:offset+d+1]))
		for k := -d; k <= d; k += 2 {
			x := furthest[offset+k-1] + 1
			if k == -d || (k != d && furthest[offset+k+1] > furthest[offset+k-1]) {
				x = furthest[offset+k+1]
			}
			for x < len(a) && x-k < len(b) && a[x] == b[x-k] {
				x++
			}
			furthest[offset+k] = x
			if x >= len(a) && x-k >= len(b) {
				return backtrack(rounds, len(a), len(b)), true
			}
		}
	}
	return nil, false
}

// backtrack reads the way from the ends of both texts to their starts out of what each round began with.
func backtrack(rounds [][]int, x, y int) []Edit {
	var edits []Edit
	for d := len(rounds) - 1; d > 0; d-- {
		before := func(k int) int { return rounds[d][k+d] }
		k := x - y
		down := k == -d || (k != d && before(k+1) > before(k-1))
		fromX, fromY := 0, 0
		edit := Edit{}
		if down {
			fromX = before(k + 1)
			fromY = fromX - k - 1
			edit = Edit{fromX, fromX, fromY, fromY + 1}
		} else {
			fromX = before(k - 1)
			fromY = fromX - k + 1
			edit = Edit{fromX, fromX + 1, fromY, fromY}
		}
		if n := len(edits); n > 0 && edits[n-1].Start == edit.End && edits[n-1].OtherStart == edit.OtherEnd {
			edits[n-1].Start, edits[n-1].OtherStart = edit.Start, edit.OtherStart
		} else {
			edits = append(edits, edit)
		}
		x, y = fromX, fromY
	}
	slices.Reverse(edits)
	return edits
}

// Split cuts a text after each newline.
func Split(text string) []string {
	split := strings.SplitAfter(text, "\n")
	if split[len(split)-1] == "" {
		split = split[:len(split)-1]
	}
	return split
}
