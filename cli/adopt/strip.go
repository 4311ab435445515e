package adopt

import (
	"slices"

	"gomodules.xyz/jsonpatch/v2"

	"github.com/akv-injector/akv-injector/core/api"
)

// Strip appends to a JSON Patch of an object what removes the labels and annotations of the
// injector from the object and its pod, whose path is pod.
func Strip(object map[string]any, pod []string, operations []jsonpatch.Operation) ([]jsonpatch.Operation, error) {
	patched, err := apply(object, operations)
	if err != nil {
		return nil, err
	}
	a := adoption{pod: patched}
	var paths [][]string
	owners := [][]string{{}, {"spec", "jobTemplate"}}
	if len(pod) > 0 {
		owners = append(owners, pod)
	}
	for _, owner := range owners {
		for _, of := range []string{"labels", "annotations"} {
			at := slices.Concat(owner, []string{"metadata", of})
			marks, _ := nested(patched, at)
			for _, key := range sortedKeys(marks) {
				if api.IsOurs(key) {
					paths = append(paths, slices.Concat(at, []string{key}))
				}
			}
		}
	}
	return append(slices.Clip(operations), a.removals(paths)...), nil
}
