// Package manifest reads documents of YAML and JSON as their authors wrote them, and patches them so that all but the patch stays
// in their authors' own words: comments, key order, quotes and blank lines.
//
// It knows nothing of pods or of what the documents are for.
package manifest
