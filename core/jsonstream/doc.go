// Package jsonstream reads a JSON text (RFC 8259) from a stream. The caller reads the members that
// it needs, and skips the others without keeping them in memory:
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
// Errors are sticky, as in [bufio.Scanner]: after the first error, every loop ends and every value
// is the zero value.
//
// The package does not encode JSON, and does not decode by reflection. In skipped values it only
// matches quotes and counts brackets; it does not validate them. To report all mistakes in a JSON
// text, use github.com/go-json-experiment/json.
package jsonstream
