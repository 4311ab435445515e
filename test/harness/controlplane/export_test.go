package controlplane

import "github.com/akv-injector/akv-injector/test/harness/process"

// PIDs returns the process IDs of the servers.
func (c *ControlPlane) PIDs() []int {
	var pids []int
	for _, p := range []*process.Process{c.etcd, c.apiServer, c.controllers} {
		if p != nil {
			pids = append(pids, p.PID())
		}
	}
	return pids
}

// Addresses returns the addresses on which the servers listen.
func (c *ControlPlane) Addresses() []string { return c.addresses }
