package process

import "syscall"

// childAttributes keeps a terminal's interrupt from the servers, which Stop ends in their order, and has the kernel end
// them should this process die without calling it.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
