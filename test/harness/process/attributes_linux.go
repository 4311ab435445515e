package process

import "syscall"

// childAttributes keeps an interrupt in the terminal from the servers, because Stop stops them in
// order. It also makes the kernel kill the servers if this process dies without calling Stop.
func childAttributes() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
}
