// Package inject is the core: given a pod, what its annotations ask for and the facts of its cluster, it decides what the
// pod gets, and says so as operations that add to the pod what is missing.
//
// It is pure: it knows nothing of HTTP, clients, caches or logs, and changes nothing that it is given. The webhook, the command line
// and the tests all ask it the same way:
//
//	plan := inject.NewPlan(subject, namespace, defaults) // what is asked for
//	facts := lookUp(plan.Needs())                         // what there is, from wherever the caller has it
//	result := plan.Decide(facts)                          // what comes of it
package inject
