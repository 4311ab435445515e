// Package jsonstream reads a JSON text (RFC 8259) as it arrives. The caller keeps the members that it needs, and skips the others
// without holding them in memory:
//
//	for name := range r.Members {
//		switch string(name) {
//		case "name":
//			c.Name = r.Text(253)
//		case "env":
//			c.Env = jsonstream.List(r, (*EnvVar).read)
//		default:
//			r.Skip()
//		}
//	}
//	if err := r.Err(); err != nil {
//
// Errors are sticky, as in [bufio.Scanner]: after the first one every loop ends and every value is the zero value.
//
// The package neither encodes JSON nor decodes by reflection, and it does not validate what it skips beyond matching quotes and counting
// brackets. For JSON that a program's own user wrote, use github.com/go-json-experiment/json.
package jsonstream
