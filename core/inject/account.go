package inject

import (
	"cmp"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/core/facts"
	"github.com/akv-injector/akv-injector/core/pods"
)

// The mount path of the token that the API server's ServiceAccount admission plugin adds, and the
// prefix of its volume's name (k8s.io/kubernetes/plugin/pkg/admission/serviceaccount).
const (
	apiTokenPath   = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // a path is no secret
	apiTokenPrefix = "kube-api-access-"
)

// leaveServiceAccount adds to a change the removal of what the ServiceAccount admission plugin
// added for the default ServiceAccount, if the pod gets another one. The plugin runs again after
// the injector and adds what the new ServiceAccount needs, but removes nothing. If the pod names no
// ServiceAccount, the plugin has not run yet.
func (p *Plan) leaveServiceAccount(change Change, answer *facts.Answer) Change {
	spec := &p.subject.Spec
	if change.ServiceAccountName == "" || p.subject.Root.Path != nil ||
		spec.ServiceAccountName != pods.DefaultServiceAccount {
		return change
	}
	if left := answer.ServiceAccount; left != nil && len(left.PullSecrets) > 0 {
		change.RemovePullSecrets = slices.Equal(left.PullSecrets, spec.PullSecrets)
	}
	token := slices.IndexFunc(spec.Volumes, func(v pods.Volume) bool {
		return v.IsAPIToken && strings.HasPrefix(v.Name, apiTokenPrefix)
	})
	if token < 0 || spec.HasAutomount {
		return change
	}
	changes := slices.Clone(change.Containers)
	for _, c := range containersOf(spec) {
		for i := len(c.Mounts) - 1; i >= 0; i-- {
			m := &c.Mounts[i]
			switch {
			case m.Volume != spec.Volumes[token].Name:
			case m.Path != apiTokenPath || m.Part:
				return change // the author of the pod uses the volume
			default:
				of := changeOf(&changes, c.init, c.index)
				of.RemoveMounts = append(of.RemoveMounts, i)
			}
		}
	}
	change.RemoveVolumes, change.Containers = []int{token}, changes
	return change
}

// changeOf returns the change of a container from a list in the order of the pod. It inserts one if
// the list has none.
func changeOf(list *[]ContainerChange, init bool, index int) *ContainerChange {
	order := func(c ContainerChange, _ struct{}) int {
		if c.Init != init {
			if c.Init {
				return -1
			}
			return 1
		}
		return cmp.Compare(c.Index, index)
	}
	at, found := slices.BinarySearchFunc(*list, struct{}{}, order)
	if !found {
		*list = slices.Insert(*list, at, ContainerChange{Init: init, Index: index})
	}
	return &(*list)[at]
}
