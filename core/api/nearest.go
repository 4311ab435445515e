package api

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// maxNearest is how many names an error offers.
const maxNearest = 3

// maxCompared bounds the work of comparing names: the sum of the products of their lengths.
const maxCompared = 1 << 20

// Nearest picks the names that name may have been meant to be, nearest first, at most three. Of very many or very long names it does not look
// at all.
func Nearest(name string, names []string) []string {
	if name == "" {
		return nil
	}
	type candidate struct {
		name     string
		distance int
	}
	var found []candidate
	lower, farthest, work := strings.ToLower(name), max(2, len(name)/4), 0
	for _, n := range names {
		if diff := len(n) - len(name); diff > farthest || -diff > farthest {
			continue
		}
		if work += len(n) * len(name); work > maxCompared {
			break
		}
		if distance := levenshtein.ComputeDistance(lower, strings.ToLower(n)); distance <= farthest {
			found = append(found, candidate{n, distance})
		}
	}
	slices.SortStableFunc(found, func(a, b candidate) int {
		if a.distance != b.distance {
			return a.distance - b.distance
		}
		return strings.Compare(a.name, b.name)
	})
	var nearest []string
	for _, c := range found[:min(len(found), maxNearest)] {
		if c.distance <= found[0].distance+1 {
			nearest = append(nearest, c.name)
		}
	}
	return nearest
}

// nearestKeys picks the annotations that key may have been meant to be. What is misspelt is the part after the prefix, or the
// prefix is the other one.
func nearestKeys(key string, onNamespace bool) []string {
	_, key, _ = strings.Cut(key, "/")
	whole := make(map[string]string, len(Keys))
	var names []string
	for i := range Keys {
		if i != status {
			_, name, _ := strings.Cut(Keys[i].Name, "/")
			whole[name], names = Keys[i].Name, append(names, name)
		}
	}
	if onNamespace {
		for _, known := range NamespaceAnnotations {
			_, name, _ := strings.Cut(known, "/")
			whole[name], names = known, append(names, name)
		}
	}
	nearest := Nearest(key, names)
	for i := range nearest {
		nearest[i] = whole[nearest[i]]
	}
	return nearest
}

// didYouMean is the end of a sentence about a name that is not among known.
func didYouMean(nearest, known []string) string {
	if len(nearest) > 0 {
		return "; did you mean " + strings.Join(nearest, " or ") + "?"
	}
	return "; known: " + strings.Join(known, ", ")
}

// maxAvailable is how many names of what exists an error lists.
const maxAvailable = 10

// Available is the end of a sentence about a name that does not exist: the nearest names that do, else those that there
// are, or that there are none. Kind is what they are names of.
func Available(name, kind string, names []string) string {
	if nearest := Nearest(name, names); len(nearest) > 0 {
		return didYouMean(nearest, nil)
	}
	if len(names) == 0 {
		return "; there is no " + kind + " here"
	}
	sorted := slices.Sorted(slices.Values(names))
	if len(sorted) > maxAvailable {
		return "; available here: " + strings.Join(sorted[:maxAvailable], ", ") + ", …"
	}
	return "; available here: " + strings.Join(sorted, ", ")
}
