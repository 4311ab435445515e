package api

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Selector selects containers by name. The zero value selects all containers.
type Selector struct {
	// patterns are names and globs. A pattern that starts with ! excludes what it matches.
	patterns []string
}

var selectorPattern = regexp.MustCompile(`^[-0-9A-Za-z*?\[\]^]+$`)

// maxPatterns is how many patterns a selector may have, and maxPattern is the length of the
// longest. The name of a container has at most 63 characters.
const (
	maxPatterns = 100
	maxPattern  = 253
)

// ParseSelector parses a list of container names and globs (see [path.Match]), each with an
// optional ! before it.
func ParseSelector(patterns []string) (Selector, error) {
	if len(patterns) == 0 {
		return Selector{}, errors.New("must name at least one container; omit it to select all")
	}
	if len(patterns) > maxPatterns {
		return Selector{}, fmt.Errorf("must have at most %d names; use globs", maxPatterns)
	}
	for _, pattern := range patterns {
		name := strings.TrimPrefix(pattern, "!")
		switch {
		case name == "":
			return Selector{}, errors.New("must not have an empty name between commas")
		case len(name) > maxPattern:
			return Selector{}, fmt.Errorf("must have names of at most %d characters", maxPattern)
		}
		if _, err := path.Match(name, ""); err != nil || !selectorPattern.MatchString(name) {
			return Selector{}, errors.New("must be comma-separated container names or globs; " +
				"write ! before one to exclude what it matches")
		}
	}
	return Selector{patterns: patterns}, nil
}

// Len returns the number of patterns.
func (s Selector) Len() int {
	return len(s.patterns)
}

// All reports whether the selector has no pattern, and so selects all containers.
func (s Selector) All() bool {
	return len(s.patterns) == 0
}

// Matches reports whether the container of that name is selected. If all patterns start with !,
// those are the containers that no pattern matches.
func (s Selector) Matches(name string) bool {
	selected := !slices.ContainsFunc(s.patterns, func(p string) bool { return p[0] != '!' })
	for _, pattern := range s.patterns {
		if pattern[0] == '!' {
			if match(pattern[1:], name) {
				return false
			}
			continue
		}
		selected = selected || match(pattern, name)
	}
	return selected
}

// Unmatched returns the patterns that match none of names, in the order in which they were written.
func (s Selector) Unmatched(names []string) []string {
	var unmatched []string
	for _, pattern := range s.patterns {
		if !slices.ContainsFunc(names, func(name string) bool { return match(strings.TrimPrefix(pattern, "!"), name) }) {
			unmatched = append(unmatched, pattern)
		}
	}
	return unmatched
}

// String returns the selector as it is written in an annotation.
func (s Selector) String() string {
	return strings.Join(s.patterns, ",")
}

// match is [path.Match] for a pattern that was checked when it was parsed.
func match(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// splitList splits a comma-separated list and removes the space around its elements.
func splitList(value string) []string {
	list := strings.Split(value, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
