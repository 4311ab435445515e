// Package preview runs the core offline over manifests: [Inject] prints them as they would be stored, [Lint] says what is wrong
// with them. The objects among the manifests are each other's facts; a cluster may supply what they leave open.
//
// A workload's annotations are copied to its pod template, and the template is injected like the pod that it makes, so that what is
// printed works in a cluster without the injector. What the author wrote stays as it was written: documents that nothing
// changes byte for byte, the others but for the change.
//
// It knows nothing of flags or of how a cluster is reached, and holds no rule of the contract.
package cli
