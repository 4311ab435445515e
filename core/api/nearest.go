package api

import (
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// maxNearest is how many names an error suggests.
const maxNearest = 3

// maxCompared limits the work of comparing names: the sum of the products of their lengths.
const maxCompared = 1 << 20

// Nearest returns at most three of names that are similar to name, the most similar first. It
// ignores case. If there are very many or very long names, it compares only the first ones.
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
	found = slices.Compact(found) // two objects may offer one name
	var nearest []string
	for _, c := range found[:min(len(found), maxNearest)] {
		if c.distance <= found[0].distance+1 {
			nearest = append(nearest, c.name)
		}
	}
	return nearest
}

// nearestKeys returns the annotations that are similar to key. It compares only the part after the
// prefix, so it also finds a key with the wrong one of the two prefixes.
func nearestKeys(key string, onNamespace bool) []string {
	_, key, _ = strings.Cut(key, "/")
	whole := make(map[string]string, len(Keys))
	var names []string
	for i := range Keys {
		if i != status && i != restartedFor {
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

// didYouMean returns the end of a message about a name that is not among known: the nearest names,
// or else all known ones.
func didYouMean(nearest, known []string) string {
	if len(nearest) > 0 {
		return "; did you mean " + strings.Join(nearest, " or ") + "?"
	}
	return "; known: " + strings.Join(known, ", ")
}

// maxAvailable is how many available names an error lists.
const maxAvailable = 10

// Available returns the end of a message about an object that does not exist: the nearest names, or
// else the first available names, or that there are none. Kind is the kind of the objects.
func Available(name, kind string, names []string) string {
	if nearest := Nearest(name, names); len(nearest) > 0 {
		return didYouMean(nearest, nil)
	}
	if len(names) == 0 {
		return "; there is no " + kind + " here"
	}
	sorted := slices.Compact(slices.Sorted(slices.Values(names)))
	if len(sorted) > maxAvailable {
		return "; available here: " + strings.Join(sorted[:maxAvailable], ", ") + ", …"
	}
	return "; available here: " + strings.Join(sorted, ", ")
}
