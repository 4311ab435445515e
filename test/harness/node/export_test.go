//go:build linux

package node

import (
	"fmt"
	"path/filepath"
	"syscall"
)

// Kill kills the part of the node whose program has that name.
func (n *Node) Kill(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, part := range n.parts {
		program, err := filepath.EvalSymlinks(fmt.Sprintf("/proc/%d/exe", part.PID()))
		if err == nil && filepath.Base(program) == name {
			return syscall.Kill(part.PID(), syscall.SIGKILL)
		}
	}
	return fmt.Errorf("%s does not run", name)
}
