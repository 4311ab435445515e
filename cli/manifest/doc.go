// Package manifest applies JSON Patches to YAML and JSON documents and keeps the rest of their
// text: comments, the order of keys, quotes and blank lines.
//
//	for _, d := range manifest.Split(text) {
//		patched, dropped, err := d.Patch(operations)
//
// It does not interpret the documents: they may be of any kind.
package manifest
