package cli

import (
	"strconv"
	"strings"

	"github.com/akv-injector/akv-injector/core/api"
)

// locate is where the author wrote what a path leads to: for an item among several lines, its own line.
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
	written := strings.Split(o.file.text, "\n")[line-1]
	return line, 1 + len(written) - len(strings.TrimLeft(written, " "))
}

// lineOf is the line, from 0, of an item of the inline form; -1 where the text is of the other form or has too few items.
func lineOf(item int, text string) int {
	if trimmed := strings.TrimSpace(text); trimmed == "" || strings.ContainsAny(trimmed[:1], "[{-") {
		return -1
	}
	for at, line := range strings.Split(text, "\n") {
		if strings.HasPrefix(strings.TrimSpace(line), "#") {
			continue
		}
		for one := range strings.SplitSeq(line, ",") {
			if strings.TrimSpace(one) == "" {
				continue
			}
			if item == 0 {
				return at
			}
			item--
		}
	}
	return -1
}
