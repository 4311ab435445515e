// Package api is the vocabulary of akv-injector: the annotation and label keys that people write, the Request that
// they amount to, and the Reasons by which a request is refused or warned about.
//
// It is pure: it knows nothing of pods, clusters, HTTP or logs. What it is given, it parses; what it can't accept, it
// answers with every mistake at once.
package api
