// Package deploy has the manifests that install this version of the injector, as the chart renders
// them with its default values. The commands compare a cluster with them.
package deploy

import "embed"

// Kustomize has the files of deploy/kustomize: kustomize/mutating-webhook-configuration.yaml and the
// others.
//
//go:embed kustomize/*.yaml
var Kustomize embed.FS
