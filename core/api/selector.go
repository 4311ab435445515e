package api

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
)

// Selector picks containers by name. The zero value picks every one.
type Selector struct {
	// patterns are names and globs; one that starts with ! leaves out what it matches.
	patterns []string
}

var selectorPattern = regexp.MustCompile(`^[-0-9A-Za-z*?\[\]^]+$`)

// maxPatterns is how many names and globs a selector may have, maxPattern the length of each. The name of a container has 63 characters at
// most.
const (
	maxPatterns = 100
	maxPattern  = 253
)

// ParseSelector reads a list of container names, globs (as [path.Match] has them) and either with a ! before it.
func ParseSelector(patterns []string) (Selector, error) {
	if len(patterns) == 0 {
		return Selector{}, errors.New("must name at least one container; leave it out to select all")
	}
	if len(patterns) > maxPatterns {
		return Selector{}, fmt.Errorf("must have at most %d names; globs say more with less", maxPatterns)
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
			return Selector{}, errors.New("must be container names or globs, each with ! before it to leave it out, separated by commas")
		}
	}
	return Selector{patterns: patterns}, nil
}

// Len is the number of names and globs.
func (s Selector) Len() int {
	return len(s.patterns)
}

// All reports whether the selector picks every container without looking at its name.
func (s Selector) All() bool {
	return len(s.patterns) == 0
}

// Matches reports whether the container of that name is picked.
func (s Selector) Matches(name string) bool {
	picked := !slices.ContainsFunc(s.patterns, func(p string) bool { return p[0] != '!' })
	for _, pattern := range s.patterns {
		if pattern[0] == '!' {
			if match(pattern[1:], name) {
				return false
			}
			continue
		}
		picked = picked || match(pattern, name)
	}
	return picked
}

// Unmatched lists the patterns that match none of names, as they were written and in that order.
func (s Selector) Unmatched(names []string) []string {
	var unmatched []string
	for _, pattern := range s.patterns {
		if !slices.ContainsFunc(names, func(name string) bool { return match(strings.TrimPrefix(pattern, "!"), name) }) {
			unmatched = append(unmatched, pattern)
		}
	}
	return unmatched
}

// String is the selector as an annotation spells it.
func (s Selector) String() string {
	return strings.Join(s.patterns, ",")
}

// match is path.Match for a pattern that was checked when it was parsed.
func match(pattern, name string) bool {
	ok, err := path.Match(pattern, name)
	return err == nil && ok
}

// splitList splits a comma-separated list and drops the space around its elements.
func splitList(value string) []string {
	list := strings.Split(value, ",")
	for i := range list {
		list[i] = strings.TrimSpace(list[i])
	}
	return list
}
