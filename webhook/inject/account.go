package inject

import (
	"cmp"
	"slices"
	"strings"

	"github.com/akv-injector/akv-injector/webhook/pods"
)

// Where the API server's ServiceAccount admission plugin mounts a token, and how it names the volume
// (k8s.io/kubernetes/plugin/pkg/admission/serviceaccount).
const (
	apiTokenPath   = "/var/run/secrets/kubernetes.io/serviceaccount" //nolint:gosec // a path is no secret
	apiTokenPrefix = "kube-api-access-"
)

// leaveServiceAccount removes what the ServiceAccount admission plugin added for the default ServiceAccount, where the pod gets another one. The plugin
// runs again after the injector and adds what the new one asks for, but removes nothing. It has not run yet where a pod names no ServiceAccount.
func (d *decision) leaveServiceAccount() {
	spec := &d.subject.Spec
	if d.Change.ServiceAccountName == "" || d.subject.Root.Path != nil || spec.ServiceAccountName != defaultServiceAccount {
		return
	}
	if left := d.facts.ServiceAccount; left != nil && len(left.PullSecrets) > 0 {
		d.Change.RemovePullSecrets = slices.Equal(left.PullSecrets, spec.PullSecrets)
	}
	token := slices.IndexFunc(spec.Volumes, func(v pods.Volume) bool { return v.IsAPIToken && strings.HasPrefix(v.Name, apiTokenPrefix) })
	if token < 0 || spec.HasAutomount {
		return
	}
	changes := slices.Clone(d.Change.Containers)
	for _, init := range []bool{true, false} {
		list := spec.Containers
		if init {
			list = spec.InitContainers
		}
		for index := range list {
			for i := len(list[index].Mounts) - 1; i >= 0; i-- {
				m := &list[index].Mounts[i]
				switch {
				case m.Volume != spec.Volumes[token].Name:
				case m.Path != apiTokenPath || m.Part:
					return // the pod's author uses the volume
				default:
					c := changeOf(&changes, init, index)
					c.RemoveMounts = append(c.RemoveMounts, i)
				}
			}
		}
	}
	d.Change.RemoveVolumes, d.Change.Containers = []int{token}, changes
}

// changeOf is the change of a container in a list in the order of the pod, which gets one if it has none.
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
