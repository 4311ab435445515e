//go:build unix

package build

import (
	"os/exec"
	"syscall"
)

// endWithChildren makes the end of cmd's context that of the processes that cmd started, too: compilers and the linker.
func endWithChildren(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
}
