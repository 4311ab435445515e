package cli

import (
	"strconv"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
)

// locate returns where the value at a path was written. For an item of a value with several lines,
// that is the line of the item.
func (o *object) locate(path string) (line, column int) {
	line, column = o.document.Locate(path)
	const secrets = "[" + api.Secrets + "]"
	before, rest, ok := strings.Cut(path, secrets+"[")
	if !ok {
		return line, column
	}
	number, _, _ := strings.Cut(rest, "]")
	item, err := strconv.Atoi(number)
	if err != nil {
		return line, column
	}
	text, first := o.document.Block(before + secrets)
	at := lineOf(item, text)
	if first == 0 || at < 0 {
		return line, column
	}
	line = first + at
	written := o.document.Line(line)
	return line, 1 + len(written) - len(strings.TrimLeft(written, " "))
}

// lineOf returns the line, counted from 0, of an item of the inline form; -1 if the text is in the
// structured form or has too few items.
func lineOf(item int, text string) int {
	for line := range api.InlineItems(text) {
		if item == 0 {
			return line
		}
		item--
	}
	return -1
}
