//go:build unix

package build

import (
	"os/exec"
	"syscall"
)

// endWithChildren makes cmd's context also end the processes that cmd starts: compilers and the
// linker.
func endWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
