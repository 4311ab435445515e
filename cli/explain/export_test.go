package explain

import "slices"

// CauseOf returns the cause of a text, if the driver must sync the Secrets needed.
func CauseOf(text string, needed ...string) *Cause {
	cause, _ := causeOf(text, func(secret string) bool { return slices.Contains(needed, secret) })
	return cause
}
