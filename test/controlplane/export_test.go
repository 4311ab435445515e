package controlplane

// PIDs returns the process ids of the servers.
func (c *ControlPlane) PIDs() []int {
	var pids []int
	for _, p := range c.servers {
		pids = append(pids, p.PID())
	}
	return pids
}

// Addresses returns what the servers listen on.
func (c *ControlPlane) Addresses() []string { return c.addresses }
